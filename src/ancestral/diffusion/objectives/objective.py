"""What a training loss is to the loop: one number an image for a pair s < t."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from torch import Tensor, nn

from ancestral.diffusion.denoisers.denoiser import Denoiser
from ancestral.diffusion.processes.noise_schedule import NoiseSchedule


class Objective(Protocol):
    """A loss per image."""

    teaches_variance: ClassVar[bool]  # whether its gradient reaches a learned variance
    needs_model: ClassVar[bool]  # whether it has no meaning for a run that begins with no model

    @property
    def auxiliary(self) -> nn.Module:
        """A network beside the denoiser's, which learns from the same loss or is held; without weights: none."""
        ...

    def begin_with(self, weights: Mapping[str, Tensor]) -> None:
        """Told once, before the first update, of the weights that the denoiser's network begins with."""
        ...

    @property
    def starts(self) -> Sequence[float]:
        """The shares of the run at which its parts begin, 0 first; a loss is compared with those of its own part."""
        ...

    def earlier(self, schedule: NoiseSchedule, t: Tensor, s: Tensor, progress: float) -> Tensor:
        """The s of each pair after this share of the run. t, s: int64 (steps,), a falling grid and the next in it."""
        ...

    def __call__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, s: Tensor, eps: Tensor, **cond: Tensor) -> Tensor:
        """Loss per image and dimension, shape (B,). x0, eps: (B, C, H, W); t, s: int64 (B,) on the CPU."""
        ...


class FromAnywhere:
    """A loss that takes whatever weights the network begins with."""

    needs_model: ClassVar[bool] = False

    def begin_with(self, weights: Mapping[str, Tensor]) -> None:
        """Nothing to keep."""


class OnePart:
    """A loss that is the same from first to last."""

    @property
    def starts(self) -> Sequence[float]:
        """One part."""
        return (0.0,)


class OfNeighbours(OnePart):
    """A loss of steps of the grid: each s is the time next to t in it."""

    teaches_variance: ClassVar[bool] = False

    def earlier(self, schedule: NoiseSchedule, t: Tensor, s: Tensor, progress: float) -> Tensor:
        """s, throughout the run."""
        return s


class Alone(FromAnywhere):
    """A loss of the denoiser's network alone."""

    @property
    def auxiliary(self) -> nn.Module:
        """None."""
        return nn.Identity()
