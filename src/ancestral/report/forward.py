"""Section 2, the forward process: what the noise does to the user's images, in closed form and in fact."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ancestral.feed import to_bytes
from ancestral.figures import ACCENT, SECOND
from ancestral.report import plots
from ancestral.report.parts import Number, Part, Words
from ancestral.report.subject import Subject
from ancestral.rng import Streams
from ancestral.schedule import NoiseSchedule

SHOWN, COLUMNS = 4, 10  # images, times


def part(subject: Subject) -> Part:
    """The schedule and the images at ten times."""
    schedule, T = subject.schedule, subject.schedule.T
    times = [round(place) for place in np.linspace(0, T, COLUMNS)]
    x0 = subject.x0(subject.test.spread(SHOWN))
    eps = Streams(subject.seed, "explain-forward", range(len(x0))).normal(subject.shape).to(x0)
    states = torch.stack([schedule.marginal(x0, t).sample(eps) if t else x0 for t in times], 1)
    again = "ancestral.schedule.NoiseSchedule"
    return Part(
        numbers={
            "signal_T": Number(float(schedule.signal(T)), "", f"{again}.signal"),
        },
        figures={
            "schedule": lambda words: _schedule(schedule, words),
            "noised": lambda words: _noised(states, times),
        },
    )


def _schedule(schedule: NoiseSchedule, words: Words) -> str:
    figure, (shares, snr) = plots.axes(words["axes"]["t"], "", 2, 2.1)
    t = torch.arange(1, schedule.T + 1)
    shares.plot(t, schedule.signal(t), color=ACCENT, label=words["axes"]["signal"])
    shares.plot(t, schedule.noise(t), color=SECOND, label=words["axes"]["noise"])
    plots.legend(shares, loc="center right")
    snr.plot(t, schedule.log_snr(t), color=ACCENT)
    snr.set_ylabel(words["axes"]["log_snr"])
    return plots.svg(figure)


def _noised(states: Tensor, times: list[int]) -> str:
    images = to_bytes(states.flatten(0, 1)).reshape(*states.shape[:2], *states.shape[3:], states.shape[2])
    return plots.sheet(images, [f"t = {t}" if t in times[:1] else str(t) for t in times])
