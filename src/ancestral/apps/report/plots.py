"""Figures of the report: inline SVG whose colours follow the page, light, dark or printed."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from hashlib import sha256
from html import escape

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator
from torch import Tensor

from ancestral.apps.report.part import RAISED
from ancestral.data.pictures import contact_sheet
from ancestral.data.pixels import to_bytes
from ancestral.runtime.encode import data_uri
from ancestral.runtime.plots import ACCENT, INK, SECOND
from ancestral.runtime.text import shown

THIRD, FAINT = "#7c3aed", "#94a3b8"
_COLOURS = {INK: "--ink", ACCENT: "--accent", SECOND: "--second", THIRD: "--third", FAINT: "--faint"}
_CELL, _GAP, _TEXT = 44, 3, 11  # of a sheet, in CSS pixels at its natural size
_TWO_COLUMNS = 26  # ems of text in both columns of a legend together, at most


def axes(x: str, y: str, panels: int = 1, height: float = 2.7) -> tuple[Figure, list[Axes]]:
    """A figure of panels one above the other, as wide as a phone: its words are then readable there."""
    figure = Figure(figsize=(4.3, height * panels), layout="constrained")
    made = [figure.add_subplot(panels, 1, number + 1) for number in range(panels)]
    for one in made:
        one.set_xlabel(x, color=INK, fontsize=9)
        one.set_ylabel(y, color=INK, fontsize=9)
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color(FAINT)
        one.tick_params(colors=INK, labelsize=8, color=FAINT)
        one.grid(alpha=0.3, linewidth=0.5, color=FAINT)
    return figure, made


def by_log_t(t: Tensor, values: Tensor, bins: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """(times, means of the values (K,) at the times t >= 1) in bins of equal width in log t, empty ones left out."""
    times = t.numpy()
    edges = np.unique(np.geomspace(1, times.max() + 1, bins + 1).round())
    index = np.digitize(times, edges)
    kept = np.unique(index)
    count = np.bincount(index)[kept]
    return (np.exp(np.bincount(index, np.log(times))[kept] / count), np.bincount(index, values.numpy())[kept] / count)


def legend(on: Axes) -> None:
    """The names of the lines above the axes, where no line is, without a frame, in ink; in two columns if they fit."""
    names = on.get_legend_handles_labels()[1]
    if not names:
        return
    columns = 2 if sum(max(map(_ems, column)) for column in (names[::2], names[1::2] or [""])) < _TWO_COLUMNS else 1
    where = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    on.legend(frameon=False, fontsize=8, labelcolor=INK, ncols=columns, columnspacing=1.2, handlelength=1.5, **where)


def _ems(text: str) -> float:
    """About how wide a text is, in its own size: the page's fonts draw it, which are not at hand here."""
    drawn = re.sub(r"\\[a-z]+", "x", re.sub(r"[${}^_]", "", text))  # of a formula
    return sum(map(_letter_ems, drawn))


def _letter_ems(letter: str) -> float:
    """About how wide a letter is, in its own size: those of East Asian scripts are square."""
    return 1.0 if ord(letter) > 0x2E80 else 0.58


def logarithmic(axis: Axis) -> None:
    """A logarithmic axis with plain text for numbers, which the page's fonts draw; few decades have some between."""
    (axis.axes.set_xscale if isinstance(axis, XAxis) else axis.axes.set_yscale)("log")

    def few() -> bool:
        low, high = axis.get_view_interval()
        return high < 30 * low

    axis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.set_minor_formatter(FuncFormatter(lambda value, index: f"{value:g}" if few() else ""))
    axis.set_major_formatter(FuncFormatter(lambda value, index: f"{value:g}" if few() else power_of_ten(value)))
    axis.set_tick_params(which="minor", labelsize=8, colors=INK, color=FAINT)


