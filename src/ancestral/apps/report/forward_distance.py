"""How far noised images are from noise: pixel values beside N(0, 1), the KL divergence, the correlation with x0."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import kstest, norm
from torch import Tensor

from ancestral.apps.report import plots
from ancestral.apps.report.part import Number, Part, Words
from ancestral.apps.report.subject import Subject
from ancestral.diffusion.objectives.statistics import mean_and_error
from ancestral.diffusion.processes.streams import Streams
from ancestral.runtime.plots import ACCENT, INK, SECOND

VALUES, LOOKS, CURVE = 50_000, 6, 60  # pixels, times of the histograms, points of a curve
PRIOR, KS = (
    "ancestral.diffusion.processes.gaussian.Gaussian.prior",
    "ancestral.apps.report.forward_distance.kolmogorov",
)
CORRELATION = "ancestral.apps.report.forward_distance.correlation"
EDGE, BINS, TALLEST = 3.5, 100, 0.85  # of the histograms; a density above is cut off


def part(subject: Subject) -> Part:
    """Histograms at some times with two distances to N(0, I), and the correlation of x_t with x0."""
    schedule, T, x0 = subject.schedule, subject.schedule.T, subject.x0(subject.some(VALUES))
    noise = Streams(subject.seed, "explain-distance", range(len(x0)))
    looks = sorted({round(index) for index in np.linspace(0, T, LOOKS)})
    states = {t: schedule.marginal(x0, t).draw(noise) if t else x0 for t in looks}
    steps = kolmogorov(states)
    related = {t: correlation(x_t, x0) for t, x_t in states.items()}
    curve = sorted({max(1, round(index)) for index in np.linspace(0, T, CURVE)})
    kl = [float(schedule.prior(x0, t).mean()) / x0[0].numel() for t in curve]
    expected = [float(of_signal(float(x0.var()), float(schedule.signal(t)))) for t in curve]
    last, error = mean_and_error(schedule.prior(x0, T) / x0[0].numel())
    rows = [
        [
            str(t),
            Number(float(schedule.prior(x0, t).mean()) / x0[0].numel() if t else math.inf, "nats/dim", PRIOR),
            Number(steps[t], "", KS),
            Number(related[t], "", CORRELATION, correlation_error(related[t], x0.numel()) if t else None),
        ]
        for t in looks
    ]
    histograms = {t: _density(x_t) for t, x_t in states.items()}
    return Part(
        numbers={
            "kl_T": Number(last, "nats/dim", PRIOR, error),
            "ks_0": Number(steps[0], "", KS),
            "ks_T": Number(steps[T], "", KS),
            "ks_chance": Number(0.87 / x0.numel() ** 0.5, "", KS),
            "correlation_T": Number(related[T], "", CORRELATION, correlation_error(related[T], x0.numel())),
        },
        figures={
            "histograms": lambda words: _histograms(histograms, words),
            "distance": lambda words: _distance(curve, kl, expected, related, words),
        },
        tables={"distance": rows},
    )


def kolmogorov(states: dict[int, Tensor]) -> dict[int, float]:
    """The largest distance between the distribution function of all pixel values and that of N(0, 1), at each t."""
    return {t: float(kstest(x_t.flatten().cpu().numpy(), norm.cdf).statistic) for t, x_t in states.items()}


def correlation(x_t: Tensor, x0: Tensor) -> float:
    """Of all pixels of noised images with those of the clean ones."""
    return float(torch.corrcoef(torch.stack([x_t.flatten(), x0.flatten()]))[0, 1].nan_to_num())  # of one grey: 0


def correlation_error(value: float, count: int) -> float:
    """Standard error of a correlation of so many pixels by the draw of the noise; the images are given."""
    return (1 - value**2) * ((1 - value**2 / 2) / count) ** 0.5


def of_signal(variance: float, signal: float) -> float:
    """The correlation of x_t with an x0 of this variance, by Eq. 4."""
    return signal * (variance / (signal**2 * variance + 1 - signal**2)) ** 0.5


def _density(x_t: Tensor) -> np.ndarray:
    return np.histogram(x_t.flatten().cpu().numpy(), BINS, (-EDGE, EDGE), density=True)[0]


def _histograms(densities: dict[int, np.ndarray], words: Words) -> str:
    figure, (on,) = plots.axes(words["axes"]["pixel"], "", 1, 3.6)
    edges = np.linspace(-EDGE, EDGE, BINS + 1)
    bell, scale = norm.pdf(edges), 0.92 / TALLEST
    for row, (t, density) in enumerate(densities.items()):
        heights = np.minimum(density, TALLEST) * scale - row
        name, normal = (None, None) if row else (words["axes"]["x_t"], "N(0, 1)")
        on.stairs(heights, edges, baseline=-row, fill=True, color=ACCENT, alpha=0.3)
        on.stairs(heights, edges, baseline=None, color=ACCENT, linewidth=1.1, label=name)
        on.plot(edges, bell * scale - row, color=SECOND, linewidth=1, linestyle="--", label=normal)
        on.text(EDGE, 0.12 - row, f"t = {t}", ha="right", fontsize=8, color=INK)
    on.set_yticks([])
    on.spines["left"].set_visible(False)
    on.set_xlim(-EDGE, EDGE)
    on.set_ylim(0.9 - len(densities), 1)
    plots.legend(on)
    return plots.svg(figure)


def _distance(curve: list[int], kl: list[float], expected: list[float], related: dict[int, float], words: Words) -> str:
    figure, (above, below) = plots.axes(words["axes"]["t"], "", 2, 2.0)
    above.plot(curve, kl, color=ACCENT)
    plots.logarithmic(above.yaxis)
    above.set_ylabel(words["axes"]["kl"])
    below.plot(curve, expected, color=ACCENT, label=words["axes"]["closed"])
    below.plot(list(related), list(related.values()), "o", color=SECOND, markersize=4, label=words["axes"]["measured"])
    below.set_ylabel(words["axes"]["correlation"])
    plots.legend(below)
    return plots.svg(figure)
