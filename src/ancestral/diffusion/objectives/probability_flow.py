"""The probability flow: the marginals of the chain without its noise, so that an image has one latent and a density.

With the angle phi = arctan(noise / signal), so that x_t = cos(phi) x0 + sin(phi) eps,

    dx / dphi = v(x, phi) = cos(phi) eps - sin(phi) x0                      (Salimans and Ho 2022, Appendix D)
    log p(x_t) = log N(x_T; 0, I) + int_{phi_t}^{phi_T} div v dphi          (Chen et al. 2018; Song et al. 2021, D.2)

which is the flow of Song et al. 2021 (Eq. 13) for every schedule, finite at zero terminal SNR. An adaptive solver stops
at angles between those of the integers: there the network is given a time in between (`NoiseSchedule.time`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Predictor
from ancestral.diffusion.denoisers.targets import V
from ancestral.diffusion.processes.normal import HALF_BIN, Likelihood, Normal, standard_normal_like
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.processes.types import over
from ancestral.diffusion.samplers.transitions import Ancestral, Transition


@dataclass(frozen=True)
class Adaptive:
    """A Runge-Kutta method with steps as long as its error allows; a batch takes them together, by its mean error."""

    method: str = "RK45"  # of scipy's `solve_ivp`: RK45, RK23, or DOP853 where the flow is smooth (no clipping)
    rtol: float = 1e-4  # error allowed a step, relative to the state
    atol: float = 1e-4  # error allowed a step, in the units of x_t
    max_step: float = math.inf  # longest step, in radians


class Arrival(NamedTuple):
    """Where the flow leads, and the network calls that it took for the batch."""

    x: Tensor  # (B, ...)
    calls: int


class Density(NamedTuple):
    """The log density of x_t in nats by each probe, (B, K); its latent x_T; the network calls for the batch."""

    nats: Tensor
    x_T: Tensor  # noqa: N815
    calls: int


def velocity(predictor: Predictor, x_t: Tensor, angle: float) -> Tensor:
    """dx / dphi = cos(phi) eps - sin(phi) x0 at any angle of the schedule. Shape of x_t."""
    schedule = predictor.schedule
    t = schedule.time(torch.tensor(angle, dtype=torch.float64))
    prediction = predictor(x_t, t)
    return V.of(prediction.x0, prediction.eps, schedule, t)


@torch.no_grad()
def transport(predictor: Predictor, x: Tensor, t: int, s: int, solver: Adaptive = Adaptive()) -> Arrival:
    """The state at s of the flow that is at x (B, ...) at t, up or down: t = 1, s = T encodes and the reverse decodes.

    Raises:
        ArithmeticError: when the tolerance cannot be met.
    """

    def rate(state: Tensor, angle: float) -> Tensor:
        return velocity(predictor, state.reshape(x.shape), angle).flatten(1)

    state, calls = _integrate(rate, x.flatten(1), _angle(predictor, t), _angle(predictor, s), solver)
    return Arrival(state.reshape(x.shape), calls)


def log_density(
    predictor: Predictor,
    x_t: Tensor,
    t: int,
    probes: Tensor,
    solver: Adaptive = Adaptive(),
) -> Density:
    """log p(x_t) of the flow that starts from x_T ~ N(0, I), with div v = mean_k e_k . (dv/dx) e_k over the probes.

    Args:
        predictor: whose flow it is; it must be differentiable in x_t, and its parameters need no gradient.
        x_t: (B, ...), states at t.
        t: at least 1.
        probes: (K, B, ...) the e_k, held along the path: `rademacher` for an unbiased estimate by each (Hutchinson
            1989; Grathwohl et al. 2019), `every_direction` for the trace itself.
        solver: of the state and of the K integrals together.

    Raises:
        ArithmeticError: when the tolerance cannot be met.
    """
    start, dimensions = x_t.flatten(1), x_t[0].numel()

    def rate(state: Tensor, angle: float) -> Tensor:
        x = state[:, :dimensions].reshape(x_t.shape).requires_grad_()
        with torch.enable_grad():
            v = velocity(predictor, x, angle)
        traces = [
            (torch.autograd.grad(v, x, probe, retain_graph=True)[0] * probe).flatten(1).sum(1) for probe in probes
        ]
        return torch.cat([v.detach().flatten(1), torch.stack(traces, 1)], 1)

    zero = start.new_zeros(len(start), len(probes))
    schedule = predictor.schedule
    ends = _angle(predictor, t), _angle(predictor, schedule.T)
    state, calls = _integrate(rate, torch.cat([start, zero], 1), *ends, solver)
    x_T = state[:, :dimensions].reshape(x_t.shape)
    prior = standard_normal_like(x_T).log_prob(x_T).flatten(1).sum(1, keepdim=True)
    return Density(prior + state[:, dimensions:], x_T, calls)


def rademacher(noise: Streams, x: Tensor, count: int) -> Tensor:
    """`count` probes of random signs for x (B, ...), shape (count, B, ...)."""
    return torch.where(noise.uniform((count, *x.shape[1:])) < 0.5, -1.0, 1.0).transpose(0, 1).to(x)


def every_direction(x: Tensor) -> Tensor:
    """The D probes sqrt(D) e_d, whose mean is the trace itself, shape (D, B, ...)."""
    dimensions = x[0].numel()
    directions = torch.eye(dimensions, dtype=x.dtype, device=x.device) * dimensions**0.5
    return directions.reshape(dimensions, 1, *x.shape[1:]).expand(dimensions, *x.shape)


class Dequantised(NamedTuple):
    """Clean images as states at t, and what is to be added to -log p(x_t) for a bound on -log P(x0)."""

    t: int
    x_t: Tensor  # (B, ...)
    nats: Tensor  # (B,)


Dequantisation = Callable[[Predictor, Tensor, Streams], Dequantised]


@dataclass(frozen=True)
class Noised:
    """x_t ~ q(x_t | x0), and the chain's own last step gives x0 back: the bound with the flow for p(x_t).

    E[log q(x_t | x0) - log p(x0 | x_t) - log p(x_t)] >= -log P(x0) of the model that decodes a sample of the flow at t.
    """

    transition: Transition = field(default_factory=Ancestral)  # makes p(x0 | x_t), as in L_0
    t: int = 1  # the lowest time that was trained at
    likelihood: Likelihood = Normal.log_prob_coded  # log p(x0 | x_t): of bytes, or `Normal.log_prob` for a density

    @torch.no_grad()
    def __call__(self, predictor: Predictor, x0: Tensor, noise: Streams) -> Dequantised:
        """x0: (B, ...) on [-1, 1]."""
        q = predictor.schedule.marginal(x0, self.t)
        x_t = q.draw(noise)
        p = self.transition(predictor.schedule, x_t, predictor(x_t, self.t), self.t, 0)
        return Dequantised(self.t, x_t, (q.log_prob(x_t) - self.likelihood(p, x0)).flatten(1).sum(1))


@dataclass(frozen=True)
class Uniform:
    """x_t = signal_t (x0 + u), u uniform in the byte's bin: the density is integrated over the bin (Theis et al. 2016).

    E[-log p(x_t) - D log(2/255 signal_t)] >= -log P(x0) of the model that rounds x_t / signal_t, noise and all, to a
    byte. The noise of x_t is part of what is rounded, so that levels with noise_t of a bin or more cost bits.
    """

    t: int = 1

    def __call__(self, predictor: Predictor, x0: Tensor, noise: Streams) -> Dequantised:
        """x0: (B, ...) on [-1, 1]."""
        signal = predictor.schedule.signal(self.t)
        u = (2 * noise.uniform(x0.shape[1:]) - 1).to(x0) * HALF_BIN
        volume = x0[0].numel() * (2 * HALF_BIN * signal).log()
        return Dequantised(self.t, over(signal, x0) * (x0 + u), -volume.to(x0).expand(len(x0)))


DEQUANTISATIONS: dict[str, Callable[[Transition, int], Dequantisation]] = {
    "noise": Noised,
    "uniform": lambda transition, t: Uniform(t),
}


class FlowBound(NamedTuple):
    """An upper bound in expectation on -log P(x0) of images of so many dimensions."""

    nats: Tensor  # by each probe, (B, K)
    calls: int  # of the network, for the batch
    dimensions: int

    @property
    def bits_per_dim(self) -> Tensor:
        """The mean over the probes in bits per dimension, (B,)."""
        return self.nats.mean(1) / self.dimensions / math.log(2)


def flow_bound(
    predictor: Predictor,
    x0: Tensor,
    noise: Streams,
    dequantisation: Dequantisation = Noised(),
    probes: int = 1,
    solver: Adaptive = Adaptive(),
) -> FlowBound:
    """-log p(x_t) and what the dequantisation adds, for images x0 (B, ...) on [-1, 1]; noise: one stream an image.

    Raises:
        ArithmeticError: when the tolerance cannot be met.
    """
    t, x_t, nats = dequantisation(predictor, x0, noise)
    density = log_density(predictor, x_t, t, rademacher(noise, x0, probes), solver)
    return FlowBound((nats[:, None] - density.nats).cpu().double(), density.calls, x0[0].numel())


def _angle(predictor: Predictor, t: int) -> float:
    return float(predictor.schedule.angle(t))


def _integrate(
    rate: Callable[[Tensor, float], Tensor], start: Tensor, low: float, high: float, solver: Adaptive
) -> tuple[Tensor, int]:
    """(the state at `high`, calls of the rate), from (B, n) at `low`."""
    if low == high:
        return start, 0

    def flat(angle: float, values: np.ndarray) -> np.ndarray:
        state = torch.as_tensor(values.copy()).reshape(start.shape).to(start)
        found = rate(state, angle).cpu().double().numpy().ravel()
        if not np.isfinite(found).all():  # the solver would look for a step that helps without end
            raise ArithmeticError(f"the flow cannot be followed to rtol {solver.rtol:g}: its velocity is not finite")
        return found

    begin = start.cpu().double().numpy().ravel()
    from scipy import integrate  # pyright: ignore[reportMissingTypeStubs] # it has none; slow, so not before it is needed

    library: Any = integrate
    found = library.solve_ivp(flat, (low, high), begin, **vars(solver), t_eval=[high])
    if not found.success:
        raise ArithmeticError(f"the flow cannot be followed to rtol {solver.rtol:g}: {found.message}")
    return torch.as_tensor(found.y[:, -1].copy()).reshape(start.shape).to(start), int(found.nfev)
