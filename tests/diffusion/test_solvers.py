"""Few-step solvers: orders of convergence on exact denoisers, published values, finite everywhere."""

import functools
import itertools
import math

import pytest
import torch
from test_reference import run

from ancestral.diffusion.denoisers.analytic import Mixture, gaussian
from ancestral.diffusion.denoisers.targets import EPS
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.langevin import Langevin
from ancestral.diffusion.samplers.loop import from_model_to_the_end, walk
from ancestral.diffusion.samplers.multistep import Deis, Dpm, DpmSde, DpmSingle, Lms
from ancestral.diffusion.samplers.sample import finish, latents, trajectory
from ancestral.diffusion.samplers.solvers import SOLVERS, Euler, Heun, Multistep, UniPC
from ancestral.diffusion.samplers.transitions import DDIM, VARIANCES, Ancestral, begin, fixedsmall, learned

F64 = torch.float64
FINE = schedules.linear_log_snr((1 << 14) + 1, 6, -6)


def mixture(noise_schedule):
    means = torch.tensor([[-1.0, 0.4], [0.6, -0.5], [0.2, 0.9]], dtype=F64)
    return Mixture(noise_schedule, means, torch.tensor([0.1, 0.2, 0.15], dtype=F64))


def ends(oracle, method, grid, x):
    return finish(walk(oracle, x, grid, method, lambda move: move.p.mean))


def even(steps, end=1):
    """Evenly in log SNR from T to `end`; at 1 the flow is still smooth."""
    return [round(end + (FINE.T - end) * (1 - i / steps)) for i in range(steps + 1)]


MIDDLE = 1 + (FINE.T - 1) // 2


def in_the_middle(oracle, method, steps, x):
    """The state half way of a longer walk, so that what a solver does at its end is not what is measured."""
    grid = even(2 * steps)
    assert grid[steps] == MIDDLE
    states = walk(oracle, x, grid, method, lambda move: move.p.mean)
    return next(step.x_s for step in reversed([step for step in states if step.s == MIDDLE]))


@functools.cache
def reference():
    """(the start, what 2048 steps make of it): the same for every solver."""
    x = latents([2], 0, range(8))
    return x, ends(mixture(FINE), Multistep(Dpm, 3), even(2048, MIDDLE), x)


def slope(method, counts):
    x, truth = reference()
    errors = [float((in_the_middle(mixture(FINE), method, steps, x) - truth).norm()) for steps in counts]
    return math.log2(errors[-2] / errors[-1]), errors


@pytest.mark.parametrize(
    ("method", "order"),
    [
        (DDIM(), 1),
        (Multistep(Dpm, 2), 2),
        (Multistep(Dpm, 3), 3),
        (UniPC(1), 2),  # the corrector adds one
        (UniPC(2), 3),
        (UniPC(2, bh1=True), 3),
        (Multistep(DpmSingle, 2), 2),
        (Multistep(Lms, 3), 3),
        (Multistep(Deis, 2), 2),
        (Multistep(Deis, 3), 3),
        (Heun(), 2),
    ],
    ids=str,
)
def test_orders_of_convergence(method, order):
    # Not finer: then the first step, which has no memory yet, is what is measured.
    found, errors = slope(method, (16, 32, 64, 128))
    assert found == pytest.approx(order, abs=0.3), errors
    assert errors[-1] < 0.02


def test_the_exact_flow_of_a_gaussian():
    """x_t - signal_t mean scales with the standard deviation of x_t."""
    mean = torch.tensor([0.3, -0.4], dtype=F64)
    oracle, x = gaussian(FINE, mean, 0.25), latents([2], 0, range(8))

    def deviation(t):
        return (FINE.alpha_bar(t) * 0.25 + FINE.noise_var(t)).sqrt()

    truth = FINE.signal(1) * mean + deviation(1) / deviation(FINE.T) * (x - FINE.signal(FINE.T) * mean)
    for name, tolerance in (("dpm++3m", 1e-5), ("unipc3", 1e-5), ("deis3", 1e-4), ("heun", 1e-3), ("dpm++2m", 1e-3)):
        assert (ends(oracle, SOLVERS[name], even(256), x) - truth).abs().max() < tolerance, name


