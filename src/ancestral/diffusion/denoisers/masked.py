"""What predicts hidden positions; `samplers.reveal` takes the steps that reveal them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ancestral.diffusion.denoisers.denoiser import CLOCKS, Clock, network_inputs
from ancestral.diffusion.processes.absorbing import Absorbing, hidden
from ancestral.diffusion.processes.levels import Logistic, Softmax, Values
from ancestral.diffusion.processes.types import Time, untyped


class Guess(NamedTuple):
    """What is believed of the clean image, given the positions that are seen."""

    values: Values  # of each position, independent
    x0: Tensor  # (B, C, H, W) the mean of these where a position is hidden, otherwise what is seen


class Guesser(Protocol):
    """Anything that guesses hidden positions: a network, or an exact oracle."""

    schedule: Absorbing

    def __call__(self, x_t: Tensor, t: Time) -> Guess:
        """Guess the positions hidden in x_t (B, ...)."""
        ...


def guess(values: Values, x_t: Tensor) -> Guess:
    """Complete distributions with the image that is believed in."""
    return Guess(values, torch.where(hidden(x_t), values.mean, x_t))


class Masked(nn.Module):
    """A network as a predictor of hidden positions, with the face of a `Denoiser`.

    Args:
        network: maps (2C channels, time, **cond) to C outputs(levels) channels: values with 0 for the hidden ones, and
            which these are; to the parameters of a distribution of each position.
        schedule: the forward process it is trained for.
        values: which family the distributions are of (see `levels.VALUES`).
        clock: what the network is given for t.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Absorbing,
        values: type[Softmax] | type[Logistic],
        clock: Clock = CLOCKS["paper"],
    ) -> None:
        super().__init__()
        self.network, self.schedule, self.values, self.clock = network, schedule, values, clock

    def output(self, x_t: Tensor, t: Time, **cond: Tensor) -> Tensor:
        """The network's raw output, in x_t's type. x_t: (B, C, H, W)."""
        unknown = hidden(x_t)
        seen = torch.cat([x_t.masked_fill(unknown, 0), unknown.to(x_t)], 1)
        x, time = network_inputs(self.network, seen, self.clock(torch.as_tensor(t).expand(len(x_t)), self.schedule.T))
        return self.network(x, time, **cond).to(x_t.dtype)

    def interpret(self, output: Tensor, x_t: Tensor, t: Time) -> Guess:
        """What an output of the network says of each position."""
        parameters: Tensor = untyped.movedim(output.unflatten(1, (x_t.shape[1], -1)), 2, -1)
        return guess(self.values.of(parameters, self.schedule.levels), x_t)

    def forward(self, x_t: Tensor, t: Time, **cond: Tensor) -> Guess:
        """Guess the positions hidden in x_t (B, C, H, W) at time t."""
        return self.interpret(self.output(x_t, t, **cond), x_t, t)

    predict_unclipped = forward  # a distribution of levels is never clipped
