"""The order in which an image arrives: at which t each spatial frequency comes out of the noise.

Noise is white, images are not: a frequency of power P(f) has the signal-to-noise ratio SNR_t P(f). The best linear
prediction (Wiener's) knows the share SNR P / (1 + SNR P) of it, the model the share 1 - E|F(x0_hat - x0)|^2 / P.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ancestral.apps.report import plots
from ancestral.apps.report.part import Words
from ancestral.apps.report.subject import Subject
from ancestral.diffusion.processes.streams import Streams
from ancestral.runtime.plots import ACCENT, SECOND

TIMES, IMAGES = 16, 32
RANGE = (-8.0, 6.0)  # of log SNR that is looked at


@dataclass(frozen=True)
class Spectrum:
    """The share of each frequency that is explained at each time.

    Args:
        t: falling, (K,).
        log_snr: of these.
        cycles: of each ring, in cycles an image, (F,).
        power: P(f), of images less their mean, on [-1, 1] and for a number of the transform, (F,).
        explained: the model's share, (K, F).
    """

    t: np.ndarray
    log_snr: np.ndarray
    cycles: np.ndarray
    power: np.ndarray
    explained: np.ndarray

    @property
    def linear(self) -> np.ndarray:
        """The share that the best linear prediction knows, (K, F)."""
        snr = np.exp(self.log_snr)[:, None] * self.power
        return snr / (1 + snr)

    def half(self, shares: np.ndarray) -> np.ndarray:
        """The t at which half of each frequency is known for the first time on the way down, nan where never, (F,)."""
        found = []
        for share in shares.T:
            above = np.flatnonzero(share >= 0.5)
            if not len(above) or above[0] == 0:
                found.append(np.nan if not len(above) else float(self.t[0]))
                continue
            k = above[0]
            part = (0.5 - share[k - 1]) / (share[k] - share[k - 1])
            found.append(float(self.t[k - 1] + part * (self.t[k] - self.t[k - 1])))
        return np.array(found)


def spectrum(subject: Subject) -> Spectrum:
    """Measured on held-out images; the mean is that of training images."""
    images = subject.images.test.spread(IMAGES)
    x0, schedule = subject.x0(images), subject.schedule
    mean = subject.x0(subject.images.train.spread(1024)).mean(0)
    times = sorted({subject.at(level) for level in np.linspace(*RANGE, TIMES)}, reverse=True)
    rings, cycles = _rings(*subject.shape[1:])
    power = _power(x0 - mean, rings, len(cycles))
    noise, explained = Streams(subject.seed, "explain-spectrum", range(len(images))), []
    predictor = subject.conditioned(images)
    for t in times:
        x_t = schedule.marginal(x0, t).draw(noise)
        with torch.no_grad():
            error = _power(predictor(x_t, t).x0 - x0, rings, len(cycles))
        explained.append(1 - error / np.maximum(power, 1e-12))
    levels = schedule.log_snr(torch.tensor(times)).numpy()
    return Spectrum(np.array(times), levels, cycles, power, np.stack(explained))


def _rings(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The ring of each place of the transform, -1 beyond the highest frequency of the shorter side; cycles of each."""
    side = min(height, width)
    down, across = np.fft.fftfreq(height) * side, np.fft.fftfreq(width) * side
    away = np.hypot(down[:, None], across).round().astype(int)
    return np.where(away <= side // 2, away, -1), np.arange(side // 2 + 1)


def _power(images: Tensor, rings: np.ndarray, count: int) -> np.ndarray:
    """Mean of |F|^2 in each ring over images (N, C, H, W) and channels; white noise of variance 1 has 1 everywhere."""
    squared = torch.fft.fft2(images.cpu().double(), norm="ortho").abs().square().mean((0, 1)).numpy()
    inside = rings >= 0
    return np.bincount(rings[inside], squared[inside], count) / np.bincount(rings[inside], minlength=count)


def draw(found: Spectrum, words: Words) -> str:
    """When half of each frequency is known."""
    figure, (axes,) = plots.axes(words["axes"]["t"], words["axes"]["cycles"])
    for explained, colour, name in ((found.explained, ACCENT, "model"), (found.linear, SECOND, "linear")):
        axes.plot(
            found.half(explained), found.cycles, color=colour, marker="o", markersize=3, label=words["axes"][name]
        )
    axes.invert_xaxis()
    plots.legend(axes)
    return plots.svg(figure)