def test_heun_is_nearer_than_euler_from_any_sigma():
    """On a grid for other solvers its first steps fall by orders of magnitude in sigma."""
    cosine = schedules.cosine(1000)
    assert math.exp(-float(cosine.log_snr(cosine.T)) / 2) > 1e3
    oracle, x = mixture(cosine), latents([2], 0, range(8))
    truth = ends(oracle, SOLVERS["unipc3"], grids.full(cosine), x)
    for steps in (5, 10, 20):
        grid = grids.trailing(cosine, steps)
        euler, heun = (float((ends(oracle, one, grid, x) - truth).norm()) for one in (DDIM(), Heun()))
        assert heun < euler / 1.5, steps


@pytest.mark.parametrize("method", [Multistep(DpmSde, 2), Heun(0.3)], ids=str)
def test_stochastic_solvers_draw_the_data(method):
    noise_schedule = schedules.linear_log_snr(2000, 8, -8)
    mean = torch.tensor([0.3, -0.4], dtype=F64)
    oracle, count = gaussian(noise_schedule, mean, 0.25), 4000
    x = latents([2], 0, range(count))
    noise = from_model_to_the_end(Streams(0, "reverse", range(count)))
    drawn = finish(walk(oracle, x, grids.log_snr(noise_schedule, 100), method, noise))
    assert (drawn.mean(0) - mean).abs().max() < 5 * 0.5 / count**0.5
    assert (drawn.var(0) / 0.25 - 1).abs().max() < 5 * (2 / count) ** 0.5


@pytest.mark.parametrize("second", [False, True], ids=["Euler", "Heun"])
def test_churn_is_that_of_edm(second):
    """Algorithm 2 of Karras et al. 2022 in sigma, on the same noise; its sigma^ are those that the walk visits."""
    oracle, churn = mixture(FINE), 0.3
    sigma = (-FINE.log_snr(torch.arange(FINE.T + 1)) / 2).exp()
    x, grid = latents([2], 0, range(4)), [*even(6)[:-1], 0]
    noise = [latents([2], 1 + place, range(4)) for place in range(len(grid))]
    raised = [grid[0], *(int((sigma[1:] - sigma[t] * (1 + churn)).abs().argmin()) + 1 for t in grid[1:-1])]
    ahead = iter(noise[1:])

    def draw(move):
        return move.p.sample(next(ahead)) if move.p.var.any() else move.p.mean

    method = Heun(churn, reach=math.inf) if second else Euler(churn)
    ours = finish(walk(oracle, x, grid, method, draw))

    def slope(z, t):
        return oracle(z * FINE.signal(t), t).eps

    z = x / FINE.signal(FINE.T)
    for t, start, end, eps in zip(grid, raised, grid[1:], noise, strict=False):
        z = z + (sigma[start] ** 2 - sigma[t] ** 2).sqrt() * eps
        d = slope(z, start)
        moved = z + (sigma[end] - sigma[start]) * d
        if second and end:
            moved = z + (sigma[end] - sigma[start]) * (d + slope(moved, end)) / 2
        z = moved
    assert all(high > low for high, low in zip(raised[1:], grid[1:-1], strict=True))
    assert torch.allclose(ours, z, atol=1e-10)


def test_churn_is_noise_and_without_it_the_walk_is_heuns():
    oracle, x = mixture(FINE), latents([2], 0, range(4))
    grid = even(8)
    walks = [list(trajectory(oracle, x, grid, Heun(churn), seed)) for churn, seed in ((0.3, 0), (0.3, 1), (0.0, 1))]
    assert not torch.equal(walks[0][-1].x_s, walks[1][-1].x_s)
    assert any(step.s > step.t for step in walks[0])
    assert all(step.s <= step.t and not step.p.var.any() for step in walks[2])


# Published values ---------------------------------------------------------------------------------------------------


def linspace(steps):
    """The other implementation's default times for these solvers, in the paper's t."""
    return [1 + round(999 * (1 - k / steps)) for k in range(steps)]


class _AsPublished(Dpm):
    """Order 3 as others have it: half of the second difference, which leaves it at order 2 (see below)."""

    def step(self, x_t, s, order):
        if order < 3:
            return super().step(x_t, s, order)
        lam, x0 = self.past(3, lambda prediction: prediction.x0)
        h, (a, b) = self.lam(s) - lam[0], (lam[0] - lam[1], lam[1] - lam[2])
        first, second = (x0[0] - x0[1]) / (a / h), (x0[1] - x0[2]) / (b / h)
        slope = first + a / (a + b) * (first - second)
        curve = (first - second) / ((a + b) / h)
        alpha, fall = self.schedule.signal(s), math.expm1(-h)
        mean = self.hold(x_t, x0[0], s) + alpha * (fall / h + 1) * slope - alpha * ((fall + h) / h**2 - 0.5) * curve
        return Normal(mean, torch.zeros_like(mean))


