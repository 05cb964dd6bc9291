"""Losses and the times they are taken at."""

import pytest
import torch
from torch import nn

from ancestral import grids, schedule
from ancestral.bound import bound
from ancestral.denoiser import Denoiser, Prediction
from ancestral.gaussian import Normal
from ancestral.objective import (
    OBJECTIVES,
    Hybrid,
    VariationalBound,
    Weighted,
    bound_term,
    bound_weight,
    min_snr,
    p2,
    unweighted,
)
from ancestral.reverse import Ancestral, learned, small
from ancestral.rng import Streams
from ancestral.target import EPS, SCORE, TARGETS, X0, V
from ancestral.times import UNIFORMS, LossImportance, TimeSampler

F64 = torch.float64
SCHEDULE = schedule.linear(20)


class Affine(nn.Module):
    """The smallest network with a mean and, if asked, a variance."""

    def __init__(self, outputs=2):
        super().__init__()
        self.conv = nn.Conv2d(2, outputs, 1).double()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=F64) * 0.3)

    def forward(self, x, time):
        return self.conv(x)


def batch(count=6):
    generator = torch.Generator().manual_seed(4)
    levels = torch.randint(0, 256, (count, 2, 3, 3), generator=generator)
    t = torch.tensor([1, 1, 2, 7, 19, 20])[:count]
    return levels.double() / 127.5 - 1, t, t - 1, torch.randn(count, 2, 3, 3, generator=generator, dtype=F64)


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_serves_every_target(name, target):
    variance = learned if name in ("hybrid", "bound") else small
    denoiser = Denoiser(Affine(4 if variance is learned else 2), SCHEDULE, target)
    objective = OBJECTIVES[name](Ancestral(variance), 20)
    losses = objective(denoiser, *batch())
    assert losses.shape == (6,)
    losses.mean().backward()
    assert bool(losses.isfinite().all())
    gradients = [parameter.grad for parameter in denoiser.parameters()]
    assert all(bool(gradient.isfinite().all()) and gradient.any() for gradient in gradients)


def test_l_simple_is_the_error_of_eps():
    """Eq. 14 and Algorithm 1, written out."""
    network = Affine()
    x0, t, s, eps = batch()
    ab = (1 - torch.linspace(0, 0, 20, dtype=F64)) * SCHEDULE.alpha_bar(torch.arange(1, 21))
    a = ab[t - 1].reshape(-1, 1, 1, 1)
    expected = (network(a.sqrt() * x0 + (1 - a).sqrt() * eps, None) - eps).square().mean((1, 2, 3))
    assert torch.allclose(Weighted()(Denoiser(network, SCHEDULE, EPS), x0, t, s, eps), expected)


def test_published_weights():
    t = torch.arange(1, 21)
    snr = SCHEDULE.snr(t)
    cap = snr.clamp(max=5)
    for target, expected in ((EPS, cap / snr), (X0, cap), (V, cap / (snr + 1))):
        assert torch.allclose(min_snr(SCHEDULE, target, t), expected)
    assert torch.allclose(p2(SCHEDULE, EPS, t), 1 / (1 + snr))
    assert torch.equal(unweighted(SCHEDULE, EPS, t), torch.ones(20, dtype=F64))


def test_denoising_score_matching_is_weighted_eps_matching():
    """noise_t^2 ||s - grad log q(x_t | x0)||^2 = ||eps_hat - eps||^2 (section 3.2), for the network's own output."""
    x0, t, s, eps = batch()
    denoiser = Denoiser(Affine(), SCHEDULE, SCORE)
    x_t = SCHEDULE.marginal(x0, t).sample(eps)
    eps_hat = denoiser.interpret(denoiser.output(x_t, t), x_t, t).eps
    score_loss = Weighted()(denoiser, x0, t, s, eps) * SCHEDULE.noise_var(t)
    assert torch.allclose(score_loss, (eps_hat - eps).square().mean((1, 2, 3)))


def test_kl_term_is_the_weighted_error_of_x0():
    """Eqs. 8-12: with the posterior's own variance nothing else is left of the KL."""
    x0, t, s, eps = batch()
    x0, t, s, eps = x0[2:], t[2:], s[2:], eps[2:]
    x_t = SCHEDULE.marginal(x0, t).sample(eps)
    guess = Prediction(x0 + 0.1 * eps, eps)
    p = Ancestral(small)(SCHEDULE, x_t, guess, t, s)
    expected = bound_weight(SCHEDULE, t, s) * (0.1 * eps).square().sum((1, 2, 3))
    assert torch.allclose(bound_term(SCHEDULE, p, x_t, x0, t, s), expected)


