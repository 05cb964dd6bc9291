"""The plan of a run: its legs, each a rise and a fall of the learning rate from an image seen to another.

Within a leg the rate follows its progress, from 0 to 1 (`trainer.learning_rate`). A leg whose end is moved goes on from
the progress that it has: before the fall of the rate nothing changes, and a fall under way ends at the new end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ancestral.runtime.disk import Damaged

Seconds = Annotated[float, Meta(ge=0)]


@dataclass(frozen=True)
class Leg:
    """A part of a run: one length that was asked for, on one set of images."""

    length: str  # as it was asked for
    data: str  # digest of the images
    planned: int  # its images as first planned
    began: Seconds  # seconds that the run had taken before it
    # (images seen, progress) from (start, 0) to (end, 1); progress is linear between them
    knots: tuple[tuple[int, float], ...]

    @property
    def start(self) -> int:
        """Images seen before it."""
        return self.knots[0][0]

    @property
    def end(self) -> int:
        """Images seen after it."""
        return self.knots[-1][0]

    @property
    def spaced(self) -> int:
        """Images by which its reports and snapshots are spaced: of the first plan, or of the present one if longer."""
        return max(self.planned, self.end - self.start)

    def progress(self, images: int) -> float:
        """How much of the leg is done, in [0, 1]."""
        (first, before), (last, after) = next(
            (a, b) for a, b in pairwise(self.knots) if images <= b[0] or b is self.knots[-1]
        )
        return before + (after - before) * ((images - first) / (last - first))

    def corrected(self, images: int, end: int) -> Leg:
        """The leg with another end, of which so many images have been seen."""
        assert self.start <= images < min(self.end, end)
        passed = tuple(knot for knot in self.knots if knot[0] < images)
        return replace(self, knots=(*passed, (images, self.progress(images)), (end, 1.0)))


@dataclass(frozen=True)
class Plan:
    """The legs of a run, each beginning where the one before it ends; none before the run has begun."""

    legs: tuple[Leg, ...] = ()

    @property
    def end(self) -> int:
        """Images seen after all of it."""
        return self.legs[-1].end if self.legs else 0

    def progress(self, images: int) -> float:
        """How much is done of the leg in which so many images have been seen."""
        return next(leg for leg in reversed(self.legs) if leg.start <= images).progress(images)

    def stage(self, images: int) -> float:
        """How much is done of what the loss goes through once, in the first leg: further ones go on with its end."""
        return self.legs[0].progress(images) if images < self.legs[0].end else 1.0

    def further(self, images: int, length: str = "", data: str = "", began: float = 0.0) -> Plan:
        """With another leg of so many images."""
        end = self.end + images
        return Plan((*self.legs, Leg(length, data, images, began, ((self.end, 0.0), (end, 1.0)))))

    def corrected(self, images: int, end: int) -> Plan:
        """With another end of the last leg, in which so many images have been seen."""
        return Plan((*self.legs[:-1], self.legs[-1].corrected(images, end)))

    def to_json(self) -> list[dict[str, Any]]:
        """As a checkpoint keeps it."""
        return [asdict(leg) for leg in self.legs]


def from_state(state: dict[str, Any], where: str) -> Plan:
    """The plan in the state of a checkpoint; those of before have one leg, as it was first planned.

    Raises:
        Damaged: when the legs do not follow on each other, in images and seconds, or do not end where the run does.
    """
    if "legs" not in state:
        return Plan().further(state["total"], state["length"], state["data"])
    legs = msgspec.convert(state["legs"], tuple[Leg, ...])
    if not (legs and all(map(_rises, legs)) and legs[0].start == 0 and legs[-1].end == state["total"]) or any(
        a.end != b.start or a.began > b.began for a, b in pairwise(legs)
    ):
        raise Damaged(f"{where}: damaged (legs that do not follow on each other)")
    return Plan(legs)


def _rises(leg: Leg) -> bool:
    knots: Sequence[tuple[int, float]] = leg.knots
    ends = [progress for _, progress in (*knots[:1], *knots[-1:])] == [0, 1]
    return ends and leg.planned > 0 and all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(knots))
