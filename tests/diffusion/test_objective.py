"""Losses and the times they are taken at."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ancestral.diffusion.denoisers.denoiser import Denoiser, Prediction, score
from ancestral.diffusion.denoisers.targets import EPS, SCORE, TARGETS, X0, V
from ancestral.diffusion.objectives.elbo import elbo
from ancestral.diffusion.objectives.losses import (
    OBJECTIVES,
    Hybrid,
    Networks,
    VariationalBound,
    Weighted,
    elbo_weight,
    min_snr,
    p2,
    score_matching,
    unweighted,
)
from ancestral.diffusion.objectives.time_sampling import LogNormal, LossImportance, TimeSampler, independent, stratified
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.transitions import Ancestral, fixedsmall, learned
from oracles import dataset

F64 = torch.float64
SCHEDULE = schedules.linear(20)


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
    variance = learned if name in ("hybrid", "bound") else fixedsmall
    denoiser = Denoiser(Affine(4 if variance is learned else 2), SCHEDULE, target)
    objective = OBJECTIVES[name](Ancestral(variance), 20, Networks(nn.Identity, Affine))
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


@pytest.mark.parametrize("target", [EPS, SCORE, X0, V], ids=lambda target: target.name)
def test_score_matching_is_the_error_of_eps_for_every_target(target):
    x0, t, s, eps = batch()
    denoiser = Denoiser(Affine(), SCHEDULE, target)
    x_t = SCHEDULE.marginal(x0, t).sample(eps)
    eps_hat = denoiser.interpret(denoiser.output(x_t, t), x_t, t).eps
    found = Weighted(score_matching)(denoiser, x0, t, s, eps)
    assert torch.allclose(found, (eps_hat - eps).square().mean((1, 2, 3)))


@pytest.mark.parametrize("t", [4, 7])
def test_denoising_is_explicit_score_matching_and_a_constant(t):
    """Vincent 2011: E||s - grad log q(x_t | x0)||^2 = E||s - grad log q(x_t)||^2 + a constant without s.

    Both sides, and the constant, by Gauss-Hermite quadrature over x_t of a mixture, for two different s.
    """
    points = torch.tensor([-0.9, 0.1, 0.7], dtype=F64)
    oracle = dataset(SCHEDULE, points[:, None])
    node, mass = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(80))
    eps, weight = node.repeat(3), (mass / mass.sum() / 3).repeat(3)
    x0 = points.repeat_interleave(80)
    noise, noise_var = float(SCHEDULE.noise(t)), float(SCHEDULE.noise_var(t))
    x_t = SCHEDULE.marginal(x0, t).sample(eps)
    exact = score(oracle(x_t[:, None], t), SCHEDULE, t)[:, 0]
    constant = weight @ (eps / noise).square() - weight @ exact.square()

    class Line(nn.Module):
        def __init__(self, slope):
            super().__init__()
            self.slope = slope

        def forward(self, x, time):
            return self.slope * x - 0.3

    for slope in (-1.0, 0.4):
        denoiser = Denoiser(Line(slope), SCHEDULE, SCORE)
        shaped, times = (one.reshape(-1, 1, 1, 1) for one in (x0, eps)), torch.full((240,), t)
        image, drawn = shaped
        losses = Weighted(score_matching)(denoiser, image, times, times - 1, drawn)
        divergence = weight @ (slope * x_t - 0.3 - exact).square()
        assert float(weight @ losses) / noise_var == pytest.approx(float(divergence + constant), rel=1e-6)
    assert constant > 0.1  # so that leaving it out would be seen


def test_kl_term_is_the_weighted_error_of_x0():
    """Eqs. 8-12: with the posterior's own variance nothing else is left of the KL."""
    x0, t, s, eps = batch()
    x0, t, s, eps = x0[2:], t[2:], s[2:], eps[2:]
    x_t = SCHEDULE.marginal(x0, t).sample(eps)
    guess = Prediction(x0 + 0.1 * eps, eps)
    p = Ancestral(fixedsmall)(SCHEDULE, x_t, guess, t, s)
    expected = elbo_weight(SCHEDULE, t, s) * (0.1 * eps).square().sum((1, 2, 3))
    assert torch.allclose(SCHEDULE.term(p, x_t, x0, t, s, Normal.log_prob_byte), expected)


