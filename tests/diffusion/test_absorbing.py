"""The process that hides positions: equal to an autoregressive model, to rounding, where the truth can be counted."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from ancestral.diffusion.denoisers.masked import Masked, guess
from ancestral.diffusion.objectives.autoregressive import (
    costs,
    from_p,
    imagined_costs,
    monotone,
    nll_in_order,
)
from ancestral.diffusion.objectives.elbo import elbo
from ancestral.diffusion.objectives.losses import VariationalBound
from ancestral.diffusion.objectives.statistics import mean_and_error
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.absorbing import MASK, Absorbing, Independent, hidden
from ancestral.diffusion.processes.levels import VALUES, Logistic, Softmax, level_of, snap, value_of
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.grid_search import shortest
from ancestral.diffusion.samplers.loop import from_posterior, walk
from ancestral.diffusion.samplers.reveal import InOrder, Reveal, any_order, raster
from ancestral.diffusion.samplers.sample import sample
from oracles import Joint

F64 = torch.float64
KINDS = (Absorbing, Independent)


def process(T, levels=2, kind=Absorbing, name="even"):
    return kind(schedules.SCHEDULES[name](T).log_alpha_bar, levels)


def states(positions, levels=2):
    """Every image of so many positions, (levels^positions, positions)."""
    return torch.tensor(list(itertools.product(range(levels), repeat=positions)), dtype=F64) / ((levels - 1) / 2) - 1


def joint(T=9, shape=(1, 3, 3), levels=2, kind=Absorbing):
    """Every image of this shape, with known probabilities that no product of marginals has."""
    points = states(math.prod(shape), levels)
    weights = torch.rand(len(points), dtype=F64, generator=torch.Generator().manual_seed(5)) ** 4
    return Joint(process(T, levels, kind), points.reshape(-1, *shape), weights)


def autoregressive(oracle, turn):
    """-log p of every image by the chain rule in this order, from the joint alone; (images, positions)."""
    order = turn.flatten().argsort()
    points = oracle.points.flatten(1)
    terms = []
    for position in range(len(order)):
        known, more = order[:position], order[: position + 1]

        def mass(given):
            same = (points[:, None, given] == points[None, :, given]).all(2)
            return same.double() @ oracle.weights

        terms.append((mass(known) / mass(more)).log())
    return torch.stack(terms, 1)


ORDERS = [
    raster((1, 3, 3)),
    *(any_order(torch.randn(1, 1, 3, 3, generator=torch.Generator().manual_seed(k)))[0] for k in range(3)),
]


@pytest.mark.parametrize("turn", ORDERS, ids=["raster", "random", "another", "third"])
def test_in_a_fixed_order_the_chain_is_an_autoregressive_model(turn):
    oracle = joint()
    nats = nll_in_order(oracle, oracle.points, grids.full(oracle.schedule), turn)
    assert torch.allclose(nats, autoregressive(oracle, turn), atol=1e-12, rtol=0)
    assert torch.allclose(nats.sum(1), -oracle.weights.log(), atol=1e-12, rtol=0)


def test_the_bound_is_the_mean_autoregressive_likelihood_over_all_orders():
    """Eq. 16: with a predictor that is not exact every order has another likelihood; the bound is their mean."""
    wrong = Wrong(joint(T=4, shape=(1, 2, 2), levels=3))
    x0 = wrong.inner.points[[0, 17, 44, 80]]
    orders = [torch.tensor(one).reshape(1, 2, 2) for one in itertools.permutations(range(4))]
    times = grids.full(wrong.schedule)
    each = torch.stack([nll_in_order(wrong, x0, times, turn) for turn in orders])
    spread = each.sum(2).std(0)
    assert spread.min() > 0.01  # orders do differ
    exact = each.mean(0)  # (images, steps)
    # Every subset of hidden positions counted once: the expectation of each L_{t-1} without any sampling.
    for k, (t, s) in enumerate(itertools.pairwise(times)):
        terms = []
        for positions in itertools.combinations(range(4), t):
            x_t = x0.flatten(1).clone()
            x_t[:, list(positions)] = MASK
            x_t = x_t.reshape(x0.shape)
            p = Reveal()(wrong.schedule, x_t, wrong(x_t, t), t, s)
            terms.append(wrong.schedule.term(p, x_t, x0, t, s, None))
        assert torch.allclose(torch.stack(terms).mean(0), exact[:, k], atol=1e-12, rtol=0)
    # And the estimate of evaluation agrees within its own error.
    many = x0.repeat_interleave(1500, 0)
    measured = elbo(wrong, many, times, Reveal(), Streams(0, "bound", range(len(many))))
    for image in range(len(x0)):
        mean, error = mean_and_error(measured.nats[image * 1500 : (image + 1) * 1500])
        assert abs(mean - float(exact.sum(1)[image])) < 4 * error
    assert (measured.prior == 0).all()


class Wrong:
    """An exact predictor mixed with even chances, by an amount that depends on what is seen."""

    def __init__(self, inner):
        self.inner, self.schedule = inner, inner.schedule

    def __call__(self, x_t, t):
        right = self.inner(x_t, t)
        seen = torch.where(hidden(x_t), 0.3, x_t).flatten(1).cumsum(1).sin().abs().reshape(*x_t.shape, 1)
        p = right.values.log_p.exp() * (1 - 0.5 * seen) + 0.5 * seen / self.schedule.levels
        return right._replace(values=Softmax(p.log()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [4, 2, 1])
def test_the_training_loss_is_an_unbiased_estimate_of_the_bound(kind, T):
    """ARDM's estimator: t uniform, a mask, D / n_t times the cross-entropy of the hidden positions."""
    wrong = Wrong(joint(T=T, shape=(1, 2, 2), levels=2, kind=kind))
    x0 = wrong.inner.points[[3, 10]]
    exact = torch.zeros(2, dtype=F64)
    for t, s in itertools.pairwise(grids.full(wrong.schedule)):
        for pattern in itertools.product([False, True], repeat=4):
            mask = torch.tensor(pattern).reshape(1, 1, 2, 2).expand_as(x0)
            x_t = x0.masked_fill(mask, MASK)
            m, count = t / T, sum(pattern)
            chance = (
                m**count * (1 - m) ** (4 - count)
                if kind is Independent
                else float(count == round(4 * m)) / math.comb(4, round(4 * m))
            )
            p = Reveal()(wrong.schedule, x_t, wrong(x_t, t), t, s)
            # The KL of the reveal, written out: each hidden position is revealed with probability (m_t - m_s) / m_t.
            exact += chance * (1 / t) * -(p.values.log_prob(x0) * mask).flatten(1).sum(1)

    class Face:
        schedule = wrong.schedule

        def predict_unclipped(self, x_t, t):
            return wrong(x_t, t)

    count = 12000
    eps = Streams(3, "noise", range(count)).normal((1, 2, 2))
    t = torch.randint(1, T + 1, (count,), generator=torch.Generator().manual_seed(0))
    many = x0.repeat(count // 2, 1, 1, 1)
    losses = VariationalBound(Reveal(), T)(Face(), many, t, t - 1, eps)
    for image in range(2):
        mean, error = mean_and_error(losses[image::2] * 4)
        assert abs(mean - float(exact[image])) < 4 * error + 1e-9


@pytest.mark.parametrize(
    ("steps", "kind", "transition"), [(9, Absorbing, Reveal()), (9, Absorbing, InOrder(ORDERS[1]))]
)
def test_samples_follow_the_joint(steps, kind, transition):
    oracle = joint(kind=kind)
    count = 6000
    drawn = sample(oracle, [1, 3, 3], count, grids.trailing(oracle.schedule, steps), transition, 1, count, draw=from_p)
    which = (drawn.flatten(1) > 0).long() @ 2 ** torch.arange(8, -1, -1)
    seen = which.bincount(minlength=512).double()
    expected = oracle.weights * count
    rare = expected < 5
    seen, expected = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (seen, expected))
    assert stats.chisquare(seen.numpy(), expected.numpy()).pvalue > 1e-3
    # The test can fail: the product of the marginals is refused.
    one_step = sample(oracle, [1, 3, 3], count, [9, 0], transition, 1, count, draw=from_p)
    which = (one_step.flatten(1) > 0).long() @ 2 ** torch.arange(8, -1, -1)
    seen = which.bincount(minlength=512).double()
    seen = torch.cat([seen[~rare], seen[rare].sum()[None]])
    assert stats.chisquare(seen.numpy(), expected.numpy()).pvalue < 1e-9


