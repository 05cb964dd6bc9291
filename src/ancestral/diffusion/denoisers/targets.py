"""What a network's output means: two coefficients.

A target says output = a x0 + b eps. With x_t = signal x0 + noise eps and D = noise a - signal b,

    x0 = (noise output - b x_t) / D,      output error = (D / noise) x0 error,

so that one formula serves every parametrisation and no code ever asks which one it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ancestral.diffusion.processes.noise_schedule import NoiseSchedule
from ancestral.diffusion.processes.types import Time, over

Coefficients = Callable[[NoiseSchedule, Time], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Target:
    """output = a x0 + b eps, with (a, b) a function of the schedule and of t >= 1."""

    name: str
    coefficients: Coefficients

    def of(self, x0: Tensor, eps: Tensor, schedule: NoiseSchedule, t: Time) -> Tensor:
        """The output of a perfect network: a x0 + b eps. x0, eps: (B, ...)."""
        a, b = self.coefficients(schedule, t)
        return over(a, x0) * x0 + over(b, x0) * eps

    def x0(self, output: Tensor, x_t: Tensor, schedule: NoiseSchedule, t: Time) -> Tensor:
        """The x0 that an output stands for (reference name: `predict_start_from_noise` and its kin)."""
        a, b = self.coefficients(schedule, t)
        signal, noise = schedule.signal(t), schedule.noise(t)
        determinant = noise * a - signal * b
        return over(noise / determinant, x_t) * output - over(b / determinant, x_t) * x_t

    def error_scale(self, schedule: NoiseSchedule, t: Time) -> Tensor:
        """|D| / noise: how much an error in x0 is stretched in the output. 0 where x0 cannot be recovered."""
        a, b = self.coefficients(schedule, t)
        return (a - schedule.signal(t) / schedule.noise(t) * b).abs()

    def is_identity_at_0(self, schedule: NoiseSchedule) -> bool:
        """Whether x0 becomes x_t as t goes to 0, whatever the output: an error of it is made smaller already at t = 1.

        It is the boundary condition of a consistency model (Song et al. 2023, Eq. 5); x0 and the posterior's mean have
        it not.
        """
        return bool(self.error_scale(schedule, 1) > 1)

    def bounds_x0(self, schedule: NoiseSchedule) -> bool:
        """Whether an error of the output is at no time stretched into a larger one of x0.

        So it is for x0, v, flow and edm; an error of eps is stretched by noise_t / signal_t.
        """
        return bool((self.error_scale(schedule, torch.arange(1, schedule.T + 1)) > 0.99).all())  # 1 for x0, rounded

    def check(self, schedule: NoiseSchedule) -> None:
        """Refuse a schedule on which the output does not determine x0.

        Raises:
            ValueError: at zero terminal SNR, where x_T is pure noise and predicting it says nothing of x0.
        """
        if not self.error_scale(schedule, schedule.T) > 0:
            raise ValueError(
                f"target '{self.name}' cannot recover x0 where alpha_bar is 0 (zero terminal SNR); use 'v' or 'x0'"
            )


def _posterior_mean(schedule: NoiseSchedule, t: Time) -> tuple[Tensor, Tensor]:
    of_x_t, of_x0 = schedule.posterior_coefficients(t, t - 1)
    return of_x_t * schedule.signal(t) + of_x0, of_x_t * schedule.noise(t)


DATA_STD = 0.5  # of images on [-1, 1], about


def _preconditioned(schedule: NoiseSchedule, t: Time) -> tuple[Tensor, Tensor]:
    """F of Karras et al. 2022 (Eq. 7): what is left to predict of x0, scaled to variance 1; -v where DATA_STD is 1."""
    signal, noise = schedule.signal(t) * DATA_STD, schedule.noise(t)
    size = (signal**2 + noise**2).sqrt()
    return noise / (DATA_STD * size), -signal / size


def _constant(a: float, b: float) -> Coefficients:
    def coefficients(schedule: NoiseSchedule, t: Time) -> tuple[Tensor, Tensor]:
        one = schedule.signal(t) * 0 + 1
        return a * one, b * one

    return coefficients


EPS = Target("eps", _constant(0, 1))
X0 = Target("x0", _constant(1, 0))
V = Target("v", lambda schedule, t: (-schedule.noise(t), schedule.signal(t)))
SCORE = Target("score", lambda schedule, t: (0 * schedule.noise(t), -1 / schedule.noise(t)))
FLOW = Target("flow", _constant(-1, 1))
EDM = Target("edm", _preconditioned)
MEAN = Target("mean", _posterior_mean)

TARGETS: dict[str, Target] = {target.name: target for target in (EPS, X0, V, SCORE, FLOW, EDM, MEAN)}
