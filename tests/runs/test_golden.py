"""A run folder that version 0.1 wrote is read by every later one: never write it anew.

It is `ancestral train digits --preset tiny --device cpu --steps 4` of a network of 4,200 weights, without its plots.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import ancestral

GOLDEN = Path(__file__).parents[1] / "golden" / "run"
WHOLE = GOLDEN / "checkpoints" / "000000032"


@pytest.fixture
def run(tmp_path):
    return Path(shutil.copytree(GOLDEN, tmp_path / "run"))


def test_its_settings_and_weights_are_read_as_they_were_written(run):
    written = json.loads((GOLDEN / "config.json").read_text())
    model = ancestral.load(run, device="cpu")
    assert model.saved.config.diffusion.T == written["config"]["diffusion"]["T"] == 20
    assert model.saved.config.source == "digits"
    assert list(model.saved.facts.shape) == written["facts"]["shape"] == [1, 8, 8]
    stored = load_file(WHOLE / "model.safetensors")
    read = model.denoiser.network.state_dict()
    assert set(read) == set(stored)
    assert all(np.array_equal(read[name].numpy(), value) for name, value in stored.items())


def test_it_draws_and_is_measured(run, command):
    result = command("sample", run, "--num-images", 3, "--steps", 4, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert (run / "samples/grid.png").stat().st_size > 0
    pytest.importorskip("sklearn")
    result = command("evaluate", run, "--num-images", 4, "--terms", 4, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert 0 < json.loads((run / "evaluation.json").read_text())["bits_per_dim"]["bound, bits/dim"]["mean"] < 20


def test_it_goes_on(run, command):
    pytest.importorskip("sklearn")
    result = command("train", "digits", "--out", run, "--steps", "+4", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert (run / "checkpoints" / "000000064" / "model.safetensors").is_file()