class AsPublished(Multistep):
    def __init__(self, order):
        super().__init__(_AsPublished, order)


PROPER_LOOPS = {
    # name: method, whether it ends at clean data (their "zero") or at t = 1 ("sigma_min"), sums for 5, 10, 20 steps
    "DPM++ 1M zero": (Multistep(Dpm, 1), 0, (143.2805, 169.9295, 182.7591)),
    "DPM++ 1M sigma_min": (Multistep(Dpm, 1), 1, (146.0454, 172.2642, 184.8760)),
    "DPM++ 2M zero": (Multistep(Dpm, 2), 0, (149.5666, 185.0114, 194.6492)),
    "DPM++ 2M sigma_min": (Multistep(Dpm, 2), 1, (152.4528, 187.5533, 216.7192)),
    "DPM++ 3M zero": (AsPublished(3), 0, (151.2338, 187.5937, 192.5175)),
    "DPM++ 3M sigma_min": (AsPublished(3), 1, (154.1522, 190.1711, 164.1770)),
    "UniPC-2 bh1 sigma_min": (UniPC(2, bh1=True), 1, (159.1998, 193.5756, 198.3925)),
    "UniPC-2 bh2 sigma_min": (UniPC(2), 1, (155.5284, 189.2318, 196.5219)),
    "UniPC-2 bh2 zero": (UniPC(2), 0, (152.4629, 186.7620, 194.3646)),
    "UniPC-3 bh1 sigma_min": (UniPC(3, bh1=True), 1, (159.6017, 193.6001, 197.3231)),
    "UniPC-3 bh2 sigma_min": (UniPC(3), 1, (155.9846, 189.9730, 196.0297)),
    "UniPC-3 bh2 zero": (UniPC(3), 0, (152.9171, 187.5004, 193.8660)),
    "DEIS 2": (Multistep(Deis, 2), 1, (151.2337, 183.6766, 200.3595)),
    "DEIS 3": (Multistep(Deis, 3), 1, (151.5995, 185.5794, 196.2544)),
}


@pytest.mark.parametrize("name", PROPER_LOOPS)
def test_published_sums(name):
    method, end, totals = PROPER_LOOPS[name]
    for steps, total in zip((5, 10, 20), totals, strict=False):
        result = run(method, [*linspace(steps), end], EPS, clip=lambda x0: x0)
        assert float(result.abs().sum()) == pytest.approx(total, rel=1e-3), steps


def test_the_published_third_order_is_of_order_two():
    assert slope(AsPublished(3), (16, 32, 64, 128))[0] == pytest.approx(2, abs=0.3)


def test_bh1_ends_at_clean_data_too():
    """The other implementation gives NaN here: infinity times zero in the last step."""
    assert run(UniPC(2, bh1=True), [*linspace(10), 0], EPS).isfinite().all()


# Everywhere ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_finite_for_every_schedule_and_number_of_steps(name, solver):
    noise_schedule = schedules.SCHEDULES[name](12)
    oracle = mixture(noise_schedule)
    x = latents([2], 0, range(3))
    for steps in range(1, 13):
        for grid in (grids.trailing(noise_schedule, steps), grids.uniform(noise_schedule, steps)):
            final = finish(trajectory(oracle, x, grid, SOLVERS[solver]))
            assert final.isfinite().all(), grid


