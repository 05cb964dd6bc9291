"""What processes say to each other: how a group is made, who is named when late, one call a step, one reader."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from ancestral.data import shared
from ancestral.errors import UserError
from ancestral.runtime import distributed, launch
from ancestral.training.gradient_sync import Fsdp
from forked import several


def test_on_a_gpu_the_device_is_set_first_and_named_and_the_cpu_has_gloo(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("set_device", str(device))))
    for name in ("init_process_group", "new_group"):
        monkeypatch.setattr(
            distributed.distributed, name, lambda *given, name=name, **options: calls.append((name, given, options))
        )
    monkeypatch.setattr(distributed.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(distributed.distributed, "get_rank", lambda: 3)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    joined = distributed.join(torch.device("cuda", 1))
    minutes, own = timedelta(minutes=10), torch.device("cuda:1")
    assert calls == [
        ("set_device", "cuda:1"),
        ("init_process_group", ("cpu:gloo,cuda:nccl",), {"timeout": minutes, "device_id": own}),
        ("new_group", (), {"timeout": minutes, "backend": "gloo"}),
        ("new_group", (), {"timeout": timedelta(days=1), "backend": "gloo"}),
    ]
    assert (joined.rank, joined.size, joined.local_rank) == (3, 4, 1)
    calls.clear()
    distributed.join(torch.device("cpu"))
    assert calls[0] == ("init_process_group", ("gloo",), {"timeout": minutes, "device_id": None})


def test_one_process_sets_its_gpu_and_several_have_one_each(monkeypatch):
    """torch's seeds are for the GPU that is set: with cuda:1 dropout would be another each time."""
    calls = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(str(device)))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.join(torch.device("cuda", 1)).size == 1
    assert calls == ["cuda:1"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match="--device cuda:0: each of the 2 processes has a GPU of its own"):
        distributed.join(torch.device("cuda", 0))


def test_weights_are_divided_on_the_device_that_computes(monkeypatch):
    """torch's own choice is the machine's accelerator, so that a CPU's weights would go through NCCL or not at all."""
    from torch import distributed as group

    monkeypatch.setattr(torch._C, "_get_accelerator", lambda: torch.device("cuda"))
    group.init_process_group("gloo", store=group.HashStore(), rank=0, world_size=1)
    try:
        linear, none = torch.nn.Linear(4, 2), torch.nn.Identity()
        Fsdp(linear, distributed.Processes(), none, torch.float32, torch.device("cpu"))
        assert linear.weight.device_mesh.device_type == "cpu"
        assert linear(torch.ones(1, 4)).shape == (1, 2)
    finally:
        group.destroy_process_group()


LATE = """
import time
from datetime import timedelta
import torch
from ancestral.errors import UserError
from forked import in_processes, say

def body(processes):
    if processes.rank == 2:
        time.sleep(9)
    try:
        processes.gather(torch.zeros(2)) if waits == "gather" else processes.wait()
    except UserError as error:
        say(waits, processes.rank, error)

for waits in ("gather", "barrier"):
    in_processes(3, body, patience=timedelta(seconds=1))
"""


def test_a_process_that_does_not_answer_is_named():
    said = several(LATE, seconds=120)[0].splitlines()
    for waits in ("gather", "barrier"):
        (first,) = [line for line in said if line.startswith(f"{waits} 0 ")]
        assert "process 2 (counted from 0) of the 3 does not answer" in first


SLOW = """
import time
from datetime import timedelta
from forked import in_processes, say

def body(processes):
    if processes.first:
        time.sleep(4)
    processes.wait_long()
    say("here", processes.rank)

in_processes(3, body, patience=timedelta(seconds=1))
"""


def test_all_wait_long_for_what_the_first_does_alone():
    assert sorted(several(SLOW, seconds=120)[0].split()) == ["0", "1", "2", "here", "here", "here"]


@pytest.mark.parametrize(("device", "left"), [("cpu", 2), ("cuda", 1)])
def test_after_a_fault_nobody_waits_for_what_others_send_through_nccl(monkeypatch, device, left):
    """Destroying the group waits for all that was begun on it, in which the others wait for this process."""
    calls = []
    monkeypatch.setattr(distributed, "join", lambda device, patience: distributed.Processes())
    monkeypatch.setattr(distributed, "leave", lambda: calls.append(device))
    with distributed.process_group(torch.device(device)):
        pass
    with pytest.raises(ZeroDivisionError), distributed.process_group(torch.device(device)):
        raise ZeroDivisionError
    assert len(calls) == left


