"""What so many images of training give: how previews looked in runs of the preset `images` (benchmarks/log.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ancestral.runs.config import Config
from ancestral.runs.facts import Facts
from ancestral.runtime.text import minutes
from ancestral.training import model_size


class Level(NamedTuple):
    """From so many images seen on, previews looked so."""

    images: int
    look: str


LOOKED_AT = 16  # width
# Looked at on 2026-11-29: a run of 60,032 digits for grey; samples after 40,448 and 115,968 tiles of 32x32 for colour,
# whose levels before are those of another network at the same held-out loss.
GREY = (
    Level(0, "blots in noise"),
    Level(7_500, "shapes on a clean ground, few of them right"),
    Level(15_000, "shapes on a clean ground, some of them right"),
    Level(30_000, "clean shapes, many of them right"),
    Level(52_500, "clean shapes, most of them right"),
)
COLOUR = (
    Level(0, "colour noise"),
    Level(5_000, "patches of colour in noise"),
    Level(9_000, "patches of colour on a clean ground"),
    Level(40_000, "bodies and frames, grainy"),
    Level(115_000, "bodies and frames with texture"),
)


def levels_of(config: Config, facts: Facts) -> tuple[Level, ...]:
    """The levels of runs with these settings and this size of images; none where there were no such runs.

    They were looked at in one width; another looks so when it has the same loss, by the law of both.
    """
    law, width = model_size.law(config, facts), config.model.width
    if law is None:
        return ()
    first, *others = {"grey": GREY, "colour": COLOUR}[model_size.kind(facts)]
    alike = (law.needed(width, law.loss(LOOKED_AT, level.images)) for level in others)
    needed = [level.images if width == LOOKED_AT else images for level, images in zip(others, alike, strict=True)]
    return (first, *(Level(int(n), level.look) for n, level in zip(needed, others, strict=True) if n < math.inf))


def outlook(levels: Sequence[Level], seen: int, images: int, needed: Callable[[int], float]) -> str:
    """What previews look like after so many more images than were seen, and what more would give.

    Args:
        levels: of such runs, or none.
        seen: images.
        images: that follow.
        needed: the seconds for so many of these.
    """
    if not levels:
        return "no curve was measured for such a run"
    reached = max((level for level in levels if level.images <= seen + images), key=lambda level: level.images)
    more = [
        f"{minutes(needed(level.images - seen))} for {level.look}" for level in levels if level.images > seen + images
    ]
    little = "too little for anything but " if reached is levels[0] else ""
    return f"{little}{reached.look}{'; ' if more else ''}{', '.join(more[:2])}"