def test_the_papers_weight_in_eps_space():
    """Eq. 12 at sigma_t^2 = beta~_t: beta^2 / (2 sigma^2 alpha (1 - alpha_bar)) on the error of eps."""
    t = torch.arange(2, 21)
    ab, beta = SCHEDULE.alpha_bar(t), SCHEDULE.beta[t - 1]
    sigma2 = SCHEDULE.gain(t, t - 1) * SCHEDULE.noise_var(t - 1)
    paper = beta**2 / (2 * sigma2 * (1 - beta) * (1 - ab))
    assert torch.allclose(elbo_weight(SCHEDULE, t, t - 1) / SCHEDULE.snr(t), paper)


def test_the_bound_objective_is_the_bound():
    x0, *_ = batch()
    denoiser = Denoiser(Affine(), SCHEDULE, X0)
    grid = grids.full(SCHEDULE)
    whole = elbo(denoiser, x0, grid, Ancestral(fixedsmall), Streams(0, "x", range(6)), Normal.log_prob_byte)
    noise, objective = Streams(0, "x", range(6)), VariationalBound(Ancestral(fixedsmall), 20)
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
    term = SCHEDULE.term(p, x_t, x0, t, s, Normal.log_prob_byte)
    assert torch.allclose(term, -p.log_prob_byte(x0).sum((1, 2, 3)))


def star_discrepancy(u):
    u = u.sort().values
    n = len(u)
    rank = torch.arange(n, dtype=F64)
    return float(torch.maximum((u - rank / n).abs(), ((rank + 1) / n - u).abs()).max())


def test_uniform_numbers_are_uniform_and_keyed_to_the_image():
    for draw in (independent, stratified):
        u = draw(3, range(4000))
        assert star_discrepancy(u) < 1.63 / 4000**0.5, draw  # Kolmogorov-Smirnov at 1 %
        assert torch.equal(u[100:300], draw(3, range(100, 300))), draw
        assert not torch.equal(u, draw(4, range(4000))), draw


