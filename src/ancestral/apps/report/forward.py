"""Section 2, the forward process: what the noise does to the user's images, in closed form and in fact."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ancestral.apps.report import forward_chain, forward_distance, forward_posterior, plots
from ancestral.apps.report.part import Number, Part, Words
from ancestral.apps.report.subject import Subject
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.streams import Streams
from ancestral.runtime.plots import ACCENT, SECOND

SHOWN, COLUMNS = 4, 10  # images, times
AGAIN = "ancestral.diffusion.processes.gaussian.Gaussian"

# Of `sources.toml`, by the name of a schedule.
SCHEDULE_SOURCES = {
    "linear": "ddpm",
    "scaled-linear": "latent",
    "cosine": "improved",
    "sigmoid": "sigmoid",
    "linear-log-snr": "vdm",
    "even": "d3pm",
    "ve": "sde",
    "linear-zero-snr": "flawed",
    "cosine-zero-snr": "flawed",
}


def part(subject: Subject) -> Part:
    """The schedule, the images at ten times, the way from Eq. 2 to Eq. 4, the distance to noise, the posterior."""
    return (
        schedule_part(subject)
        | forward_chain.part(subject)
        | images_part(subject)
        | forward_distance.part(subject)
        | forward_posterior.part(subject)
    )


def schedule_part(subject: Subject) -> Part:
    """beta_t, the shares of signal and noise, and the log SNR."""
    schedule, T, half = subject.schedule, subject.schedule.T, subject.half
    numbers = {
        "T": (T, "T"),
        "beta_1": (schedule.beta[0], "beta"),
        "beta_T": (schedule.beta[-1], "beta"),
        "half": (half, "alpha_bar"),
        "half_share": (schedule.alpha_bar(half), "alpha_bar"),
        "signal_T": (schedule.signal(T), "signal"),
        "noise_T": (schedule.noise(T), "noise"),
        "alpha_bar_T": (schedule.alpha_bar(T), "alpha_bar"),
        "log_snr_1": (schedule.log_snr(1), "log_snr"),
        "log_snr_T": (schedule.log_snr(T), "log_snr"),
    }
    return Part(
        numbers={name: Number(float(value), "", f"{AGAIN}.{how}") for name, (value, how) in numbers.items()},
        figures={"schedule": lambda words: _schedule(schedule, half, words)},
        facts={
            "trained": subject.saved is not None,
            "schedule": subject.config.diffusion.schedule,
            "shift": subject.config.diffusion.shift,
            "schedule_source": SCHEDULE_SOURCES.get(subject.config.diffusion.schedule),
            "ends_at_noise": float(schedule.alpha_bar(T)) == 0,
        },
    )


def images_part(subject: Subject) -> Part:
    """Held-out images at ten times, each with one noise throughout."""
    schedule = subject.schedule
    times = sorted({round(index) for index in np.linspace(0, schedule.T, COLUMNS)})
    x0 = subject.x0(subject.test.spread(SHOWN))
    eps = Streams(subject.seed, "explain-forward", range(len(x0))).normal(subject.shape).to(x0)
    states = torch.stack([schedule.marginal(x0, t).sample(eps) if t else x0 for t in times], 1)
    return Part(figures={"noised": lambda words: _noised(states, times)})


def _schedule(schedule: Gaussian, half: int, words: Words) -> str:
    figure, (shares, snr, beta) = plots.axes(words["axes"]["t"], "", 3, 1.9)
    t = torch.arange(1, schedule.T + 1)
    shares.plot(t, schedule.signal(t), color=ACCENT, label=words["axes"]["signal"])
    shares.plot(t, schedule.noise(t), color=SECOND, label=words["axes"]["noise"])
    plots.legend(shares)
    log_snr = schedule.log_snr(t)
    snr.plot(t[log_snr.isfinite()], log_snr[log_snr.isfinite()], color=ACCENT)
    snr.set_ylabel(words["axes"]["log_snr"])
    beta.plot(t, schedule.beta, color=ACCENT)
    plots.logarithmic(beta.yaxis)
    beta.set_ylabel(words["axes"]["beta_t"])
    for on in (shares, snr):
        on.axvline(half, color=plots.FAINT, linewidth=1, linestyle=":")
    return plots.svg(figure)


def _noised(states: Tensor, times: list[int]) -> str:
    return plots.sheet(plots.pixels(states), [f"t = {t}" if t in times[:1] else str(t) for t in times])
