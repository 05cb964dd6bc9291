"""The algebra against closed forms, brute force and published tables."""

import itertools
import math

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st

from ancestral.diffusion.denoisers.targets import EPS, MEAN, SCORE, TARGETS, X0, V
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.noise_schedule import NoiseSchedule
from ancestral.diffusion.processes.normal import Normal, log_ndtr
from ancestral.diffusion.processes.schedules import from_betas
from ancestral.diffusion.samplers import grids

F64 = torch.float64
betas = st.lists(st.floats(1e-5, 0.9), min_size=1, max_size=12).map(lambda b: torch.tensor(b, dtype=F64))


def values(*numbers):
    return torch.tensor(numbers, dtype=F64)


def product(a: Normal, b: Normal) -> Normal:
    """The Gaussian proportional to the product of two densities."""
    precision = 1 / a.var + 1 / b.var
    return Normal((a.mean / a.var + b.mean / b.var) / precision, 1 / precision)


@given(betas)
def test_marginal_is_the_composition_of_single_steps(beta):
    noise_schedule, x0 = from_betas(beta), values(0.7, -1.3)
    mean, var = x0, torch.zeros(2, dtype=F64)
    for t, b in enumerate(beta, 1):
        mean, var = (1 - b).sqrt() * mean, (1 - b) * var + b
        one = noise_schedule.transition(x0, t - 1, t)
        assert torch.allclose(one.var, b.expand(2), rtol=1e-9)
        q = noise_schedule.marginal(x0, t)
        assert torch.allclose(q.mean, mean, rtol=1e-9)
        assert torch.allclose(q.var.expand(2), var, rtol=1e-9)
    assert torch.allclose(noise_schedule.beta, beta, rtol=1e-9)


@given(betas.filter(lambda b: len(b) > 1), st.data())
def test_posterior_is_bayes_rule_for_any_pair(beta, data):
    noise_schedule = from_betas(beta)
    t = data.draw(st.integers(2, len(beta)))
    s = data.draw(st.integers(1, t - 1))
    x0, x_t = values(0.4, -0.9), values(-0.2, 1.1)
    prior = noise_schedule.marginal(x0, s)
    ratio = noise_schedule.alpha_bar(t) / noise_schedule.alpha_bar(s)
    likelihood = Normal(x_t / ratio.sqrt(), ((1 - ratio) / ratio).expand(2))  # q(x_t | x_s) as a function of x_s
    expected = product(Normal(prior.mean, prior.var.expand(2)), likelihood)
    q = noise_schedule.posterior(x_t, x0, t, s)
    assert torch.allclose(q.mean, expected.mean, rtol=1e-7, atol=1e-9)
    assert torch.allclose(q.var.expand(2), expected.var, rtol=1e-7)
    gain = noise_schedule.gain(t, s)
    assert torch.allclose(gain, 1 - noise_schedule.snr(t) / noise_schedule.snr(s), atol=1e-9)


@given(betas)
def test_at_the_clean_end_the_posterior_is_x0(beta):
    noise_schedule, x0, x_t = from_betas(beta), values(0.4), values(2.0)
    for t in range(1, len(beta) + 1):
        q = noise_schedule.posterior(x_t, x0, t, 0)
        assert float(q.mean) == pytest.approx(0.4, abs=1e-12)
        assert float(q.var) == 0
        assert float(noise_schedule.gain(t, 0)) == 1


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine, schedules.ve])
def test_a_shifted_schedule_has_the_noise_of_larger_images(make):
    """The mean of side^2 equal pixels has as much noise as one pixel had."""
    plain, t = make(50), torch.arange(1, 51)
    assert torch.allclose(plain.shifted(3).snr(t) * 9, plain.snr(t), rtol=1e-12)
    assert torch.allclose(plain.shifted(3).shifted(1 / 3).log_alpha_bar, plain.log_alpha_bar, rtol=1e-9)
    assert float(plain.shifted(3).log_alpha_bar[0]) == 0
    assert float(schedules.linear(10).zero_terminal_snr().shifted(2).alpha_bar(10)) == 0


def test_posterior_at_zero_terminal_snr():
    noise_schedule = schedules.linear(10).zero_terminal_snr()
    assert float(noise_schedule.alpha_bar(10)) == 0
    q = noise_schedule.posterior(values(3.0), values(0.5), 10, 9)
    plain = noise_schedule.marginal(values(0.5), 9)  # x_T is pure noise, so it says nothing
    assert torch.allclose(q.mean, plain.mean)
    assert torch.allclose(q.var, plain.var)


