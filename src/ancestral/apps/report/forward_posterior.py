"""The posterior q(x_s | x_t, x0) of the forward process: where it lies, how wide it is, and that it is Bayes' rule."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ancestral.apps.report import plots
from ancestral.apps.report.part import Number, Part, Text, Words
from ancestral.apps.report.subject import Subject
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.streams import Streams
from ancestral.runtime.plots import ACCENT, SECOND

VALUES, PAIRS, COLUMNS = 500_000, 100, 8  # of the check of Bayes' rule; times of the strip
AGAIN = "ancestral.diffusion.processes.gaussian.Gaussian"


class Rule(NamedTuple):
    """Both sides of Bayes' rule at some t, s = t-1, in nats per dimension, one entry a draw."""

    prior: Tensor  # log q(x_s | x0)
    step: Tensor  # log q(x_t | x_s)
    marginal: Tensor  # log q(x_t | x0)
    posterior: Tensor  # log q(x_s | x_t, x0)

    @property
    def gap(self) -> Tensor:
        """What the rule misses by."""
        return self.prior + self.step - self.marginal - self.posterior


def part(subject: Subject) -> Part:
    """The posterior in figures and numbers."""
    schedule, T = subject.schedule, subject.schedule.T
    middle = min(max(subject.half, 2), T)
    of_x_t, of_x0 = schedule.posterior_coefficients(middle, middle - 1)
    gain, jump = schedule.gain(middle, middle - 1), schedule.gain(middle, middle // 2)
    shown = bayes(subject, [middle])
    checked = bayes(subject, sorted({round(index) for index in np.linspace(2, T, PAIRS)}))
    terms = {
        Text(r"$\log q(x_{t-1} \mid x_0)$"): shown.prior,
        Text(r"$+\ \log q(x_t \mid x_{t-1})$"): shown.step,
        Text(r"$-\ \log q(x_t \mid x_0)$"): -shown.marginal,
        Text(r"$-\ \log q(x_{t-1} \mid x_t, x_0)$"): -shown.posterior,
        Text(r"$=$"): shown.gap,
    }
    again = "ancestral.apps.report.forward_posterior.bayes"
    strip, times = _strip(subject)
    return Part(
        numbers={
            "middle": Number(middle, "", f"{AGAIN}.alpha_bar"),
            "gain": Number(float(gain), "", f"{AGAIN}.gain"),
            "gain_jump": Number(float(jump), "", f"{AGAIN}.gain"),
            "of_x_t": Number(float(of_x_t), "", f"{AGAIN}.posterior_coefficients"),
            "of_x0": Number(float(of_x0), "", f"{AGAIN}.posterior_coefficients"),
            "beta_middle": Number(float(gain * schedule.noise_var(middle)), "", f"{AGAIN}.beta"),
            "tilde_middle": Number(float(gain * schedule.noise_var(middle - 1)), "", f"{AGAIN}.posterior"),
            "ratio_2": Number(float(schedule.noise_var(1) / schedule.noise_var(2)), "", f"{AGAIN}.posterior"),
            "bayes_gap": Number(float(checked.gap.abs().max()), "nats/dim", again),
            "bayes_draws": Number(len(checked.gap), "", again),
        },
        figures={
            "posterior": lambda words: _coefficients(schedule, words),
            "between": lambda words: _between(strip, times, words),
        },
        tables={"bayes": [[name, Number(float(value[0]), "nats/dim", again)] for name, value in terms.items()]},
    )


def bayes(subject: Subject, times: list[int]) -> Rule:
    """log densities of a chain x0, x_{t-1}, x_t through held-out images, one draw for each of the times."""
    schedule = subject.schedule
    most = max(1, VALUES // math.prod(subject.shape))
    times = times[:: -(-len(times) // most)]
    images = subject.test.take(np.arange(len(times)) % len(subject.test))
    x0 = subject.x0(images).cpu().double()  # rounding is what is looked at: in float64 on every device
    t = torch.tensor(times)
    noise = Streams(subject.seed, "explain-bayes", times)
    before, x_s = schedule.marginal(x0, t - 1), schedule.marginal(x0, t - 1).sample(noise.normal(subject.shape))
    step = schedule.transition(x_s, t - 1, t)
    x_t = step.sample(noise.normal(subject.shape))
    laws = (before, x_s), (step, x_t), (schedule.marginal(x0, t), x_t), (schedule.posterior(x_t, x0, t, t - 1), x_s)
    return Rule(*(law.log_prob(x).flatten(1).mean(1) for law, x in laws))


def _strip(subject: Subject) -> tuple[Tensor, list[int]]:
    """One image noised, a step back, half of the way back, and clean: (4, times, C, H, W)."""
    schedule, times = subject.schedule, subject.moments(COLUMNS + 1)[:0:-1]
    x0 = subject.x0(subject.test.spread(1)).expand(len(times), -1, -1, -1)
    t = torch.tensor(times)
    eps = Streams(subject.seed, "explain-posterior", times).normal(subject.shape).to(x0)
    x_t = schedule.marginal(x0, t).sample(eps)
    means = [schedule.posterior(x_t, x0, t, s).mean for s in (t - 1, t // 2)]
    return torch.stack([x_t, *means, x0]), times


def _between(strip: Tensor, times: list[int], words: Words) -> str:
    return plots.sheet(plots.pixels(strip), [f"t = {times[0]}", *map(str, times[1:])], words["rows"]["posterior"])


def _coefficients(schedule: Gaussian, words: Words) -> str:
    t = torch.arange(2, schedule.T + 1)
    of_x_t, of_x0 = schedule.posterior_coefficients(t, t - 1)
    gain = schedule.gain(t, t - 1)
    figure, (mean, variance) = plots.axes(words["axes"]["t"], "", 2, 2.2)
    mean.plot(t, of_x_t, color=ACCENT, label=words["axes"]["of_x_t"])
    mean.plot(t, of_x0, color=SECOND, label=words["axes"]["of_x0"])
    mean.set_ylabel(words["axes"]["coefficient"])
    variance.plot(t, gain, color=plots.THIRD, linestyle=":", label=words["axes"]["gain"])
    variance.plot(t, gain * schedule.noise_var(t), color=SECOND, label=words["axes"]["beta"])
    variance.plot(t, gain * schedule.noise_var(t - 1), color=ACCENT, label=words["axes"]["beta_tilde"])
    plots.logarithmic(variance.yaxis)
    for on in (mean, variance):
        plots.logarithmic(on.xaxis)
        plots.legend(on)
    return plots.svg(figure)
