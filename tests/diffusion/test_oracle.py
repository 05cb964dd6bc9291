"""Exact denoisers: what they say of moments, of the bound and of the orders of convergence is known in closed form."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from ancestral.diffusion.denoisers.analytic import Mixture, gaussian
from ancestral.diffusion.denoisers.calibrated import BUCKETS, Calibrated
from ancestral.diffusion.denoisers.denoiser import predict, score
from ancestral.diffusion.objectives.calibration import LEAST_ERROR, calibrate
from ancestral.diffusion.objectives.elbo import elbo, random_terms, strata
from ancestral.diffusion.objectives.elbo_derivation import along_chains
from ancestral.diffusion.objectives.statistics import largest_share, mean_and_error
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.loop import from_model, from_model_to_the_end, walk
from ancestral.diffusion.samplers.sample import finish, latents
from ancestral.diffusion.samplers.transitions import DDIM, Ancestral, beta, fixedsmall, optimal
from oracles import dataset

F64 = torch.float64


def normal_data(T, variance=0.25, mean=(0.3, -0.4)):
    return gaussian(schedules.cosine(T), torch.tensor(mean, dtype=F64), variance)


def reverse_moments(oracle, grid, transition, mean, variance):
    """Mean and variance of x_0 when x_T is exactly q(x_T), propagated in closed form: every step is linear in x_t.

    The slope and offset of each step are read off the code under test by feeding it two points.
    """
    noise_schedule = oracle.schedule
    m = noise_schedule.signal(grid[0]) * mean
    v = noise_schedule.signal(grid[0]) ** 2 * variance + noise_schedule.noise_var(grid[0])
    probes = torch.tensor([[0.0], [1.0]], dtype=F64)
    for t, s in itertools.pairwise(grid):
        p = transition(noise_schedule, probes, oracle(probes, t), t, s)
        offset, slope = p.mean[0, 0], p.mean[1, 0] - p.mean[0, 0]
        m, v = offset + slope * m, slope**2 * v + p.var[0, 0]
    return float(m), float(v)


GRIDS = [list(range(50, -1, -1)), [50, 33, 20, 11, 4, 1, 0], [50, 0]]


@pytest.mark.parametrize("grid", GRIDS, ids=len)
def test_exact_variance_reproduces_the_data_on_any_grid(grid):
    oracle = gaussian(schedules.cosine(50), torch.tensor([0.3], dtype=F64), 0.25)
    assert reverse_moments(oracle, grid, Ancestral(optimal), 0.3, 0.25) == pytest.approx((0.3, 0.25), abs=1e-12)


@pytest.mark.parametrize("T", [1, 2, 20, 1000])
def test_large_variance_is_exact_for_standard_normal_data_and_small_for_one_point(T):
    unit = gaussian(schedules.linear(T), torch.zeros(1, dtype=F64), 1.0)
    grid = grids.full(unit.schedule)
    assert reverse_moments(unit, grid, Ancestral(beta), 0.0, 1.0) == pytest.approx((0.0, 1.0), abs=1e-9)
    point = dataset(unit.schedule, torch.tensor([[0.7]], dtype=F64))
    no_decoder = reverse_moments(point, grid[:-1], Ancestral(fixedsmall), 0.7, 0.0) if T > 1 else None
    if no_decoder:
        signal, noise_var = point.schedule.signal(1), point.schedule.noise_var(1)
        assert no_decoder == pytest.approx((0.7 * float(signal), float(noise_var)), abs=1e-12)


@pytest.mark.parametrize("grid", GRIDS, ids=len)
@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid", "linear-log-snr"])
def test_bound_equals_true_nll_with_the_exact_reverse_variance(grid, name):
    oracle = gaussian(schedules.SCHEDULES[name](50), torch.tensor([0.3, -0.4], dtype=F64), 0.25)
    x0 = oracle.sample(torch.Generator().manual_seed(0), 64)
    streams = Streams(0, "test", range(64))
    # For Gaussian data the naive form is the NLL for every single chain, up to the gap of p(x_T) = N(0, I):
    # log q(x_T) / N(0, I) at the chain's own end.
    chain = along_chains(oracle, x0, grid, Ancestral(optimal), streams, Normal.log_prob).monte_carlo.nats
    replay = oracle.schedule.marginal(x0, grid[0]).sample(Streams(0, "test", range(64)).normal(x0.shape[1:]))
    prior_gap = oracle.log_prob(replay, grid[0]) - Normal(torch.zeros(2), torch.ones(2)).log_prob(replay).sum(1)
    assert torch.allclose(chain - prior_gap, -oracle.log_prob(x0), atol=1e-9, rtol=0)


@given(st.data())
def test_bound_equals_true_nll_at_any_length_and_on_any_grid(data):
    T = data.draw(st.integers(1, 1200))
    oracle = gaussian(schedules.linear(T), torch.tensor([0.3, -0.4], dtype=F64), data.draw(st.floats(0.01, 2)))
    inner = data.draw(st.sets(st.integers(1, T), min_size=1, max_size=8))
    grid = grids.explicit(oracle.schedule, [*sorted(inner, reverse=True), 0])
    x0 = oracle.sample(torch.Generator().manual_seed(0), 8)
    noise = Streams(0, "x", range(8))
    chain = along_chains(oracle, x0, grid, Ancestral(optimal), noise, Normal.log_prob).monte_carlo.nats
    end = oracle.schedule.marginal(x0, grid[0]).sample(Streams(0, "x", range(8)).normal([2]))
    gap = oracle.log_prob(end, grid[0]) - Normal(torch.zeros(2), torch.ones(2)).log_prob(end).sum(1)
    assert torch.allclose(chain - gap, -oracle.log_prob(x0), atol=1e-9, rtol=0)


def expected_bound(oracle, grid, transition, mean, variance):
    """E over data and noise of the bound in nats, by Gauss-Hermite quadrature of each term (they are quadratic)."""
    node = torch.tensor([-math.sqrt(3), 0.0, math.sqrt(3)], dtype=F64)
    weight = torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=F64)
    x0 = (mean + math.sqrt(variance) * node)[:, None].expand(3, 3).reshape(-1, 1)
    eps = node.expand(3, 3).reshape(-1, 1)
    both = (weight[:, None] * weight).flatten()

    class Fixed:
        def normal(self, shape):
            return eps

    result = elbo(oracle, x0, grid, transition, Fixed(), Normal.log_prob)
    return float((both * result.nats).sum()), float((both * result.prior).sum())


@pytest.mark.parametrize("grid", GRIDS, ids=len)
def test_kl_form_has_the_same_expectation(grid):
    oracle = gaussian(schedules.cosine(50), torch.tensor([0.3], dtype=F64), 0.25)
    total, prior = expected_bound(oracle, grid, Ancestral(optimal), 0.3, 0.25)
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.25)
    # What is left over is KL(q(x_T) || N(0, I)) of the aggregate, while L_T is the mean KL of each image.
    signal, noise_var = oracle.schedule.signal(grid[0]), oracle.schedule.noise_var(grid[0])
    end = Normal(signal * torch.tensor([0.3], dtype=F64), (signal**2 * 0.25 + noise_var).reshape(1))
    gap = float(end.kl(Normal(torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64))))
    assert total == pytest.approx(entropy + gap, abs=1e-9)
    assert prior > 0


@pytest.mark.parametrize("T", [50, 200, 1000])
def test_gap_of_the_fixed_variances_is_what_theory_says(T):
    """KL of two zero-mean-difference Gaussians, summed over the steps: known from variances alone."""
    variance = 0.25
    oracle = gaussian(schedules.linear(T), torch.zeros(1, dtype=F64), variance)
    grid = grids.full(oracle.schedule)
    exact, _ = expected_bound(oracle, grid, Ancestral(optimal), 0.0, variance)
    for fixed in (beta, fixedsmall):
        measured, _ = expected_bound(oracle, grid, Ancestral(fixed), 0.0, variance)
        gap = 0.0
        for t, s in itertools.pairwise(grid):
            a, b = oracle.schedule.log_alpha_bar[t], oracle.schedule.log_alpha_bar[s]
            v_t, v_s = (1 - (1 - variance) * x.exp() for x in (a, b))  # marginal variances of the data
            cov = (a / 2 - b / 2).exp() * v_s
            true_var = v_s - cov**2 / v_t  # Var[x_s | x_t], Gaussian conditioning
            used = fixed(oracle.schedule, oracle(torch.zeros(1, 1, dtype=F64), t), t, s)
            ratio = true_var / used
            gap += float(0.5 * (ratio - 1 - ratio.log()))
        assert measured - exact == pytest.approx(gap, abs=1e-8)
        assert gap > 0


def test_sampled_moments_of_a_mixture():
    """Ancestral sampling of a bimodal density with the exact variance at many steps: mean, variance, mode shares."""
    means = torch.tensor([[-0.8], [0.6]], dtype=F64)
    oracle = Mixture(
        schedules.cosine(200),
        means,
        torch.tensor([0.01, 0.04], dtype=F64),
        torch.tensor([0.3, 0.7], dtype=F64),
    )
    count = 2000
    grid = grids.full(oracle.schedule)
    for transition in (Ancestral(optimal), Ancestral(beta), Ancestral(fixedsmall), DDIM(0.0), DDIM(1.0)):
        start = latents([1], 0, range(count))
        noise = Streams(0, "reverse", range(count))
        x0 = finish(walk(oracle, start, grid, transition, from_model(noise)))
        share = float((x0 < -0.2).double().mean())
        assert share == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / count))
        low, high = x0[x0 < -0.2], x0[x0 >= -0.2]
        assert float(low.mean()) == pytest.approx(-0.8, abs=0.02)
        assert float(high.mean()) == pytest.approx(0.6, abs=0.02)
        assert float(low.std()) == pytest.approx(0.1, abs=0.015)
        assert float(high.std()) == pytest.approx(0.2, abs=0.015)


def test_samples_of_a_finite_set_are_its_points():
    points = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.5, 0.5]], dtype=F64)
    oracle = dataset(schedules.cosine(200), points)
    start = latents([2], 1, range(300))
    noise = Streams(1, "reverse", range(300))
    x0 = finish(walk(oracle, start, grids.full(oracle.schedule), Ancestral(fixedsmall), from_model(noise)))
    distance, which = torch.cdist(x0, points).min(1)
    assert float(distance.max()) < 1e-6
    assert all(60 < int((which == k).sum()) < 140 for k in range(3))


def test_ddim_converges_to_the_probability_flow_at_order_one():
    """For N(0, v) data the flow maps x_T to x_T sqrt(v / (alpha_bar_T v + 1 - alpha_bar_T)) exactly."""
    noise_schedule = schedules.linear_log_snr(4096, 8, -8)
    oracle = gaussian(noise_schedule, torch.zeros(1, dtype=F64), 0.25)
    end = noise_schedule.alpha_bar(4096) * 0.25 + noise_schedule.noise_var(4096)
    x = torch.ones(1, 1, dtype=F64)
    first = noise_schedule.alpha_bar(1) * 0.25 + noise_schedule.noise_var(1)
    truth = float((first / end).sqrt())
    errors = []
    for steps in (16, 32, 64, 128, 256):
        grid = [round(1 + 4095 * (1 - i / steps)) for i in range(steps + 1)]
        x_1 = finish(walk(oracle, x, grid, DDIM(0.0), lambda move: move.p.mean))
        errors.append(abs(float(x_1) - truth))
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders[-1] == pytest.approx(1, abs=0.1), (errors, orders)
    assert errors[-1] < 0.02


def test_subset_of_terms_is_unbiased_and_its_error_bar_is_honest():
    oracle = normal_data(50)
    x0 = oracle.sample(torch.Generator().manual_seed(0), 2000)
    grid = grids.full(oracle.schedule)
    whole = elbo(oracle, x0, grid, Ancestral(beta), Streams(0, "a", range(2000)), Normal.log_prob)
    part = elbo(oracle, x0, grid, Ancestral(beta), Streams(0, "b", range(2000)), Normal.log_prob, terms=6)
    difference, error = mean_and_error(part.nats - whole.nats)
    assert abs(difference) < 4 * error
    assert part.terms.shape == (2000, 6)
    assert part.t.unique().numel() == 50


@pytest.mark.parametrize(("steps", "count"), [(6, 2), (10, 4), (12, 5), (7, 7)])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_every_step_counts_exactly_once_in_expectation(name, steps, count):
    """The expectation over the drawn places as a finite sum: uniform numbers on a lattice that each stratum divides."""
    noise_schedule = schedules.SCHEDULES[name](50)
    grid = grids.trailing(noise_schedule, steps)
    _, widths = strata(noise_schedule, grid, count)
    images = math.lcm(*widths.tolist())

    class Lattice:
        def uniform(self):
            return (torch.arange(images, dtype=F64) + 0.5) / images

    places, weights = random_terms(noise_schedule, grid, images, count, Lattice())
    counted = torch.zeros(steps, dtype=F64).index_add_(0, places.flatten(), weights.flatten())
    assert torch.equal(counted, torch.full((steps,), float(images), dtype=F64))
    assert torch.equal(weights.sum(1), torch.full((images,), float(steps), dtype=F64))
    x0 = torch.zeros(3, 2, dtype=F64)
    oracle = gaussian(noise_schedule, torch.zeros(2, dtype=F64), 0.25)
    part = elbo(oracle, x0, grid, Ancestral(beta), Streams(0, "b", range(3)), Normal.log_prob, terms=count)
    assert torch.equal(part.weight, weights[:1].expand(3, count))
    # Terms that are all 1 make the number of steps.
    ones = dataclasses.replace(part, terms=torch.ones_like(part.terms), prior=torch.zeros_like(part.prior))
    assert torch.equal(ones.nats, torch.full((3,), float(steps), dtype=F64))


def test_kl_form_has_less_variance_than_monte_carlo():
    """Reduced variance (the paper's section 3 and appendix A), on data that no Gaussian reverse step fits."""
    means, variances = torch.tensor([[-0.7], [0.7]], dtype=F64), torch.full((2,), 0.01, dtype=F64)
    oracle = Mixture(schedules.linear(100), means, variances)
    x0 = oracle.sample(torch.Generator().manual_seed(0), 2000)
    grid = grids.full(oracle.schedule)
    kl = elbo(oracle, x0, grid, Ancestral(beta), Streams(0, "a", range(2000)), Normal.log_prob)
    noise = Streams(0, "b", range(2000))
    naive = along_chains(oracle, x0, grid, Ancestral(beta), noise, Normal.log_prob).monte_carlo
    difference, error = mean_and_error(kl.nats - naive.nats)
    assert abs(difference) < 4 * error
    # One term at a random t, which is what a training step sees: the spread around that term's own mean.
    assert float(naive.terms.var(0).mean()) > 5 * float(kl.terms.var(0).mean())
    assert (naive.terms.var(0) > kl.terms.var(0)).double().mean() > 0.9


def test_calibrated_variance_finds_the_exact_one():
    oracle = normal_data(100)
    x0 = oracle.sample(torch.Generator().manual_seed(0), 8000)
    table = calibrate(oracle, x0, Streams(0, "calibration", range(8000)))
    t = torch.arange(1, 101)
    alpha_bar, noise_var = oracle.schedule.alpha_bar(t), oracle.schedule.noise_var(t)
    exact = 0.25 * noise_var / (0.25 * alpha_bar + noise_var)
    middle = table.shape[1] // 2  # the bucket in which nearly all predictions lie
    assert torch.allclose(table[1:, middle], exact, rtol=0.06)
    prediction = Calibrated(oracle, table)(x0, 50)
    assert torch.equal(prediction.x0, oracle(x0, 50).x0)


class Black:
    """Predicts black, whatever it sees."""

    schedule = schedules.cosine(20)

    def __call__(self, x_t, t):
        return predict(torch.full_like(x_t, -1.0), x_t, self.schedule, t)


def nearly_black(seed, images, pixels=64):
    """Bytes that are 0, but one in 500 is 1, and one in 2,000 anything up to 60: the odds of each, and images."""
    odds = torch.zeros(256, dtype=F64)
    odds[1], odds[2:61] = 1 / 500, 1 / 2000 / 59
    odds[0] = 1 - odds.sum()
    drawn = torch.multinomial(odds, images * pixels, replacement=True, generator=torch.Generator().manual_seed(seed))
    return odds, drawn.reshape(images, 1, 8, 8).double() / 127.5 - 1


@pytest.mark.parametrize("terms", [None, 4])
def test_claimed_errors_are_those_that_other_images_and_terms_show(terms):
    """Sixteen measurements of other images at other times: their spread against what each claims of itself.

    The predictor is as sure as a table can be. By Eq. 13 a single pixel can be the whole mean, and claims are untrue.
    """
    black = Calibrated(Black(), torch.full((21, BUCKETS), LEAST_ERROR, dtype=F64))
    claims = {}
    for name, likelihood in {"coded": Normal.log_prob_coded, "byte": Normal.log_prob_byte}.items():
        found = [
            elbo(black, nearly_black(1 + seed, 256)[1], [20, 11, 5, 2, 1, 0], Ancestral(optimal),
                  Streams(seed, "e", range(256)), likelihood, terms).parts["L_0"]
            for seed in range(16)
        ]  # fmt: skip
        claims[name] = [mean_and_error(one) for one in found]
    means, errors = torch.tensor(claims["coded"], dtype=F64).unbind(1)
    claimed = float(errors.square().mean().sqrt())
    low, high = (chi2(15).ppf(part) / 15 for part in (0.001, 0.999))
    assert low < float(means.var()) / claimed**2 < high
    assert float(errors.max() / errors.min()) < 2
    # The truth, by the odds of each byte.
    odds, _ = nearly_black(0, 1)
    p = Normal(torch.tensor(-1.0, dtype=F64), black(torch.zeros(1, 1, dtype=F64), 1).x0_var.squeeze())
    exact = -float((odds * p.log_prob_coded(torch.arange(256).double() / 127.5 - 1)).sum()) / math.log(2)
    assert float(means.mean()) == pytest.approx(exact, abs=4 * claimed / 4)
    untrue = torch.tensor(claims["byte"], dtype=F64)[:, 1]
    assert float(untrue.max() / untrue.min()) > 3


@pytest.mark.parametrize(("values", "terms"), [(4, None), (12, 4)])  # of four pixels, grey and in colour
def test_a_claimed_error_is_the_spread_over_four_hundred_seeds(values, terms):
    """Gaussian images of a brightness of their own under the exact denoiser of each pixel: few images, many seeds.

    Every seed has other images, times and noise, as `evaluate` draws them, so that nothing that varies is left out:
    neither images, nor strata, nor what draws might share. The mean square of the claims is the variance itself, in
    expectation; its chance and that of the spread are small at 400 seeds.
    """
    seeds, images, generator = 400, 12, torch.Generator().manual_seed(5)
    model = gaussian(schedules.cosine(40), torch.zeros(values, dtype=F64), 0.25)
    grid = [40, 33, 25, 17, 10, 5, 2, 1, 0]
    found = []
    for seed in range(seeds):
        own, common = (torch.randn(images, size, generator=generator).double() for size in (values, 1))
        x0 = 0.3 * own + 0.4 * common
        noise = Streams(seed, "evaluate", range(images))
        bits = elbo(model, x0, grid, Ancestral(fixedsmall), noise, Normal.log_prob, terms).bits_per_dim
        found.append(mean_and_error(bits))
    means, errors = torch.tensor(found, dtype=F64).unbind(1)
    # Both sides have an error: of a variance from 400 means, and from 400 claims of 12 images each, whose tails count.
    of_spread = (2 / (seeds - 1)) ** 0.5
    of_claims = float(errors.square().std() / errors.square().mean()) / seeds**0.5
    ratio = float(means.var() / errors.square().mean())
    assert ratio == pytest.approx(1, abs=3.3 * math.hypot(of_spread, of_claims)), ratio
    assert math.hypot(of_spread, of_claims) < 0.1  # a claim that is short by a fifth would be seen


def test_the_largest_share_is_the_part_of_one_image_in_the_sum():
    assert largest_share(torch.tensor([1.0, 2.0, 5.0])) == pytest.approx(5 / 8)
    assert largest_share(torch.tensor([-1.0, 3.0, 0.0])) == pytest.approx(3 / 4)  # of the sizes, where signs differ
    assert largest_share(torch.tensor([2.0, 2.0])) == pytest.approx(1 / 2)
    assert math.isnan(largest_share(torch.zeros(3)))


def test_bytes_bound_is_above_the_entropy_of_bytes():
    """Two grey levels with equal odds need one bit; a bound may not promise less, and the exact oracle comes near."""
    levels = torch.tensor([[10 / 127.5 - 1], [200 / 127.5 - 1]], dtype=F64)
    oracle = dataset(schedules.cosine(1000), levels)
    x0 = levels[torch.arange(400) % 2]
    result = elbo(oracle, x0, grids.full(oracle.schedule), Ancestral(optimal), Streams(0, "bytes", range(400)))
    mean, error = mean_and_error(result.bits_per_dim)
    assert 1 - 4 * error < mean < 1.1


def test_score_is_the_gradient_of_the_log_density():
    oracle = Mixture(
        schedules.linear(100),
        torch.tensor([[-0.7, 0.1], [0.7, 0.2]], dtype=F64),
        torch.full((2,), 0.1, dtype=F64),
    )
    x = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (gradient,) = torch.autograd.grad(oracle.log_prob(x, 30).sum(), x)
    assert torch.allclose(score(oracle(x, 30), oracle.schedule, 30), gradient, atol=1e-10)


def test_last_step_is_the_mean_unless_asked():
    oracle = normal_data(5)
    x = torch.zeros(3, 2, dtype=F64)
    steps = list(walk(oracle, x, [1, 0], Ancestral(beta), from_model(Streams(0, "a", range(3)))))
    assert torch.equal(steps[0].x_s, steps[0].p.mean)
    steps = list(walk(oracle, x, [1, 0], Ancestral(beta), from_model_to_the_end(Streams(0, "a", range(3)))))
    assert not torch.equal(steps[0].x_s, steps[0].p.mean)