def test_the_papers_posterior_formula():
    """Eq. 7 with its own symbols."""
    noise_schedule = schedules.linear(1000)
    t = torch.arange(2, 1001)
    ab, before = noise_schedule.alpha_bar(t), noise_schedule.alpha_bar(t - 1)
    beta = 1 - ab / before
    of_x_t, of_x0 = noise_schedule.posterior_coefficients(t, t - 1)
    assert torch.allclose(of_x0, before.sqrt() * beta / (1 - ab), rtol=1e-9)
    assert torch.allclose(of_x_t, (1 - beta).sqrt() * (1 - before) / (1 - ab), rtol=1e-9)


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
@given(betas, st.data())
def test_every_target_gives_x0_back(target, beta, data):
    noise_schedule = from_betas(beta)
    t = torch.tensor(data.draw(st.lists(st.integers(1, len(beta)), min_size=3, max_size=3)))
    x0, eps = torch.randn(2, 3, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    x_t = noise_schedule.marginal(x0, t).sample(eps)
    output = target.of(x0, eps, noise_schedule, t)
    assert torch.allclose(target.x0(output, x_t, noise_schedule, t), x0, atol=1e-6)
    # error_scale: a change of the output is a change of x0 times it.
    moved = target.x0(output + 1e-3, x_t, noise_schedule, t) - x0
    assert torch.allclose(
        moved.abs() * target.error_scale(noise_schedule, t)[:, None], torch.tensor(1e-3).double(), rtol=1e-4
    )


@pytest.mark.parametrize("schedule", [schedules.cosine(1000), schedules.linear(1000)], ids=["cosine", "linear"])
def test_which_targets_bound_x0(schedule):
    """By the x0 that an output wrong by 1 stands for, at every time."""
    t = torch.arange(1, 1001)
    zero = torch.zeros(1000, 1, dtype=F64)
    wrong = {name: target.x0(zero + 1, zero, schedule, t).abs().max() for name, target in TARGETS.items()}
    assert {name for name, x0 in wrong.items() if x0 < 1 + 1e-9} == {"x0", "v", "flow", "edm"}
    assert all(target.bounds_x0(schedule) == (wrong[name] < 1 + 1e-9) for name, target in TARGETS.items())


def test_the_edm_target_is_of_variance_one_and_owes_the_input_nothing():
    # What Karras et al. 2022 derive F from (appendix B.6), for data of standard deviation 1/2; -v is the case of 1.
    noise_schedule = schedules.cosine(100)
    t = torch.arange(1, 101)
    a, b = TARGETS["edm"].coefficients(noise_schedule, t)
    signal, noise = noise_schedule.signal(t), noise_schedule.noise(t)
    assert torch.allclose(a**2 / 4 + b**2, torch.ones(100, dtype=F64))
    assert torch.allclose(a * signal / 4 + b * noise, torch.zeros(100, dtype=F64), atol=1e-12)
    assert bool((a > 0).all())


def test_targets_by_their_definitions():
    noise_schedule, t = schedules.cosine(50), 20
    x0, eps = values(0.3, -0.6)[None], values(1.2, 0.1)[None]
    x_t = noise_schedule.marginal(x0, t).sample(eps)
    signal, noise = noise_schedule.signal(t), noise_schedule.noise(t)
    assert torch.equal(EPS.of(x0, eps, noise_schedule, t), eps)
    assert torch.equal(X0.of(x0, eps, noise_schedule, t), x0)
    assert torch.allclose(V.of(x0, eps, noise_schedule, t), signal * eps - noise * x0)
    assert torch.allclose(SCORE.of(x0, eps, noise_schedule, t), -(x_t - signal * x0) / noise**2)
    assert torch.allclose(MEAN.of(x0, eps, noise_schedule, t), noise_schedule.posterior(x_t, x0, t, t - 1).mean)


def test_eps_is_refused_where_it_says_nothing():
    for target in (EPS, SCORE):
        with pytest.raises(ValueError, match="use 'v'"):
            target.check(schedules.linear(10).zero_terminal_snr())
    for target in (V, X0):
        target.check(schedules.linear(10).zero_terminal_snr())


def test_published_tables():
    """alpha_bar of the reference implementations at 0-based indices, to the digits they were published with."""
    linear = {0: 0.99990, 1: 0.99978, 250: 0.521423, 500: 0.0777967, 750: 0.00330016, 998: 4.11819e-5, 999: 4.03583e-5}
    cosine = {0: 0.9999587, 250: 0.845888, 500: 0.492285, 750: 0.143179, 998: 2.42877e-6, 999: 2.42873e-9}
    for index, expected in linear.items():
        assert float(schedules.linear().alpha_bar(index + 1)) == pytest.approx(expected, rel=1e-5)
    for index, expected in cosine.items():
        assert float(schedules.cosine().alpha_bar(index + 1)) == pytest.approx(expected, rel=1e-4)
    assert float(schedules.scaled_linear().alpha_bar(1000)) == pytest.approx(0.00466010, rel=1e-5)
    assert float(schedules.linear().zero_terminal_snr().alpha_bar(501)) == pytest.approx(0.0752462, rel=1e-5)
    beta = schedules.linear().beta
    assert float(beta[0]) == pytest.approx(1e-4, rel=1e-9)
    assert float(beta[-1]) == pytest.approx(0.02, rel=1e-9)
    # L_T of the paper's schedule is about 1e-5 bits/dim (section 4).
    prior = schedules.linear().marginal(torch.full((1,), 0.5, dtype=F64), 1000).kl(Normal(values(0.0), values(1.0)))
    assert float(prior) / math.log(2) == pytest.approx(7.3e-6, rel=0.02)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.parametrize("T", [1, 2, 3, 5, 19, 20, 21, 50, 1000, 4000])
def test_every_schedule_is_valid_at_every_length(name, T):
    if T == 1 and "zero" in name:
        with pytest.raises(ValueError, match="T >= 2"):
            schedules.SCHEDULES[name](T)
        return
    made = schedules.SCHEDULES[name](T)
    assert made.T == T
    assert bool((made.beta > 0).all())
    assert bool((made.beta <= 1).all())
    if name in ("linear", "scaled-linear"):
        end = schedules.SCHEDULES[name](1000).log_alpha_bar[-1]
        assert float(made.log_alpha_bar[-1]) == pytest.approx(float(end), rel=1e-9)
        if T == 4000:
            assert torch.allclose(made.log_alpha_bar[::4], schedules.SCHEDULES[name](1000).log_alpha_bar, rtol=1e-6)


@pytest.mark.parametrize(
    "table", [[0.0], [0.0, 0.0], [0.1, -1.0], [0.0, -1.0, -0.5], [0.0, -math.inf, -math.inf], [0.0, math.nan]]
)
def test_wrong_tables_are_refused(table):
    with pytest.raises(ValueError, match="log_alpha_bar"):
        NoiseSchedule(torch.tensor(table, dtype=F64))
    with pytest.raises(ValueError, match="float64"):
        NoiseSchedule(torch.tensor([0.0, -1.0]))


@given(st.floats(-3, 3), st.floats(0.01, 4), st.floats(-3, 3), st.floats(0.01, 4))
def test_kl_is_torchs(mean, var, other_mean, other_var):
    p, q = Normal(values(mean), values(var)), Normal(values(other_mean), values(other_var))
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(p.mean, p.var.sqrt()), torch.distributions.Normal(q.mean, q.var.sqrt())
    )
    assert torch.allclose(p.kl(q), reference, atol=1e-9)
    x = values(0.3)
    expected = torch.distributions.Normal(p.mean, p.var.sqrt()).log_prob(x)
    assert torch.allclose(p.log_prob(x), expected)


