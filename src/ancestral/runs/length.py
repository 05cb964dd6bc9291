"""The length of a run: read as it is typed, kept in the run as text, and counted in images."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from ancestral.errors import UserError

BUDGET = 600.0  # seconds, where no length is given
LONGEST, MOST = 1e8, 10**13  # a length is shorter: in seconds; a count, of which no batch makes more than 64 bits hold


def seconds(text: str) -> float:
    """A wall time: 90s, 10m or 2h.

    Raises:
        ValueError: for anything else.
    """
    try:
        found = float(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1:]]
    except (KeyError, ValueError):
        found = 0.0
    if found >= LONGEST:
        raise ValueError(f"'{text}' is longer than three years")
    if not found > 0:
        raise ValueError(f"'{text}' is not a time; write 90s, 10m or 2h")
    return found


class Amount(NamedTuple):
    """How much: of time in seconds, or a count; further, in addition to what there is."""

    value: Any
    further: bool = False


def amount(text: str, read: Callable[[str], Any]) -> Amount:
    """What is read of a text, with or without a + before it.

    Raises:
        ValueError: as `read`, and for more than one +.
    """
    if text.startswith("++"):
        raise ValueError(f"'{text}' has more than one +")
    return Amount(read(text.removeprefix("+")), text.startswith("+"))


def count(text: str) -> int:
    """A whole number above 0.

    Raises:
        ValueError: for anything else.
    """
    if re.fullmatch("[0-9]{14,}", text):
        raise ValueError(f"'{text}' is more than any run can do")
    if not re.fullmatch("[0-9]{1,13}", text) or not int(text):
        raise ValueError(f"'{text}' is not a whole number above 0")
    return int(text)


@dataclass(frozen=True)
class Length:
    """The length of a run: at most one of a wall time in seconds, images seen, or updates."""

    budget: float | None = None  # wall time
    images: int | None = None  # seen
    steps: int | None = None  # updates
    further: bool = False  # whether it is in addition to what a complete run has seen

    @classmethod
    def of(cls, **amounts: Amount | None) -> Length:
        """From what was given for each.

        Raises:
            UserError: when more than one was.
        """
        given = {name: amount for name, amount in amounts.items() if amount is not None}
        if len(given) > 1:
            raise UserError("--budget, --images and --steps each set the length of the run; give one of them")
        return cls(
            **{name: amount.value for name, amount in given.items()},
            further=any(amount.further for amount in given.values()),
        )

    def __str__(self) -> str:
        values = {"budget": self.budget, "images": self.images, "steps": self.steps}
        plus = "+" * self.further
        return " ".join(f"--{name} {plus}{value:.15g}" for name, value in values.items() if value) or "no length given"

    @property
    def seconds(self) -> float | None:
        """The wall time; None where the length is an exact count."""
        return None if self.images or self.steps else self.budget or BUDGET

    def counted(self, batch_size: int) -> int:
        """Images to train on, a whole number of batches, where the length is an exact count."""
        return batch_size * (self.steps or max(1, round((self.images or 0) / batch_size)))


def as_written_now(length: str) -> str:
    """A length as it is written now: older runs round counts of seven figures and more."""
    name, _, value = length.partition(" ")
    return f"{name} {float(value):.15g}" if re.fullmatch(r"[0-9.]+e\+[0-9]+", value) else length


def typed(length: str) -> str:
    """A length as it is given to the command."""
    return f"{length}s" if length.startswith("--budget ") else length
