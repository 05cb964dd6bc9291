"""Weights divided among processes (FSDP2): drawn as by one, saved by each, resumed by any number, damage, kills.

Beside it the ways to share gradients that keep weights whole, and what saves them in the background.
"""

import json
import threading

import pytest
import torch

from ancestral.runs.background_save import BackgroundWriter
from ancestral.runtime import tensor_shards
from ancestral.runtime.disk import Damaged
from ancestral.runtime.tensor_shards import Shards
from ancestral.runtime.verified_folder import Unwritable
from forked import several


def found_by(script, *arguments):
    """What a script of several processes has found, a document a line, and all that it printed."""
    said, errors = several(script, *arguments, seconds=300)
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")], said + errors


COMMON = """
import json, os, shutil, sys
from dataclasses import replace
from pathlib import Path
import torch, torch.distributed.fsdp, torch.distributed.tensor, torch.distributed.checkpoint
from ancestral.data.load import load
from ancestral.runs import checkpoint, config, divided_checkpoint
from ancestral.runtime import verified_folder
from ancestral.training.run import Run
import forked
from forked import in_processes

root, data = Path(sys.argv[1]), sys.argv[2]
plain = config.resolve(data, "tiny", {
    "model.width": "8", "model.multipliers": [1], "model.attention": [], "train.batch_size": "16", "data.limit": "64"
})
images = load(data, plain.data)

def settings(**train):
    return replace(plain, train=replace(plain.train, **{"parallel": "fsdp", "optimizer": "adamw", **train}))

def run_of(folder, processes, steps, **train):
    run = Run(folder, settings(**train), images, torch.device("cpu"), f"--images {steps}", processes, print)
    problems = run.resume()
    if run.needs_leg:
        run.begin(steps)
    return run, problems

def steps(run, count):
    for _ in range(count):
        run.training.step(images.train)

def state(folder):
    saved, problems = checkpoint.latest(folder)
    return {name: saved.tensors[name] for name in saved.tensors}, saved, problems

def largest(one, other):
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    pairs = ((one[name].double(), other[name].double()) for name in one)
    # Infinities, such as the lowest loss before there is one, are equal, and their difference is none.
    return max(float(torch.where(a == b, 0.0, (a - b).abs()).max()) for a, b in pairs)

def say(**found):
    forked.say(json.dumps(found))
"""
ACROSS = (
    COMMON
    + """
def begin(processes):
    run, _ = run_of(root / f"of-{processes.size}", processes, 160)
    run.save()
    steps(run, 1)
    run.save()
    steps(run, 1)  # goes on meanwhile
    run.writer.finish()

def go_on(processes):
    run, problems = run_of(target, processes, 160)
    assert not problems and run.training.images == 16, problems
    parts = run.training.parts()
    wrong = [name for name, (part, start) in parts.items()
             if not torch.equal(part, was[name][start : start + len(part)] if part.ndim else was[name])]
    say(kind="resumed", by=processes.size, of=target.name[:4], parts=len(parts), wrong=wrong,
        rows=sum(part.numel() for part, _ in parts.values()))
    steps(run, 1)

def first(folder):
    saved = checkpoint.load(folder / "checkpoints" / "000000000")
    return {name: saved.tensors[name] for name in saved.tensors}

for count in (1, 2, 4):
    assert in_processes(count, begin) == [0] * count
one, saved, _ = state(root / "of-1")
for count in (2, 4):
    several, saved, problems = state(root / f"of-{count}")
    files = sorted(path.name for path in saved.folder.iterdir())
    say(kind="saved", by=count, files=files, difference=largest(one, several), problems=problems,
        drawn=largest(first(root / "of-1"), first(root / f"of-{count}")))
for of, by in ((1, 2), (2, 1), (2, 4), (4, 2)):
    was = state(root / f"of-{of}")[0]
    target = root / f"of-{of}-by-{by}"
    shutil.copytree(root / f"of-{of}", target)
    assert in_processes(by, go_on) == [0] * by
"""
)


def test_any_number_of_processes_goes_on_with_what_any_number_has_saved(tmp_path, colour_digits):
    found, said = found_by(ACROSS, tmp_path, colour_digits)
    saved = [one for one in found if one["kind"] == "saved"]
    assert [one["by"] for one in saved] == [2, 4], said
    for one in saved:
        shards = [tensor_shards.file_name(rank) for rank in range(one["by"])]
        assert one["files"] == sorted(["config.json", "manifest.json", "state.json", *shards])
        assert one["difference"] < 1e-5
        assert one["drawn"] == 0
        assert not one["problems"]
    resumed = [one for one in found if one["kind"] == "resumed"]
    assert sorted((one["of"], one["by"]) for one in resumed) == sorted(
        (f"of-{of}", by) for of, by in ((1, 2), (2, 1), (2, 4), (4, 2)) for _ in range(by)
    ), said
    assert not any(one["wrong"] for one in resumed)  # to the bit
    whole = next(one["rows"] for one in resumed if one["by"] == 1)
    assert all(one["rows"] < 0.6 * whole for one in resumed if one["by"] > 1)  # nobody holds all