def test_kl_keeps_its_digits_when_the_variances_nearly_agree():
    for d in (1e-3, 1e-6, 1e-9):
        kl = float(Normal(values(0.0), values(1 + d)).kl(Normal(values(0.0), values(1.0))))
        d = (1 + d) - 1  # what float64 kept of it
        assert kl == pytest.approx((d - math.log1p(d)) / 2, rel=1e-9, abs=1e-30)


@given(st.floats(-1.5, 1.5), st.floats(-5, 1))
def test_byte_probabilities_sum_to_one(mean, log10_std):
    grid = torch.arange(256, dtype=F64) / 127.5 - 1
    p = Normal(torch.full((256,), mean, dtype=F64), torch.full((256,), 10 ** (2 * log10_std), dtype=F64))
    log_prob = p.log_prob_byte(grid)
    assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert bool(log_prob.isfinite().all()) or log10_std < -2


@pytest.mark.parametrize(("kind", "lowest", "digits"), [(F64, -1e150, 4e-16), (torch.float32, -1e18, 1.5e-7)])
def test_log_ndtr_is_scipys_in_both_tails(kind, lowest, digits):
    """Above 0 the rounding of x alone moves the result by x^2 times as much."""
    magnitudes = torch.logspace(-6, math.log10(-lowest), 5000, dtype=F64)
    highest = 37 if kind == F64 else 12  # beyond it is 0 to rounding
    x = torch.cat([-magnitudes, magnitudes[magnitudes < highest], values(0.0)]).to(kind).requires_grad_()
    found = log_ndtr(x)
    wide = x.detach().double().numpy()
    expected = scipy.special.log_ndtr(wide)
    assert (np.abs(found.detach().double().numpy() / expected - 1) <= digits * (2 + wide.clip(0) ** 2)).all()
    assert found.dtype == kind
    found.sum().backward()
    # The hazard of the mirrored normal: exp(-x^2/2) / sqrt(2 pi) over P(z < x), here without its underflow.
    below = np.sqrt(2 / np.pi) / scipy.special.erfcx(-wide.clip(None, 0) / 2**0.5)
    above = np.exp(-(wide.clip(0) ** 2) / 2 - expected.clip(-1)) / np.sqrt(2 * np.pi)
    errors = np.abs(x.grad.double().numpy() / np.where(wide < 0, below, above) - 1)
    assert (errors <= digits * (10 + wide.clip(0) ** 2)).all()
    ends = log_ndtr(torch.tensor([-math.inf, math.inf, math.nan], dtype=kind))
    assert torch.equal(ends[:2], torch.tensor([-math.inf, 0.0], dtype=kind))
    assert bool(ends[2].isnan())


