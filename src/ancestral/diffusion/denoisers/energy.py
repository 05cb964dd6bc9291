"""Energies: predictors that know how likely x_t is, up to a constant, and not only where it becomes likelier.

A network's energy is E(x, t) = 1/2 ||x - f(x, t)||^2, and what it hands on is grad_x E in the units of its target
(Salimans and Ho 2021; Du et al. 2023). With the target's coefficients a, b and D = noise a - signal b,

    eps = (a x_t - signal grad E) / D,      log q(x_t) = (signal E - a ||x_t||^2 / 2) / (noise D) + constant,

which is -E / noise for eps itself.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ancestral.diffusion.denoisers.denoiser import Conditioned, Denoiser, Prediction, network_inputs
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.types import Time, over


class Energy(Protocol):
    """A predictor with a log density, such as `analytic.Mixture`, `Learned` or a product of these."""

    schedule: Gaussian

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        """Predict the clean image from x_t (B, ...) at time t."""
        ...

    def log_prob(self, x_t: Tensor, t: Time) -> Tensor:
        """log q(x_t) in nats up to a constant of t, shape (B,)."""
        ...


class EnergyNetwork(nn.Module):
    """A network as an energy: its output is the gradient of E = 1/2 ||x - f(x, t)||^2, and trains like any other.

    A call costs a forward and a backward pass, and training a second backward pass.

    Args:
        network: f, which maps (x_t, time, **cond) to as many channels as x_t has.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def energy(self, x_t: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        """1/2 ||x_t - f||^2, shape (B,).

        Raises:
            ValueError: when f has another shape than x_t, such as that of a learned variance.
        """
        f = self.network(x_t, time, **cond)
        if f.shape != x_t.shape:
            raise ValueError(
                f"an energy needs a network from {tuple(x_t.shape)} to the same shape, not {tuple(f.shape)}"
            )
        return 0.5 * (x_t - f).square().flatten(1).sum(1)

    def forward(self, x_t: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        """grad_x E, shape of x_t; under enabled gradients it has one in turn."""
        create_graph = torch.is_grad_enabled()
        # Of the attention kernels only this one can be differentiated twice.
        with torch.inference_mode(mode=False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            x = x_t if create_graph and x_t.requires_grad else x_t.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.energy(x, time, **cond).sum(), x, create_graph=create_graph)
        return gradient


class Learned(Conditioned):
    """The energy of a denoiser whose network is an `EnergyNetwork`, with its conditions filled in, before it clips.

    The constant of each network, and of each of its conditions, is its own and unknown.

    Raises:
        ValueError: when the network's output is not the gradient of anything.
    """

    def __init__(self, denoiser: Denoiser, **cond: Tensor) -> None:
        if not isinstance(denoiser.network, EnergyNetwork):
            raise ValueError(
                f"a {type(denoiser.network).__name__} has a score and no log density; "
                "train an EnergyNetwork around it as the denoiser's network"
            )
        super().__init__(denoiser.unclipped, **cond)
        self.network = denoiser.network

    def log_prob(self, x_t: Tensor, t: Time) -> Tensor:
        """log q(x_t) in nats up to a constant of t, shape (B,). x_t: (B, C, H, W)."""
        schedule, denoiser = self.schedule, self.denoiser
        clock = denoiser.clock(torch.as_tensor(t).expand(len(x_t)), schedule.T)
        energy = self.network.energy(*network_inputs(self.network, x_t, clock), **self.cond).to(x_t.dtype)
        a, b = denoiser.target.coefficients(schedule, t)
        signal, noise = schedule.signal(t), schedule.noise(t)
        scale = 1 / (noise * (noise * a - signal * b))
        norm = x_t.square().flatten(1).sum(1)
        return over(scale * signal, energy) * energy - over(scale * a / 2, norm) * norm