def test_times_are_of_the_stream_that_runs_were_begun_with():
    """Under another name a run that goes on would meet other times than it would have met."""
    numbers = [0, 4, 900]
    assert torch.equal(independent(3, numbers), Streams(3, "time", numbers).uniform())
    start = float(Streams(3, "time", [0]).uniform())
    expected = [math.modf(start + number * (math.sqrt(5) - 1) / 2)[0] for number in numbers]
    assert torch.allclose(stratified(3, numbers), torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


def test_any_run_of_images_is_stratified():
    for first in (0, 17, 100_000):
        assert star_discrepancy(stratified(0, range(first, first + 64))) < 0.05


def test_indices_cover_the_grid_evenly():
    sampler = TimeSampler([5, 3, 2, 0])
    index, weight = sampler.draw(torch.linspace(0, 1 - 1e-9, 3000, dtype=F64))
    assert index.bincount().tolist() == [1000, 1000, 1000]
    assert (sampler.t[index[-1]], sampler.s[index[-1]]) == (2, 0)
    assert bool((weight == 1).all())


def test_log_normal_draws_the_noise_levels_of_its_name():
    # Karras et al. 2022, Table 1: ln sigma ~ N(-1.2, 1.2^2), as far as the grid is fine.
    noise_schedule = schedules.cosine(1000)
    sampler = LogNormal(grids.full(noise_schedule), noise_schedule)
    index, weight = sampler.draw(torch.arange(0.5, 20_000, dtype=F64) / 20_000)
    log_sigma = -noise_schedule.log_snr(sampler.t[index]) / 2
    for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
        expected = torch.distributions.Normal(-1.2, 1.2).icdf(torch.tensor(quantile))
        assert float(log_sigma.quantile(quantile)) == pytest.approx(float(expected), abs=0.02)
    assert bool((weight == 1).all())
    # A coarse grid keeps every draw, those beyond its ends too.
    coarse = LogNormal([1000, 999, 998, 0], noise_schedule)
    assert coarse.draw(torch.tensor([1e-6, 0.5, 1 - 1e-12], dtype=F64))[0].tolist() == [2, 2, 2]


def test_loss_importance_follows_the_losses_and_stays_unbiased():
    sampler = LossImportance(grids.full(schedules.linear(4)))
    true = torch.tensor([1.0, 2.0, 3.0, 10.0], dtype=F64)
    for _ in range(9):
        sampler.update(torch.arange(4), true)
    assert torch.equal(sampler.probabilities(), torch.full((4,), 0.25, dtype=F64))  # not before each has ten
    sampler.update(torch.arange(4), true)
    assert torch.allclose(sampler.probabilities(), true / 16, atol=1e-3)
    index, weight = sampler.draw(torch.linspace(0, 1 - 1e-9, 100_000, dtype=F64))
    assert torch.allclose(index.bincount().double() / 100_000, sampler.probabilities(), atol=1e-4)
    assert float((true[index] * weight).mean()) == pytest.approx(4.0, rel=1e-3)
    copy = LossImportance(grids.full(schedules.linear(4)))
    copy.load_state(sampler.state())
    copy.update(torch.tensor([0]), torch.tensor([50.0]))
    assert copy.probabilities()[0] > sampler.probabilities()[0]


class Says(nn.Module):
    """A network whose output is given, so that a loss can be taken of any estimate."""

    def __init__(self, output):
        super().__init__()
        self.given = output

    def forward(self, x, time):
        return self.given


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_serves_any_pair_of_times(name, target):
    """Strides, the last step from any t to 0, and a batch of nothing but last steps."""
    variance = learned if name in ("hybrid", "bound") else fixedsmall
    x0, *_, eps = batch()
    for t, s in (([20, 20, 7, 3, 2, 1], [0, 5, 2, 0, 1, 0]), ([1, 2, 5, 10, 19, 20], [0] * 6)):
        denoiser = Denoiser(Affine(4 if variance is learned else 2), SCHEDULE, target)
        losses = OBJECTIVES[name](Ancestral(variance), 6, Networks(nn.Identity, Affine))(
            denoiser, x0, torch.tensor(t), torch.tensor(s), eps
        )
        losses.sum().backward()
        assert bool(losses.isfinite().all())
        assert all(bool(p.grad.isfinite().all()) for p in denoiser.parameters())


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_weights_mean_the_same_for_every_target(target):
    """min-SNR is min(SNR, 5) on the error of x0 and P2 is 1/(k + SNR)^gamma on that of eps, whatever is predicted."""
    x0, t, s, eps = batch()
    t, s = t.clamp(min=2), s.clamp(min=1)  # at t = 1 the paper's mean is x0 itself; SNR is as well tested above it
    x_t = SCHEDULE.marginal(x0, t).sample(eps)
    guess = x0 + 0.2 * torch.randn(x0.shape, dtype=F64, generator=torch.Generator().manual_seed(9))
    snr = SCHEDULE.snr(t)
    eps_guess = (x_t - SCHEDULE.signal(t).reshape(-1, 1, 1, 1) * guess) / SCHEDULE.noise(t).reshape(-1, 1, 1, 1)
    denoiser = Denoiser(Says(target.of(guess, eps_guess, SCHEDULE, t)), SCHEDULE, target)
    error_x0, error_eps = ((a - b).square().mean((1, 2, 3)) for a, b in ((guess, x0), (eps_guess, eps)))
    assert torch.allclose(error_eps, snr * error_x0)
    capped = torch.where(snr < 5, snr, 5.0)
    assert torch.allclose(Weighted(min_snr)(denoiser, x0, t, s, eps), capped * error_x0)
    assert torch.allclose(Weighted(p2)(denoiser, x0, t, s, eps), error_eps / (1 + snr))
    other = Weighted(lambda *given: p2(*given, k=0.5, gamma=2.0))
    assert torch.allclose(other(denoiser, x0, t, s, eps), error_eps / (0.5 + snr) ** 2)


def test_p2_for_the_other_targets():
    """With lambda the weight in eps units: x0 gets SNR lambda and v gets SNR / (SNR + 1) lambda."""
    t = torch.arange(1, 21)
    snr = SCHEDULE.snr(t)
    assert torch.allclose(p2(SCHEDULE, X0, t), snr / (1 + snr))
    assert torch.allclose(p2(SCHEDULE, V, t), snr / (1 + snr) ** 2)
    assert torch.allclose(p2(SCHEDULE, EPS, t, k=2.0, gamma=0.5), 1 / (2 + snr) ** 0.5)


@given(st.lists(st.floats(1e-4, 0.6), min_size=3, max_size=10), st.data())
def test_kl_term_on_any_stretch_of_any_schedule(beta, data):
    """(SNR_s - SNR_t)/2 times the squared error of x0, the SNRs from the betas by hand."""
    made = schedules.from_betas(torch.tensor(beta, dtype=F64))
    t = data.draw(st.integers(2, len(beta)))
    s = data.draw(st.integers(1, t - 1))
    ab = (1 - torch.tensor(beta, dtype=F64)).cumprod(0)
    snr = ab / (1 - ab)
    generator = torch.Generator().manual_seed(0)
    x0, x_t, error = torch.randn(3, 2, 1, 2, 2, dtype=F64, generator=generator)
    pair = torch.tensor([t, t]), torch.tensor([s, s])
    p = Ancestral(fixedsmall)(made, x_t, Prediction(x0 + error, x_t), *pair)
    expected = (snr[s - 1] - snr[t - 1]) / 2 * error.square().sum((1, 2, 3))
    assert torch.allclose(made.term(p, x_t, x0, *pair, Normal.log_prob_byte), expected, rtol=1e-6)
    assert torch.allclose(elbo_weight(made, *pair), ((snr[s - 1] - snr[t - 1]) / 2).expand(2), rtol=1e-6)


def test_the_weights_of_a_chain_sum_to_the_snr_it_spans():
    t = torch.arange(2, 21)
    total = elbo_weight(SCHEDULE, t, t - 1).sum()
    assert torch.allclose(total, elbo_weight(SCHEDULE, torch.tensor(20), torch.tensor(1)))
    assert torch.allclose(total, (SCHEDULE.snr(1) - SCHEDULE.snr(20)) / 2)
    assert torch.isinf(elbo_weight(SCHEDULE, torch.tensor(3), torch.tensor(0)))


@pytest.mark.parametrize("likelihood", [Normal.log_prob_byte, Normal.log_prob])
def test_a_term_is_a_divergence(likelihood):
    """By integrating log q - log p over x_s, one dimension at a time, for a p of any mean and variance."""
    x0, x_t = torch.tensor([[0.4]], dtype=F64), torch.tensor([[-0.3]], dtype=F64)
    p = Normal(torch.tensor([[0.1]], dtype=F64), torch.tensor([[0.02]], dtype=F64))
    t, s = torch.tensor([15]), torch.tensor([9])
    q = SCHEDULE.posterior(x_t, x0, t, s)
    std = float(q.var.sqrt())
    at = torch.linspace(float(q.mean) - 12 * std, float(q.mean) + 12 * std, 4001, dtype=F64).reshape(1, -1)
    log_q = torch.distributions.Normal(q.mean, q.var.sqrt()).log_prob(at)
    log_p = torch.distributions.Normal(p.mean, p.var.sqrt()).log_prob(at)
    expected = torch.trapezoid(log_q.exp() * (log_q - log_p), at)
    assert torch.allclose(SCHEDULE.term(p, x_t, x0, t, s, likelihood), expected, rtol=1e-8)
    nll = SCHEDULE.term(p, x_t, x0, t, torch.tensor([0]), likelihood)
    assert torch.allclose(nll, -likelihood(p, x0).sum(1))


@pytest.mark.parametrize("variance", [fixedsmall, learned])
@pytest.mark.parametrize("grid", [[20, 0], [20, 11, 4, 0], [13, 2, 1, 0]], ids=str)
def test_the_bound_objective_is_the_bound_on_a_sub_grid(grid, variance):
    x0, *_ = batch()
    denoiser = Denoiser(Affine(4 if variance is learned else 2), SCHEDULE, V)
    whole = elbo(denoiser, x0, grid, Ancestral(variance), Streams(1, "x", range(6)), Normal.log_prob_byte)
    noise, objective = Streams(1, "x", range(6)), VariationalBound(Ancestral(variance), len(grid) - 1)
    losses = []
    for t, s in itertools.pairwise(grid):
        pair = torch.full((6,), t), torch.full((6,), s)
        losses.append(objective(denoiser, x0, *pair, noise.normal(x0.shape[1:])))
    assert torch.allclose(torch.stack(losses).mean(0) * 18, whole.nats - whole.prior)


def test_hybrid_is_the_sum_of_its_parts():
    """Its value is L_simple + scale L; its variance channels learn exactly what the bound would teach them."""
    network = Affine(4)
    denoiser = Denoiser(network, SCHEDULE, EPS)
    simple, vlb = Weighted(), VariationalBound(Ancestral(learned), 20)
    losses = Hybrid(simple, vlb, scale=0.25)(denoiser, *batch())
    assert torch.allclose(losses, simple(denoiser, *batch()) + 0.25 * vlb(denoiser, *batch()))
    (of_hybrid,) = torch.autograd.grad(losses.sum(), [network.conv.weight])
    (of_bound,) = torch.autograd.grad(vlb(denoiser, *batch()).sum(), [network.conv.weight])
    assert torch.allclose(of_hybrid[2:], 0.25 * of_bound[2:])
    assert not torch.allclose(of_hybrid[:2], of_hybrid[:2] + of_bound[:2])  # the bound by itself would move the mean


@pytest.mark.parametrize("draw", [independent, stratified])
def test_numbers_fall_evenly_into_bins(draw):
    """Chi-square of 50 bins: 49 expected with a spread of 9.9 for independent numbers, far less when stratified."""
    counts = (draw(7, range(10_000)) * 50).long().bincount(minlength=50).double()
    chi_square = float(((counts - 200) ** 2 / 200).sum())
    if draw is stratified:
        assert chi_square < 5
    else:
        assert 49 - 4 * 9.9 < chi_square < 49 + 5 * 9.9


def test_independent_numbers_are_independent():
    u = independent(2, range(10_000)) - 0.5
    for lag in (1, 2, 3, 10):
        assert abs(float((u[lag:] * u[:-lag]).mean()) * 12) < 4.5 / 10_000**0.5


@given(st.integers(0, 10**7), st.integers(2, 400), st.integers(0, 5))
def test_any_window_is_covered_without_holes(first, count, seed):
    """Golden-ratio points: at most three distances between neighbours, the widest below (1 + 2/sqrt 5) / n."""
    u = stratified(seed, range(first, first + count)).sort().values
    gaps = torch.cat([u.diff(), u[:1] + 1 - u[-1:]])
    assert float(gaps.max()) < (1 + 2 / 5**0.5) / count
    assert len({round(gap, 7) for gap in gaps.tolist()}) <= 4  # three, and one more where rounding splits one


@given(st.integers(0, 10**6), st.sampled_from([256, 1000]))
def test_stratified_numbers_are_far_evener_than_random_ones(first, count):
    window = range(first, first + count)
    assert star_discrepancy(stratified(0, window)) < 0.25 * 0.87 / count**0.5  # 0.87: the mean of random's


@pytest.mark.parametrize("draw", [independent, stratified])
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_numbers_do_not_depend_on_how_batches_are_cut(draw, sizes):
    ends = [0, *itertools.accumulate(sizes)]
    parts = [draw(3, range(a, b)) for a, b in itertools.pairwise(ends)]
    assert torch.equal(torch.cat(parts), draw(3, range(ends[-1])))


def learned_sampler(steps=6, rounds=10, seed=0):
    sampler = LossImportance(grids.full(schedules.linear(steps)))
    losses = torch.rand(rounds, steps, dtype=F64, generator=torch.Generator().manual_seed(seed)) ** 2
    for row in losses:
        sampler.update(torch.arange(steps), row)
    return sampler, losses


@pytest.mark.parametrize("rounds", [10, 17, 25])
def test_importance_is_the_root_mean_square_of_the_last_ten(rounds):
    """Nichol and Dhariwal 2021, Eq. 18, with a floor of one thousandth; older losses are forgotten."""
    sampler, losses = learned_sampler(rounds=rounds)
    size = losses[-10:].square().mean(0).sqrt()
    p = sampler.probabilities()
    assert torch.allclose(p, 0.999 * size / size.sum() + 0.001 / 6)
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)