def test_independent_hiding_samples_the_joint_in_the_limit_of_many_steps():
    count, distances = 8000, []
    for T in (2, 64):
        oracle = joint(T=T, shape=(1, 2, 2), kind=Independent)
        drawn = sample(oracle, [1, 2, 2], count, grids.full(oracle.schedule), Reveal(), 1, count, draw=from_p)
        which = (drawn.flatten(1) > 0).long() @ 2 ** torch.arange(3, -1, -1)
        distances.append(float((which.bincount(minlength=16) / count - oracle.weights).abs().sum()))
    assert distances[1] < 0.05 < distances[0] / 2


@pytest.mark.parametrize("name", ["even", "cosine-zero-snr"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_posterior_leads_back_along_the_forward_process(kind, name):
    """x_s of a chain drawn backwards by q(x_s | x_t, x0) has the distribution of q(x_s | x0): how many, and which."""
    q, count = process(6, 4, kind, name), 6000
    x0 = value_of(
        torch.randint(0, 4, (count, 1, 2, 3), generator=torch.Generator().manual_seed(1)), 4, torch.zeros(1).double()
    )
    noise = Streams(0, "posterior", range(count))
    x = q.end(x0).sample(torch.zeros_like(x0))
    for step in walk(Blank(q), x, [6, 4, 1, 0], Reveal(), from_posterior(q, x0, noise)):
        direct = q.marginal(x0, step.s).sample(noise.normal(x0.shape[1:]))
        for state in (step.x_s, direct):
            shown = ~hidden(state)
            assert torch.equal(state[shown], x0[shown])
        a, b = (hidden(state).double().mean(0) for state in (step.x_s, direct))
        m = float(q.count(step.s, 6)) / 6 if kind is Absorbing else float(q.noise_var(step.s))
        assert torch.allclose(a, torch.full_like(a, m), atol=5 * 0.5 / count**0.5)
        assert torch.allclose(b, torch.full_like(b, m), atol=5 * 0.5 / count**0.5)
        numbers = [hidden(state).flatten(1).sum(1) for state in (step.x_s, direct)]
        if kind is Absorbing:
            assert all((n == q.count(step.s, 6)).all() for n in numbers)
        else:
            assert abs(float(numbers[0].double().var() - 6 * m * (1 - m))) < 0.2
    assert torch.equal(step.x_s, x0)


class Blank:
    """Knows nothing: every level is as probable."""

    def __init__(self, q):
        self.schedule = q

    def __call__(self, x_t, t):
        return guess(
            Softmax(torch.full((*x_t.shape, self.schedule.levels), -math.log(self.schedule.levels)).double()), x_t
        )


def laws(levels):
    generator = torch.Generator().manual_seed(2)
    for family in VALUES.values():
        yield family.of(torch.randn(3, 1, 2, 2, family.outputs(levels), generator=generator, dtype=F64) * 2, levels)
    yield Logistic.of(
        torch.full((1, 1, 1, 1, Logistic.outputs(levels)), -9.0, dtype=F64), levels
    )  # far off, and narrow


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
def test_probabilities_sum_to_one_and_quantiles_are_theirs(levels):
    for law in laws(levels):
        grid = value_of(torch.arange(levels), levels, torch.zeros(1, dtype=F64))
        shape = law.mean.shape
        p = torch.stack([law.log_prob(value.expand(shape)).exp() for value in grid])
        assert torch.allclose(p.sum(0), torch.ones(shape, dtype=F64), atol=1e-12)
        cumulative = p.cumsum(0)
        for u in (0.0, 0.1, 0.5, 0.9, 0.999):
            level = level_of(law.quantile(torch.full(shape, u, dtype=F64)), levels)
            reached = cumulative.gather(0, level[None])[0]
            before = torch.where(level > 0, cumulative.gather(0, (level - 1).clamp(min=0)[None])[0], -1.0)
            assert (reached > u - 1e-12).all()
            assert (before <= u + 1e-12).all()
        mean = (p * grid.reshape(-1, *[1] * len(shape))).sum(0)
        assert torch.allclose(law.mean, mean, atol=1e-12 if isinstance(law, Softmax) else 1 / (levels - 1))
        where = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
        x = snap(torch.rand(shape, dtype=F64) * 2 - 1, levels)
        assert torch.equal(law.at(where).log_prob(x[where]), law.log_prob(x)[where])


def test_bytes_are_levels():
    bytes_ = torch.arange(256)
    x = bytes_.float() / 127.5 - 1
    assert torch.equal(level_of(x, 256), bytes_)
    assert torch.equal(snap(x, 256), x)


@pytest.mark.parametrize("family", VALUES.values(), ids=list(VALUES))
def test_gradients_are_finite_and_right(family):
    output = (
        torch.randn(1, 1, 2, 2, family.outputs(8), generator=torch.Generator().manual_seed(2)).double() * 2
    ).requires_grad_()
    x = value_of(torch.tensor([0, 3, 5, 7]).reshape(1, 1, 2, 2), 8, output)
    assert torch.autograd.gradcheck(lambda out: family.of(out, 8).log_prob(x), (output,))
    wide = torch.zeros(1, 1, 1, 1, family.outputs(256), requires_grad=True)
    for value in (-1.0, 1.0, 0.0):
        (gradient,) = torch.autograd.grad(family.of(wide, 256).log_prob(torch.full((1, 1, 1, 1), value)).sum(), wide)
        assert gradient.isfinite().all()


class Seen(torch.nn.Module):
    """Keeps what it was shown."""

    def __init__(self, outputs):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(outputs))

    def forward(self, x, time):
        self.x, self.time = x, time
        return self.bias[None, :, None, None].expand(len(x), -1, *x.shape[2:])


def test_a_network_sees_nothing_of_hidden_positions():
    q = process(12, 4)
    x0 = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64) * 2 - 1
    network = Seen(3 * 4)
    model = Masked(network, q, Softmax)
    x_t = q.marginal(x0, 7).sample(torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=F64))
    seen = model(x_t, 7)
    unknown = hidden(x_t)
    assert (unknown.flatten(1).sum(1) == 7).all()
    assert (network.x[:, :3][unknown] == 0).all()
    assert torch.equal(network.x[:, 3:].bool(), unknown)
    assert torch.allclose(network.x[:, :3][~unknown].double(), snap(x0, 4)[~unknown], atol=1e-6)
    assert torch.equal(seen.x0[~unknown], x_t[~unknown])
    assert seen.values.log_p.shape == (2, 3, 2, 2, 4)