@pytest.mark.parametrize(
    ("environment", "first", "apart"),
    [
        ({}, True, False),
        ({"RANK": "1"}, True, False),  # another launcher's
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_WORLD_SIZE": "2"}, True, False),
        ({"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}, False, True),
    ],
)
def test_the_first_process_speaks_for_all_machines(monkeypatch, environment, first, apart):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (launch.is_first(), launch.on_several_machines()) == (first, apart)


STEPS = """
import sys
from pathlib import Path
import torch
from torch import distributed
from ancestral.data.load import load
from ancestral.runs import config
from ancestral.training.run import Run
from forked import in_processes, say

counted = {}

def body(processes):
    for name in ("all_gather", "all_reduce", "barrier", "monitored_barrier", "broadcast"):
        def count(*given, call=getattr(distributed, name), name=name, **options):
            counted[name] = counted.get(name, 0) + 1
            return call(*given, **options)
        setattr(distributed, name, count)
    settings = config.resolve("digits", "tiny", {"model.width": "8", "train.batch_size": "16"})
    run = Run(Path(sys.argv[1]), settings, load("digits", settings.data), torch.device("cpu"), "--budget 6000",
              processes, budget=6000.0)
    run.begin(16 * 1000)
    run.pace.warming = False
    steps = run.train(lambda: False)
    taken = []
    record = run.training.step
    def step(*given):
        taken.append(dict(counted))
        if len(taken) > 6:
            raise KeyboardInterrupt
        return record(*given)
    run.training.step = step
    try:
        list(steps)
    except KeyboardInterrupt:
        pass
    if processes.first:
        say({name: count - taken[1].get(name, 0) for name, count in taken[5].items()})

say(in_processes(2, body))
"""


def test_a_step_gathers_once_and_adds_gradients_once(tmp_path):
    """Before: three gathers a step, and with a budget four; losses and flags went by themselves."""
    said = several(STEPS, tmp_path, seconds=120)[0].splitlines()
    counts = next(eval(line) for line in said if line.startswith("{"))
    assert {name: count for name, count in counts.items() if count} == {"all_gather": 4, "all_reduce": 4}, said


CACHE = """
import os, sys
from pathlib import Path
import numpy as np
from ancestral.data import decode, image_folder, load
from ancestral.data.dataset import DataOptions
from ancestral.data.shared import load_once
from forked import in_processes, say

root, cache, count, doomed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "killed"
options = DataOptions(cache=cache or None)
alone = load.load(str(root), DataOptions())
decoded = image_folder.decoded

def body(processes):
    seen = []
    def watched(*given, **named):
        seen.append(given[0])
        if doomed and len(seen) == 5:
            os.kill(os.getpid(), 9)
        return decoded(*given, **named)
    image_folder.decoded = watched
    found = load_once(processes, lambda: load.load(str(root), options), cache or None)
    for part, expected in ((found.train, alone.train), (found.test, alone.test)):
        assert isinstance(part.images.source, np.memmap)
        assert part.names == expected.names and part.class_names == expected.class_names
        assert np.array_equal(part.labels, expected.labels) and np.array_equal(part.images[:], expected.images[:])
        assert part.digest() == expected.digest()
    assert found.reading == alone.reading, (found.reading, alone.reading)
    say("decoded", processes.rank, len(seen))

say("codes", in_processes(count, body))
doomed = False
if sys.argv[4] == "killed":
    say("codes", in_processes(count, body))
say("left", sorted(one.name for one in Path(cache).iterdir() if not one.name.isalnum()) if cache else [])
"""


@pytest.mark.parametrize(("count", "cache", "how"), [(2, "cache", ""), (4, "cache", "killed"), (2, "", "")])
def test_one_process_reads_the_images_and_the_others_map_them(tmp_path, count, cache, how):
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for name in ("a/1", "a/2", "a/3", "b/1", "b/2", "b/3", "b/4", "b/5", "b/6", "b/7", "b/8"):
        pixels = torch.randint(0, 256, (4, 6, 3), generator=generator, dtype=torch.uint8).numpy()
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
    folder, kept = tmp_path / "images", cache and tmp_path / cache
    said = several(CACHE, folder, kept, count, how or "whole", seconds=120)[0].splitlines()
    decoded = {line.split()[1]: int(line.split()[2]) for line in said if line.startswith("decoded")}
    assert decoded == {"0": 11, **{str(rank): 0 for rank in range(1, count)}}
    codes = [line for line in said if line.startswith("codes")]
    assert codes[-1] == f"codes {[0] * count}"
    assert not how or "-9" in codes[0]
    assert "left []" in said


KILLED = """
import os, sys
from ancestral.data import shared
folder, lock = shared.temporary_folder(sys.argv[1])
open(folder + "/train.bin", "wb").write(b"images")
print(folder, flush=True)
sys.stdin.read(1)
os.kill(os.getpid(), 9)
"""


def test_images_that_a_killed_process_has_left_are_removed_by_the_next(tmp_path):
    line = [sys.executable, "-c", KILLED, str(tmp_path)]
    first = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        left = Path(first.stdout.readline().strip())
        own, lock = shared.temporary_folder(str(tmp_path))
        assert (left / "train.bin").read_bytes() == b"images"  # its process lives
        first.communicate("x", timeout=60)
    finally:
        first.kill()
    assert left.is_dir()
    other, _ = shared.temporary_folder(str(tmp_path))
    assert not left.exists()
    assert {str(path) for path in tmp_path.iterdir()} == {own, other}
    os.close(lock)
