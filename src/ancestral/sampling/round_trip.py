"""An image goes to noise, and another comes back from that very noise: what the report and the page begin with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ancestral.data.pixels import to_bytes
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.samplers.loop import Step
from ancestral.diffusion.samplers.sample import film

Frame = TypeVar("Frame")

FRAMES = 20  # each way
# Images, the first of which goes to noise: those that `ancestral explain` measures if not told otherwise.
HELD_OUT = 256
HOLD = (3, 3, 6)  # how many frames the clean image, the noise and the drawn image stay
MOST = 64  # of an image's own side; larger ones are halved until they are no larger


@dataclass(frozen=True)
class RoundTrip:
    """Both ways.

    Args:
        times: 0 .. T.
        there: x_t of an image by Eq. 4 at these times (F, C, H, W), with the noise that another is drawn from.
        back: x_t of that other as it is drawn, from T to 0.
    """

    times: list[int]
    there: Tensor
    back: Tensor


def round_trip(schedule: Gaussian, x0: Tensor, eps: Tensor, steps: Iterable[Step]) -> RoundTrip:
    """Of an image (1, C, H, W), and of the steps that draw another from this noise."""
    seen = film(steps)
    times = seen.t[::-1]
    there = [x0, *(schedule.marginal(x0, t).sample(eps.to(x0)) for t in times)]
    return RoundTrip([0, *times], torch.cat(there).cpu(), torch.cat([*seen.x_t, seen.final]))


def small(states: Tensor) -> np.ndarray:
    """Images (N, C, H, W) on [-1, 1] as bytes (N, H, W, C), halved until no side is above MOST."""
    while max(states.shape[2:]) > MOST and not any(side % 2 for side in states.shape[2:]):
        states = torch.nn.functional.avg_pool2d(states, 2)
    return to_bytes(states)


def played(
    there: Sequence[Frame], back: Sequence[Frame], times: Sequence[int]
) -> tuple[list[Frame], list[tuple[str, int]]]:
    """The frames as they follow each other, and of each (the way, "q" or "p", and t): the ends stay a while."""
    first, turn, last = HOLD
    frames = [*[there[0]] * first, *there[1:], *[there[-1]] * turn, *back[1:], *[back[-1]] * last]
    shown = [*[0] * first, *times[1:], *[times[-1]] * turn, *times[-2::-1], *[0] * last]
    return frames, [("q" if place < first + len(times) - 1 else "p", t) for place, t in enumerate(shown)]
