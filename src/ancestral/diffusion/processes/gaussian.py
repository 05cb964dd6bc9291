"""The Gaussian process q and its exact posterior.

For any s < t the *gain* c = 1 - SNR_t / SNR_s is the share of what x0 adds to the knowledge of x_s, and

    q(x_s | x_t, x0) = N(signal_s ((1 - c) x_t / signal_t + c x0),  c noise_s^2)           (Eqs. 6-7 at s = t-1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ancestral.diffusion.processes.noise_schedule import NoiseSchedule
from ancestral.diffusion.processes.normal import Likelihood, Normal, standard_normal_like
from ancestral.diffusion.processes.types import Time, on, over, per_image


@dataclass(frozen=True, eq=False)
class Gaussian(NoiseSchedule):
    """The process that adds Gaussian noise: x_t = signal_t x0 + noise_t eps."""

    def marginal(self, x0: Tensor, t: Time) -> Normal:
        """q(x_t | x0) = N(signal_t x0, noise_t^2), Eq. 4 (reference name of a draw: `q_sample`). x0: (B, ...)."""
        return Normal(over(self.signal(t), x0) * x0, over(self.noise_var(t), x0))

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Normal:
        """q(x_t | x_s) for s < t, Eq. 2 at s = t-1."""
        ratio = self.log_alpha_bar_at(t) - self.log_alpha_bar_at(s)
        return Normal(over((ratio / 2).exp(), x_s) * x_s, over(-torch.expm1(ratio), x_s))

    def posterior(self, x_t: Tensor, x0: Tensor, t: Time, s: Time) -> Normal:
        """q(x_s | x_t, x0), Eqs. 6-7 for any s < t (reference name: `q_posterior`). x_t, x0: (B, ...)."""
        of_x_t, of_x0 = self.posterior_coefficients(t, s)
        variance = self.gain(t, s) * self.noise_var(s)
        return Normal(over(of_x_t, x_t) * x_t + over(of_x0, x_t) * x0, over(variance, x_t))

    def end(self, like: Tensor) -> Normal:
        """p(x_T) = N(0, I), in the shape, type and device of `like`."""
        return standard_normal_like(like)

    def shown(self, x_t: Tensor) -> Tensor:
        """A state as a picture."""
        return x_t

    def prior(self, x0: Tensor, t: int) -> Tensor:
        """L_T = KL(q(x_t | x0) || N(0, I)) in nats an image, for a walk that begins at t. Shape (B,)."""
        return self.marginal(x0, t).kl(self.end(x0)).flatten(1).sum(1)

    def term(
        self,
        p: Normal,
        x_t: Tensor,
        x0: Tensor,
        t: Tensor,
        s: Tensor,
        likelihood: Likelihood,
    ) -> Tensor:
        """L_{t-1} in nats an image: KL(q || p) where s > 0, the decoder's -log p(x0 | x_t) where s = 0. Shape (B,)."""
        q, last = self.posterior(x_t, x0, t, s), s == 0
        if not last.any():  # asked, and rows chosen, where the times are: a device is not waited for
            return q.kl(p).flatten(1).sum(1)
        # Each branch sees harmless numbers in the other's rows, so that no infinity enters a gradient.
        mask, rows = on(x0.device, per_image(last, x0)), on(x0.device, last.nonzero().squeeze(1))
        kl = Normal(q.mean, torch.where(mask, p.var.detach(), q.var)).kl(p).flatten(1).sum(1)
        return kl.index_copy(0, rows, -likelihood(Normal(p.mean[rows], p.var[rows]), x0[rows]).flatten(1).sum(1))