def test_the_papers_weight_in_eps_space():
    """Eq. 12 at sigma_t^2 = beta~_t: beta^2 / (2 sigma^2 alpha (1 - alpha_bar)) on the error of eps."""
    t = torch.arange(2, 21)
    ab, beta = SCHEDULE.alpha_bar(t), SCHEDULE.beta[t - 1]
    sigma2 = SCHEDULE.gain(t, t - 1) * SCHEDULE.noise_var(t - 1)
    paper = beta**2 / (2 * sigma2 * (1 - beta) * (1 - ab))
    assert torch.allclose(bound_weight(SCHEDULE, t, t - 1) / SCHEDULE.snr(t), paper)


def test_the_bound_objective_is_the_bound():
    x0, *_ = batch()
    denoiser = Denoiser(Affine(), SCHEDULE, X0)
    grid = grids.full(SCHEDULE)
    whole = bound(denoiser, x0, grid, Ancestral(small), Streams(0, "x", range(6)))
    noise, objective = Streams(0, "x", range(6)), VariationalBound(Ancestral(small), 20)
    losses = []
    for t in range(20, 0, -1):
        times = torch.full((6,), t)
        losses.append(objective(denoiser, x0, times, times - 1, noise.normal(x0.shape[1:])))
    assert torch.allclose(torch.stack(losses).mean(0) * whole.dimensions, whole.nats - whole.prior)


def test_hybrid_teaches_the_mean_by_l_simple_alone():
    network = Affine(4)
    denoiser = Denoiser(network, SCHEDULE, EPS)
    mean_only = Weighted()(denoiser, *batch()).mean()
    (expected,) = torch.autograd.grad(mean_only, [network.conv.weight])
    hybrid = Hybrid(Weighted(), VariationalBound(Ancestral(learned), 20), scale=1.0)
    (gradient,) = torch.autograd.grad(hybrid(denoiser, *batch()).mean(), [network.conv.weight])
    assert torch.allclose(gradient[:2], expected[:2])
    assert gradient[2:].any()


def test_decoder_counts_bytes():
    x0, t, s, eps = batch(2)
    x_t = SCHEDULE.marginal(x0, t).sample(eps)
    p = Normal(x0 + 0.01, torch.full_like(x0, 1e-3))
    term = bound_term(SCHEDULE, p, x_t, x0, t, s)
    assert torch.allclose(term, -p.log_prob_byte(x0).sum((1, 2, 3)))


def star_discrepancy(u):
    u = u.sort().values
    n = len(u)
    rank = torch.arange(n, dtype=F64)
    return float(torch.maximum((u - rank / n).abs(), ((rank + 1) / n - u).abs()).max())


def test_uniform_numbers_are_uniform_and_keyed_to_the_image():
    for name, draw in UNIFORMS.items():
        u = draw(3, range(4000))
        assert star_discrepancy(u) < 1.63 / 4000**0.5, name  # Kolmogorov-Smirnov at 1 %
        assert torch.equal(u[100:300], draw(3, range(100, 300))), name
        assert not torch.equal(u, draw(4, range(4000))), name


def test_any_run_of_images_is_stratified():
    for first in (0, 17, 100_000):
        assert star_discrepancy(UNIFORMS["stratified"](0, range(first, first + 64))) < 0.05


def test_places_cover_the_grid_evenly():
    sampler = TimeSampler([5, 3, 2, 0])
    place, weight = sampler.draw(torch.linspace(0, 1 - 1e-9, 3000, dtype=F64))
    assert place.bincount().tolist() == [1000, 1000, 1000]
    assert (sampler.t[place[-1]], sampler.s[place[-1]]) == (2, 0)
    assert bool((weight == 1).all())


def test_loss_importance_follows_the_losses_and_stays_unbiased():
    sampler = LossImportance(grids.full(schedule.linear(4)))
    true = torch.tensor([1.0, 2.0, 3.0, 10.0], dtype=F64)
    for _ in range(9):
        sampler.update(torch.arange(4), true)
    assert torch.equal(sampler.probabilities(), torch.full((4,), 0.25, dtype=F64))  # not before each has ten
    sampler.update(torch.arange(4), true)
    assert torch.allclose(sampler.probabilities(), true / 16, atol=1e-3)
    place, weight = sampler.draw(torch.linspace(0, 1 - 1e-9, 100_000, dtype=F64))
    assert torch.allclose(place.bincount().double() / 100_000, sampler.probabilities(), atol=1e-4)
    assert float((true[place] * weight).mean()) == pytest.approx(4.0, rel=1e-3)
    copy = LossImportance(grids.full(schedule.linear(4)))
    copy.load_state(sampler.state())
    copy.update(torch.tensor([0]), torch.tensor([50.0]))
    assert copy.probabilities()[0] > sampler.probabilities()[0]
