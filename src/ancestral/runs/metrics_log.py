"""The log of a training, RUN/metrics.jsonl: one record a line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ancestral.runtime import disk


def leg_starts(log: Sequence[dict[str, Any]]) -> list[int]:
    """Images seen where each further leg of a run begins: at the last record before it."""
    pairs = pairwise(log)
    return [before["images"] for before, after in pairs if after.get("leg", 1) != before.get("leg", 1)]


def read_metrics(path: Path, warn: Callable[[str], object] = lambda line: None) -> list[dict[str, Any]]:
    """The records of a metrics file.

    Args:
        path: the file.
        warn: called with a line for each damaged record that is left out, but not for a last one torn by a crash.

    Raises:
        Damaged: when the file as a whole cannot be read.
    """
    entries, problems = disk.records(path)
    kinds = (int, float, type(None))
    whole = [one for one in entries if type(one.get("images")) is int and isinstance(one.get("loss"), kinds)]
    if len(whole) < len(entries):
        problems.append(f"{path}: {len(entries) - len(whole)} lines are no records")
    for problem in problems:
        warn(f"{problem}; left out")
    return whole
