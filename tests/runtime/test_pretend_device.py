"""Everything that computes runs on a device that is not there, of either kind; faults planted on purpose are caught.

No real device was there: that tensors meet, types exist and operators have kernels is tested, not what these compute.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ancestral.errors import UserError
from ancestral.runs import config
from ancestral.runs.facts import Facts
from ancestral.runtime.distributed import join
from ancestral.training.trainer import Training
from pretend_device import cases, device

EVERYWHERE = {"table_on_the_cpu", "missing_to", "to_numpy"}
PLANTED = {"cuda": EVERYWHERE, "mps": EVERYWHERE | {"double", "no_kernel"}}


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_everything_runs_on_a_pretended_device(tmp_path, kind):
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler, which makes the guard of the pretended device")
    guard = device.build(tmp_path, compiler)
    folder = Path(__file__).parents[1]
    arguments = (sys.executable, "-m", "pretend_device.cases", kind, guard, tmp_path)
    env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = {one["case"]: one for one in map(json.loads, done.stdout.splitlines())}
    expected = set(cases.commands(tmp_path))
    assert set(outcomes) >= expected - cases.seldom(kind, expected)
    planted = {name.removeprefix("planted ") for name, one in outcomes.items() if "planted" in name and one["wrong"]}
    assert planted == PLANTED[kind]
    wrong = {name: one["wrong"] for name, one in outcomes.items() if one["wrong"] and "planted" not in name}
    assert not wrong, "\n".join(f"{name}: {why}" for name, why in wrong.items())
    # A planted fault may come before any work; all else was on the device.
    assert all(one["counts"].get("kernels") for name, one in outcomes.items() if "planted" not in name)


def test_on_mps_activations_are_not_dropped_twice():
    """torch.utils.checkpoint puts back the generators of the CPU and of CUDA alone."""
    options = {"train.recompute": "true", "model.dropout": "0.1"}
    settings = config.resolve("digits", "tiny", options)
    with pytest.raises(UserError, match=r"train\.recompute=false or model\.dropout=0"):
        Training(settings, Facts(shape=(1, 8, 8)), torch.device("mps"))


def test_several_processes_on_mps_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--device cpu"):
        join(torch.device("mps"))