def test_times_for_few_steps_are_the_best_there_are():
    """Against every choice of times, on the cost that theory gives: a step's positions at the loss of its start."""
    oracle = Wrong(joint(T=6, shape=(1, 2, 3)))
    times = grids.full(oracle.schedule)
    per_place = []
    for t in times[:-1]:
        masks = [torch.tensor(m).reshape(1, 2, 3) for m in itertools.product([False, True], repeat=6) if sum(m) == t]
        x_t = torch.cat([oracle.inner.points.masked_fill(m, MASK) for m in masks])
        x0 = oracle.inner.points.repeat(len(masks), 1, 1, 1)
        nats = Reveal()(oracle.schedule, x_t, oracle(x_t, t), t, t - 1).nll(x0)
        per_place.append((nats.reshape(len(masks), -1).mean(0) * oracle.inner.weights).sum())
    nats = torch.stack(per_place)
    cost = costs(nats, times)

    def total(path):
        return sum((t - s) * float(nats[6 - t]) for t, s in itertools.pairwise(path))

    assert total(times) == pytest.approx(float(nats.sum()))
    for steps in range(1, 7):
        best = [times[index] for index in shortest(cost, steps)]
        every = [[6, *inner, 0] for inner in itertools.combinations(range(5, 0, -1), steps - 1)]
        assert total(best) == pytest.approx(min(map(total, every)))
    assert total([6, 0]) > total(times) + 0.1


