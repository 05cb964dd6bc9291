"""Consistency: one answer along a trajectory of the flow, so that one call of the network is enough to draw.

Every x_t of a trajectory of the probability flow ends at the same x_0; f(x_t, t) is that end (Song et al. 2023), which
at t = 0 is x_t itself. In EDM's terms their time is sigma_t = noise_t / signal_t and their state x_t / signal_t: the
trajectories are the same ones. f is the denoiser's own x0_hat, begun as E[x0 | x_t] and tuned until it agrees with
itself (easy consistency tuning, Geng et al. 2024):

    x_t = signal_t x0 + noise_t eps,   x_s = signal_s x0 + noise_s eps                          (the same x0 and eps)
    L = w(t) ||f(x_t, t) - sg f(x_s, s)||,   f(x_0, 0) = x0,   w(t) = 1 / sigma_t^2 + 1 / sigma_data^2

with the same dropout in both, and no gradient through f(x_s, s). s = 0 makes it the denoising that f begins with;
during the run s approaches t, and the loss that of the flow.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Denoiser
from ancestral.diffusion.denoisers.targets import EDM
from ancestral.diffusion.objectives.objective import Objective
from ancestral.diffusion.processes.noise_schedule import NoiseSchedule
from ancestral.diffusion.processes.torch_generators import forked
from ancestral.diffusion.processes.types import over


@dataclass(frozen=True)
class Consistency(Objective):
    """w(t) (sqrt(||f(x_t, t) - sg f(x_s, s)||^2 + c^2) - c), the norm's square a mean over dimensions.

    Args:
        q: by which the distance from s to t is divided at each stage.
        stages: of equal length, of the run; 1, 2, ... in `earlier`.
        k: the distance is 1 + k/2 times as large where sigma is small.
        c: of the pseudo-Huber loss (Song and Dhariwal 2024, 0.00054 sqrt(dimensions)).
    """

    q: float = 2.0
    stages: int = 8
    k: float = 8.0
    c: float = 0.00054

    def earlier(self, schedule: NoiseSchedule, t: Tensor, s: Tensor, progress: float) -> Tensor:
        """The first time of the grid with sigma_s <= sigma_t (1 - (1 + k sigmoid(-sigma_t)) / q^stage), or 0.

        Where sigma_t is infinite it is the next one.
        """
        log_sigma = -schedule.log_snr(t) / 2
        stage = min(int(progress * self.stages), self.stages - 1) + 1
        step = (1 + self.k * torch.sigmoid(-log_sigma.exp())) / self.q**stage
        reached = log_sigma + torch.log1p(-step.clamp(max=1))
        index = torch.searchsorted(-log_sigma, -reached)  # the grid's noise falls
        return torch.minimum(torch.cat([t, t.new_zeros(1)])[index], s)

    def __call__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, s: Tensor, eps: Tensor, **cond: Tensor) -> Tensor:
        """Loss per image and dimension."""
        schedule = denoiser.schedule

        def end(time: Tensor) -> Tensor:
            x = schedule.marginal(x0, time).sample(eps)
            return denoiser.predict_unclipped(x, time, **cond).x0

        # Both have the same dropout: a fork puts torch's generators back to where they were.
        with torch.no_grad(), forked(x0.device):
            aim = torch.where(over((s > 0).double(), x0) > 0, end(s.clamp(min=1)), x0)
        distance = (end(t) - aim).square().flatten(1).mean(1)
        weight = EDM.error_scale(schedule, t) ** 2
        return over(weight, distance) * ((distance + self.c**2).sqrt() - self.c)