@pytest.mark.parametrize("place", grids.GRIDS)
@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_a_walk_starts_at_the_top_takes_each_level_from_the_list_and_ends_at_no_noise(name, place):
    """Elsewhere: a first time below T, a next level computed as t - T // steps, the last sigma twice."""
    noise_schedule = schedules.SCHEDULES[name](12)
    oracle, x = mixture(noise_schedule), latents([2], 0, range(3))
    for steps in range(1, 13):
        steps_taken = list(trajectory(oracle, x, grids.GRIDS[place](noise_schedule, steps), DDIM()))
        assert len(steps_taken) == steps
        assert steps_taken[0].t == (1 + 12 // steps * (steps - 1) if place == "leading" else 12)
        assert steps_taken[-1].s == 0
        assert all(step.s == following.t < step.t for step, following in itertools.pairwise(steps_taken))
        assert torch.allclose(steps_taken[-1].x_s, steps_taken[-1].prediction.x0, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine", "linear-zero-snr", "cosine-zero-snr"])
def test_finite_where_others_are_not(name):
    """Their own lists of 1 to 20 of 1000 times, of which they lose some: every solver and every reverse variance."""
    noise_schedule = schedules.SCHEDULES[name](1000)
    oracle, x = mixture(noise_schedule), latents([2], 0, range(2))
    ancestral = [Ancestral(variance) for variance in VARIANCES.values() if variance is not learned]
    for steps in (1, 2, 4, 5, 8, 10, 11, 20):
        for method in (*SOLVERS.values(), UniPC(3, bh1=True), *ancestral):
            final = finish(trajectory(oracle, x, grids.trailing(noise_schedule, steps), method))
            assert final.isfinite().all(), (steps, method)


def test_one_step_is_the_prediction_itself():
    oracle, x = mixture(FINE), latents([2], 0, range(3))
    for name, method in SOLVERS.items():
        steps = list(trajectory(oracle, x, [FINE.T, 0], method))
        assert len(steps) == (1 if name != "langevin" else 1 + Langevin().steps), name
        assert torch.allclose(steps[-1].x_s, oracle(steps[-1].x_t, FINE.T).x0, atol=1e-12), name


def ratio(noise_schedule, t):
    return (noise_schedule.noise(t) / noise_schedule.signal(t)).item()


def test_euler_names_are_what_they_say():
    """Euler in sigma is DDIM, and its ancestral form is the small variance (EDM's algebra against the paper's)."""
    noise_schedule = schedules.linear(50)
    oracle, x = mixture(noise_schedule), latents([2], 0, range(3))
    grid = grids.trailing(noise_schedule, 7)
    first, second = (
        list(trajectory(oracle, x, grid, method)) for method in (SOLVERS["euler-ancestral"], Ancestral(fixedsmall))
    )
    for one, two in zip(first, second, strict=True):
        assert torch.allclose(one.x_s, two.x_s, atol=1e-12)
    for t, s in itertools.pairwise(grid):  # sigma_up and sigma_down, where states are x / signal
        prediction, sigma, following = oracle(x, t), ratio(noise_schedule, t), ratio(noise_schedule, s)
        up = following * (1 - following**2 / sigma**2) ** 0.5
        z = x / noise_schedule.signal(t) + prediction.eps * ((following**2 - up**2) ** 0.5 - sigma)
        found = SOLVERS["euler-ancestral"](noise_schedule, x, prediction, t, s)
        assert torch.allclose(found.mean, z * noise_schedule.signal(s), atol=1e-12)
        assert torch.allclose(found.var.sqrt(), up * noise_schedule.signal(s), atol=1e-12)
    sigma = ratio(noise_schedule, 50)
    z = x / noise_schedule.signal(50)
    for t, s in itertools.pairwise(grid):
        prediction = oracle(z * noise_schedule.signal(t), t)
        following = ratio(noise_schedule, s)
        z, sigma = z + (z - prediction.x0) / sigma * (following - sigma), following
    assert torch.allclose(finish(trajectory(oracle, x, grid, SOLVERS["euler"])), z, atol=1e-12)


def test_walks_do_not_share_a_memory():
    oracle, x = mixture(FINE), latents([2], 0, range(3))
    for name, method in SOLVERS.items():
        alone = finish(trajectory(oracle, x, even(6), method))
        first, second = (trajectory(oracle, x, even(6), method) for _ in range(2))
        both = list(zip(first, second, strict=True))
        assert torch.equal(both[-1][0].x_s, alone), name
        assert torch.equal(both[-1][1].x_s, alone), name


def test_calls_are_counted_as_visited():
    noise_schedule = schedules.linear(100)
    grid = grids.trailing(noise_schedule, 8)
    assert len(begin(SOLVERS["unipc3"], noise_schedule, grid)[1]) - 1 == 8
    assert len(begin(Heun(), noise_schedule, grid)[1]) - 1 == 15
