"""Progressive distillation in one go: each of a few deterministic steps learns where many of the model's own end.

For neighbours s < t of a grid of N times and x_t ~ q(x_t | x0), a held copy of the model walks the flow from x_t to x_s
in `calls` steps. The x0 from which one DDIM step from x_t ends there too,

    aim = (x_s - (noise_s / noise_t) x_t) / (signal_s - signal_t noise_s / noise_t),

is what the network learns to predict (Salimans and Ho 2022, Eq. 8; there the number of steps is halved again and again,
here N is reached at once, with a solver of second order in between). At s = 0 it is the image itself. One x_t has one
aim: nothing is averaged over images, as it is in E[x0 | x_t].

    L = w(t) ||clip(x0_hat(x_t, t)) - clip(aim)||^2,
    w(t) = 1 / sigma_t^2 + 1 / sigma_data^2,   sigma_t = noise_t / signal_t

Drawing clips, so what is clipped away costs nothing; the gradient passes the clip as if it were none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from ancestral.diffusion.denoisers.denoiser import Conditioned, Denoiser, with_network
from ancestral.diffusion.denoisers.targets import EDM
from ancestral.diffusion.objectives.objective import Objective
from ancestral.diffusion.processes.types import numbers, over
from ancestral.diffusion.samplers.grids import between
from ancestral.diffusion.samplers.sample import finish, trajectory
from ancestral.diffusion.samplers.solvers import SOLVERS

SOLVER = "dpm++2m"  # of the teacher


@dataclass(frozen=True)
class Progressive(Objective):
    """w(t) ||clip(x0_hat) - aim||^2, the norm's square a mean over dimensions.

    Args:
        auxiliary: the teacher, a network like the denoiser's, which does not learn.
        calls: of the teacher from each t to its s.
    """

    auxiliary: nn.Module = field()
    needs_model: ClassVar[bool] = True
    calls: int = 4

    def __post_init__(self) -> None:
        """Hold the teacher."""
        self.auxiliary.eval().requires_grad_(requires_grad=False)

    def begin_with(self, weights: Mapping[str, Tensor]) -> None:
        """The teacher is the model that the run begins with."""
        self.auxiliary.load_state_dict(weights)

    def aim(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, **cond: Tensor) -> Tensor:
        """The x0 from which DDIM goes from x_t (B, ...) to where the teacher does."""
        schedule = denoiser.schedule
        teacher = Conditioned(with_network(denoiser, self.auxiliary), **cond)
        times = between(t, s, self.calls)
        x_s = finish(trajectory(teacher, x_t, times, SOLVERS[SOLVER]))
        ratio = schedule.noise(s) / schedule.noise(t)
        return (x_s - over(ratio, x_t) * x_t) / over(schedule.signal(s) - schedule.signal(t) * ratio, x_t)

    def __call__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, s: Tensor, eps: Tensor, **cond: Tensor) -> Tensor:
        """Loss per image and dimension."""
        schedule = denoiser.schedule
        x_t = schedule.marginal(x0, t).sample(eps)
        aim = torch.empty_like(x_t)
        pairs: list[tuple[int, int]] = list(zip(numbers(t), numbers(s), strict=True))
        for pair in sorted(set(pairs)):
            rows = torch.tensor([k for k, one in enumerate(pairs) if one == pair], device=x_t.device)
            aim[rows] = self.aim(denoiser, x_t[rows], *pair, **{name: one[rows] for name, one in cond.items()})
        x0_hat = denoiser.predict_unclipped(x_t, t, **cond).x0
        clipped = x0_hat + (denoiser.clip(x0_hat) - x0_hat).detach()
        error = (clipped - denoiser.clip(aim)).square().flatten(1).mean(1)
        return over(EDM.error_scale(schedule, t) ** 2, error) * error
