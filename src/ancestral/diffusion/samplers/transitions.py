"""The reverse process: which Gaussian p(x_s | x_t) a prediction of x0 makes, for any s < t.

A transition is `transition(schedule, x_t, prediction, t, s) -> Normal`. An ancestral one is the posterior
q(x_s | x_t, x0) at the predicted x0 with a variance of its own, bounded by the two of section 3.2:

    fixedsmall  c noise_s^2   exact when the data are one point        (beta~ at s = t-1)
    beta        c noise_t^2   exact when the data are N(0, I)          (beta at s = t-1)

`fixedlarge`, the paper's for CIFAR-10, is beta but for the decoder's step, s = 0, where both fixed ones are beta~_2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Prediction
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.types import Time, over

Variance = Callable[[Gaussian, Prediction, Time, Time], Tensor]


class Transition(Protocol):
    """p(x_s | x_t) from a prediction; one without a memory, for a vector of times too."""

    def __call__(self, schedule: Gaussian, x_t: Tensor, prediction: Prediction, t: Time, s: Time) -> Normal:
        """The Gaussian from which x_s is drawn. x_t: (B, ...); s < t."""
        ...


class Stepper(Protocol):
    """The transition of one walk, which may remember: called with the times of its steps in order."""

    def __call__(self, schedule: Gaussian, x_t: Tensor, prediction: Prediction, t: int, s: int) -> Normal:
        """The Gaussian from which x_s is drawn."""
        ...


class Planned(Protocol):
    """A method that must know the whole grid, or remember: it makes a stepper for each walk."""

    def begin(self, schedule: Gaussian, grid: Sequence[int]) -> tuple[Stepper, Sequence[int]]:
        """(the stepper of one walk, the times that it visits)."""
        ...


def begin(
    method: Callable[..., Any] | Planned, schedule: Any, grid: Sequence[int]
) -> tuple[Callable[..., Any], Sequence[int]]:
    """What one walk over the grid is with this method; a transition without a memory serves every walk as it is."""
    return (method, grid) if callable(method) else method.begin(schedule, grid)


def _beta_tilde(schedule: Gaussian, t: Time, s: Time) -> Tensor:
    """c noise_s^2, which is 0 at s = 0: there the decoder takes the value of the step before, 2t -> t.

    At t = 1 this is beta~_2, the choice of the paper's code.
    """
    t, s = torch.as_tensor(t), torch.as_tensor(s)
    before = (2 * t).clamp(max=schedule.T)
    stand_in = torch.where(before > t, schedule.gain(before, t), 1.0) * schedule.noise_var(t)
    return torch.where(s == 0, stand_in, schedule.gain(t, s) * schedule.noise_var(s))


def _beta(schedule: Gaussian, t: Time, s: Time) -> Tensor:
    return schedule.gain(t, s) * schedule.noise_var(t)


def fixedsmall(schedule: Gaussian, prediction: Prediction, t: Time, s: Time) -> Tensor:
    """The posterior's own variance, beta~; the next one where it is 0, at s = 0 (the paper's name)."""
    return over(_beta_tilde(schedule, t, s), prediction.x0)


def fixedlarge(schedule: Gaussian, prediction: Prediction, t: Time, s: Time) -> Tensor:
    """beta_t, for any s; at s = 0 that of `fixedsmall`, for a better decoder likelihood (the paper's name)."""
    last = torch.as_tensor(s) == 0
    return over(torch.where(last, _beta_tilde(schedule, t, s), _beta(schedule, t, s)), prediction.x0)


def beta(schedule: Gaussian, prediction: Prediction, t: Time, s: Time) -> Tensor:
    """beta_t, for any s, at s = 0 as well: what section 3.2 says to the letter, and diffusers' `fixed_large`."""
    return over(_beta(schedule, t, s), prediction.x0)


def learned(schedule: Gaussian, prediction: Prediction, t: Time, s: Time) -> Tensor:
    """Between the two in log, where the network says (reference name: `learned_range`)."""
    if prediction.range_mix is None:
        raise ValueError("variance 'learned' needs a network with 2C output channels; this one predicts only x0")
    x0 = prediction.x0
    log_small, log_large = over(_beta_tilde(schedule, t, s).log(), x0), over(_beta(schedule, t, s).log(), x0)
    return (log_small + prediction.range_mix * (log_large - log_small)).exp()


def optimal(schedule: Gaussian, prediction: Prediction, t: Time, s: Time) -> Tensor:
    """c noise_s^2 + (signal_s c)^2 Var[x0 | x_t]: the best isotropic variance (Bao et al. 2022, Eq. 9)."""
    if prediction.x0_var is None:
        raise ValueError("variance 'optimal' needs Var[x0 | x_t]: an exact denoiser, or a Calibrated one")
    gain = schedule.gain(t, s)
    uncertainty = over((schedule.signal(s) * gain) ** 2, prediction.x0) * prediction.x0_var
    return over(gain * schedule.noise_var(s), prediction.x0) + uncertainty


VARIANCES: dict[str, Variance] = {
    "fixedsmall": fixedsmall,
    "fixedlarge": fixedlarge,
    "beta": beta,
    "learned": learned,
    "optimal": optimal,
}


@dataclass(frozen=True)
class Ancestral:
    """The paper's reverse step, Eq. 11 and Algorithm 2 (reference name: `p_sample`)."""

    variance: Variance = fixedsmall

    def __call__(self, schedule: Gaussian, x_t: Tensor, prediction: Prediction, t: Time, s: Time) -> Normal:
        """N(posterior mean at the predicted x0, variance)."""
        mean = schedule.posterior(x_t, prediction.x0, t, s).mean
        return Normal(mean, self.variance(schedule, prediction, t, s).expand_as(mean))


@dataclass(frozen=True)
class DDIM:
    """x_s = signal_s x0 + sqrt(noise_s^2 - var) eps, var = eta^2 c noise_s^2 (Song et al. 2021, Eq. 12).

    eta = 0 is deterministic, and goes upwards as well (s > t: DDIM inversion); eta = 1 is ancestral sampling with
    `fixedsmall`.
    """

    eta: float = 0.0

    def __call__(self, schedule: Gaussian, x_t: Tensor, prediction: Prediction, t: Time, s: Time) -> Normal:
        """N(the point on the line through x0 and eps, eta^2 times the posterior variance)."""
        certain = torch.zeros_like(schedule.noise_var(s))  # upwards from t = 0 too, where there is no gain
        variance = self.eta**2 * schedule.gain(t, s) * schedule.noise_var(s) if self.eta else certain
        direction = (schedule.noise_var(s) - variance).clamp(min=0).sqrt()
        mean = over(schedule.signal(s), x_t) * prediction.x0 + over(direction, x_t) * prediction.eps
        return Normal(mean, over(variance, x_t).expand_as(mean))


class Renoised:
    """q(x_s | x0) of the predicted x0, fresh noise each time: multistep consistency sampling (Song et al. 2023).

    Exact where the prediction is the end of the flow's trajectory through x_t. The noise there is DDIM's with all of
    noise_s^2 for its variance.
    """

    def __call__(self, schedule: Gaussian, x_t: Tensor, prediction: Prediction, t: Time, s: Time) -> Normal:
        """N(signal_s x0, noise_s^2)."""
        drawn = schedule.marginal(prediction.x0, s)
        return Normal(drawn.mean, drawn.var.expand_as(drawn.mean))


class StepThenNoise:
    """A step from t to a time of `ends`, then the forward process from there up to s, as one Gaussian.

    Args:
        transition: of the step down, without a memory.
        ends: where the steps of the walk end, in order; where one is s itself nothing is added.
    """

    def __init__(self, transition: Transition, ends: Sequence[int]) -> None:
        self.transition, self.ends = transition, iter(ends)

    def __call__(self, schedule: Gaussian, x_t: Tensor, prediction: Prediction, t: int, s: int) -> Normal:
        """p(x_end | x_t) q(x_s | x_end), x_end integrated out."""
        end = next(self.ends)
        p = self.transition(schedule, x_t, prediction, t, end)
        if end == s:
            return p
        raised = schedule.transition(p.mean, end, s)
        kept = over((schedule.log_alpha_bar[s] - schedule.log_alpha_bar[end]).exp(), x_t)
        return Normal(raised.mean, kept * p.var + raised.var)