def test_importance_needs_ten_of_every_time():
    sampler, _ = learned_sampler(rounds=9)
    sampler.update(torch.arange(5), torch.ones(5) * 100)
    assert torch.equal(sampler.probabilities(), torch.full((6,), 1 / 6, dtype=F64))


def test_importance_weights_are_exactly_unbiased():
    """sum_k p_k w_k f_k = mean f for any f: the weight is the inverse of the probability, an index of p = 0 or not."""
    sampler, _ = learned_sampler()
    for _ in range(10):
        sampler.update(torch.tensor([3]), torch.tensor([0.0]))  # an index with no loss at all is still reached
    p = sampler.probabilities()
    assert float(p[3]) == pytest.approx(0.001 / 6)
    edges = torch.cat([torch.zeros(1, dtype=F64), p.cumsum(0)])
    index, weight = sampler.draw((edges[1:] + edges[:-1]) / 2)  # the middle of each index's share
    assert index.tolist() == list(range(6))
    f = torch.randn(6, dtype=F64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose((p * weight * f).sum(), f.mean())
    # The last number below one and the first of all stay on the grid.
    ends, _ = sampler.draw(torch.tensor([0.0, 1 - 2**-53], dtype=F64))
    assert ends.tolist() == [0, 5]


def test_the_last_time_is_drawn_where_the_sum_rounds_below_one():
    """Probabilities whose running sum ends at 1 - 2^-53 or less: a number above it still finds an index."""
    found = 0
    for seed in range(40):
        sampler, _ = learned_sampler(steps=50, seed=seed)
        u = torch.tensor([1 - 2**-53], dtype=F64)
        found += bool(sampler.probabilities().cumsum(0)[-1] <= u)
        index, weight = sampler.draw(u)
        assert index.tolist() == [49]
        assert bool(weight.isfinite().all())
    assert found


def test_importance_draws_a_time_from_its_share_on_and_needs_a_loss_for_each():
    sampler = LossImportance(range(4, -1, -1))
    index, weight = sampler.draw(torch.tensor([0.0, 0.25, 0.5, 0.75], dtype=torch.float64))
    assert index.tolist() == [0, 1, 2, 3]
    assert weight.tolist() == [1.0] * 4
    with pytest.raises(ValueError, match="shorter"):
        sampler.update(torch.tensor([0, 1]), torch.tensor([1.0]))


def test_importance_goes_on_from_its_state():
    sampler, _ = learned_sampler(rounds=13)
    copy = LossImportance(grids.full(schedules.linear(6)))
    copy.load_state({name: value.clone() for name, value in sampler.state().items()})
    index, loss = torch.tensor([0, 0, 4]), torch.tensor([3.0, 1.0, 2.0])
    sampler.update(index, loss)
    copy.update(index, loss)
    assert torch.equal(sampler.probabilities(), copy.probabilities())
    u = independent(0, range(100))
    assert all(torch.equal(a, b) for a, b in zip(sampler.draw(u), copy.draw(u), strict=True))
    loaded, held = LossImportance(grids.full(schedules.linear(6))), sampler.state()
    loaded.load_state(held)
    loaded.update(index, loss * 9)
    assert not torch.equal(loaded.probabilities(), sampler.probabilities())  # a copy, not the same memory
    plain = TimeSampler([3, 1, 0])
    plain.load_state(plain.state())
    assert len(plain) == 2
