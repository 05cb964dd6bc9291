"""What a training says of itself at its end."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from ancestral.data.dataset import ImageSet
from ancestral.diffusion.objectives.statistics import Estimate
from ancestral.training import health
from ancestral.training import run as training_run
from conftest import run_command

grey_and_colour = pytest.mark.parametrize("channels", [1, 3])


def image_set(images):
    return ImageSet(images, None, (), tuple(map(str, range(len(images)))))


@grey_and_colour
def test_bits_of_a_gaussian_for_each_pixel(channels):
    """Against scipy: the mass between the edges of each byte, open at both ends, by each pixel's own moments."""
    random = np.random.default_rng(0)
    centre, spread = random.integers(60, 200, (4, 4, channels)), random.integers(5, 40, (4, 4, channels))
    train, shown = (
        np.clip(centre + spread * random.standard_normal((count, 4, 4, channels)), 0, 255).astype(np.uint8)
        for count in (200, 6)
    )
    shown[0, 0, 0], shown[1, 0, 0], train[:, 3, 3], shown[:, 3, 3] = 0, 255, 77, 77
    mean, std = train.mean(0), np.maximum(train.std(0), 1.0)  # a pixel that never changes: one byte
    upper = norm.cdf(np.where(shown == 255, np.inf, (shown + 0.5 - mean) / std))
    lower = norm.cdf(np.where(shown == 0, -np.inf, (shown - 0.5 - mean) / std))
    expected = -np.log2((1 - 2.0**-16) * (upper - lower) + 2.0**-24).mean((1, 2, 3))
    found = health.gaussian_bits(image_set(train), image_set(shown))
    assert torch.allclose(found, torch.from_numpy(expected), rtol=1e-6)
    # A byte at the mean of a pixel that never changes: P(|z| < 1/2).
    still = image_set(np.full((10, 4, 4, channels), 77, np.uint8))
    assert health.gaussian_bits(still, still)[0] == pytest.approx(-math.log2(math.erf(0.5**1.5)), abs=1e-4)


@pytest.mark.parametrize(("more", "worse"), [(0.3, True), (0.19, False), (-0.3, False)])
def test_worse_is_beyond_two_errors(more, worse):
    assert health.Compared(3.0, Estimate(more, 0.1)).worse == worse


@pytest.mark.parametrize("falls", [True, False])
def test_a_loss_that_falls_and_one_that_does_not(falls):
    losses = 1 - falls * np.linspace(0, 0.5, 100) + 0.05 * np.random.default_rng(1).standard_normal(100)
    first, last = health.ends(losses.tolist())
    assert first is not None
    assert first.value == pytest.approx(losses[:20].mean())
    assert first.error == pytest.approx(losses[:20].std(ddof=1) / 20**0.5)
    found = health.Health(first, last, 0, None, {}).findings
    assert [one.startswith("its loss never fell") for one in found] == [True] * (not falls)
    assert health.ends([1.0] * 9) == (None, None)


def test_a_loss_that_falls_at_once_has_fallen():
    """Most of the first fifth lies on the way down, so that its spread is larger than the fall of its mean."""
    losses = 0.08 + np.exp(-np.arange(100.0)) + 0.001 * np.random.default_rng(1).standard_normal(100)
    first, last = health.ends(losses.tolist())
    assert first is not None
    assert last is not None
    assert first.value - last.value < 2 * first.error
    assert health.Health(first, last, 0, None, {}).findings == []


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def one_brightness(request, tmp_path_factory):
    """Images of one brightness each and a little noise: a pixel alone says little, PNG cannot use it, a model can."""
    random = np.random.default_rng(0)
    level = random.integers(80, 176, (160, 1, 1, 1))
    images = np.clip(level + 4 * random.standard_normal((160, 8, 8, request.param)), 0, 255).round().astype(np.uint8)
    path = tmp_path_factory.mktemp("health") / "x.npz"
    np.savez(path, train_images=images[:128], test_images=images[128:])
    return path


def ended(source, out, *options):
    small = ("--device", "cpu", "--set", "model.width=8", "--set", "train.snapshots=1")
    result = run_command("train", source, "--preset", "tiny", "--out", out, *small, *options)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_a_run_that_does_not_learn_says_so(one_brightness, tmp_path):
    run = tmp_path / "run"
    said = ended(one_brightness, run, "--steps", 20, "--set", "train.learning_rate=1e-12")
    assert "warning: its loss never fell" in said
    assert "by a Gaussian for each pixel" in said
    assert "train.learning_rate=1e-12 now" in said
    assert "now: ancestral sample" not in said
    kept = json.loads((run / "health.json").read_text())
    assert len(kept["findings"]) >= 2
    assert kept["images"] == 32


def test_a_run_that_learns_goes_on_to_draw(one_brightness, tmp_path):
    run = tmp_path / "run"
    said = ended(one_brightness, run, "--steps", 150)
    assert "now: ancestral sample" in said, said
    kept = json.loads((run / "health.json").read_text())
    assert kept["findings"] == []
    assert kept["loss_at_last"][0] < kept["loss_at_first"][0]


def test_a_measurement_that_fails_is_left_out(one_brightness, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("no room")

    monkeypatch.setattr(training_run, "health", broken)
    said = ended(one_brightness, tmp_path / "run", "--steps", 2)
    assert "health: left out" in said
    assert "now: ancestral sample" in said
    assert not (tmp_path / "run" / "health.json").exists()
