"""Shared pieces: one tiny trained run for all tests of the commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import settings

settings.register_profile("exact", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("exact")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["ANCESTRAL_STRICT"] = "1"  # see ancestral.runtime.side_tasks
os.environ["HF_HUB_OFFLINE"] = "1"  # read when datasets is imported


def run_command(*arguments):
    """Run `ancestral` in this process."""
    from ancestral.apps.cli.main import main

    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=True)


@pytest.fixture
def command():
    return run_command


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> Path:
    """A run of 30 updates on the 8x8 digits."""
    run = tmp_path_factory.mktemp("runs") / "digits"
    result = run_command("train", "digits", "--preset", "tiny", "--steps", 30, "--out", run, *TINY)
    assert result.exit_code == 0, result.output
    return run


@pytest.fixture(scope="session")
def colour_run(tmp_path_factory) -> Path:
    """A run of 30 updates on the 8x8 digits, each painted in a colour of its own."""
    import numpy as np

    datasets = pytest.importorskip("sklearn.datasets")
    folder = tmp_path_factory.mktemp("colour")
    paint = np.random.default_rng(0).uniform(0.2, 1, (1797, 1, 1, 3))
    np.save(folder / "digits.npy", (datasets.load_digits().images[..., None] / 16 * 255 * paint).astype(np.uint8))
    run = folder / "run"
    result = run_command("train", folder / "digits.npy", "--preset", "tiny", "--steps", 30, "--out", run, *TINY)
    assert result.exit_code == 0, result.output
    return run


RUNS = ("trained_run", "colour_run")  # grey and colour
TINY = ("--device", "cpu", "--set", "model.width=8", "--set", "train.batch_size=16", "--set", "train.snapshots=3")


@pytest.fixture(scope="session")
def cases(tmp_path_factory) -> Path:
    """The inputs on which something went wrong once, made on the spot."""
    make = Path(__file__).parents[2] / "shared" / "cases" / "make.py"
    if not make.is_file():
        pytest.skip(f"{make.parent} is not there")
    folder = tmp_path_factory.mktemp("cases")
    subprocess.run([sys.executable, make, folder], check=True, capture_output=True)
    return folder


def harness(name, count, seed):
    """What a harness of tests/ says, in a process and with a thread of its own."""
    command = [sys.executable, Path(__file__).parent / name, str(count), str(seed)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
