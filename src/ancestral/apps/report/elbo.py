"""Section 4, the variational lower bound: every line of its derivation, its terms, and where in time its bits are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ancestral.apps.report import plots
from ancestral.apps.report.part import Number, Part, Words, compared, largest_of, tenths
from ancestral.apps.report.subject import Subject
from ancestral.data.dataset import spread as spread_of
from ancestral.diffusion.objectives.elbo_derivation import noise_variance, random_terms_variance
from ancestral.diffusion.objectives.statistics import mean_and_error
from ancestral.diffusion.processes.levels import HALF_RANGE
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.streams import Streams
from ancestral.runtime.plots import ACCENT, SECOND

CHAINED = "ancestral.diffusion.objectives.elbo_derivation.along_chains"


def part(subject: Subject) -> Part:
    """The derivation on chains of q, the bound of `ancestral evaluate`, what bounds it from below or competes."""
    lines, found = _lines(subject), subject.elbo
    mean, error = mean_and_error(found.bits_per_dim)
    truth, verdict = _truth(subject), compared(subject.against_formats)
    terms = {name: Number(*_with_error(values, subject.evaluation)) for name, values in found.parts.items()}
    bits, pixel, share = Number(mean, "bits/dim", subject.evaluation, error), _pixel(subject), _shares(subject)
    byte_count = Number(mean * found.dimensions / 8, "bytes", subject.evaluation)
    again = subject.evaluation
    largest = {name: largest_of(values, again) for name, values in found.parts.items()}
    own = {
        "L_T": terms["L_T"],
        "L_mid": terms["L_1:T-1"],
        "L_0": terms["L_0"],
        "bits": bits,
        "bytes": byte_count,
    }
    return Part(
        numbers=lines | own | truth | pixel.numbers() | share.numbers,
        figures={
            "per_t": lambda words: _per_t(subject, words),
            "decoder": pixel.drawn,
        },
        tables={
            "terms": [[f"term {name}", one, largest[name], _percent(one, mean)] for name, one in terms.items()]
            + [["term total", bits, largest_of(found.bits_per_dim, again), Number(100, "%", again)]],
            "tenths": share.rows,
            "rivals": [["the bound", bits]]
            + [[name, Number(value, "bits/dim", subject.evaluation)] for name, value in subject.formats.items()],
        },
        facts={
            "exact": subject.log_prob is not None,
            "every": len(subject.times) - 1 == subject.schedule.T,
            "falls": bool(lines["noise_kl"].value < lines["noise_joint"].value),
            "prior_small": bool(abs(terms["L_T"].value) < 1e-3 * mean),
            "beats": verdict == "below",
            "loses": verdict == "above",
            "every_term": subject.terms == len(subject.times) - 1,
            "mostly_early": share.numbers["first"].value > 20,
            "colour": subject.shape[0] > 1,
        },
    )


def _with_error(values: Tensor, again: str) -> tuple[float, str, str, float]:
    mean, error = mean_and_error(values)
    return mean, "bits/dim", again, error


def _percent(number: Number, whole: float) -> Number:
    return Number(100 * number.value / whole, "%", number.again, digits=3)


def _lines(subject: Subject) -> dict[str, Number]:
    """Each line on the same chains; errors count the draws alone, since the images are the same in every line."""
    chains, found = subject.chains, subject.elbo
    pairs = len(chains.kl_end) // 2
    lines = {name: found.bits(values) for name, values in chains.lines.items()}
    made = {}
    for name, values in lines.items():
        spread = float(noise_variance(values).mean().sqrt())
        made[name] = Number(float(values.mean()), "bits/dim", CHAINED, spread / (2 * pairs) ** 0.5)
        made[f"noise_{name}"] = Number(
            spread, "bits/dim", "ancestral.diffusion.objectives.elbo_derivation.noise_variance"
        )
    same = torch.stack([values for name, values in chains.lines.items() if name != "kl"])
    rows = spread_of(len(subject.test), pairs)  # those of `Subject.chained`
    spread = float(random_terms_variance(chains.kl, subject.widths).mean().clamp(min=0).sqrt()) / pairs**0.5
    bits = found.bits(torch.tensor(spread))
    made["drawn"] = Number(
        float(found.bits_per_dim[rows].mean()), "bits/dim", "ancestral.diffusion.objectives.elbo.elbo", float(bits)
    )
    apart = mean_and_error(lines["joint"] - lines["kl"])
    return made | {
        "rounding": Number(float((same.amax(0) - same.amin(0)).max()), "nats", CHAINED),
        "apart": Number(apart[0], "bits/dim", CHAINED, apart[1]),
        "chained": Number(pairs, "images", CHAINED),
        "chain_steps": Number(len(chains.t), "", CHAINED),
        "held_out": Number(len(subject.test), "images", subject.evaluation),
        "terms": Number(subject.terms, "", subject.evaluation),
    }


def _truth(subject: Subject) -> dict[str, Number]:
    """-log p(x0) where it is known, in bits/dim: of the chains' images, of all, and how far the bound is above it."""
    if subject.log_prob is None:
        return {}
    found, again = subject.elbo, "ancestral.apps.report.exact_subject.Shapes.log_prob"
    own, every = (found.bits(-subject.log_prob(one)) for one in (subject.chained, subject.test))
    lines = found.bits(subject.chains.lines["joint"]).reshape(2, -1).mean(0)
    return {
        "truth": Number(float(own.mean()), "bits/dim", again),
        "truth_all": Number(*_with_error(every, again)),
        "gap_chains": Number(*_with_error(lines - own, again)),
        "gap": Number(*_with_error(found.bits_per_dim - every, again)),
    }


