"""Exact denoisers: data whose E[x0 | x_t] is known in closed form. Oracles for tests, and demos without training."""

from __future__ import annotations

import torch
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Prediction, predict
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.types import Time, untyped


class Mixture:
    """The exact predictor for data drawn from a mixture of isotropic Gaussians.

    One component is Gaussian data; components of variance 0 are a finite data set.

    Args:
        schedule: the forward process.
        means: (K, D) component means.
        variances: (K,) component variances, 0 allowed.
        weights: (K,) probabilities; equal when left out.
    """

    def __init__(self, schedule: Gaussian, means: Tensor, variances: Tensor, weights: Tensor | None = None) -> None:
        self.schedule, self.means, self.variances = schedule, means, variances
        self.log_weights = (torch.ones_like(variances) if weights is None else weights).log().log_softmax(0)

    def _log_joint(self, x_t: Tensor, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        """(B, K) log weight_k N(x_t; ...), the variances of x_t (B or 1, K), and x_t - signal mean_k (B, K, D)."""
        signal, noise_var = self.schedule.signal(t).reshape(-1, 1), self.schedule.noise_var(t).reshape(-1, 1)
        variance = signal**2 * self.variances + noise_var
        offset = x_t[:, None] - signal[..., None] * self.means
        dimensions = x_t.shape[1]
        log_density = -0.5 * (offset.square().sum(-1) / variance + dimensions * (2 * torch.pi * variance).log())
        return self.log_weights + log_density, variance, offset

    def log_prob(self, x_t: Tensor, t: Time = 0) -> Tensor:
        """log q(x_t) in nats, shape (B,), of the data diffused to time t. x_t: (B, D)."""
        return self._log_joint(x_t, t)[0].logsumexp(1)

    def sample(self, generator: torch.Generator, count: int) -> Tensor:
        """Draw x0, shape (count, D)."""
        component = torch.multinomial(self.log_weights.exp(), count, replacement=True, generator=generator)
        eps = torch.randn(count, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[component] + self.variances[component, None].sqrt() * eps

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        """E[x0 | x_t] and Var[x0 | x_t] for x_t of shape (B, D)."""
        log_joint, variance, offset = self._log_joint(x_t, t)
        share = log_joint.softmax(1)[..., None]
        shrink = (self.schedule.signal(t).reshape(-1, 1) * self.variances / variance)[..., None]
        means = self.means + shrink * offset
        variances = (self.variances * self.schedule.noise_var(t).reshape(-1, 1) / variance)[..., None]
        x0 = (share * means).sum(1)
        x0_var = (share * (variances + (means - x0[:, None]) ** 2)).sum(1)
        return predict(x0, x_t, self.schedule, t, x0_var=x0_var)


class Correlated:
    """The exact predictor for data from N(mean, covariance). mean: (D,); covariance: (D, D)."""

    def __init__(self, schedule: Gaussian, mean: Tensor, covariance: Tensor) -> None:
        self.schedule, self.mean = schedule, mean
        decomposed: tuple[Tensor, Tensor] = untyped.linalg.eigh(covariance)
        self.variances, self.axes = decomposed

    def log_prob(self, x_t: Tensor, t: Time = 0) -> Tensor:
        """log q(x_t) in nats, shape (B,), of the data diffused to time t. x_t: (B, D)."""
        signal, noise_var = self.schedule.signal(t).reshape(-1, 1), self.schedule.noise_var(t).reshape(-1, 1)
        offset = (x_t - signal * self.mean) @ self.axes
        return Normal(torch.zeros_like(offset), signal**2 * self.variances + noise_var).log_prob(offset).sum(1)

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        """E[x0 | x_t] and the diagonal of Cov[x0 | x_t] for x_t of shape (B, D)."""
        signal, noise_var = self.schedule.signal(t).reshape(-1, 1), self.schedule.noise_var(t).reshape(-1, 1)
        total = signal**2 * self.variances + noise_var
        along = (x_t - signal * self.mean) @ self.axes * (signal * self.variances / total)
        x0_var = (noise_var * self.variances / total) @ self.axes.mT.square()
        return predict(self.mean + along @ self.axes.mT, x_t, self.schedule, t, x0_var=x0_var.expand_as(x_t))


def gaussian(schedule: Gaussian, mean: Tensor, variance: float) -> Mixture:
    """The exact predictor for N(mean, variance I) data; its reverse process is exactly Gaussian. mean: (D,)."""
    return Mixture(schedule, mean[None], torch.tensor([variance], dtype=mean.dtype))
