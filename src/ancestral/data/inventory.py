"""What was understood of a source of images: what was found, what is used, what is left out and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

BAD = "damaged or not readable"  # the reason whose names say more: `a.png: truncated`
KEPT = 1000  # names of a kind in JSON; the number of all is beside them


@dataclass(frozen=True)
class Reading:
    """Said at the head of every training and kept in the run; `found - used` files are in `left_out`."""

    source: str = ""  # as it was given
    found: int = 0  # files, or images of an array, that were looked at
    used: int = 0  # images of both parts
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # names by reason
    split: str = ""  # where the part that is never trained on comes from
    classes: str = ""  # where the labels come from
    # the stored value that became 255, where values have more than 8 bits and nothing but the set says it
    white: int | None = None
    sizes: str = ""  # height x width before cutting and scaling: `16x16`, or `from 16x16 to 640x480`
    notes: tuple[str, ...] = ()  # what else was decided, a sentence each

    def to_json(self) -> dict[str, Any]:
        """The same with at most `KEPT` names of a kind."""
        kinds = {reason: {"count": len(names), "names": names[:KEPT]} for reason, names in self.left_out.items()}
        return {**asdict(self), "left_out": kinds}


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def counted(count: int, noun: str) -> str:
    """`1 class`, `2 classes`."""
    return f"{count:,} {noun if count == 1 else noun + ('es' if noun.endswith('s') else 's')}"
