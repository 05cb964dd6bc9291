"""The derivation of the bound: every line is the same number, and the last is what Rao and Blackwell say."""

import math

import pytest
import torch

from ancestral.diffusion.denoisers.analytic import Mixture, gaussian
from ancestral.diffusion.objectives.elbo import elbo, random_terms, strata
from ancestral.diffusion.objectives.elbo_derivation import (
    along_chains,
    log_ratio_variance,
    noise_variance,
    random_terms_variance,
)
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.transitions import Ancestral, beta, fixedsmall, optimal

F64 = torch.float64
MIXTURE = Mixture(
    schedules.linear(50), torch.tensor([[-0.7, 0.2], [0.6, -0.1]]).double(), torch.full((2,), 0.02).double()
)


PAPER = Ancestral(beta)


def chains_of(count, move=PAPER, model=MIXTURE, seed=0):
    data = model.sample(torch.Generator().manual_seed(1), count)
    noise = Streams(seed, "chains", range(count))
    return along_chains(model, data, grids.full(model.schedule), move, noise, Normal.log_prob), data


@pytest.mark.parametrize("name", ["linear", "cosine", "linear-zero-snr"])
@pytest.mark.parametrize("variance", [fixedsmall, beta, optimal])
def test_lines_before_the_last_are_one_number(name, variance):
    model = Mixture(schedules.SCHEDULES[name](50), MIXTURE.means, torch.full((2,), 0.02).double())
    lines = chains_of(20, Ancestral(variance), model)[0].lines
    for name in list(lines)[:-1]:
        torch.testing.assert_close(lines[name], lines["joint"], rtol=1e-9, atol=1e-8)


def test_the_last_line_has_the_same_expectation_term_by_term():
    chains, _ = chains_of(4000)
    for one in (chains.regrouped - chains.kl, (chains.lines["joint"] - chains.lines["kl"])[:, None]):
        error = one.std(0) / len(one) ** 0.5
        assert ((one.mean(0).abs() < 4.5 * error) | (error < 1e-12)).all()


def test_the_kl_takes_out_exactly_the_variance_given_x_t():
    chains, _ = chains_of(6000)
    left = chains.regrouped[:, :-1] - chains.kl[:, :-1]
    torch.testing.assert_close(left.var(0), chains.averaged[:, :-1].mean(0), rtol=0.3, atol=1e-6)
    assert (chains.averaged[:, :-1] > 0).all()


def test_the_variance_of_a_log_ratio():
    q, p = Normal(torch.tensor([0.3]), torch.tensor([0.5])), Normal(torch.tensor([-0.1]), torch.tensor([0.8]))
    x = q.sample(torch.randn(400000, generator=torch.Generator().manual_seed(0))[:, None])
    measured = (q.log_prob(x) - p.log_prob(x)).var()
    assert float(log_ratio_variance(q, p)) == pytest.approx(float(measured), rel=0.02)


def test_with_the_exact_reverse_process_a_chain_gives_the_log_likelihood_itself():
    model = gaussian(schedules.linear(200), torch.tensor([0.3, -0.2]).double(), 1.0)
    data = model.sample(torch.Generator().manual_seed(2), 8)
    noise = Streams(0, "chains", range(8))
    lines = along_chains(model, data, grids.full(model.schedule), Ancestral(optimal), noise, Normal.log_prob).lines
    # What is left is L_T and the variance at t = 1, a few hundredths of a nat.
    torch.testing.assert_close(lines["joint"], -model.log_prob(data), atol=0.05, rtol=0)


def test_noise_of_random_terms_is_that_of_the_command():
    """The formula from pairs of chains, against the bound measured again and again with random terms."""
    one = MIXTURE.sample(torch.Generator().manual_seed(3), 1)
    grid, many, count = grids.full(MIXTURE.schedule), 4000, 8
    again = elbo(
        MIXTURE, one.expand(many, -1), grid, PAPER, Streams(0, "again", range(many)), Normal.log_prob, count
    ).nats
    noise = Streams(0, "pairs", range(2 * many))
    pairs = along_chains(MIXTURE, one.expand(2 * many, -1), grid, PAPER, noise, Normal.log_prob)
    estimated = random_terms_variance(pairs.kl, strata(MIXTURE.schedule, grid, count)[1])
    error = math.hypot(float(estimated.std()) / many**0.5, float(again.var()) * (2 / many) ** 0.5 * 2)
    assert float(estimated.mean()) == pytest.approx(float(again.var()), abs=4 * error)
    assert 4 * error < float(again.var()) / 2


def test_noise_of_a_pair_is_the_unbiased_variance():
    values = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(noise_variance(values)[0], values.var(0))


def test_terms_by_tenth_are_all_of_them():
    grid = grids.full(MIXTURE.schedule)
    data = MIXTURE.sample(torch.Generator().manual_seed(1), 3)
    found = elbo(MIXTURE, data, grid, PAPER, Streams(0, "b", range(3)), Normal.log_prob)
    tenths = found.by_tenth(found.terms, 50)
    torch.testing.assert_close(tenths.sum(1), found.terms.sum(1))
    torch.testing.assert_close(tenths[:, 0], found.terms[:, -5:].sum(1))  # t = 5..1


def test_random_terms_have_unbiased_counts():
    grid, many = grids.full(MIXTURE.schedule), 2000
    places, weights = random_terms(MIXTURE.schedule, grid, many, 8, Streams(0, "p", range(many)))
    counted = torch.zeros(50).double().index_add_(0, places.flatten(), weights.flatten()) / many
    # A place in a stratum of w steps is drawn about many / w times, each counting w.
    assert torch.allclose(counted, torch.ones(50).double(), atol=5 * float(weights.max() / many) ** 0.5)


@pytest.mark.parametrize(
    "made", [schedules.cosine(1000), schedules.linear(1000), schedules.linear_log_snr(1000, 13, -5)]
)
def test_strata_cover_every_step_but_the_last_once(made):
    for grid in (grids.full(made), grids.trailing(made, 7), [made.T, 1, 0]):
        steps = len(grid) - 1
        for count in {2, min(6, steps), min(50, steps), steps}:
            first, width = strata(made, grid, count)
            assert len(width) == count - 1
            assert int(width.min()) >= 1
            assert torch.equal(first, width.cumsum(0) - width)
            assert int(width.sum()) == steps - 1


def test_strata_make_the_bound_surer_than_equal_ones():
    """A Gaussian of variance 1, whose terms fall as 1/t: unequal strata must leave much less to the draw."""
    made = schedules.linear(1000)
    oracle, many, count = gaussian(made, torch.zeros(4, dtype=F64), 1.0), 2, 20
    grid, noise = grids.full(made), Streams(0, "sure", range(2 * many))
    x0 = torch.randn(many, 4, generator=torch.Generator().manual_seed(0), dtype=F64).repeat(2, 1)
    terms = along_chains(oracle, x0, grid, Ancestral(optimal), noise, Normal.log_prob).kl
    equal = torch.linspace(0, len(grid) - 2, count).round().long().diff()
    own, other = (float(random_terms_variance(terms, one).mean()) for one in (strata(made, grid, count)[1], equal))
    assert own < other / 4


def test_a_chain_of_one_step_is_measured_whole():
    data = MIXTURE.sample(torch.Generator().manual_seed(1), 3)
    few, every = (
        elbo(MIXTURE, data, [50, 0], PAPER, Streams(0, "one", range(3)), Normal.log_prob, terms).nats
        for terms in (1, None)
    )
    torch.testing.assert_close(few, every)