@given(st.floats(-1.5, 1.5), st.floats(-5, 1))
def test_a_coded_byte_is_a_mixture_with_the_uniform_distribution(mean, log10_std):
    """It sums to one, no byte costs more than 24 bits, and none log2(1 / (1 - 2^-16)) bits more than by Eq. 13."""
    grid = torch.arange(256, dtype=F64) / 127.5 - 1
    p = Normal(torch.full((256,), mean, dtype=F64), torch.full((256,), 10 ** (2 * log10_std), dtype=F64))
    bits, gaussian = -p.log_prob_coded(grid) / math.log(2), -p.log_prob_byte(grid) / math.log(2)
    assert float((-bits * math.log(2)).exp().sum()) == pytest.approx(1, abs=1e-12)
    assert float(bits.max()) <= 24 + 1e-12
    assert bool((bits <= gaussian - math.log2(1 - 2**-16) + 1e-12).all())


def test_a_sure_gaussian_pays_24_bits_for_a_byte_it_excludes():
    """Closed form: beyond its reach only the uniform part is left. By Eq. 13 it is 236 nats for one byte."""
    p = Normal(values(-1.0), values((0.023 / 127.5) ** 2))
    assert float(-p.log_prob_byte(values(1 / 127.5 - 1))) > (0.5 / 0.023) ** 2 / 2  # > 236
    for byte in (1, 2, 100, 255):
        assert float(-p.log_prob_coded(values(byte / 127.5 - 1))) == pytest.approx(24 * math.log(2), rel=1e-9)


def test_byte_probability_far_in_a_tail():
    """30 standard deviations away: log of Mills' ratio expansion, 1/z - 1/z^3 + 3/z^5 - 15/z^7."""
    std, steps = 0.01, 40
    distance = steps * 2 / 255
    p = Normal(values(-1 + 2 * 127 / 255), values(std**2))
    x = p.mean + distance
    edge = (distance - 1 / 255) / std
    tail = math.log(1 / edge - edge**-3 + 3 * edge**-5 - 15 * edge**-7) - edge**2 / 2 - 0.5 * math.log(2 * math.pi)
    far = (distance + 1 / 255) / std
    thinner = math.log1p(-math.exp(-(far**2 - edge**2) / 2) * edge / far)
    assert edge > 30
    assert float(p.log_prob_byte(x)) == pytest.approx(tail + thinner, rel=1e-6)


def test_byte_probability_has_finite_gradients():
    for x in (-1.0, 1.0, 0.2, 254 / 127.5 - 1):
        mean = torch.tensor([-0.99, 0.99, 0.0], requires_grad=True)
        log_var = torch.tensor([-9.0, -3.0, 1.0], requires_grad=True)
        Normal(mean, log_var.exp()).log_prob_byte(torch.full((3,), x)).sum().backward()
        assert bool(mean.grad.isfinite().all())
        assert bool(log_var.grad.isfinite().all())


@given(st.sampled_from(sorted(grids.GRIDS)), st.sampled_from(["linear", "cosine", "linear-zero-snr"]), st.data())
def test_grids_have_as_many_steps_as_asked(name, kind, data):
    T = data.draw(st.integers(2, 300))
    noise_schedule = schedules.SCHEDULES[kind](T)
    steps = data.draw(st.one_of(st.integers(1, T), st.just(T)))
    grid = grids.GRIDS[name](noise_schedule, steps)
    assert len(grid) == steps + 1
    assert grids.explicit(noise_schedule, grid) == grid
    if name != "leading":
        assert grid[0] == T


def test_grids_are_the_published_ones():
    """diffusers' tables for 10 of 1000 steps; its t is ours minus 1."""
    noise_schedule = schedules.linear()
    tables = {
        "leading": list(range(900, -1, -100)),
        "trailing": list(range(999, 0, -100)),
        "uniform": [999, 888, 777, 666, 555, 444, 333, 222, 111, 0],
    }
    for name, expected in tables.items():
        assert [t - 1 for t in grids.GRIDS[name](noise_schedule, 10)[:-1]] == expected


def test_even_grids_are_even():
    noise_schedule = schedules.linear_log_snr(10000)
    t = torch.tensor(grids.log_snr(noise_schedule, 9)[:-1])
    assert torch.allclose(noise_schedule.log_snr(t).diff(), values(18.3 / 8), atol=0.01)
    sigma = (-noise_schedule.log_snr(torch.tensor(grids.karras(noise_schedule, 9)[:-1])) / 2).exp() ** (1 / 7)
    assert torch.allclose(sigma.diff(), sigma.diff().mean(), rtol=0.02)


@pytest.mark.parametrize("times", [[], [5], [5, 5, 0], [3, 4, 0], [5, 1], [11, 0]])
def test_wrong_grids_are_refused(times):
    with pytest.raises(ValueError, match="times must fall strictly"):
        grids.explicit(schedules.linear(10), times)


@pytest.mark.parametrize("steps", [0, 11])
def test_steps_outside_the_schedule_are_refused(steps):
    with pytest.raises(ValueError, match="between 1 and T = 10"):
        grids.trailing(schedules.linear(10), steps)


