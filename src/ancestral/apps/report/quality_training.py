"""What the records of the training say: the loss over images seen, by noise level, and the gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ancestral.apps.report import plots
from ancestral.apps.report.part import Words
from ancestral.diffusion.objectives.statistics import Estimate
from ancestral.runs.metrics_log import leg_starts
from ancestral.runtime.plots import ACCENT, SECOND, mark_legs

Log = Sequence[dict[str, Any]]
LEAST = 20  # records from which a fall is reported
TENTHS = (0, 2, 5, 9)  # of t that are drawn
SETTLED = 0.03  # of the loss, in a fifth of the run: what moves surely less has settled


@dataclass(frozen=True)
class Course:
    """How a training went, in numbers.

    Args:
        fell: the share by which the mean loss of the last tenth of the records is below that of the tenth a fifth of
            the run before.
        fell_error: its standard error, by the spread of the records.
        spike: the largest gradient norm after the first tenth, over the median.
        left_out: updates that were left out.
    """

    fell: float
    fell_error: float
    spike: float
    left_out: int

    def gain(self, times: float) -> Estimate:
        """The share of the loss that training so many times as long takes off, if it falls on as a power of the images.

        The tenths that `fell` compares lie at 0.75 and 0.95 of the run.
        """
        left, power = max(1 - self.fell, 0.0), math.log(times) / math.log(0.95 / 0.75)
        return Estimate(1 - left**power, power * left ** (power - 1) * self.fell_error)

    @property
    def ending(self) -> str:
        """ "falling" or "rising", by more than three errors; "settled", within 3 %; or "unsure"."""
        off = 3 * self.fell_error
        if abs(self.fell) - off > 0.01:
            return "falling" if self.fell > 0 else "rising"
        return "settled" if abs(self.fell) + off < SETTLED else "unsure"


def course(log: Log) -> Course | None:
    """Of a training's records; None where there are too few of them."""
    made = [one for one in log if one["loss"] is not None]
    if len(made) < LEAST:
        return None
    count = len(made) // 10
    loss = np.array([one["loss"] for one in made])
    index = len(made) - 1 - len(made) // 5
    before, after = loss[index - count + 1 : index + 1], loss[-count:]
    ratio = after.mean() / before.mean()
    off = ratio * np.hypot(*(part.std(ddof=1) / part.mean() / count**0.5 for part in (before, after)))
    norms = np.array([one["largest_grad_norm"] for one in made[count:]], dtype=float)
    return Course(
        fell=float(1 - ratio),
        fell_error=float(off),
        spike=float(norms.max() / np.median(norms)),
        left_out=sum(one["updates_left_out"] for one in log),
    )


def looks(log: Log) -> Log:
    """The records with held-out bits; none where a single one is all, which shows no course."""
    looked = [one for one in log if "held_out_bits_per_dim" in one]
    return looked if len(looked) > 1 else []


def draw(log: Log, words: Words) -> str:
    """The loss by tenth of t, and the held-out bits where they were looked at."""
    looked = looks(log)
    figure, panels = plots.axes(words["axes"]["seen"], words["axes"]["loss"], 2 if looked else 1, 2.4)
    for tenth, colour in zip(TENTHS, (ACCENT, SECOND, plots.THIRD, plots.FAINT), strict=True):
        seen = [(one["images"], one["loss_by_tenth_of_t"][tenth]) for one in log]
        seen = [(images, loss) for images, loss in seen if loss is not None]
        if seen:
            panels[0].plot(
                *zip(*seen, strict=True),
                color=colour,
                marker="o" if len(seen) < LEAST else "",
                markersize=3,
                label=words["axes"]["tenth_number"].format(tenth + 1),
            )
    for panel in panels:
        mark_legs(panel, leg_starts(log))
    plots.logarithmic(panels[0].yaxis)
    plots.legend(panels[0])
    if looked:
        bits = [one["held_out_bits_per_dim"] for one in looked]
        panels[1].plot([one["images"] for one in looked], bits, color=ACCENT, marker="o", markersize=3)
        panels[1].set_ylabel(words["axes"]["bits"])
    for panel in panels:  # from the start of the training, however few records there are
        panel.set_xlim(0, 1.05 * max((one["images"] for one in log), default=1))
    return plots.svg(figure)
