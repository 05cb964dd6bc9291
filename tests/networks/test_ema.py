"""Averages of the weights: their profiles in closed form, and other widths rebuilt from two."""

import numpy as np
import pytest
import torch

from ancestral.networks.ema import PowerAverage, Snapshot, coefficients, exponent, rebuild


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
        target = averaged(walk, width)[0]
        error = (rebuild(snapshots, width)["w"] - target).norm()
        nearest = min((averaged(walk, known)[0] - target).norm() for known in (0.05, 0.1))
        assert error < 0.05 * nearest, width


@pytest.mark.parametrize("gamma", [0.0, 1.0, 6.94, 16.97, 200.0])
def test_exponent_undoes_the_width_formula(gamma):
    """width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), the variance of a Beta(gamma + 1, 1)."""
    width = ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5
    assert width < 0.28 if gamma else width > 0.28  # gamma = 0, the plain mean, is the widest of all
    if gamma:
        assert exponent(width) == pytest.approx(gamma, rel=1e-9)


def test_the_papers_exponents():
    """EDM2 states that widths 0.05 and 0.10 are gamma 16.97 and 6.94 (Karras et al. 2024, section 3.1)."""
    assert exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert exponent(0.10) == pytest.approx(6.94, abs=0.005)


def profile(time, gamma, tau):
    return np.where(tau <= time, (gamma + 1) * tau**gamma / time ** (gamma + 1), 0.0)


@pytest.mark.parametrize(
    "known", [[(1.0, 0.05), (1.0, 0.1)], [(0.5, 0.05), (0.7, 0.1), (1.0, 0.05), (1.0, 0.1)]], ids=len
)
@pytest.mark.parametrize("width", [0.04, 0.07, 0.15])
def test_coefficients_are_least_squares_by_quadrature(known, width):
    """The same fit with the profiles as columns of numbers; what is found makes the smallest distance there is."""
    tau = np.linspace(0, 1, 200_001)
    columns = np.stack([profile(time, exponent(w), tau) for time, w in known], 1)
    target = profile(1.0, exponent(width), tau)
    fit = np.linalg.lstsq(columns, target, rcond=None)[0]
    found = coefficients([(round(time * 1000), w) for time, w in known], 1000, width)
    assert found == pytest.approx(fit / fit.sum(), abs=2e-3 * abs(fit).max())
    distance = [np.trapezoid((columns @ c - target) ** 2, tau) for c in (found, *np.eye(len(known)))]
    assert distance[0] < min(distance[1:])


def test_one_snapshot_is_all_there_is():
    assert coefficients([(80, 0.1)], 80, 0.1) == pytest.approx([1.0])
    assert coefficients([(80, 0.1)], 80, 0.05) == pytest.approx([1.0])  # an average of weights sums to one


def test_a_stored_profile_is_itself():
    known = [(400, 0.05), (400, 0.1), (800, 0.05), (800, 0.1)]
    assert coefficients(known, 800, 0.1) == pytest.approx([0, 0, 0, 1], abs=1e-6)
    assert coefficients(known, 800, 0.05) == pytest.approx([0, 0, 1, 0], abs=1e-6)


def test_updates_need_not_be_equal():
    """Batches of any size: each weighs what the profile holds over its images."""
    walk, sizes, width = random_walk(40), np.random.default_rng(0).integers(1, 30, 40), 0.12
    average, seen = PowerAverage(width, {"w": torch.full((5,), 1e9, dtype=torch.float64)}), np.cumsum(sizes)
    for weights, images, step in zip(walk, seen, sizes, strict=True):
        average.update({"w": weights}, images=int(images), step=int(step))
    edges = (np.concatenate([[0], seen]) / seen[-1]) ** (exponent(width) + 1)
    expected = (torch.from_numpy(np.diff(edges))[:, None] * walk).sum(0)
    assert torch.allclose(average.weights["w"], expected)  # and nothing is left of the start


def test_weights_that_stand_still_are_their_own_average():
    fixed = torch.tensor([0.3, -2.0], dtype=torch.float64)
    average, kept = PowerAverage(0.1, {"w": torch.zeros(2, dtype=torch.float64)}), []
    for n in range(1, 101):
        average.update({"w": fixed}, images=n, step=1)
        if n % 25 == 0:
            kept.append(Snapshot(n, 0.1, {"w": average.weights["w"].clone()}))
    assert torch.allclose(average.weights["w"], fixed)
    assert torch.allclose(rebuild(kept, 0.2)["w"], fixed)


def test_types_are_kept_and_gradients_are_not():
    current = {"w": torch.ones(3, dtype=torch.float64, requires_grad=True)}
    average = PowerAverage(0.1, {"w": torch.zeros(3, dtype=torch.float32)})
    average.update(current, images=4, step=4)
    assert average.weights["w"].dtype == torch.float32
    assert not average.weights["w"].requires_grad
    assert torch.equal(average.weights["w"], torch.ones(3))
    snapshots = [Snapshot(4, width, {"w": torch.ones(3).bfloat16()}) for width in (0.05, 0.1)]
    assert rebuild(snapshots, 0.07)["w"].dtype == torch.bfloat16


def test_snapshots_may_come_in_any_order():
    walk = random_walk(300)
    snapshots = averaged(walk, 0.05, (100, 200, 300))[1] + averaged(walk, 0.1, (100, 200, 300))[1]
    assert torch.allclose(rebuild(snapshots, 0.08)["w"], rebuild(snapshots[::-1], 0.08)["w"], atol=1e-8)


@pytest.mark.parametrize("width", [0.0, 0.3])
def test_impossible_widths_cannot_be_rebuilt_or_kept(width):
    snapshots = [Snapshot(8, 0.1, {"w": torch.zeros(1)})]
    with pytest.raises(ValueError, match=r"\(0, 0\.28\)"):
        rebuild(snapshots, width)
    with pytest.raises(ValueError, match=r"\(0, 0\.28\)"):
        PowerAverage(width, {"w": torch.zeros(1)}).update({"w": torch.zeros(1)}, images=1, step=1)
