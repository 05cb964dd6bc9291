"""Langevin steps: moves from t to t that leave q(x_t) as it is, up to the length of the step.

    x' = x + h score + sqrt(2 h) z,    score = -eps / noise_t

In the variance-exploding coordinates x / signal_t the same step is h / signal_t^2 long, so that a rule which is a share
of noise_t^2 here is that share of sigma_t^2 there. q(x_t) is smoothed by N(0, noise_t^2 I): the curvature of -log q is
at most 1 / noise_t^2, and h <= noise_t^2 never overshoots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Prediction, score
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.types import over
from ancestral.diffusion.samplers.transitions import DDIM, Stepper, Transition


def langevin(schedule: Gaussian, x_t: Tensor, prediction: Prediction, t: int, share: float) -> Normal:
    """N(x + h score, 2 h), h = share noise_t^2."""
    step = over(share * schedule.noise_var(t), x_t)
    return Normal(x_t + step * score(prediction, schedule, t), (2 * step).expand_as(x_t))


@dataclass(frozen=True)
class Langevin:
    """Annealed Langevin dynamics (Song and Ermon 2019, Algorithm 1): x / signal carried from level to level.

    h is the same share of noise_t^2 at every level: alpha_i = epsilon sigma_i^2 / sigma_L^2 of the paper is twice h, so
    that its epsilon = 2e-5 at sigma_L = 0.01 is share = 0.1. Levels must be close in sigma (grid `log-snr`), as nothing
    but these steps shrinks the noise. The walk ends with the predicted x0. From zero terminal SNR, where x / signal is
    not defined, the first move is DDIM's.
    """

    steps: int = 5  # Langevin steps, and network calls, a level; one call more at the last
    share: float = 0.1  # h / noise_t^2, at most 1

    def begin(self, schedule: Gaussian, grid: Sequence[int]) -> tuple[Stepper, Sequence[int]]:
        """The transition, and each level as often as it is visited."""
        levels, end = [t for t in grid if t > 0], [t for t in grid if t == 0]
        visits = [t for t in levels for _ in range(self.steps)]
        return self._move, [*visits, levels[-1], *end]

    def _move(self, schedule: Gaussian, x_t: Tensor, prediction: Prediction, t: int, s: int) -> Normal:
        if s == 0 or (s < t and not schedule.signal(t) > 0):
            return DDIM()(schedule, x_t, prediction, t, s)
        at_t = langevin(schedule, x_t, prediction, t, self.share)
        carried = over(schedule.signal(s) / schedule.signal(t), x_t) if s < t else 1.0
        return Normal(carried * at_t.mean, carried**2 * at_t.var)


@dataclass(frozen=True)
class PredictorCorrector:
    """Predictor-corrector sampling (Song et al. 2021, Algorithms 1 to 5): a step down, then Langevin steps.

    h = 2 (snr ||z|| / ||score||)^2 with both norms at their size where x0 is known, sqrt(D) and sqrt(D) / noise_t:
    2 snr^2 noise_t^2, at most noise_t^2. The published code takes the norms of the batch at hand. But a step whose
    length depends on x_t does not leave q(x_t) as it is, and one that depends on the batch makes an image depend on its
    neighbours. The factor alpha_i of Algorithm 5, the VP chain's change of scale in one step, is that of VE: 1. Nothing
    is corrected at the first level, which is drawn exactly, nor at 0.
    """

    # the step from t to s < t; DDIM(1.0) is ancestral sampling of the VE chain (their Eq. 47)
    predictor: Transition = field(default_factory=lambda: DDIM(1.0))
    steps: int = 1  # Langevin steps a level
    snr: float = 0.16  # how long they are

    def begin(self, schedule: Gaussian, grid: Sequence[int]) -> tuple[Stepper, Sequence[int]]:
        """The transition, and each level as often as it is visited."""
        visits = [grid[0], *(t for t in grid[1:] for _ in range(self.steps + 1 if t > 0 else 1))]
        return self._move, visits

    def _move(self, schedule: Gaussian, x_t: Tensor, prediction: Prediction, t: int, s: int) -> Normal:
        if s != t:
            return self.predictor(schedule, x_t, prediction, t, s)
        return langevin(schedule, x_t, prediction, t, min(2 * self.snr**2, 1.0))
