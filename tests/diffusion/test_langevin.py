"""Langevin steps: the stationary variance in closed form, the published algorithms in their own coordinates."""

import math

import pytest
import torch

from ancestral.diffusion.denoisers.analytic import Mixture, gaussian
from ancestral.diffusion.denoisers.denoiser import score
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.langevin import Langevin, PredictorCorrector, langevin
from ancestral.diffusion.samplers.loop import from_model, walk
from ancestral.diffusion.samplers.sample import finish, latents, trajectory
from ancestral.diffusion.samplers.transitions import DDIM, begin
from oracles import dataset

F64 = torch.float64


def mixture(noise_schedule):
    means = torch.tensor([[-1.0, 0.4], [0.6, -0.5], [0.2, 0.9]], dtype=F64)
    return Mixture(noise_schedule, means, torch.tensor([0.1, 0.2, 0.15], dtype=F64))


def stationary(oracle, t, share):
    """Mean and variance that repeated steps settle at: a step is linear in x, its slope is read off two points."""
    probes = torch.tensor([[0.0], [1.0]], dtype=F64)
    p = langevin(oracle.schedule, probes, oracle(probes, t), t, share)
    offset, slope = float(p.mean[0, 0]), float(p.mean[1, 0] - p.mean[0, 0])
    return offset / (1 - slope), float(p.var[0, 0]) / (1 - slope**2)


@pytest.mark.parametrize("t", [1, 20, 50])
def test_the_bias_of_a_step_on_a_gaussian(t):
    """x + h score + sqrt(2h) z on N(m, s^2) settles at N(m, s^2 / (1 - h / (2 s^2))): off by h / 2, of order one."""
    oracle = gaussian(schedules.cosine(50), torch.tensor([0.3], dtype=F64), 0.25)
    q = oracle.schedule
    true = float(q.alpha_bar(t) * 0.25 + q.noise_var(t))
    biases = []
    for share in (0.4, 0.2, 0.1, 0.05):
        h = share * float(q.noise_var(t))
        mean, variance = stationary(oracle, t, share)
        assert mean == pytest.approx(0.3 * float(q.signal(t)), abs=1e-10)
        assert variance == pytest.approx(true / (1 - h / (2 * true)), rel=1e-10)
        biases.append(variance - true)
    assert math.log2(biases[2] / biases[3]) == pytest.approx(1, abs=0.05)
    assert biases[3] == pytest.approx(0.05 * float(q.noise_var(t)) / 2, rel=0.05)


def test_the_drawn_variance_is_the_stationary_one():
    oracle, count, t, share = gaussian(schedules.cosine(50), torch.zeros(4, dtype=F64), 0.25), 1000, 30, 0.5
    x, noise = latents([4], 0, range(count)), Streams(0, "reverse", range(count))
    for _ in range(40):
        x = langevin(oracle.schedule, x, oracle(x, t), t, share).sample(noise.normal([4]))
    true = stationary(gaussian(oracle.schedule, torch.zeros(1, dtype=F64), 0.25), t, share)[1]
    exact = float(oracle.schedule.alpha_bar(t) * 0.25 + oracle.schedule.noise_var(t))
    assert float(x.square().mean()) == pytest.approx(true, rel=4.5 * (2 / x.numel()) ** 0.5)
    assert abs(true - exact) > 6 * exact * (2 / x.numel()) ** 0.5  # so that the bias is seen


VE = schedules.ve(12, 0.05, 20.0)


def test_the_ve_chain_is_geometric_in_sigma():
    sigma = (VE.noise(torch.arange(1, 13)) / VE.signal(torch.arange(1, 13))).log()
    expected = torch.linspace(math.log(0.05), math.log(20.0), 12, dtype=F64)  # Song et al. 2021, Appendix C
    assert torch.allclose(sigma, expected, atol=1e-12)


def literal_score(oracle, y, t):
    """grad log of the density of y = x0 + sigma z, by differentiating it."""
    x = (y * VE.signal(t)).requires_grad_()
    (slope,) = torch.autograd.grad(oracle.log_prob(x, t).sum(), x)
    return slope * VE.signal(t)


def with_noise(noise):
    """A draw that takes these numbers, and the mean where there is no variance."""
    numbers = iter(noise)
    return lambda move: move.p.sample(next(numbers)) if move.p.var.any() else move.p.mean


def test_annealed_langevin_is_algorithm_1_in_its_own_coordinates():
    """Song and Ermon 2019, Algorithm 1, with epsilon = 2 share sigma_L^2."""
    oracle, steps, share = mixture(VE), 3, 0.1
    x, noise = latents([2], 0, range(4)), [latents([2], 1 + place, range(4)) for place in range(36)]
    found = list(walk(oracle, x, grids.full(VE), Langevin(steps, share), with_noise(noise)))
    y, numbers, sigma = x / VE.signal(12), iter(noise), [float(VE.noise(t) / VE.signal(t)) for t in range(13)]
    epsilon = 2 * share * sigma[1] ** 2
    for t in range(12, 0, -1):
        alpha = epsilon * sigma[t] ** 2 / sigma[1] ** 2
        for _ in range(steps):
            y = y + alpha / 2 * literal_score(oracle, y, t) + alpha**0.5 * next(numbers)
    assert torch.allclose(found[-1].x_t / VE.signal(1), y, atol=1e-9)
    assert torch.allclose(found[-1].x_s, oracle(y * VE.signal(1), 1).x0, atol=1e-9)
    assert len(found) == 12 * steps + 1


