"""What every training begins with: a few lines on the images that it was given, and the same facts for the run."""

from __future__ import annotations

from typing import Any

import numpy as np

from ancestral.data.dataset import ImageSet, Splits
from ancestral.data.duplicates import across
from ancestral.data.inventory import listed
from ancestral.data.source_paths import public

SEARCHED = 100_000  # images of both parts, at most, among which repetitions are looked for
LOOKED_AT = 1024  # images of each part whose values are looked at
CLASSES = 8  # named, at most


def understood(splits: Splits) -> dict[str, Any]:
    """The facts, as JSON."""
    train, test = splits.train, splits.test
    height, width, channels = train.shape
    searched = len(train) + len(test) <= SEARCHED
    low, high = zip(*(_range(part) for part in (train, test)), strict=True)
    return {
        **splits.reading.to_json(),
        "train": len(train),
        "test": len(test),
        "class_counts": [
            {"name": name, "train": count, "test": held}
            for name, count, held in zip(train.class_names, _counts(train), _counts(test), strict=True)
        ],
        "values": [min(low), max(high)],
        "repeated_held_out": len(across(train.images, test.images)) if searched else None,
        "shape": [height, width, channels],
    }


def paragraph(splits: Splits, facts: dict[str, Any]) -> list[str]:
    """The facts, in plain words."""
    reading, (height, width, channels) = splits.reading, facts["shape"]
    used = facts["train"] + facts["test"]
    lines = [f"{public(reading.source) or 'images'}: {reading.found or used:,} images found, {used:,} used"]
    lines += [f"  left out, {reason}: {len(names):,} ({listed(names)})" for reason, names in reading.left_out.items()]
    split = f" ({reading.split})" if reading.split else ""
    lines.append(f"  {facts['train']:,} to train on, {facts['test']:,} held out{split}")
    classes = facts["class_counts"]
    if classes:
        named = [f"{one['name']} {one['train']:,} + {one['test']:,}" for one in classes]
        lines.append(f"  {len(classes):,} classes, to train on + held out: {listed(named, CLASSES)}")
        untrained = [one["name"] for one in classes if not one["train"]]
        lines += [f"  no image to train on: {listed(untrained)}"] if untrained else []
    before = f"{reading.sizes}, used as " if reading.sizes else ""
    low, high = facts["values"]
    white = "" if reading.white == 255 else f", 255 being {reading.white:,} in the files"
    lines.append(f"  size {before}{height}x{width}x{channels}; values {low} to {high}{white}")
    repeated = facts["repeated_held_out"]
    if repeated is None:
        lines.append("  so many images are not searched for equal and nearly equal ones across the split")
    elif repeated:
        lines.append(f"  {repeated:,} held-out images equal or nearly equal one to train on")
    return lines + [f"  {note}" for note in reading.notes]


def _counts(part: ImageSet) -> list[int]:
    if part.labels is None:
        return [0] * len(part.class_names)
    return np.bincount(part.labels, minlength=len(part.class_names)).tolist()


def _range(part: ImageSet) -> tuple[int, int]:
    shown = np.asarray(part.spread(LOOKED_AT).images[:])
    return int(shown.min()), int(shown.max())
