"""The one loop. Sampling, films, the bound along a chain: each is this walk with another way to draw x_s."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ancestral.denoiser import Prediction, Predictor
from ancestral.gaussian import Normal
from ancestral.reverse import Planned, Transition, begin
from ancestral.rng import Streams
from ancestral.schedule import NoiseSchedule


class Move(NamedTuple):
    """A step about to be taken: what is known before x_s is drawn."""

    t: int
    s: int
    x_t: Tensor
    prediction: Prediction
    p: Normal


class Step(NamedTuple):
    """A step taken from t to s: the state before, what was predicted, the Gaussian, the state after."""

    t: int
    s: int
    x_t: Tensor
    prediction: Prediction
    p: Normal
    x_s: Tensor


Draw = Callable[[Move], Tensor]


@torch.no_grad()
def walk(
    denoiser: Predictor, x: Tensor, times: Sequence[int], transition: Transition | Planned, draw: Draw
) -> Iterator[Step]:
    """Walk the grid from x at times[0] to times[-1], yielding each step (reference name: `p_sample_loop`).

    Args:
        denoiser: predicts x0.
        x: (B, ...), the state at times[0].
        times: falling for the reverse process, rising to encode; a method of its own may visit some of them again.
        transition: makes p(x_s | x_t) from a prediction, or a method that makes one for this walk.
        draw: chooses x_s; the single point in which the uses of the loop differ.
    """
    step, visits = begin(transition, denoiser.schedule, times)
    for t, s in pairwise(visits):
        prediction = denoiser(x, t)
        move = Move(t, s, x, prediction, step(denoiser.schedule, x, prediction, t, s))
        x = draw(move)
        yield Step(*move, x)


def from_model(noise: Streams) -> Draw:
    """x_s ~ p(x_s | x_t), but the mean at s = 0: Algorithm 2."""

    def draw(move: Move) -> Tensor:
        return move.p.mean if move.s == 0 else everywhere(move)

    everywhere = from_model_to_the_end(noise)
    return draw


def from_model_to_the_end(noise: Streams) -> Draw:
    """x_s ~ p(x_s | x_t) at s = 0 too: what the bound speaks about, and exact for exact variances."""

    def draw(move: Move) -> Tensor:
        if not move.p.var.any():
            return move.p.mean
        return move.p.sample(noise.normal(move.x_t.shape[1:]).to(move.x_t))

    return draw


def from_posterior(schedule: NoiseSchedule, x0: Tensor, noise: Streams) -> Draw:
    """x_s ~ q(x_s | x_t, x0): a chain of the forward process, seen backwards."""

    def draw(move: Move) -> Tensor:
        q = schedule.posterior(move.x_t, x0, move.t, move.s)
        return q.sample(noise.normal(move.x_t.shape[1:]).to(move.x_t))

    return draw
