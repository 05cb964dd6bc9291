"""Progressive lossy compression: rate and distortion from the terms of the bound, and the pictures of a few images.

A receiver of x_T .. x_t has been sent L_T and the terms of the steps above t, and shows the x0 predicted from x_t.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ancestral.apps.report import plots
from ancestral.apps.report.part import Words
from ancestral.apps.report.subject import Subject
from ancestral.compression import codebook, compress_command
from ancestral.compression.choices import PROFILES
from ancestral.compression.prefix_quality import Prefixes, prefixes
from ancestral.data.dataset import ImageSet
from ancestral.data.pixels import to_bytes
from ancestral.diffusion.objectives.elbo import Elbo
from ancestral.diffusion.objectives.statistics import image_psnr, mean_and_error, psnr
from ancestral.diffusion.processes.levels import HALF_RANGE
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.loop import along_q
from ancestral.errors import UserError
from ancestral.evaluation import image_formats
from ancestral.runs import build
from ancestral.runtime.plots import ACCENT, SECOND

FORMATS, QUALITY = ("jpeg", "webp"), 30.0  # lossy formats beside the model; dB of the table
COMPARED = 64  # images that are written in these formats
STEPS, IMAGES, STAGES = 100, 3, 8
PROFILE = "small"


@dataclass(frozen=True)
class Rates:
    """Rate in bits/dim and distortion on 0..255 at each place of the bound's terms, T first, means over images."""

    rate: np.ndarray
    rmse: np.ndarray
    sent: Tensor  # of each image: bits/dim when x_1 is known
    late: Tensor  # of each image: those of them that are sent below t = T/10

    @property
    def psnr(self) -> np.ndarray:
        """In dB."""
        return psnr(np.maximum(self.rmse, 1e-9) ** 2)

    @property
    def late_share(self) -> tuple[float, float]:
        """The share of what is sent that is sent late, and its standard error."""
        share, sent = float(self.late.mean() / self.sent.mean()), float(self.sent.mean())
        return share, mean_and_error(self.late - share * self.sent)[1] / sent

    def rate_at(self, decibels: float) -> float:
        """The lowest rate that shows so much, linear between places; nan where none does."""
        rises = np.maximum.accumulate(self.psnr)
        return float(np.interp(decibels, rises, self.rate, left=np.nan, right=np.nan))


def rates(elbo: Elbo, last: int) -> Rates:
    """The curve of Figure 5 from the terms that `evaluate` measures, each standing for its share of the steps to T."""
    own = elbo.bits(elbo.terms * elbo.weight)
    own = torch.where(elbo.last, 0.0, own)
    inner = (elbo.weight - 1) / (2 * elbo.weight) * own  # half of the steps that a term stands for, but its own
    before = torch.cat([elbo.bits(elbo.prior)[:, None], own[:, :-1]], 1).cumsum(1)
    late = (elbo.t <= last / 10) & ~elbo.last
    return Rates(
        rate=(before + inner).mean(0).numpy(),
        rmse=(elbo.mse.mean(0).sqrt() * HALF_RANGE).numpy(),
        sent=elbo.bits(elbo.prior) + own.sum(1),
        late=(own * late).sum(1),
    )


@dataclass(frozen=True)
class Received:
    """What a receiver has after each step of one chain: bits/dim (N, K) and the pictures (K, N, H, W, C)."""

    t: list[int]
    bits: np.ndarray
    shown: list[np.ndarray]

    def stage(self, sharp: float, images: np.ndarray, one: int) -> tuple[float, float] | None:
        """(bits/dim, PSNR) of the first picture of an image that is so near to it in dB, or None."""
        for step, shown in enumerate(self.shown):
            if (found := image_psnr(images[one], shown[one])) >= sharp:
                return float(self.bits[one, step]), found
        return None


def receive(subject: Subject, images: ImageSet) -> Received:
    """Algorithm 4 of the paper with an ideal code: along a chain of q(x_s | x_t, x0) of STEPS steps."""
    x0, schedule = subject.x0(images), subject.schedule
    grid = build.sampling_grid(subject.config, "trailing", subject.few(STEPS))
    noise = Streams(subject.seed, "explain-files", range(len(images)))
    sent, times, bits, shown = schedule.prior(x0, grid[0]), [], [], []
    for step in along_q(subject.conditioned(images), x0, grid, subject.move, noise):
        times.append(step.t)
        bits.append(sent / x0[0].numel() / np.log(2))
        shown.append(to_bytes(step.prediction.x0))
        t, s = (torch.full((len(x0),), time) for time in (step.t, step.s))
        sent = sent + schedule.term(step.p, step.x_t, x0, t, s, Normal.log_prob_coded)
    times.append(0)
    bits.append(sent / x0[0].numel() / np.log(2))
    shown.append(images.images[:])
    return Received(times, torch.stack(bits, 1).cpu().numpy(), shown)


def files(subject: Subject, images: ImageSet) -> Prefixes | None:
    """Files of the images as `ancestral compress` writes them, where this very model has been measured for them."""
    if subject.run is None or subject.saved is None or subject.average_width is not None:
        return None
    try:
        if codebook.load(subject.run, subject.saved) is None:
            return None
        saved, model, table = compress_command.opened(subject.run, str(subject.device))
    except UserError:  # a damaged codebook, or a device without float64: `compress` says so
        return None
    codec = compress_command.codec_of(model, model, saved, table)
    originals, number = list(images.images[:]), PROFILES[PROFILE]
    return prefixes(codec, originals, number, codec.encode(originals, number))


def formats(images: np.ndarray) -> dict[str, list[image_formats.Point]]:
    """What lossy formats reach on images (N, H, W, C), of those that can be written here."""
    here, _ = image_formats.lossy_formats(images.shape[-1])
    return {name: image_formats.lossy_points(images, name) for name in FORMATS if name in here}


def at_least(points: list[image_formats.Point], decibels: float) -> image_formats.Point | None:
    """The smallest that shows so much."""
    return next((one for one in points if one.psnr >= decibels), None)


def draw_rates(found: Rates, lines: dict[str, list[image_formats.Point]], words: Words) -> str:
    """PSNR against bits/dim."""
    figure, (axes,) = plots.axes(words["axes"]["bits"], words["axes"]["psnr"])
    axes.plot(found.rate, found.psnr, color=ACCENT, linewidth=1.8, marker=".", label=words["axes"]["model"])
    for (name, points), colour in zip(lines.items(), (SECOND, plots.THIRD), strict=False):
        shown = [(one.payload_bits_per_dim, one.psnr) for one in points if np.isfinite(one.psnr)]
        axes.plot(*zip(*shown, strict=True), color=colour, linewidth=1.2, marker=".", label=words["names"][name])
    axes.set_xlim(left=0)
    plots.legend(axes)
    return plots.svg(figure)


def draw_received(found: Received, images: np.ndarray, words: Words) -> str:
    """A row an image, a column a stage: so many bytes on the average, and the original."""
    mean = found.bits.mean(0) * images[0].size / 8
    targets = np.geomspace(max(mean[min(1, len(mean) - 1)], 0.5), mean[-2], STAGES) if len(mean) > 2 else mean
    stages = sorted({int(np.abs(mean - size).argmin()) for size in targets} | {len(mean) - 1})
    columns = [words["axes"]["bytes"].format(f"{mean[k]:.{0 if mean[k] >= 3 else 1}f}") for k in stages]
    return plots.sheet(np.stack([found.shown[k] for k in stages], 1), columns)