@given(betas.filter(lambda b: len(b) > 2), st.data())
def test_transitions_over_any_stretch_compose(beta, data):
    """Chapman-Kolmogorov: r -> s -> t is r -> t, and 0 -> t is the marginal."""
    noise_schedule, x = from_betas(beta), values(0.7, -1.3)
    r, s, t = sorted(data.draw(st.sets(st.integers(0, len(beta)), min_size=3, max_size=3)))
    first = noise_schedule.transition(x, r, s)
    second = noise_schedule.transition(first.mean, s, t)
    slope = noise_schedule.transition(values(1.0), s, t).mean
    whole = noise_schedule.transition(x, r, t)
    assert torch.allclose(whole.mean, second.mean, rtol=1e-9)
    assert torch.allclose(whole.var, slope**2 * first.var + second.var, rtol=1e-9)
    q, from_data = noise_schedule.marginal(x, t), noise_schedule.transition(x, 0, t)
    assert torch.allclose(q.mean, from_data.mean, rtol=1e-12)
    assert torch.allclose(q.var, from_data.var, rtol=1e-12)


@given(betas.filter(lambda b: len(b) > 1), st.data(), st.floats(-2, 2), st.floats(-2, 2), st.floats(-2, 2))
def test_both_ways_to_write_the_joint_density_agree(beta, data, x0, x_s, x_t):
    """q(x_s | x0) q(x_t | x_s) = q(x_t | x0) q(x_s | x_t, x0) at every point."""
    noise_schedule = from_betas(beta)
    t = data.draw(st.integers(2, len(beta)))
    s = data.draw(st.integers(1, t - 1))
    x0, x_s, x_t = values(x0), values(x_s), values(x_t)
    forwards = noise_schedule.marginal(x0, s).log_prob(x_s) + noise_schedule.transition(x_s, s, t).log_prob(x_t)
    backwards = noise_schedule.marginal(x0, t).log_prob(x_t) + noise_schedule.posterior(x_t, x0, t, s).log_prob(x_s)
    assert torch.allclose(forwards, backwards, rtol=1e-7, atol=1e-7)


def test_posterior_by_integration():
    """The moments of prior times likelihood on a fine grid of x_s, no formula for products of Gaussians."""
    noise_schedule, x0, x_t = schedules.cosine(20), values(0.4), values(-0.7)
    x_s = torch.linspace(-8, 8, 40_001, dtype=F64)
    for t, s in ((20, 1), (20, 19), (15, 6), (2, 1)):
        log_density = noise_schedule.marginal(x0, s).log_prob(x_s) + noise_schedule.transition(x_s, s, t).log_prob(x_t)
        share = log_density.softmax(0)
        mean = (share * x_s).sum()
        q = noise_schedule.posterior(x_t, x0, t, s)
        assert float(q.mean) == pytest.approx(float(mean), abs=1e-9)
        assert float(q.var) == pytest.approx(float((share * (x_s - mean) ** 2).sum()), rel=1e-6)


def test_posterior_coefficients_identities():
    """A clean chain stays on its line, and the posterior's spread plus what x_t carries is the marginal's."""
    for noise_schedule in (schedules.linear(50), schedules.cosine(50), schedules.linear(50).zero_terminal_snr()):
        t, s = torch.tensor([(t, s) for t in range(1, 51) for s in range(t)]).T
        of_x_t, of_x0 = noise_schedule.posterior_coefficients(t, s)
        signal, noise_var = noise_schedule.signal(t), noise_schedule.noise_var(t)
        assert torch.allclose(of_x_t * signal + of_x0, noise_schedule.signal(s), rtol=1e-12)
        spread = of_x_t**2 * noise_var + noise_schedule.gain(t, s) * noise_schedule.noise_var(s)
        assert torch.allclose(spread, noise_schedule.noise_var(s), rtol=1e-12, atol=1e-18)
        gain = noise_schedule.gain(t, s)
        assert bool(((gain > 0) & (gain <= 1)).all())
        assert bool((gain[s == 0] == 1).all())
        # What is left of the SNR multiplies along the way.
        left = 1 - noise_schedule.gain(torch.tensor([50, 49, 20]), torch.tensor([1, 20, 1]))
        assert torch.allclose(1 - noise_schedule.gain(49, 1), left[1] * left[2], rtol=1e-9)
        assert torch.allclose(left[0], (1 - noise_schedule.gain(50, 20)) * left[2], rtol=1e-9)