@dataclass(frozen=True)
class _Pixel:
    """The decoder's belief in one pixel's byte: N(mean, var) on [-1, 1], given x_1."""

    pixel: tuple[int, int, int]  # channel, row, column
    byte: int
    mean: float
    var: float

    @property
    def chances(self) -> np.ndarray:
        """Of each byte, (256,)."""
        bins = torch.arange(256).double() / HALF_RANGE - 1
        belief = Normal(torch.full_like(bins, self.mean), torch.full_like(bins, self.var))
        return belief.log_prob_coded(bins).exp().numpy()

    def numbers(self) -> dict[str, Number]:
        again, chance = "ancestral.diffusion.processes.normal.Normal.log_prob_coded", float(self.chances[self.byte])
        values = {
            "pixel_channel": (self.pixel[0] + 1, ""),
            "pixel_row": (self.pixel[1], ""),
            "pixel_column": (self.pixel[2], ""),
            "pixel_byte": (self.byte, ""),
            "pixel_mean": ((self.mean + 1) * HALF_RANGE, ""),
            "pixel_std": (self.var**0.5 * HALF_RANGE, ""),
            "pixel_chance": (chance, ""),
            "pixel_bits": (-math.log2(chance) if chance else math.inf, "bits"),
            "pixel_sum": (float(self.chances.sum()), ""),
        }
        return {name: Number(value, unit, again) for name, (value, unit) in values.items()}

    def drawn(self, words: Words) -> str:
        """Its bins: the probability of each byte nearby, and the density that they divide."""
        figure, (on,) = plots.axes(words["axes"]["byte"], words["axes"]["probability"])
        middle, std = (self.mean + 1) * HALF_RANGE, self.var**0.5 * HALF_RANGE
        reach = max(4, math.ceil(3.5 * std), math.ceil(abs(self.byte - middle)) + 1)
        low, high = max(0, round(middle) - reach), min(255, round(middle) + reach)
        bytes_ = np.arange(low, high + 1)
        colours = [SECOND if byte == self.byte else plots.FAINT for byte in bytes_]
        on.bar(bytes_, self.chances[bytes_], 0.9, color=colours)
        x = np.linspace(low - 0.5, high + 0.5, 400)
        density = np.exp(-0.5 * ((x - middle) / std) ** 2) / (std * math.sqrt(2 * math.pi))
        if std > 0.5:  # a sharper density leaves the picture, and lies within one or two bins
            on.plot(x, density, color=ACCENT, linewidth=1.4)
        return plots.svg(figure)


