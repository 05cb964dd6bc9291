"""What a training loss is to the loop: one number an image for a pair s < t."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from ancestral.diffusion.denoisers.denoiser import Denoiser
from ancestral.diffusion.processes.noise_schedule import NoiseSchedule


class Objective:
    """A loss per image. The defaults are those of a loss of one network, the same from the first update to the last."""

    teaches_variance: ClassVar[bool] = False  # whether its gradient reaches a learned variance
    needs_model: ClassVar[bool] = False  # whether a run must begin with a trained model
    # a second network, which learns from the same loss or is frozen; without parameters: none
    auxiliary: nn.Module = nn.Identity()

    @property
    def starts(self) -> Sequence[float]:
        """Shares of the run at which its phases begin, 0 first; a loss is compared with those of its own phase."""
        return (0.0,)

    def begin_with(self, weights: Mapping[str, Tensor]) -> None:
        """Called once, before the first update, with the initial weights of the denoiser's network."""

    def earlier(self, schedule: NoiseSchedule, t: Tensor, s: Tensor, progress: float) -> Tensor:
        """The s of each pair after this share of the run. t, s: int64 (steps,), a falling grid and the next in it."""
        return s

    def __call__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, s: Tensor, eps: Tensor, **cond: Tensor) -> Tensor:
        """Loss per image and dimension, shape (B,). x0, eps: (B, C, H, W); t, s: int64 (B,) on the CPU."""
        raise NotImplementedError
