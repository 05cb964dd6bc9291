"""Consistency first, then a critic: each predicted image is to pass for a real one.

A sampler that predicts the image and renoises it (`Renoised`) is exact as soon as x0_hat(x_t, t), x_t ~ q(x_t), has the
law of the data at each of its times, whatever of x_t the image depends on: then every state has the law of q(x_t). So
a critic D that learns beside the network needs neither x_t nor t. With the images x = clip(x0_hat(x_t, t)) of
the few times that are drawn at,

    L_D = max(0, 1 - D(x0)) + max(0, 1 + D(x))          the critic's, with x held (hinge; Lim and Ye 2017)
    L_G = softplus(-D(x)) + anchor SNR_t ||x - x0||^2          the denoiser's, with D held

both in one backward pass of their sum. Against a critic from the start, the blurred means E[x0 | x_t] become few images
of many (see the log); consistency tuning has made of them what the flow makes of x_t, blurred, and the critic makes
that sharp. That order is also that of adversarial post-training (Lin et al. 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from ancestral.diffusion.denoisers.denoiser import Denoiser
from ancestral.diffusion.objectives.consistency import Consistency
from ancestral.diffusion.objectives.objective import Objective
from ancestral.diffusion.processes.noise_schedule import NoiseSchedule
from ancestral.diffusion.processes.types import over
from ancestral.diffusion.samplers.grids import trailing


@dataclass(frozen=True)
class Adversarial(Objective):
    """The loss of consistency while s < t, then L_D + L_G; the norm's square a mean over dimensions.

    Args:
        auxiliary: the critic D; from images (B, ...) and their conditions to scores (B,), high for real ones.
        consistency: of the first part of the run.
        share: of the run, the first part.
        times: so many of a trailing grid meet the critic in the second part: T in half of all, the others evenly.
        anchor: weight of the error of x0.
    """

    auxiliary: nn.Module = field()
    consistency: Consistency = field(default_factory=Consistency)
    share: float = 0.35
    times: int = 4
    anchor: float = 4.0

    @property
    def starts(self) -> Sequence[float]:
        """Consistency, then the critic."""
        return (0.0, self.share)

    def earlier(self, schedule: NoiseSchedule, t: Tensor, s: Tensor, progress: float) -> Tensor:
        """As consistency has it; t itself once the two have met."""
        return t if progress >= self.share else self.consistency.earlier(schedule, t, s, progress / self.share)

    def __call__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, s: Tensor, eps: Tensor, **cond: Tensor) -> Tensor:
        """Loss per image."""
        if bool((s < t).all()):
            return self.consistency(denoiser, x0, t, s, eps, **cond)
        schedule = denoiser.schedule
        drawn_at = torch.tensor(trailing(schedule, min(self.times, schedule.T))[-2::-1])
        # In the upper half T, since every image begins there; below it the others evenly.
        time = drawn_at[((2 * len(drawn_at) - 2) * (t - 1) // schedule.T).clamp(max=len(drawn_at) - 1)]
        x_t = schedule.marginal(x0, time).sample(eps)
        x = denoiser.clip(denoiser.predict_unclipped(x_t, time, **cond).x0)
        error = (x - x0).square().flatten(1).mean(1)
        passed = _held(self.auxiliary, x, cond)
        twice = {name: torch.cat([value, value]) for name, value in cond.items()}
        real, false = self.auxiliary(torch.cat([x0, x.detach()]), **twice).chunk(2)
        of_critic = functional.relu(1 - real) + functional.relu(1 + false)
        return of_critic + functional.softplus(-passed) + over(self.anchor * schedule.snr(time), error) * error


def _held(critic: nn.Module, x: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """The scores of x, whose gradient reaches x but not the critic's weights."""
    weights = [one for one in critic.parameters() if one.requires_grad]
    try:
        for one in weights:
            one.requires_grad = False
        return critic(x, **cond)
    finally:
        for one in weights:
            one.requires_grad = True
