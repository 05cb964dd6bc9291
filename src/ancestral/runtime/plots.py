"""matplotlib plots of a run as PNG files."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, ACCENT, SECOND = "#334155", "#0f766e", "#b45309"


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # a third of the time that torch takes: not before a plot is drawn

    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = _figure(7, 4)
    axes = figure.subplots()
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    _furnish(axes, x, y)
    return figure, axes


def _furnish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.5)


def _as_png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def mark_legs(axes: Axes, starts: Sequence[float]) -> None:
    """A dotted line where each further leg of a run begins."""
    for start in starts:
        axes.axvline(start, color=INK, linewidth=0.8, linestyle=":")


def loss_plot(images: Sequence[int], loss: Sequence[float], starts: Sequence[int] = ()) -> bytes:
    """As PNG: training loss against images seen, a mean for each hundredth of a leg; `starts` of further legs."""
    from matplotlib.ticker import ScalarFormatter, StrMethodFormatter

    figure, axes = _axes("Training loss", "images seen", "loss per dimension")
    mark_legs(axes, starts)
    axes.plot(images, loss, color=ACCENT, linewidth=1.6)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    return _as_png(figure)


def elbo_plot(t: np.ndarray, bits: np.ndarray, total: float) -> bytes:
    """As PNG: bits per dimension of each L_{t-1}, and their sum from t = T down to 1 (the rate of section 4.3)."""
    figure, axes = _axes(f"Where the bits are: {total:.3f} bits/dim in all", "t", "bits/dim of one term")
    axes.plot(t[1:], bits[1:], color=ACCENT, linewidth=1.4, label="$L_{t-1}$ (left axis)")
    axes.plot(t[:1], bits[:1], "o", color=ACCENT, label="$L_0$")
    axes.set_xscale("log")
    axes.set_yscale("log")
    right = axes.twinx()
    right.spines[["top"]].set_visible(False)
    right.set_ylabel("sum from T down to t, bits/dim", color=SECOND)
    # Terms between the measured times are taken from their neighbours.
    every = np.arange(1, int(t[-1]) + 1)
    filled = np.exp(np.interp(np.log(every), np.log(t), np.log(np.maximum(bits, 1e-12))))
    right.plot(
        every, filled[::-1].cumsum()[::-1], color=SECOND, linewidth=1.4, linestyle="--", label="sum (right axis)"
    )
    right.set_ylim(bottom=0)
    lines = [*axes.get_lines(), *right.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], frameon=False, loc="upper right")
    return _as_png(figure)


def rate_distortion_plot(rate: np.ndarray, rmse: np.ndarray) -> bytes:
    """As PNG: Figure 5 of the paper: distortion against reverse steps, rate against these, distortion against rate."""
    figure = _figure(12, 3.6)
    steps = np.arange(1, len(rate) + 1)
    distortion, sent = "distortion (RMSE, 0 to 255)", "rate (bits/dim)"
    panels = (("reverse steps", distortion), ("reverse steps", sent), (sent, distortion))
    values = ((steps, rmse, ACCENT), (steps, rate, SECOND), (rate, rmse, ACCENT))
    for axes, (x, y), (across, up, colour) in zip(figure.subplots(1, 3), panels, values, strict=True):
        _furnish(axes, x, y)
        axes.plot(across, up, color=colour, linewidth=1.6)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    return _as_png(figure)


def rates_plot(
    own: Mapping[str, Sequence[tuple[float, float]]],
    others: Mapping[str, Sequence[tuple[float, float]]],
) -> bytes:
    """As PNG: PSNR in dB against bits/dim, rising, a line for each name; our own are drawn bold."""
    figure, axes = _axes("Quality for bits", "bits/dim", "PSNR, dB")
    for number, (name, points) in enumerate({**own, **others}.items()):
        points = [(bits, decibels) for bits, decibels in points if math.isfinite(decibels)]
        colour, width = ((ACCENT, SECOND)[number], 2.2) if name in own else (f"C{number}", 1.2)
        marker = "." if 0 < len(points) < 50 else ""
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=width, marker=marker, label=name)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, loc="lower right")
    return _as_png(figure)