FAULTS = (
    COMMON
    + """
def save(processes):
    run, problems = run_of(root / "run", processes, 1600)
    if processes.first:
        say(kind="resumed", at=run.training.images, problems=problems)
    steps(run, 1)
    run.save()
    run.writer.finish()
    if doom == "killed" and processes.rank == 1:
        divided_checkpoint.tensor_shards.packed = lambda parts: os.kill(os.getpid(), 9)
    if doom == "full" and processes.rank == 1:
        def refuse(parts):
            raise OSError(28, "No space left on device")
        divided_checkpoint.tensor_shards.packed = refuse
    steps(run, 1)
    try:
        run.save()
        run.writer.finish()
    except verified_folder.Unwritable as error:
        say(kind="refused", rank=processes.rank, error=str(error))

def folders():
    return sorted(path.name for path in (root / "run" / "checkpoints").iterdir() if path.name.isdigit())

doom = "full"
say(kind="full", codes=in_processes(2, save), folders=folders())
doom = "killed"
say(kind="killed", codes=in_processes(2, save), folders=folders())
doom = ""
newest = root / "run" / "checkpoints" / folders()[-1] / divided_checkpoint.tensor_shards.file_name(1)
content = newest.read_bytes()
flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
for how, damage in (("flipped", flipped), ("cut", content[:-20]), ("gone", None)):
    newest.unlink(missing_ok=True)
    if damage is not None:
        newest.write_bytes(damage)
    saved, problems = checkpoint.latest(root / "run")
    say(kind="damaged", how=how, problems=problems, used=saved.folder.name, newest=newest.parent.name)
say(kind="after", codes=in_processes(4, save), folders=folders(),
    left=[path.name for path in (root / "run" / "checkpoints").iterdir() if not path.name.isdigit()])
"""
)


def test_a_divided_checkpoint_is_whole_or_the_one_before_it_is_used(tmp_path):
    pytest.importorskip("sklearn")
    found, said = found_by(FAULTS, tmp_path, "digits")
    kinds = {one["kind"]: one for one in found if one["kind"] not in ("refused", "damaged", "resumed")}
    refused = [one for one in found if one["kind"] == "refused"]
    assert sorted(one["rank"] for one in refused[:2]) == [0, 1], said
    assert all("No space left on device" in one["error"] for one in refused[:2])
    assert kinds["full"] == {"kind": "full", "codes": [0, 0], "folders": ["000000016"]}
    assert kinds["killed"]["codes"][1] == -9, said
    assert kinds["killed"]["folders"] == ["000000016", "000000032"]
    damaged = [one for one in found if one["kind"] == "damaged"]
    assert [one["how"] for one in damaged] == ["flipped", "cut", "gone"], said
    for one in damaged:
        assert (one["newest"], one["used"]) == ("000000032", "000000016")
        assert tensor_shards.file_name(1) in one["problems"][0]
    assert [one["at"] for one in found if one["kind"] == "resumed"] == [0, 16, 16]
    assert kinds["after"]["codes"] == [0, 0, 0, 0], said
    assert kinds["after"]["left"] == []


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch says that it is alone
def test_torch_reads_our_parts_and_we_read_torchs(tmp_path):
    from torch.distributed import checkpoint as dcp

    whole = {"a": torch.arange(15.0).reshape(5, 3), "b": torch.tensor(3), "c": torch.arange(2, dtype=torch.float64)}
    parts = [{"a": (whole["a"][:3], 0), "b": (whole["b"], 0), "c": (whole["c"][:1], 0)}]
    parts += [{"a": (whole["a"][3:], 3), "c": (whole["c"][1:], 1)}, {"c": (whole["c"][2:], 2)}]
    paths = [tmp_path / "ours" / tensor_shards.file_name(rank) for rank in range(3)]
    paths[0].parent.mkdir()
    for path, part in zip(paths, parts, strict=True):
        path.write_bytes(tensor_shards.packed(part))
    found = Shards.of(paths)
    read = {name: torch.zeros_like(value) for name, value in whole.items()}
    dcp.load(read, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path / "ours")), no_dist=True)
    writer = dcp.HuggingFaceStorageWriter(str(tmp_path / "torch"), save_distributed=True)
    dcp.save(whole, storage_writer=writer, no_dist=True)
    written = sorted((tmp_path / "torch").iterdir())
    assert [path.name for path in written] == [tensor_shards.file_name(0)]  # no other file, and no pickle
    theirs = Shards.of(written)
    for name, value in whole.items():
        assert torch.equal(found[name], value)
        assert torch.equal(read[name], value)
        assert torch.equal(theirs[name], value)
        assert found.shapes[name].shape == value.shape
    assert dict(found.under("a")).keys() == {""}
    kept = paths[1].read_bytes()
    paths[1].unlink()  # as when a newer checkpoint is written
    assert torch.equal(found["a"], whole["a"])
    paths[1].write_bytes(kept)
    with pytest.raises(Damaged, match=paths[1].name):  # the first part is not there
        Shards.of(paths[1:])
    paths[2].write_bytes(b"x")
    with pytest.raises(Damaged, match=paths[2].name):
        Shards.of(paths)


