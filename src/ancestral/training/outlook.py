"""What so many images of training give: how previews looked in runs of the preset `images` (benchmarks/log.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from ancestral.runs.config import Config, Facts, resolve
from ancestral.runtime.text import minutes

SIDES = range(28, 33)  # of the images that were measured with


class Level(NamedTuple):
    """From so many images seen on, previews looked so."""

    images: int
    look: str


# Looked at on 2026-11-29, 16 samples each: MNIST and Fashion-MNIST for grey, tiles of 32x32 for colour.
GREY = (
    Level(0, "blots in noise"),
    Level(7_500, "shapes in grain"),
    Level(15_000, "shapes on a clean ground, some of them right"),
    Level(30_000, "clean shapes, many of them right"),
    Level(52_500, "clean shapes, most of them right"),
)
COLOUR = (
    Level(0, "colour noise"),
    Level(12_500, "patches of colour in noise"),
    Level(25_000, "patches of colour on a clean ground"),
    Level(143_500, "bodies and frames, grainy"),
)


def measured(config: Config, facts: Facts) -> tuple[Level, ...]:
    """The levels of runs with these settings and this size of images; none where there were no such runs."""
    usual = resolve(config.source, "images", {})
    conditions = {name: getattr(usual.model, name) for name in ("labels", "embedding", "condition_dropout")}
    same = replace(config.model, **conditions) == usual.model and config.diffusion == usual.diffusion
    alike = all(
        getattr(config.train, name) == getattr(usual.train, name) for name in ("batch_size", "learning_rate", "warmup")
    )
    if not (same and alike and all(side in SIDES for side in facts.shape[1:])):
        return ()
    return GREY if facts.shape[0] == 1 else COLOUR


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
