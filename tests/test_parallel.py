"""Several processes on one machine through torchrun and gloo: the same images, the same weights, one writer."""

import os
import subprocess
import sys

import pytest
import torch

from ancestral import checkpoint, parallel
from ancestral.errors import UserError
from ancestral.parallel import Processes, tree_sum
from conftest import TINY, run_command

pytest.importorskip("sklearn")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def train(processes, run, *options, steps=6):
    """`ancestral train` on so many processes, in processes of its own also when it is one."""
    arguments = ["train", "digits", "--preset", "tiny", "--steps", str(steps), *TINY, "--out", str(run), *options]
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "-m", "ancestral"]
    command = [sys.executable, *(launcher if processes > 1 else ["-m", "ancestral"]), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ONE_THREAD)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, checkpoint.latest(run)[0]


def test_two_processes_train_as_one_does(tmp_path):
    told, two = train(2, tmp_path / "two")
    _, one = train(1, tmp_path / "one")
    assert told.count("images of 8x8x1") == 1  # one of them speaks
    assert two.images == one.images == 6 * 16
    for name, value in one.tensors.items():
        assert torch.allclose(value, two.tensors[name], atol=1e-5), name
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert len(logs[0]) == len(logs[1])


def test_exact_mode_gives_the_same_bits_on_one_and_two_and_across_a_change(tmp_path):
    exact = ("--set", "train.exact_shards=4", "--set", "diffusion.times=loss-importance", "--set", "model.dropout=0.1")
    _, one = train(1, tmp_path / "one", *exact)
    _, two = train(2, tmp_path / "two", *exact)
    assert one.tensors.keys() == two.tensors.keys()
    for name, value in one.tensors.items():
        assert torch.equal(value, two.tensors[name]), name
    for name, value in one.weights.items():
        assert torch.equal(value, two.weights[name]), name
    # Drop the last checkpoint of the run on two and let one process finish it.
    newest = sorted((tmp_path / "two" / "checkpoints").iterdir())
    assert len(newest) == 2
    for path in newest[-1].iterdir():
        path.unlink()
    newest[-1].rmdir()
    _, continued = train(1, tmp_path / "two", *exact)
    assert all(torch.equal(value, continued.tensors[name]) for name, value in one.tensors.items())


def test_a_tree_has_one_order():
    parts = [torch.tensor(value) for value in (1e8, 1.0, -1e8, 1.0)]
    assert float(tree_sum(parts)) == float((parts[0] + parts[1]) + (parts[2] + parts[3]))
    halves = [tree_sum(parts[:2]), tree_sum(parts[2:])]
    assert torch.equal(tree_sum(halves), tree_sum(parts))


def test_shares_are_the_batch():
    shares = [list(Processes(rank, 4).share(range(100, 116))) for rank in range(4)]
    assert [number for share in shares for number in share] == list(range(100, 116))


@pytest.mark.parametrize(
    ("size", "batch", "shards", "named"),
    [(3, 16, None, "train.batch_size"), (2, 16, 3, "power of two"), (4, 16, 2, "multiple"), (1, 24, 16, "divides")],
)
def test_sizes_that_do_not_divide_are_refused(size, batch, shards, named):
    with pytest.raises(UserError, match=named):
        parallel.check(Processes(0, size), batch, shards)


def test_wrong_shards_are_one_line(tmp_path):
    options = ("--steps", 2, "--out", tmp_path / "run", "--set", "train.exact_shards=3")
    result = run_command("train", "digits", "--preset", "tiny", *TINY, *options)
    assert result.exit_code == 2
    assert "train.exact_shards: 3 must be a power of two" in result.output
