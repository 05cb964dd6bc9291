"""Which t an image is trained at. A uniform number keyed to the image is turned into an index into the time grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ancestral.diffusion.processes.noise_schedule import NoiseSchedule
from ancestral.diffusion.processes.streams import OpenStreams, Streams
from ancestral.diffusion.processes.types import numbers, untyped

_GOLDEN = (5**0.5 - 1) / 2


def independent(seed: int, numbers: Sequence[int], streams: OpenStreams = Streams) -> Tensor:
    """Uniform numbers in [0, 1), independent between images. float64 (B,)."""
    return streams(seed, "time", numbers).uniform()


def stratified(seed: int, numbers: Sequence[int], streams: OpenStreams = Streams) -> Tensor:
    """The golden-ratio sequence with a random start: any run of n images covers [0, 1) evenly.

    It does what dividing each batch into strata does (Kingma et al. 2021, appendix I.1), but image n keeps its number
    whatever the batch size.
    """
    start = streams(seed, "time", [0]).uniform()
    return (start + torch.tensor([n * _GOLDEN % 1 for n in numbers], dtype=torch.float64)) % 1


class TimeSampler:
    """Uniform over the grid's steps, with importance 1.

    Args:
        grid: strictly falling times ending at 0; image losses are for a pair (t, s) of neighbours in it.
    """

    def __init__(self, grid: Sequence[int]) -> None:
        self.t, self.s = torch.tensor(grid[:-1]), torch.tensor(grid[1:])

    def __len__(self) -> int:
        return len(self.t)

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(index into the grid int64 (B,), importance weight float64 (B,)) for uniform numbers u (B,)."""
        index = (u * len(self)).long().clamp(max=len(self) - 1)
        return index, torch.ones_like(u)

    def update(self, index: Tensor, loss: Tensor) -> None:
        """Learn from the losses (B,) met at these indices; nothing to learn here."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must keep."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up a state that `state` gave."""


class LogNormal(TimeSampler):
    """log(noise / signal) normal; the default is for images of standard deviation 1/2 (Karras et al. 2022, Table 1).

    Importance is 1: the density is meant as a weight of the loss, not as a way to estimate another one.
    """

    def __init__(self, grid: Sequence[int], schedule: NoiseSchedule, mean: float = -1.2, spread: float = 1.2) -> None:
        super().__init__(grid)
        z = (-schedule.log_snr(self.t) / 2 - mean) / spread
        edges = torch.cat([z.new_tensor([torch.inf]), (z[1:] + z[:-1]) / 2, z.new_tensor([-torch.inf])])
        self.cumulative: Tensor = untyped.special.ndtr(-edges[1:])  # probability of a time up to this one; noise falls

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Each time with the normal's mass nearer to it than to its neighbours, importance 1."""
        return torch.searchsorted(self.cumulative, u, right=True).clamp(max=len(self) - 1), torch.ones_like(u)


class LossImportance(TimeSampler):
    """Times drawn in proportion to sqrt(E[loss^2]) over their last ten losses (Nichol and Dhariwal 2021, Eq. 18).

    Uniform until every time has ten. A floor of 1/1000 keeps every time reachable and the estimate unbiased.
    """

    history = 10
    floor = 1e-3

    def __init__(self, grid: Sequence[int]) -> None:
        super().__init__(grid)
        self.losses = torch.zeros(len(self), self.history, dtype=torch.float64)
        self.seen = torch.zeros(len(self), dtype=torch.int64)

    def probabilities(self) -> Tensor:
        """float64 (steps,), summing to 1."""
        flat = torch.full((len(self),), 1 / len(self), dtype=torch.float64)
        if (self.seen < self.history).any():
            return flat
        size = self.losses.square().mean(1).sqrt()
        return self.floor * flat + (1 - self.floor) * size / size.sum()

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Times by the inverse of the cumulative probabilities, weights 1 / (steps p)."""
        p = self.probabilities()
        index = torch.searchsorted(p.cumsum(0), u, right=True).clamp(max=len(self) - 1)
        return index, 1 / (len(self) * p[index])

    def update(self, index: Tensor, loss: Tensor) -> None:
        """Remember the losses, the oldest forgotten first."""
        for where, value in zip(numbers(index), numbers(loss.double()), strict=True):
            self.losses[where, self.seen[where] % self.history] = value
            self.seen[where] += 1

    def state(self) -> dict[str, Tensor]:
        """The remembered losses."""
        return {"losses": self.losses, "seen": self.seen}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up the remembered losses."""
        self.losses, self.seen = state["losses"].clone(), state["seen"].clone()


def _uniform(grid: Sequence[int], schedule: NoiseSchedule) -> TimeSampler:
    return TimeSampler(grid)


def _loss_importance(grid: Sequence[int], schedule: NoiseSchedule) -> TimeSampler:
    return LossImportance(grid)


class TimeChoice(NamedTuple):
    """How training times are drawn: uniform numbers, one an image, and the sampler that turns them into times."""

    uniform: Callable[..., Tensor]  # (seed, numbers, streams=Streams) to float64 (B,) in [0, 1)
    sampler: Callable[[Sequence[int], NoiseSchedule], TimeSampler]  # for a time grid under a schedule


TIME_SAMPLERS: dict[str, TimeChoice] = {
    "uniform": TimeChoice(independent, _uniform),
    "stratified": TimeChoice(stratified, _uniform),
    "log-normal": TimeChoice(stratified, LogNormal),
    "log-normal-wide": TimeChoice(stratified, partial(LogNormal, mean=-1.1, spread=2.0)),  # Geng et al. 2024
    "loss-importance": TimeChoice(stratified, _loss_importance),
}
