"""From one step of the forward process to its closed form: the algebra in numbers, and a chain simulated step by step.

x_t = sqrt(alpha_t) x_{t-1} + sqrt(beta_t) eps  =>  x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import norm

from ancestral.apps.report.part import Number, Part
from ancestral.apps.report.subject import Subject
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.streams import Streams

VALUES, LOOKS = 50_000, 5  # pixels of a chain, times at which it is compared
STEP, CLOSED = (
    "ancestral.diffusion.processes.gaussian.Gaussian.transition",
    "ancestral.diffusion.processes.gaussian.Gaussian.marginal",
)
SIMULATED = "ancestral.apps.report.forward_chain.simulate"
FAR = 4.0  # standard errors: ten fair comparisons go beyond once in 1,600 reports


class Look(NamedTuple):
    """A simulated chain at t against its closed form, with the standard errors that the closed form implies."""

    t: int
    signal: float  # of the closed form
    share: float  # of x0 in the chain: the slope of x_t on x0
    share_error: float
    noise_var: float  # of the closed form
    variance: float  # of the chain around signal x0
    variance_error: float

    @property
    def far(self) -> float:
        """The larger of both deviations, in standard errors."""
        share, variance = self.share - self.signal, self.variance - self.noise_var
        return max(abs(share) / self.share_error, abs(variance) / self.variance_error)


def part(subject: Subject) -> Part:
    """The two lines from Eq. 2 to Eq. 4, each with what it misses by in the code's numbers, and the simulation."""
    mean, variance = composed(subject.schedule)
    looks = simulate(subject)
    comparisons, far = 2 * len(looks), max(look.far for look in looks)
    rows = [
        [
            str(look.t),
            Number(look.signal, "", CLOSED),
            Number(look.share, "", SIMULATED, look.share_error),
            Number(look.noise_var, "", CLOSED),
            Number(look.variance, "", SIMULATED, look.variance_error),
        ]
        for look in looks
    ]
    return Part(
        numbers={
            "mean_gap": Number(mean, "", STEP),
            "variance_gap": Number(variance, "", STEP),
            "chain_images": Number(len(subject.some(VALUES)), "images", SIMULATED),
            "chain_far": Number(far, "standard errors", SIMULATED),
            # Of so many fair comparisons the largest is beyond this in half of all reports.
            "chain_usual": Number(float(norm.isf((1 - 0.5 ** (1 / comparisons)) / 2)), "standard errors", SIMULATED),
        },
        tables={"chain": rows},
        facts={"comparisons": comparisons, "agrees": far < FAR},
    )


def composed(schedule: Gaussian) -> tuple[float, float]:
    """The largest differences over t between a step after the closed form at t-1 and the closed form at t.

    Of the mean's coefficient and of the variance, in float64.
    """
    t = torch.arange(1, schedule.T + 1)
    one = torch.ones(schedule.T, dtype=torch.float64)
    step, before, after = schedule.transition(one, t - 1, t), schedule.marginal(one, t - 1), schedule.marginal(one, t)
    mean = (step.mean * before.mean - after.mean).abs().max()
    variance = (step.mean.square() * before.var + step.var - after.var).abs().max()
    return float(mean), float(variance)


def simulate(subject: Subject) -> list[Look]:
    """Real images sent through every step of Eq. 2 in turn, compared with Eq. 4 at some of them."""
    schedule, x0 = subject.schedule, subject.x0(subject.some(VALUES))
    stops = {round(index) for index in np.linspace(0, schedule.T, LOOKS + 1)[1:]}
    noise, x, looks = Streams(subject.seed, "explain-chain", range(len(x0))), x0, []
    energy = float(x0.square().sum())
    for t in range(1, schedule.T + 1):
        x = schedule.transition(x, t - 1, t).draw(noise)
        if t in stops:
            signal, noise_var = float(schedule.signal(t)), float(schedule.noise_var(t))
            share, variance = float((x * x0).sum()) / energy, float((x - signal * x0).square().mean())
            errors = (noise_var / energy) ** 0.5, noise_var * (2 / x0.numel()) ** 0.5
            looks.append(Look(t, signal, share, errors[0], noise_var, variance, errors[1]))
    return looks