def test_steps_of_less_than_a_position_cost_by_the_position():
    """A step of half a position at l nats a position has l/2 nats."""
    cost = costs(torch.tensor([0.5, 0.5, 1.0], dtype=F64), [2, 1.5, 1, 0])
    assert cost[0].tolist() == [math.inf, 0.5, 1.0, 2.0]
    assert cost[1, 3] == 1.5


@pytest.mark.parametrize("kind", KINDS)
def test_times_that_reveal_nothing_are_on_no_path(kind):
    """A schedule with many more times than positions: the path falls, and no more steps are promised than there are."""
    oracle = joint(T=40, shape=(1, 2, 2), kind=kind)
    oracle.schedule = process(40, kind=kind, name="cosine-zero-snr")
    times = grids.full(oracle.schedule)
    start = torch.full((8, 1, 2, 2), MASK, dtype=F64)
    cost = imagined_costs(oracle, start, times)
    assert not np.isnan(cost).any()
    path = [times[index] for index in shortest(cost, 4)]
    counts = [float(oracle.schedule.expected(t, 4)) for t in path]
    assert all(later < earlier for earlier, later in itertools.pairwise(counts))
    assert path[0] == 40
    assert path[-1] == 0
    if kind is Absorbing:
        assert counts == [4, 3, 2, 1, 0]
        with pytest.raises(ValueError, match="use fewer"):
            shortest(cost, 5)


def test_the_monotone_fit_is_the_isotonic_regression():
    """Against scipy's, and through it the sum is kept."""
    optimize = pytest.importorskip("scipy.optimize")
    if not hasattr(optimize, "isotonic_regression"):
        pytest.skip("scipy before 1.12 has no isotonic regression")
    noisy = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=F64) + torch.linspace(2, 1, 40).double()
    counts = list(range(80, -1, -2))
    fitted = monotone(noisy, counts)
    assert torch.allclose(fitted, torch.from_numpy(-optimize.isotonic_regression(-noisy.numpy()).x), atol=1e-12)
    assert float(fitted.sum()) == pytest.approx(float(noisy.sum()))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="everything must be hidden"):
        Absorbing(schedules.cosine(10).log_alpha_bar)
    with pytest.raises(ValueError, match="levels"):
        process(3, 1)
    oracle = joint()
    with pytest.raises(ValueError, match="begins with everything hidden"):
        elbo(oracle, oracle.points[:2], [5, 0], Reveal(), Streams(0, "bound", range(2)))