HALF = (
    COMMON
    + """
def gradients(run):
    return {name: value for name, value in run.training.tensors().items() if name.endswith("/exp_avg")}

def divided(processes):
    run, _ = run_of(root / "divided", processes, 160, precision="bfloat16")
    (layer, *_) = [one for one in run.training.network.modules() if isinstance(one, torch.nn.Conv2d)]
    seen = []
    layer.register_forward_pre_hook(lambda layer, _: seen.append(str(layer.weight.dtype)))
    steps(run, 1)
    kept, gradient = layer.weight, layer.weight.grad
    say(kind="types", gathered=seen, kept=str(kept.dtype), gradient=str(gradient.dtype),
        rows=len(kept.to_local()), of=len(kept))
    run.save()
    run.writer.finish()

assert in_processes(2, divided) == [0, 0]
found = {name: value for name, value in state(root / "divided")[0].items() if name.endswith("/exp_avg")}
alone = {}
for precision in ("float32", "bfloat16"):
    run, _ = run_of(root / precision, None, 160, precision=precision)
    steps(run, 1)
    alone[precision] = gradients(run)
exact = torch.cat([value.flatten() for value in alone["float32"].values()])
def error(other):
    assert other.keys() == alone["float32"].keys()
    return float((torch.cat([other[name].flatten() for name in alone["float32"]]) - exact).norm() / exact.norm())
say(kind="errors", divided=error(found), alone=error(alone["bfloat16"]))
"""
)


def test_weights_are_gathered_as_bfloat16_and_gradients_added_in_float32(tmp_path, colour_digits):
    found, said = found_by(HALF, tmp_path, colour_digits)
    types = [one for one in found if one["kind"] == "types"]
    assert len(types) == 2, said
    for one in types:
        assert set(one["gathered"]) == {"torch.bfloat16"}
        assert (one["kept"], one["gradient"]) == ("torch.float32", "torch.float32")
        assert 2 * one["rows"] == one["of"]
    (errors,) = [one for one in found if one["kind"] == "errors"]
    # bfloat16 has 8 bits: beside the exact gradient, about as far from it as one process is that multiplies in it.
    assert 0 < errors["divided"] < 2 * errors["alone"] < 0.1


WHOLE = (
    COMMON
    + """
written, engines = checkpoint.save, {}

def late(*given):
    time.sleep(0.5)
    written(*given)

def body(processes):
    checkpoint.save = late
    run, _ = run_of(root / parallel, processes, 160, **more)
    engines[parallel] = type(run.training.engine).__name__
    steps(run, 1)
    before = {name: value.clone() for name, value in run.training.tensors().items()}
    run.save()
    held = checkpoint.folders(root / parallel)
    steps(run, 1)  # goes on meanwhile
    run.writer.finish()
    if processes.first:
        found, saved, problems = state(root / parallel)
        say(kind="saved", engine=engines[parallel], held=len(held), at=saved.images, problems=problems,
            wrong=[name for name, value in before.items() if not torch.equal(value, found[name])])

import time
parts = {}
for parallel, channels_last in (("auto", True), ("all-reduce", False)):
    more = {"parallel": parallel, "channels_last": channels_last}
    assert in_processes(2, body) == [0, 0]
    parts[parallel] = state(root / parallel)[0]
say(kind="same", difference=largest(parts["auto"], parts["all-reduce"]))
"""
)


def test_whole_checkpoints_of_several_processes_are_written_while_they_go_on(tmp_path, colour_digits):
    found, said = found_by(WHOLE, tmp_path, colour_digits)
    saved = [one for one in found if one["kind"] == "saved"]
    assert [one["engine"] for one in saved] == ["Ddp", "Engine"], said
    for one in saved:
        assert (one["held"], one["at"], one["problems"], one["wrong"]) == (0, 16, [], [])
    assert found[-1]["difference"] < 1e-5  # gradients that overlap are the same to rounding, laid out either way


def test_what_a_write_in_the_background_met_is_said_once_and_the_next_is_begun():
    writer, done, go = BackgroundWriter(), [], threading.Event()

    def refused():
        go.wait(10)
        raise OSError(28, "No space left on device")

    writer.begin(refused)  # comes back at once
    go.set()
    with pytest.raises(Unwritable, match="No space left"):
        writer.begin(lambda: done.append(1))
    writer.finish()
    writer.finish()
    assert done == [1]
    writer.begin(lambda: done.append(2 / 0))
    with pytest.raises(Unwritable, match="ZeroDivisionError"):
        writer.finish()
    assert done == [1]
    go.clear()
    writer.begin(lambda: go.wait(10) and done.append(3))
    threading.Timer(0.1, go.set).start()
    writer.close()
    assert done == [1, 3]
