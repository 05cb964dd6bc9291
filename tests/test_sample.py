"""Sampling: keyed images, films, starts, and the chain of q seen backwards."""

import numpy as np
import pytest
import torch

from ancestral import grids, rng, schedule
from ancestral.analytic import gaussian
from ancestral.denoiser import clip_dynamic, clip_static
from ancestral.reverse import DDIM, Ancestral, large, small
from ancestral.rng import Streams
from ancestral.sample import film, finish, latents, sample, trajectory
from ancestral.walk import from_posterior, walk

F64 = torch.float64
ORACLE = gaussian(schedule.cosine(30), torch.tensor([0.3, -0.2, 0.0], dtype=F64), 0.5)
GRID = grids.trailing(ORACLE.schedule, 10)


@pytest.mark.parametrize("transition", [Ancestral(large), DDIM(0.0), DDIM(0.7)])
def test_an_image_does_not_depend_on_its_batch(transition):
    whole = sample(ORACLE, [3], 11, GRID, transition, seed=5, batch_size=11)
    parts = sample(ORACLE, [3], 11, GRID, transition, seed=5, batch_size=3)
    assert torch.allclose(whole, parts, atol=1e-12, rtol=0)
    one = finish(trajectory(ORACLE, latents([3], 5, [7]), GRID, transition, 5, [7]))
    assert torch.allclose(one[0], whole[7], atol=1e-12, rtol=0)
    assert not torch.allclose(whole, sample(ORACLE, [3], 11, GRID, transition, seed=6))


def test_ddim_is_a_function_of_the_latent_alone():
    start = latents([3], 0, range(4))
    a = finish(trajectory(ORACLE, start, GRID, DDIM(0.0), seed=1))
    assert torch.equal(a, finish(trajectory(ORACLE, start, GRID, DDIM(0.0), seed=2)))


def test_a_walk_can_be_cut_and_taken_up():
    start = latents([3], 0, range(4))
    steps = list(trajectory(ORACLE, start, GRID, DDIM(0.0)))
    middle = steps[4]
    rest = finish(trajectory(ORACLE, middle.x_s, GRID[5:], DDIM(0.0)))
    assert torch.equal(rest, steps[-1].x_s)
    assert torch.equal(steps[0].x_t, start)
    assert [step.t for step in steps] == GRID[:-1]
    assert [step.s for step in steps] == GRID[1:]


def test_ddim_with_eta_1_is_ancestral_with_the_small_variance():
    x, t, s = latents([3], 0, range(4)), 20, 11
    a = DDIM(1.0)(ORACLE.schedule, x, ORACLE(x, t), t, s)
    b = Ancestral(small)(ORACLE.schedule, x, ORACLE(x, t), t, s)
    assert torch.allclose(a.mean, b.mean)
    assert torch.allclose(a.var, b.var)


def test_the_consumer_decides_how_far_to_walk():
    calls = []

    def counting(x_t, t):
        calls.append(t)
        return ORACLE(x_t, t)

    counting.schedule = ORACLE.schedule
    for step in trajectory(counting, latents([3], 0, [0]), GRID, DDIM()):
        if step.t <= 15:
            break
    assert calls == [t for t in GRID if t >= 15]


def test_a_film_holds_what_was_asked_for():
    frames = film(trajectory(ORACLE, latents([3], 0, range(2)), GRID, DDIM()), keep={GRID[0], GRID[4]})
    assert frames.t == [GRID[0], GRID[4]]
    whole = film(trajectory(ORACLE, latents([3], 0, range(2)), GRID, DDIM()))
    assert torch.equal(whole.x_t[4], frames.x_t[1])
    assert torch.equal(whole.x0[4], frames.x0[1])
    assert torch.equal(whole.final, frames.final)
    # Without noise at the last step the final image is the last predicted x0.
    assert torch.allclose(whole.final, whole.x0[-1])


def test_no_steps_is_an_error():
    with pytest.raises(ValueError, match="no steps"):
        finish([])


def test_a_chain_of_q_seen_backwards_has_its_marginals():
    x0 = torch.tensor([[0.8]], dtype=F64).expand(4000, 1)
    noise = Streams(0, "q", range(4000))
    start = ORACLE.schedule.marginal(x0, 30).sample(noise.normal([1]))
    oracle = gaussian(ORACLE.schedule, torch.zeros(1, dtype=F64), 1.0)
    for step in walk(oracle, start, GRID, Ancestral(large), from_posterior(ORACLE.schedule, x0, noise)):
        q = ORACLE.schedule.marginal(x0[:1], step.s)
        assert float(step.x_s.mean()) == pytest.approx(float(q.mean), abs=5 * float(q.var.sqrt()) / 4000**0.5 + 1e-12)
        assert float(step.x_s.var()) == pytest.approx(float(q.var), rel=0.12, abs=1e-12)


def test_streams_are_their_keys():
    a = rng.stream(0, "x", 5).standard_normal(1000)
    assert np.array_equal(a, rng.stream(0, "x", 5).standard_normal(1000))
    for other in (rng.stream(1, "x", 5), rng.stream(0, "y", 5), rng.stream(0, "x", 6)):
        assert abs(np.corrcoef(a, other.standard_normal(1000))[0, 1]) < 5 / 1000**0.5
    assert sorted(rng.permutation(50, 0, "order", 1)) == list(range(50))


def test_clips():
    x0 = torch.tensor([[0.5, -3.0, 2.0, 0.1]])
    assert clip_static(x0).tolist() == [[0.5, -1.0, 1.0, pytest.approx(0.1)]]
    assert clip_dynamic(x0, quantile=1.0)[0].tolist() == pytest.approx([0.5 / 3, -1, 2 / 3, 0.1 / 3])
    calm = torch.tensor([[0.5, -0.3]])
    assert torch.equal(clip_dynamic(calm), calm)
