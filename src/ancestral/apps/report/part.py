"""What a section of the report is made of: numbers that say how to get them again, figures and tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from scipy.stats import t as student
from torch import Tensor

from ancestral.diffusion.objectives.statistics import largest_share, mean_and_error

Words = Mapping[str, Any]  # the words of one language: of units, axes, advice and the page itself
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
Figure = Callable[[Words], str]  # SVG in one language; what it shows was measured before


@dataclass(frozen=True)
class Number:
    """A measured value.

    Args:
        value: the number.
        unit: a key of the words' units; "" for a pure number.
        again: the command, or the function of `ancestral`, that gives it.
        error: its standard error, where it has one.
        digits: significant ones, where there is no error.
    """

    value: float
    unit: str
    again: str
    error: float | None = None
    digits: int = 4

    def __str__(self) -> str:
        """Digits to the second of its error, or as many as it says."""
        return self._digits().replace("-", "\N{MINUS SIGN}")

    def _digits(self) -> str:
        if not self.error or not math.isfinite(self.error):
            return _plain(self.value, self.digits)
        places = max(0, 1 - math.floor(math.log10(self.error)))
        if places > 6 or abs(self.value) >= 1e7:
            return f"{_plain(self.value)} ± {_plain(self.error)}"
        return f"{self.value:,.{places}f} ± {self.error:,.{places}f}"


def mean_of(values: Tensor, unit: str, again: str) -> Number:
    """The mean of (B,) with its standard error; without one where all are alike."""
    mean, error = mean_and_error(values.cpu().double())
    return Number(mean, unit, again, error or None)


def largest_of(values: Tensor, again: str) -> Number | str:
    """The share of one of (B,) in their sum, to stand beside a standard error; a dash where all are 0."""
    share = largest_share(values.cpu().double())
    return "–" if math.isnan(share) else Number(100 * share, "%", again, digits=2)


class Text(str):
    """Markdown that goes into a page as it is. Every other string that a text shows is escaped first."""


def compared(differences: Tensor) -> str:
    """Whether the mean of (N,) is "above" 0, "below" it, or "like" it: no further away than chance brings one in 20."""
    mean, error = mean_and_error(differences)
    if not abs(mean) > error * student.isf(0.025, max(1, len(differences) - 1)):
        return "like"
    return "above" if mean > 0 else "below"


def tenths(last: int) -> dict[int, str]:
    """The times 1..last in tenths, as people write them, by the index of the tenth; those without a time are absent."""
    edges = [math.ceil(index * last / 10) for index in range(11)]
    ranges = {index: (low + 1, high) for index, (low, high) in enumerate(pairwise(edges)) if high > low}
    return {index: Text(low) if low == high else Text(f"{low}–{high}") for index, (low, high) in ranges.items()}


def _plain(value: float, digits: int = 4) -> str:
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, str(value))
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e7:
        return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
    mantissa, exponent = f"{value:.{digits - 2}e}".split("e")
    return f"{mantissa}×10{str(int(exponent)).translate(RAISED)}"


@dataclass(frozen=True)
class Part:
    """What one section has measured; its text, in each language, names what is shown where.

    Args:
        numbers: by name; the text says `{{ n("name") }}`.
        figures: by name; `{{ figure("name", alt, caption) }}`.
        tables: rows by name; `{{ table("name", headings) }}`.
        facts: anything else that the text asks about: `{{ facts.name }}`.
    """

    numbers: dict[str, Number] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    tables: dict[str, Sequence[Sequence[Number | str]]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def __or__(self, other: Part) -> Part:
        """Both as one."""
        return Part(
            self.numbers | other.numbers,
            self.figures | other.figures,
            self.tables | other.tables,
            self.facts | other.facts,
        )
