"""Reverse steps of masked diffusion: which pixels are revealed next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ancestral.diffusion.denoisers.masked import Guess
from ancestral.diffusion.processes.absorbing import Absorbing, Change, hidden, these
from ancestral.diffusion.processes.types import Time


class Reveal:
    """The reverse step of the process itself: as many positions as it hides, in an order that is drawn on the way."""

    def __call__(self, schedule: Absorbing, x_t: Tensor, prediction: Guess, t: Time, s: Time) -> Change:
        """p(x_s | x_t)."""
        return schedule.reveal(x_t, prediction.values, t, s)


@dataclass(frozen=True, eq=False)
class InOrder:
    """The positions in an order that is given: an autoregressive model."""

    # int64 (B, ...) or (...), when each position is revealed: 0 first, each number of 0..D-1 once an image
    turn: Tensor

    def __call__(self, schedule: Absorbing, x_t: Tensor, prediction: Guess, t: Time, s: Time) -> Change:
        """p(x_s | x_t, order), independent between the positions revealed at once."""
        before, after = (x_t[0].numel() - schedule.count(time, x_t[0].numel()).to(x_t.device) for time in (t, s))
        due = (self.turn >= before) & (self.turn < after)
        return Change(x_t, hidden(x_t), due.to(x_t).expand_as(x_t), these(due), prediction.values)


def raster(shape: tuple[int, ...]) -> Tensor:
    """The order of reading: rows from above, each from the left, channels one by one. int64, `shape`."""
    return torch.arange(torch.Size(shape).numel()).reshape(shape)


def any_order(eps: Tensor) -> Tensor:
    """A random order an image, every one alike, by ranking independent numbers (B, ...)."""
    return eps.flatten(1).argsort(1).argsort(1).reshape(eps.shape)
