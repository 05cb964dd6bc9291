"""The algebra against closed forms, brute force and published tables."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ancestral import grids, schedule
from ancestral.gaussian import Normal
from ancestral.schedule import NoiseSchedule, from_betas
from ancestral.target import EPS, MEAN, SCORE, TARGETS, X0, V

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


def test_posterior_at_zero_terminal_snr():
    noise_schedule = schedule.linear(10).zero_terminal_snr()
    assert float(noise_schedule.alpha_bar(10)) == 0
    q = noise_schedule.posterior(values(3.0), values(0.5), 10, 9)
    plain = noise_schedule.marginal(values(0.5), 9)  # x_T is pure noise, so it says nothing
    assert torch.allclose(q.mean, plain.mean)
    assert torch.allclose(q.var, plain.var)


def test_the_papers_posterior_formula():
    """Eq. 7 with its own symbols."""
    noise_schedule = schedule.linear(1000)
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


def test_targets_by_their_definitions():
    noise_schedule, t = schedule.cosine(50), 20
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
            target.check(schedule.linear(10).zero_terminal_snr())
    for target in (V, X0):
        target.check(schedule.linear(10).zero_terminal_snr())


def test_published_tables():
    """alpha_bar of the reference implementations at 0-based indices, to the digits they were published with."""
    linear = {0: 0.99990, 1: 0.99978, 250: 0.521423, 500: 0.0777967, 750: 0.00330016, 998: 4.11819e-5, 999: 4.03583e-5}
    cosine = {0: 0.9999587, 250: 0.845888, 500: 0.492285, 750: 0.143179, 998: 2.42877e-6, 999: 2.42873e-9}
    for index, expected in linear.items():
        assert float(schedule.linear().alpha_bar(index + 1)) == pytest.approx(expected, rel=1e-5)
    for index, expected in cosine.items():
        assert float(schedule.cosine().alpha_bar(index + 1)) == pytest.approx(expected, rel=1e-4)
    assert float(schedule.scaled_linear().alpha_bar(1000)) == pytest.approx(0.00466010, rel=1e-5)
    assert float(schedule.linear().zero_terminal_snr().alpha_bar(501)) == pytest.approx(0.0752462, rel=1e-5)
    beta = schedule.linear().beta
    assert float(beta[0]) == pytest.approx(1e-4, rel=1e-9)
    assert float(beta[-1]) == pytest.approx(0.02, rel=1e-9)
    # L_T of the paper's schedule is about 1e-5 bits/dim (section 4).
    prior = schedule.linear().marginal(torch.full((1,), 0.5, dtype=F64), 1000).kl(Normal(values(0.0), values(1.0)))
    assert float(prior) / math.log(2) == pytest.approx(7.3e-6, rel=0.02)


@pytest.mark.parametrize("name", schedule.SCHEDULES)
@pytest.mark.parametrize("T", [1, 2, 3, 5, 19, 20, 21, 50, 1000, 4000])
def test_every_schedule_is_valid_at_every_length(name, T):
    if T == 1 and "zero" in name:
        with pytest.raises(ValueError, match="T >= 2"):
            schedule.SCHEDULES[name](T)
        return
    made = schedule.SCHEDULES[name](T)
    assert made.T == T
    assert bool((made.beta > 0).all())
    assert bool((made.beta <= 1).all())
    if name in ("linear", "scaled-linear"):
        end = schedule.SCHEDULES[name](1000).log_alpha_bar[-1]
        assert float(made.log_alpha_bar[-1]) == pytest.approx(float(end), rel=1e-9)
        if T == 4000:
            assert torch.allclose(made.log_alpha_bar[::4], schedule.SCHEDULES[name](1000).log_alpha_bar, rtol=1e-6)


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
    noise_schedule = schedule.SCHEDULES[kind](T)
    steps = data.draw(st.one_of(st.integers(1, T), st.just(T)))
    grid = grids.GRIDS[name](noise_schedule, steps)
    assert len(grid) == steps + 1
    assert grids.explicit(noise_schedule, grid) == grid
    if name != "leading":
        assert grid[0] == T


def test_grids_are_the_published_ones():
    """diffusers' tables for 10 of 1000 steps; its t is ours minus 1."""
    noise_schedule = schedule.linear()
    tables = {
        "leading": list(range(900, -1, -100)),
        "trailing": list(range(999, 0, -100)),
        "uniform": [999, 888, 777, 666, 555, 444, 333, 222, 111, 0],
    }
    for name, expected in tables.items():
        assert [t - 1 for t in grids.GRIDS[name](noise_schedule, 10)[:-1]] == expected


def test_even_grids_are_even():
    noise_schedule = schedule.linear_log_snr(10000)
    t = torch.tensor(grids.log_snr(noise_schedule, 9)[:-1])
    assert torch.allclose(noise_schedule.log_snr(t).diff(), values(18.3 / 8), atol=0.01)
    sigma = (-noise_schedule.log_snr(torch.tensor(grids.karras(noise_schedule, 9)[:-1])) / 2).exp() ** (1 / 7)
    assert torch.allclose(sigma.diff(), sigma.diff().mean(), rtol=0.02)


@pytest.mark.parametrize("times", [[], [5], [5, 5, 0], [3, 4, 0], [5, 1], [11, 0]])
def test_wrong_grids_are_refused(times):
    with pytest.raises(ValueError, match="times must fall strictly"):
        grids.explicit(schedule.linear(10), times)


@pytest.mark.parametrize("steps", [0, 11])
def test_steps_outside_the_schedule_are_refused(steps):
    with pytest.raises(ValueError, match="between 1 and T = 10"):
        grids.trailing(schedule.linear(10), steps)
