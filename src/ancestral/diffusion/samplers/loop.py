"""The one loop. Sampling, films, the bound along a chain: each is this walk with another way to draw x_s."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Prediction, Predictor
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.process import Dist, Process
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.transitions import Planned, begin

Predicted = TypeVar("Predicted")  # what is predicted: a Prediction, or the Guess of hidden positions
_Predicted = TypeVar("_Predicted", covariant=True)


class Move(NamedTuple, Generic[Predicted, Dist]):
    """A step about to be taken: what is known before x_s is drawn."""

    t: int
    s: int
    x_t: Tensor
    prediction: Predicted
    p: Dist


class Step(NamedTuple, Generic[Predicted, Dist]):
    """A step taken from t to s: the state before, what was predicted, the distribution, the state after."""

    t: int
    s: int
    x_t: Tensor
    prediction: Predicted
    p: Dist
    x_s: Tensor


Draw = Callable[[Move[Predicted, Dist]], Tensor]
GaussianDraw = Draw[Prediction, Normal]
GaussianStep = Step[Prediction, Normal]


class Walkable(Protocol[_Predicted]):
    """A predictor, of whatever process."""

    @property
    def schedule(self) -> Process[Any]:
        """The process."""
        ...

    def __call__(self, x_t: Tensor, t: int, /) -> _Predicted:
        """Predict the clean image from x_t (B, ...)."""
        ...


@torch.no_grad()
def walk(
    denoiser: Walkable[Predicted],
    x: Tensor,
    times: Sequence[int],
    transition: Callable[[Any, Tensor, Predicted, int, int], Dist] | Planned,
    draw: Draw[Predicted, Dist],
) -> Iterator[Step[Predicted, Dist]]:
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


def from_model(noise: Streams) -> GaussianDraw:
    """x_s ~ p(x_s | x_t), but the mean at s = 0: Algorithm 2."""

    def draw(move: Move[Prediction, Normal]) -> Tensor:
        return move.p.mean if move.s == 0 else everywhere(move)

    everywhere = from_model_to_the_end(noise)
    return draw


def from_model_to_the_end(noise: Streams) -> GaussianDraw:
    """x_s ~ p(x_s | x_t) at s = 0 too: what the bound speaks about, and exact for exact variances."""

    def draw(move: Move[Prediction, Normal]) -> Tensor:
        if not move.p.var.any():
            return move.p.mean
        return move.p.draw(noise)

    return draw


def along_q(
    denoiser: Predictor,
    x0: Tensor,
    times: Sequence[int],
    transition: Callable[[Any, Tensor, Prediction, int, int], Normal] | Planned,
    noise: Streams,
) -> Iterator[GaussianStep]:
    """The walk along one chain of q for each of x0 (B, ...): x_T ~ q(x_T | x0), then x_s ~ q(x_s | x_t, x0)."""
    start = denoiser.schedule.marginal(x0, times[0]).draw(noise)
    return walk(denoiser, start, times, transition, from_posterior(denoiser.schedule, x0, noise))


def from_posterior(schedule: Gaussian, x0: Tensor, noise: Streams) -> GaussianDraw:
    """x_s ~ q(x_s | x_t, x0): a chain of the forward process, seen backwards."""

    def draw(move: Move[Prediction, Normal]) -> Tensor:
        q = schedule.posterior(move.x_t, x0, move.t, move.s)
        return q.draw(noise)

    return draw