def test_tiny_steps_keep_their_digits():
    """1 - alpha_bar, beta and the gain at betas that 1 - beta would swallow, against 50 digits."""
    mpmath = pytest.importorskip("mpmath")
    beta = [1e-14, 3e-13, 1e-17, 0.5]
    noise_schedule = from_betas(torch.tensor(beta, dtype=F64))
    with mpmath.workdps(50):
        ab = [mpmath.mpf(1)]
        for b in beta:
            ab.append(ab[-1] * (1 - mpmath.mpf(b)))
        snr = [mpmath.inf, *(a / (1 - a) for a in ab[1:])]
        for t in range(1, 5):
            assert float(noise_schedule.noise_var(t)) == pytest.approx(float(1 - ab[t]), rel=1e-12)
            assert float(noise_schedule.log_snr(t)) == pytest.approx(float(mpmath.log(snr[t])), rel=1e-12)
        assert float(noise_schedule.gain(2, 1)) == pytest.approx(float(1 - snr[2] / snr[1]), rel=1e-12)
        assert float(noise_schedule.gain(4, 2)) == pytest.approx(float(1 - snr[4] / snr[2]), rel=1e-12)


@given(st.sampled_from(sorted(TARGETS)), st.sampled_from(sorted(TARGETS)), st.integers(1, 50))
def test_any_target_can_be_read_as_any_other(one, other, t):
    noise_schedule = schedules.cosine(50)
    x0, eps = torch.randn(2, 1, 4, dtype=F64, generator=torch.Generator().manual_seed(t))
    x_t = noise_schedule.marginal(x0, t).sample(eps)
    guess = x0 + 0.3 * eps  # any estimate, with the eps that agrees with it
    its_eps = (x_t - noise_schedule.signal(t) * guess) / noise_schedule.noise(t)
    output = TARGETS[one].of(guess, its_eps, noise_schedule, t)
    back = TARGETS[one].x0(output, x_t, noise_schedule, t)
    eps_back = (x_t - noise_schedule.signal(t) * back) / noise_schedule.noise(t)
    expected = TARGETS[other].of(guess, its_eps, noise_schedule, t)
    assert torch.allclose(TARGETS[other].of(back, eps_back, noise_schedule, t), expected, atol=1e-8, rtol=1e-8)
    # An error in x0 is stretched by error_scale in the output.
    error = (output - TARGETS[one].of(x0, eps, noise_schedule, t)).norm()
    scale = TARGETS[one].error_scale(noise_schedule, t)
    assert torch.allclose(error, scale * (guess - x0).norm(), rtol=1e-8)


def test_v_by_the_papers_formulas():
    """x0 = signal x_t - noise v and eps = noise x_t + signal v (Salimans and Ho 2022, appendix D)."""
    noise_schedule, v = schedules.linear(), values(0.4, -1.1)[None]
    x_t = values(0.9, 0.2)[None]
    for t in (1, 300, 1000):
        signal, noise = noise_schedule.signal(t), noise_schedule.noise(t)
        x0 = V.x0(v, x_t, noise_schedule, t)
        assert torch.allclose(x0, signal * x_t - noise * v, rtol=1e-12)
        assert torch.allclose((x_t - signal * x0) / noise, noise * x_t + signal * v, rtol=1e-9)


def test_more_published_tables():
    """Cosine at 0-based 1; diffusers' sigmoid of beta over [-6, 6] at 500; the end of a zero-terminal-SNR table."""
    assert float(schedules.cosine().alpha_bar(2)) == pytest.approx(0.9999126, abs=5e-8)
    beta = torch.linspace(-6, 6, 1000, dtype=F64).sigmoid() * (0.02 - 1e-4) + 1e-4
    assert float(from_betas(beta).alpha_bar(501)) == pytest.approx(0.298888, abs=1e-6)
    assert float(schedules.cosine().beta[-1]) == pytest.approx(0.999, rel=1e-12)
    assert float(schedules.linear().zero_terminal_snr().alpha_bar(1000)) == 0


