"""What a training loss is to the loop: one number an image for a pair s < t."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from torch import Tensor, nn

from ancestral.diffusion.denoisers.denoiser import Denoiser
from ancestral.diffusion.processes.noise_schedule import NoiseSchedule


class Objective(Protocol):
    """A loss per image."""

    teaches_variance: ClassVar[bool]  # whether its gradient reaches a learned variance

    @property
    def auxiliary(self) -> nn.Module:
        """A network that learns beside the denoiser's, from the same loss; one without weights where none does."""
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


class OnePart:
    """A loss that is the same from first to last, of the denoiser's network alone."""

    @property
    def auxiliary(self) -> nn.Module:
        """None."""
        return nn.Identity()

    @property
    def starts(self) -> Sequence[float]:
        """One part."""
        return (0.0,)
