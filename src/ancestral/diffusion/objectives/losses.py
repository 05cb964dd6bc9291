"""Training losses. An objective gives one number an image for a pair s < t; every one serves every target.

    L_{t-1} = E_q[KL(q(x_s | x_t, x0) || p(x_s | x_t))],   L_0 = -E_q[log p(x0 | x_1)]            (Eq. 5)
    L_simple = E ||output - target||^2                                                            (Eq. 14)

With the small variance L_{t-1} = (SNR_s - SNR_t)/2 ||x0 - x0_hat||^2, so that L_simple is the bound
without its weight w_t.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ancestral.diffusion.denoisers.denoiser import Denoiser, Prediction
from ancestral.diffusion.denoisers.targets import Target
from ancestral.diffusion.objectives.adversarial import Adversarial
from ancestral.diffusion.objectives.consistency import Consistency
from ancestral.diffusion.objectives.objective import Objective
from ancestral.diffusion.objectives.progressive import Progressive
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.types import over
from ancestral.diffusion.samplers.transitions import Transition


def elbo_weight(schedule: Gaussian, t: Tensor, s: Tensor) -> Tensor:
    """w_t = (SNR_s - SNR_t) / 2, nats per squared error in x0 (Eqs. 8-12 with the small variance); inf at s = 0."""
    return schedule.snr(s) * schedule.gain(t, s) / 2


Weight = Callable[[Gaussian, Target, Tensor], Tensor]


def unweighted(schedule: Gaussian, target: Target, t: Tensor) -> Tensor:
    """1: the error counts in the units of the target itself."""
    return torch.ones_like(schedule.signal(t))


def min_snr(schedule: Gaussian, target: Target, t: Tensor, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma) on the error of x0 (Hang et al. 2023)."""
    return schedule.snr(t).clamp(max=gamma) / target.error_scale(schedule, t) ** 2


def p2(schedule: Gaussian, target: Target, t: Tensor, k: float = 1.0, gamma: float = 1.0) -> Tensor:
    """1 / (k + SNR)^gamma on the error of eps (Choi et al. 2022)."""
    snr = schedule.snr(t)
    return snr / (k + snr) ** gamma / target.error_scale(schedule, t) ** 2


def score_matching(schedule: Gaussian, target: Target, t: Tensor) -> Tensor:
    """noise_t^2 on the error of the score (Vincent 2011; Song and Ermon 2019, Eqs. 5-6): 1 on the error of eps."""
    return schedule.snr(t) / target.error_scale(schedule, t) ** 2


@dataclass(frozen=True)
class Weighted(Objective):
    """weight(t) ||output - target||^2, the mean over dimensions; `unweighted` is L_simple (Algorithm 1)."""

    weight: Weight = unweighted

    def __call__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, s: Tensor, eps: Tensor, **cond: Tensor) -> Tensor:
        """Loss per image and dimension (reference name: `p_losses`)."""
        x_t = denoiser.schedule.marginal(x0, t).sample(eps)
        return self.of_output(denoiser, denoiser.output(x_t, t, **cond), x0, t, eps)

    def of_output(self, denoiser: Denoiser, output: Tensor, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The same for an output already computed."""
        schedule, target = denoiser.schedule, denoiser.target
        error = (output[:, : x0.shape[1]] - target.of(x0, eps, schedule, t)).square().flatten(1).mean(1)
        return over(self.weight(schedule, target, t), error) * error


@dataclass(frozen=True)
class VariationalBound(Objective):
    """The bound itself, L_{t-1} or L_0 at the drawn t, per dimension, times the number of terms: an estimate of L.

    Its value in nats per dimension leaves out L_T, which has no parameters.
    """

    teaches_variance: ClassVar[bool] = True
    transition: Transition
    terms: int

    def __call__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, s: Tensor, eps: Tensor, **cond: Tensor) -> Tensor:
        """Loss per image and dimension."""
        x_t = denoiser.schedule.marginal(x0, t).sample(eps)
        prediction = denoiser.predict_unclipped(x_t, t, **cond)
        return self.of_prediction(denoiser.schedule, prediction, x_t, x0, t, s)

    def of_prediction(
        self, schedule: Gaussian, prediction: Prediction, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor
    ) -> Tensor:
        """The same for a prediction already made."""
        p = self.transition(schedule, x_t, prediction, t, s)
        return self.terms * schedule.term(p, x_t, x0, t, s, Normal.log_prob_byte) / x0[0].numel()


@dataclass(frozen=True)
class Hybrid(Objective):
    """L_simple + scale L, the bound teaching only the variance (Nichol and Dhariwal 2021, section 3.1)."""

    teaches_variance: ClassVar[bool] = True
    simple: Weighted
    elbo: VariationalBound
    scale: float = 1e-3

    def __call__(self, denoiser: Denoiser, x0: Tensor, t: Tensor, s: Tensor, eps: Tensor, **cond: Tensor) -> Tensor:
        """Loss per image and dimension, from one network call."""
        x_t = denoiser.schedule.marginal(x0, t).sample(eps)
        output = denoiser.output(x_t, t, **cond)
        mean_held = torch.cat([output[:, : x0.shape[1]].detach(), output[:, x0.shape[1] :]], 1)
        prediction = denoiser.interpret(mean_held, x_t, t)
        elbo = self.elbo.of_prediction(denoiser.schedule, prediction, x_t, x0, t, s)
        return self.simple.of_output(denoiser, output, x0, t, eps) + self.scale * elbo


class Networks(NamedTuple):
    """How to make a network that an objective has beside the denoiser's."""

    critic: Callable[[], nn.Module]  # of images
    alike: Callable[[], nn.Module]  # of the denoiser's kind


Make = Callable[[Transition, int, Networks], Objective]  # of a step, terms of the bound, networks beside

OBJECTIVES: dict[str, Make] = {
    "simple": lambda transition, terms, beside: Weighted(unweighted),
    "min-snr": lambda transition, terms, beside: Weighted(min_snr),
    "score-matching": lambda transition, terms, beside: Weighted(score_matching),
    "p2": lambda transition, terms, beside: Weighted(p2),
    "bound": lambda transition, terms, beside: VariationalBound(transition, terms),
    "consistency": lambda transition, terms, beside: Consistency(),
    "adversarial": lambda transition, terms, beside: Adversarial(beside.critic()),
    "progressive": lambda transition, terms, beside: Progressive(beside.alike()),
    "hybrid": lambda transition, terms, beside: Hybrid(Weighted(unweighted), VariationalBound(transition, terms)),
}