def test_predictor_corrector_is_the_published_one_in_its_own_coordinates():
    """Song et al. 2021, Algorithm 2 with the ancestral predictor of the VE chain (Eq. 47) and Algorithm 4's steps.

    The norms are sqrt(D) for z and sqrt(D) / sigma for the score.
    """
    oracle, steps, snr = mixture(VE), 2, 0.3
    x, noise = latents([2], 0, range(4)), [latents([2], 1 + place, range(4)) for place in range(33)]
    found = list(walk(oracle, x, grids.full(VE), PredictorCorrector(steps=steps, snr=snr), with_noise(noise)))
    y, numbers, sigma = (
        x / VE.signal(12),
        iter(noise),
        [0.0, *(float(VE.noise(t) / VE.signal(t)) for t in range(1, 13))],
    )
    for t in range(12, 0, -1):
        s = t - 1
        fall = sigma[t] ** 2 - sigma[s] ** 2
        y = y + fall * literal_score(oracle, y, t)
        if s == 0:
            break
        y = y + (sigma[s] ** 2 * fall / sigma[t] ** 2) ** 0.5 * next(numbers)
        for _ in range(steps):
            g = literal_score(oracle, y, s)
            epsilon = 2 * (snr * 2**0.5 / (2**0.5 / sigma[s])) ** 2
            y = y + epsilon * g + (2 * epsilon) ** 0.5 * next(numbers)
    assert torch.allclose(found[-1].x_s, y, atol=1e-9)
    assert len(found) == 12 + 11 * steps


@pytest.mark.parametrize(
    ("method", "steps"), [(Langevin(8, 0.1), 60), (PredictorCorrector(steps=2, snr=0.2), 30)], ids=["langevin", "pc"]
)
def test_moments_of_what_is_drawn(method, steps):
    noise_schedule = schedules.ve(200, 0.01, 20.0)
    oracle, count = mixture(noise_schedule), 2000
    grid = grids.log_snr(noise_schedule, steps)
    drawn = finish(trajectory(oracle, latents([2], 0, range(count)), grid, method))
    true = oracle.sample(torch.Generator().manual_seed(0), 100_000)
    scale = true.std(0) / count**0.5
    assert bool(((drawn.mean(0) - true.mean(0)).abs() < 4.5 * scale).all())
    assert torch.allclose(drawn.T.cov(), true.T.cov(), atol=0.07)
    near = torch.cdist(drawn, oracle.means).argmin(1).bincount() / count
    expected = torch.cdist(true, oracle.means).argmin(1).bincount() / len(true)
    assert torch.allclose(near, expected, atol=0.06)


def far(drawn, true):
    """Mean distance of the quantiles: the Wasserstein-1 distance in one dimension."""
    u = (torch.arange(len(drawn), dtype=F64) + 0.5) / len(drawn)
    return float((drawn.flatten().sort().values - true.flatten().quantile(u)).abs().mean())


@pytest.mark.parametrize("predictor", [DDIM(1.0), DDIM(0.0)], ids=str)
def test_correcting_helps_the_same_few_predictor_steps(predictor):
    """At a lower level, where the data have a width of their own; each step is then two network calls."""
    noise_schedule, count, end = schedules.cosine(200), 2000, 10
    means, variances = torch.tensor([[-0.8], [0.6]], dtype=F64), torch.tensor([0.01, 0.04], dtype=F64)
    oracle = Mixture(noise_schedule, means, variances, torch.tensor([0.3, 0.7], dtype=F64))
    x0, noise = oracle.sample(torch.Generator().manual_seed(0), 20_000), Streams(0, "true", range(20_000))
    x, true = latents([1], 0, range(count)), noise_schedule.marginal(x0, end).sample(noise.normal([1]))
    for steps in (4, 8):
        grid = [round(end + (200 - end) * (1 - i / steps)) for i in range(steps + 1)]
        plain, corrected = (
            far(finish(walk(oracle, x, grid, method, from_model(Streams(0, "r", range(count))))), true)
            for method in (predictor, PredictorCorrector(predictor, snr=0.4))
        )
        assert corrected < 0.85 * plain, (steps, plain, corrected)


def test_the_size_of_a_score_is_that_of_the_noise_where_x0_is_nearly_known():
    points = torch.randn(20, 400, generator=torch.Generator().manual_seed(0), dtype=F64)
    oracle = dataset(VE, points)
    for t in (1, 4):
        x = VE.marginal(points, t).sample(Streams(0, "x", range(20)).normal([400]))
        size = score(oracle(x, t), VE, t).norm(dim=1) * VE.noise(t) / 400**0.5
        assert torch.allclose(size, torch.ones(20, dtype=F64), atol=0.2)
        assert float(size.mean()) == pytest.approx(1, abs=0.03)


def test_levels_are_visited_as_often_as_they_say():
    for grid, pc, annealed in (
        ([9, 5, 2, 0], [9, 5, 5, 5, 2, 2, 2, 0], [9, 9, 5, 5, 2, 2, 2, 0]),
        ([9, 0], [9, 0], [9, 9, 9, 0]),
        ([9, 4], [9, 4, 4, 4], [9, 9, 4, 4, 4]),
    ):
        assert begin(PredictorCorrector(steps=2), VE, grid)[1] == pc
        assert begin(Langevin(steps=2), VE, grid)[1] == annealed


def test_the_score_of_a_prediction_is_what_a_step_follows():
    oracle, x = mixture(VE), latents([2], 0, range(4))
    p = langevin(VE, x, oracle(x, 5), 5, 0.3)
    h = 0.3 * VE.noise_var(5)
    assert torch.allclose(p.mean, x + h * score(oracle(x, 5), VE, 5), atol=1e-12)
    assert torch.allclose(p.var, (2 * h).expand_as(x), atol=1e-12)