def test_schedules_by_their_definitions():
    u = torch.arange(1, 101, dtype=F64) / 100
    cosine = (torch.cos((u + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2
    assert torch.allclose(schedules.cosine(100).alpha_bar(torch.arange(1, 100)), cosine[:-1], rtol=1e-9)
    high, low = 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(3))
    sigmoid = (high - (6 * u - 3).sigmoid()) / (high - low)
    assert torch.allclose(schedules.sigmoid(100).alpha_bar(torch.arange(1, 101)), sigmoid, atol=2e-9)
    high, low = 1 / (1 + math.exp(-6)), 1 / (1 + math.exp(6))
    sharper = 0.1 + 0.9 * (high - ((6 * u - 3) / 0.5).sigmoid()) / (high - low)
    found = schedules.sigmoid(100, tau=0.5, floor=0.1).alpha_bar(torch.arange(1, 101))
    assert torch.allclose(found, sharper, rtol=1e-12)
    assert {make().T for make in (schedules.sigmoid, schedules.linear_log_snr, schedules.ve, schedules.cosine)} == {
        1000
    }
    for made, t, sigma in (
        (schedules.ve(), [1, 1000], [0.01, 50]),
        (schedules.ve(3, 0.01, 100), [1, 2, 3], [0.01, 1, 100]),
    ):
        level = made.noise(torch.tensor(t)) / made.signal(torch.tensor(t))
        assert level.tolist() == pytest.approx(sigma, rel=1e-12)
    levels = schedules.linear_log_snr(100).log_snr(torch.arange(1, 101))
    assert torch.allclose(levels, 13.3 - 18.3 * u, rtol=1e-9)
    root = np.linspace(8.5e-4**0.5, 0.012**0.5, 1000)
    assert schedules.scaled_linear().beta.numpy() == pytest.approx(root**2, rel=1e-9)
    # Zero terminal SNR: sqrt(alpha_bar) moved and scaled, the first kept and the last 0.
    plain, shifted = schedules.linear(100), schedules.linear(100).zero_terminal_snr()
    t = torch.arange(1, 101)
    first, last = plain.signal(1), plain.signal(100)
    assert torch.allclose(shifted.signal(t), (plain.signal(t) - last) * first / (first - last), atol=1e-14)


@pytest.mark.parametrize("T", [999, 1500, 4000])
def test_between_the_entries_of_a_table_the_rate_is_linear(T):
    """Of betas so small that log(1 - beta) is -beta the sum is a quadratic in time, which is met everywhere."""
    low, high = 1e-9, 1e-6
    k = torch.arange(T + 1, dtype=F64) * 1000 / T
    exact = -(low * k + (high - low) / 999 * k * (k - 1) / 2)
    assert torch.allclose(schedules.linear(T, low, high).log_alpha_bar, exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("beta", [[], [0.0], [-0.1, 0.2], [1.0, 0.5], [0.5, 1.5], [math.nan]])
def test_wrong_betas_are_refused(beta):
    with pytest.raises(ValueError, match="log_alpha_bar"):
        from_betas(torch.tensor(beta, dtype=F64))


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_no_schedule_has_no_steps(name):
    message = "at least 2 entries" if "cosine" in name else "T must be at least 1, got 0"
    with pytest.raises(ValueError, match=message):
        schedules.SCHEDULES[name](0)


def test_a_matrix_is_no_schedule():
    with pytest.raises(ValueError, match="vector"):
        NoiseSchedule(torch.tensor([[0.0, -1.0], [0.0, -2.0]], dtype=F64))


@given(st.floats(-2, 2), st.floats(0.05, 3), st.floats(-2, 2), st.floats(0.05, 3))
def test_kl_by_integration(mean, std, other_mean, other_std):
    """The trapezium rule on a Gaussian integrand is exact to rounding."""
    p, q = Normal(values(mean), values(std**2)), Normal(values(other_mean), values(other_std**2))
    x = torch.linspace(mean - 12 * std, mean + 12 * std, 4001, dtype=F64)

    def log_density(at, of_std):
        return -0.5 * (at / of_std) ** 2 - math.log(of_std * math.sqrt(2 * math.pi))

    log_p, log_q = log_density(x - mean, std), log_density(x - other_mean, other_std)
    assert float(p.kl(q)) == pytest.approx(float(torch.trapezoid(log_p.exp() * (log_p - log_q), x)), rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@given(st.floats(0.01, 10), st.floats(-6, -1), st.sampled_from([-1, 1]))
def test_kl_of_nearly_equal_variances_to_sixty_digits(dtype, var, log10_d, sign):
    """Wrong by no more than the rounding of the difference of the variances, and never negative."""
    mpmath = pytest.importorskip("mpmath")
    p, q = (torch.tensor([v], dtype=dtype) for v in (var * (1 + sign * 10**log10_d), var))
    kl = float(Normal(torch.zeros(1, dtype=dtype), p).kl(Normal(torch.zeros(1, dtype=dtype), q)))
    with mpmath.workdps(60):
        d = mpmath.mpf(p.item()) / mpmath.mpf(q.item()) - 1
        expected = float((d - mpmath.log1p(d)) / 2)
    assert kl >= 0
    assert kl == pytest.approx(expected, rel=0, abs=4 * torch.finfo(dtype).eps * abs(float(d)))


def test_kl_at_the_edges():
    p = Normal(values(0.3), values(0.7))
    assert float(p.kl(p)) == 0
    assert float(Normal(values(0.3), values(0.0)).kl(p)) == math.inf
    assert float(Normal(values(0.3), values(1e-12)).kl(p)) == pytest.approx(0.5 * (math.log(0.7e12) - 1), rel=1e-9)


def exact_byte(mpmath, byte, mean, std):
    """(log P, d log P / d mean) of a byte in 60 digits; the bins of 0 and of 255 are open."""
    x, half = byte / 127.5 - 1, mpmath.mpf(1) / 255  # x as float64 has it
    lower = (mpmath.mpf(x) - half - mpmath.mpf(mean)) / mpmath.mpf(std) if byte else -mpmath.inf
    upper = (mpmath.mpf(x) + half - mpmath.mpf(mean)) / mpmath.mpf(std) if byte < 255 else mpmath.inf
    flipped = lower > 0
    low, high = (-upper, -lower) if flipped else (lower, upper)
    root = mpmath.sqrt(2)
    probability = (mpmath.erfc(-high / root) - mpmath.erfc(-low / root)) / 2
    slope = (mpmath.npdf(lower) - mpmath.npdf(upper)) / mpmath.mpf(std) / probability
    return float(mpmath.log(probability)), float(slope)


@given(st.integers(0, 255), st.floats(-1.5, 1.5), st.floats(-3, 1))
def test_byte_probability_and_its_slope_to_sixty_digits(byte, mean, log10_std):
    mpmath = pytest.importorskip("mpmath")
    variance = (10**log10_std) ** 2
    at = torch.tensor([mean], dtype=F64, requires_grad=True)
    log_prob = Normal(at, values(variance)).log_prob_byte(values(byte / 127.5 - 1))
    log_prob.backward()
    with mpmath.workdps(60):
        expected, slope = exact_byte(mpmath, byte, mean, mpmath.sqrt(variance))
    assert log_prob.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert at.grad.item() == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("sigmas", [30, 100, 1000])
@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("byte", [0, 128, 255])
def test_byte_far_away_is_finite_and_right(sigmas, side, byte):
    mpmath = pytest.importorskip("mpmath")
    std = 0.01
    mean = byte / 127.5 - 1 + side * sigmas * std
    with mpmath.workdps(60):
        expected, _ = exact_byte(mpmath, byte, mean, std)
    at = torch.tensor([mean], dtype=F64, requires_grad=True)
    log_var = torch.tensor([2 * math.log(std)], dtype=F64, requires_grad=True)
    log_prob = Normal(at, log_var.exp()).log_prob_byte(values(byte / 127.5 - 1))
    log_prob.backward()
    assert log_prob.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert bool(at.grad.isfinite().all())
    assert bool(log_var.grad.isfinite().all())


def test_end_bins_are_open():
    """All that lies beyond black is black: a mean far outside gives its end byte probability one."""
    for mean, byte in ((-7.0, 0), (7.0, 255)):
        grid = torch.arange(256, dtype=F64) / 127.5 - 1
        p = Normal(torch.full((256,), mean, dtype=F64), torch.full((256,), 0.25, dtype=F64)).log_prob_byte(grid).exp()
        assert float(p[byte]) == pytest.approx(1, abs=1e-12)
        assert float(p.sum()) == pytest.approx(1, abs=1e-12)


@given(st.sampled_from(sorted(grids.GRIDS)), st.sampled_from(sorted(schedules.SCHEDULES)), st.data())
def test_every_grid_falls_strictly_on_every_schedule(name, kind, data):
    T = data.draw(st.one_of(st.integers(1 if "zero" not in kind else 2, 12), st.sampled_from([100, 1000])))
    steps = data.draw(st.one_of(st.just(1), st.just(T), st.integers(1, T)))
    grid = grids.GRIDS[name](schedules.SCHEDULES[kind](T), steps)
    assert len(set(grid[:-1])) == steps
    assert all(t > s for t, s in itertools.pairwise(grid))
    assert grid[-1] == 0
    assert grid[0] <= T
    assert all(type(t) is int for t in grid)
    if steps == T:
        assert grid == grids.full(schedules.SCHEDULES[kind](T)) == list(range(T, -1, -1))


@given(st.integers(1, 40), st.integers(1, 25))
def test_trailing_strides_are_equal_where_they_can_be(steps, stride):
    T = steps * stride
    assert grids.trailing(schedules.linear(T), steps) == [T - k * stride for k in range(steps)] + [0]
    assert grids.leading(schedules.linear(T), steps) == [1 + k * stride for k in reversed(range(steps))] + [0]


@given(st.integers(1, 1000), st.data())
def test_leading_is_whole_strides(T, data):
    """diffusers: the multiples of T // steps, whatever is left over at the noisy end."""
    steps = data.draw(st.integers(1, T))
    assert [t - 1 for t in grids.leading(schedules.linear(T), steps)[:-1]] == [k * (T // steps) for k in range(steps)][
        ::-1
    ]


@pytest.mark.parametrize("kind", ["linear", "linear-zero-snr"])
def test_noise_level_grids_by_brute_force(kind):
    """Each time is the nearest to its level; with zero terminal SNR the levels span what is finite, the start is T."""
    noise_schedule, steps = schedules.SCHEDULES[kind](1000), 8
    level = [float(noise_schedule.log_snr(t)) for t in range(1, 1001)]
    high, low = level[0], level[-1] if math.isfinite(level[-1]) else level[-2]
    even = [low + (high - low) * k / (steps - 1) for k in range(steps)]
    first, last = (math.exp(-x / 2 / 7) for x in (low, high))
    sigma = [(first + (last - first) * k / (steps - 1)) ** 7 for k in range(steps)]
    for name, expected in (("log-snr", even), ("karras", [-2 * math.log(x) for x in sigma])):
        nearest = [1 + min(range(1000), key=lambda i, x=x: abs(level[i] - x)) for x in expected]
        assert len(set(nearest)) == steps
        assert grids.GRIDS[name](noise_schedule, steps) == [1000, *nearest[1:], 0], name


def test_quadratic_grid_is_squares():
    assert grids.quadratic(schedules.linear(100**2), 12) == [k * k for k in range(100, 0, -9)] + [0]