def _pixel(subject: Subject) -> _Pixel:
    """Of the images with chains, the pixel nearest to mid-grey: there the belief is away from the open end bins."""
    x0 = subject.x0(subject.chained)
    t = subject.times[-2]
    x_t = subject.schedule.marginal(x0, t).sample(
        Streams(subject.seed, "explain-decoder", range(len(x0))).normal(subject.shape).to(x0)
    )
    with torch.no_grad():
        p = subject.move(subject.schedule, x_t, subject.conditioned(subject.chained)(x_t, t), t, 0)
    at = np.unravel_index(int(x0.abs().argmin()), x0.shape)
    byte = round((float(x0[at]) + 1) * HALF_RANGE)
    return _Pixel((int(at[1]), int(at[2]), int(at[3])), byte, float(p.mean[at]), float(p.var[at]))


@dataclass(frozen=True)
class _Shares:
    numbers: dict[str, Number]
    rows: list[list[Number | str]]


def _shares(subject: Subject) -> _Shares:
    """Bits in each tenth of t; L_0 is in the first."""
    found, last, again = subject.elbo, subject.times[0], "ancestral.diffusion.objectives.elbo.Elbo.by_tenth"
    shares = found.by_tenth(found.bits(found.terms * found.weight), last)
    whole = float(shares.sum(1).mean())
    rows: list[list[Number | str]] = []
    so_far = 0.0
    for tenth, times in tenths(last).items():
        mean, error = mean_and_error(shares[:, tenth])
        so_far += 100 * mean / whole
        rows.append(
            [
                times,
                Number(mean, "bits/dim", again, error),
                largest_of(shares[:, tenth], again),
                Number(100 * mean / whole, "%", again, digits=3),
                Number(so_far, "%", again, digits=4),
            ]
        )
    t, below = _cumulative(subject)
    half = int(t[int(torch.searchsorted(below, 0.5 * below[-1]))])
    most = int(t[min(int(torch.searchsorted(below, 0.9 * below[-1])), len(t) - 1)])
    first = Number(100 * float(shares[:, 0].mean()) / whole, "%", again, digits=3)
    return _Shares({"half_t": Number(half, "", again), "most_t": Number(most, "", again), "first": first}, rows)


def _cumulative(subject: Subject) -> tuple[Tensor, Tensor]:
    """(times, bits/dim of the terms up to each): the last is the bound without L_T."""
    found = subject.elbo
    times, where = found.t.unique(return_inverse=True)
    bits = found.bits(found.terms * found.weight).flatten() / len(found.prior)
    return times, torch.zeros(len(times), dtype=torch.float64).index_add_(0, where.flatten(), bits).cumsum(0)


def _per_t(subject: Subject, words: Words) -> str:
    found = subject.elbo
    times, nats = found.per_t(found.terms)
    bits = found.bits(nats)
    figure, (each, sums) = plots.axes(words["axes"]["t_log"], "", 2, 2.3)
    each.scatter(times, bits, s=3, color=plots.FAINT, linewidths=0)
    each.plot(*plots.by_log_t(times, bits), color=ACCENT)
    each.scatter(times[:1], bits[:1], s=22, color=SECOND, zorder=3, label="$L_0$")
    plots.logarithmic(each.yaxis)
    each.set_ylabel(words["axes"]["bits_at_t"])
    plots.legend(each)
    sums.plot(*_cumulative(subject), color=ACCENT)
    sums.set_ylim(bottom=0)
    sums.set_ylabel(words["axes"]["bits_up_to_t"])
    for one in (each, sums):
        plots.logarithmic(one.xaxis)
    return plots.svg(figure)
