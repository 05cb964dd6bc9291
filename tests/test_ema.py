"""Averages of the weights: their profiles in closed form, and other widths rebuilt from two."""

import numpy as np
import pytest
import torch

from ancestral.ema import PowerAverage, Snapshot, exponent, rebuild


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.27])
def test_exponent_gives_the_width(width):
    gamma = exponent(width)
    tau = np.linspace(0, 1, 2_000_001)
    profile = (gamma + 1) * tau**gamma
    mean = np.trapezoid(profile * tau, tau)
    assert np.trapezoid(profile, tau) == pytest.approx(1, abs=1e-4)
    assert np.sqrt(np.trapezoid(profile * (tau - mean) ** 2, tau)) == pytest.approx(width, rel=1e-3)


@pytest.mark.parametrize("width", [0, -0.1, 0.28, 1])
def test_impossible_widths(width):
    with pytest.raises(ValueError, match=r"\(0, 0\.28\)"):
        exponent(width)


def random_walk(steps):
    return torch.randn(steps, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(0)


def averaged(walk, width, keep=()):
    average, kept = PowerAverage(width, {"w": torch.zeros(5, dtype=torch.float64)}), []
    for n, weights in enumerate(walk, 1):
        average.update({"w": weights}, images=n * 8, step=8)
        if n in keep:
            kept.append(Snapshot(n * 8, width, {"w": average.weights["w"].clone()}))
    return average.weights["w"], kept


def test_the_running_average_is_the_power_profile():
    walk, width = random_walk(300), 0.1
    gamma = exponent(width)
    n = np.arange(1, 301)
    upper, lower = (n / 300) ** (gamma + 1), ((n - 1) / 300) ** (gamma + 1)  # the profile integrated over each step
    expected = (torch.from_numpy(upper - lower)[:, None] * walk).sum(0)
    assert torch.allclose(averaged(walk, width)[0], expected)


def test_other_widths_are_rebuilt():
    walk = random_walk(800)
    keep = range(100, 801, 100)
    snapshots = averaged(walk, 0.05, keep)[1] + averaged(walk, 0.1, keep)[1]
    own = averaged(walk, 0.1)[0]
    assert torch.allclose(rebuild(snapshots, 0.1)["w"], own, atol=1e-6)
    for width in (0.06, 0.075, 0.12):
        wanted = averaged(walk, width)[0]
        error = (rebuild(snapshots, width)["w"] - wanted).norm()
        nearest = min((averaged(walk, known)[0] - wanted).norm() for known in (0.05, 0.1))
        assert error < 0.05 * nearest, width