def power_of_ten(value: float) -> str:
    """1, 10 and 100 as they are, other powers of ten with an exponent."""
    exponent = round(math.log10(value)) if value > 0 else 0
    return f"{10**exponent}" if 0 <= exponent <= 3 else f"10{str(exponent).translate(RAISED)}"


def svg(figure: Figure) -> str:
    """A figure as SVG markup for a page: text stays text, colours become the page's, ids are its own."""
    file = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the page's fonts draw the text, not matplotlib's
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue().decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for colour, name in _COLOURS.items():
        text = text.replace(colour, f"var({name})")
    text = re.sub(r' id="image[0-9a-f]+"', "", text)  # of a picture drawn twice they are the same
    own = _digest(text)
    text = re.sub(r'\bid="', f'id="{own}-', text)
    text = re.sub(r"url\(#", f"url(#{own}-", text)
    text = re.sub(r'xlink:href="#', f'xlink:href="#{own}-', text)
    return re.sub(r"\s*\n\s*", " ", text)


def pixels(states: Tensor) -> np.ndarray:
    """Images on [-1, 1], (R, C, channels, H, W), as bytes for a sheet: (R, C, H, W, channels)."""
    return to_bytes(states.flatten(0, 1)).reshape(*states.shape[:2], *states.shape[3:], states.shape[2])


def sheet(
    images: np.ndarray,
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
    cell: int = _CELL,
    marked: Sequence[tuple[int, int]] = (),
) -> str:
    """Images (R, C, H, W, channels) uint8 as SVG, with a word above each column and before each row.

    The pixels (row, column) that are marked have a ring around them in every image.
    """
    down, across = images.shape[:2]
    pixels = contact_sheet(images.reshape(-1, *images.shape[2:]), across, side=1, gap=0)
    file = io.BytesIO()
    pixels.save(file, "png")
    height = cell * images.shape[2] / images.shape[3]
    left = max((_width(word) for word in rows), default=0) + (6 if rows else 0)
    top = _TEXT + 6 if columns else 0
    wide, tall = left + across * (cell + _GAP), top + down * (height + _GAP)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:g} {tall:g}" data-wide="{wide:g}">']
    # One picture, seen through a window for each image: the gaps between them are the page's own.
    for row in range(down):
        for column in range(across):
            x, y = left + column * (cell + _GAP), top + row * (height + _GAP)
            parts.append(
                f'<svg x="{x:g}" y="{y:g}" width="{cell}" height="{height:g}" '
                f'viewBox="{column} {row} 1 1" preserveAspectRatio="none">'
                f'<use href="#SHEET"/></svg>'
            )
            for y_pixel, x_pixel in marked:
                cx, cy = (x_pixel + 0.5) / images.shape[3] * cell, (y_pixel + 0.5) / images.shape[2] * height
                parts.append(f'<circle class="mark" cx="{x + cx:.2f}" cy="{y + cy:.2f}" r="{cell / 14:.2f}"/>')
    size = f'width="{across}" height="{down}" preserveAspectRatio="none" style="image-rendering:pixelated"'
    picture = f'<image id="SHEET" {size} href="{data_uri(file.getvalue())}"/>'
    parts.insert(1, f"<defs>{picture}</defs>")
    for number, word in enumerate(columns):
        x = left + number * (cell + _GAP) + cell / 2
        parts.append(
            f'<text x="{x:g}" y="{_TEXT}" text-anchor="middle" font-size="{_TEXT}">{escape(shown(word))}</text>'
        )
    for number, word in enumerate(rows):
        y = top + number * (height + _GAP) + height / 2 + _TEXT / 3
        parts.append(f'<text x="0" y="{y:g}" font-size="{_TEXT}">{escape(shown(word))}</text>')
    text = "".join([*parts, "</svg>"])
    return text.replace("SHEET", _digest(text))


def _width(word: str) -> float:
    return sum(_TEXT * _letter_ems(letter) for letter in word)


def _digest(text: str) -> str:
    return "f" + sha256(text.encode()).hexdigest()[:10]
