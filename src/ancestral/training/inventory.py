"""A summary of a training's images: as JSON for the run, and as the lines that every training begins with."""

from __future__ import annotations

from typing import Any

import numpy as np

from ancestral.data.dataset import ImageSet, Splits
from ancestral.data.duplicates import across
from ancestral.data.inventory import counted, listed
from ancestral.data.source_paths import public

SEARCHED = 100_000  # images of both parts, at most, among which repetitions are searched for
SAMPLED = 1024  # images of each part, at most, for the range of values
CLASSES = 8  # named, at most
KINDS = {1: "grey", 3: "colour", 4: "colour with opacity"}  # by channels


def summary(splits: Splits) -> dict[str, Any]:
    """The summary, as JSON."""
    train, test = splits.train, splits.test
    height, width, channels = train.shape
    searched = len(train) + len(test) <= SEARCHED
    low, high = zip(*(_range(part) for part in (train, test)), strict=True)
    test_counts = _counts(test)
    return {
        **splits.reading.to_json(),
        "train": len(train),
        "test": len(test),
        "class_counts": [
            {"name": name, "train": count, "test": test_counts.get(name, 0) if test_counts else None}
            for name, count in _counts(train).items()
        ],
        "values": [min(low), max(high)],
        "repeated_held_out": len(across(train.images, test.images)) if searched else None,
        "shape": [height, width, channels],
    }


def paragraph(splits: Splits, facts: dict[str, Any]) -> list[str]:
    """The summary, as lines of text."""
    reading, (height, width, channels) = splits.reading, facts["shape"]
    used = facts["train"] + facts["test"]
    found = f"used, of {reading.found:,} found" if reading.left_out else "found, all used"
    lines = [f"{public(reading.source) or 'images'}: {counted(used, 'image')} {found}"]
    lines += [f"  left out, {reason}: {len(names):,} ({listed(names)})" for reason, names in reading.left_out.items()]
    split = f" ({reading.split})" if reading.split else ""
    lines.append(f"  {facts['train']:,} to train on, {facts['test']:,} held out{split}")
    lines.append(f"  {_classes(facts['class_counts'], reading.classes)}")
    size, (low, high) = f"{height}x{width}", facts["values"]
    scaled = f"{reading.sizes}, cut and scaled to " if reading.sizes not in ("", size) else ""
    square = "" if height == width and not scaled else " (height x width)"
    lines.append(f"  size {scaled}{size}{square}, {KINDS[channels]}; values {low} to {high} of 255")
    repeated = facts["repeated_held_out"]
    if repeated is None:
        lines.append("  so many images are not searched for equal and nearly equal ones across the split")
    elif repeated:
        equal = "equals or nearly equals" if repeated == 1 else "equal or nearly equal"
        lines.append(f"  {counted(repeated, 'held-out image')} {equal} one to train on")
    return lines + [f"  {note}" for note in reading.notes]


def _classes(counts: list[dict[str, Any]], source: str) -> str:
    """Images of each class, and where the labels come from, or why there are none."""
    if not counts:
        return f"no classes{source.removeprefix('none')}" if source.startswith("none") else f"no classes ({source})"
    both = all(one["test"] is not None for one in counts)
    named = [f"{one['name']}: {one['train']:,}" + (f" + {one['test']:,}" if both else "") for one in counts]
    parts = "to train on + held out" if both else "to train on"
    return f"{counted(len(counts), 'class')} ({source}), {parts}: {listed(named, CLASSES)}"


def _counts(part: ImageSet) -> dict[str, int]:
    """Images of each class; empty without labels."""
    if part.labels is None:
        return {}
    counts = np.bincount(part.labels, minlength=len(part.class_names)).tolist()
    return dict(zip(part.class_names, counts, strict=True))


def _range(part: ImageSet) -> tuple[int, int]:
    pixels = np.asarray(part.spread(SAMPLED).images[:])
    return int(pixels.min()), int(pixels.max())
