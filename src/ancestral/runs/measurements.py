"""Read what `evaluate` and `metrics` have measured on a run from the files in its folder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ancestral.data.source_paths import same_source
from ancestral.errors import UserError
from ancestral.runs import checkpoint
from ancestral.runs.checkpoint import Checkpoint
from ancestral.runs.sampling_options import OPTIONS
from ancestral.runtime import disk, verified_folder

_BESIDE = ("standard_error", "largest_share")


class Measured:
    """What was measured on one checkpoint.

    Args:
        title: the file's name, without its suffix.
        document: what is in it.

    Attributes:
        rows: (name, value, standard error, largest image's share); errors and shares are None where there are none.
        few: the metrics of too few images to be compared with others.
        made: what it was measured with, each by its name.
    """

    def __init__(self, title: str, document: dict[str, Any]) -> None:
        self.title, self.rows, self.made = title, list(_numbers(document, "")), _made(document)
        self.few = frozenset(map(str, document.get("few") or ()))


def read_measurements(run: Path, saved: Checkpoint) -> list[Measured]:
    """What was measured in the run's folder of this checkpoint, its own average and its data.

    Args:
        run: the folder.
        saved: the checkpoint, its configuration as it is in the run.

    Raises:
        UserError: naming a file that is damaged.
    """
    found = []
    for path in sorted([*run.glob("evaluation.json"), *run.glob("metrics-*.json")]):
        try:
            document = disk.document(path, float)
        except disk.Damaged as error:
            raise UserError(f"{error}; delete it, or measure again") from None
        if isinstance(document, dict) and _is_of(saved, document, path) and (one := Measured(path.stem, document)).rows:
            found.append(one)
    return found


def _made(document: dict[str, Any]) -> dict[str, Any]:
    """What a measurement was made with, each by its name."""
    drawing, network = document.get("drawing"), document.get("network")
    made = {**document, **(drawing if isinstance(drawing, dict) else {})}
    if isinstance(network, dict):
        made["network"] = network.get("network")
    if isinstance(made.get("times"), list):
        made["steps"] = len(made["times"]) - 1
    if made.get("solver") is not None or made.get("eta") is not None:
        made["variance"] = None  # the run's own, which nothing was drawn with
    if made.get("guidance") is None:
        made |= {name: None for name, option in OPTIONS.items() if option.needs == "guidance"}
    made["guidance_rescale"] = made.get("guidance_rescale") or None
    return made


def _is_of(saved: Checkpoint, document: dict[str, Any], path: Path) -> bool:
    """Whether it is on the model's own data and names this checkpoint; where it names none, whether it is younger."""
    made = _made(document)
    if not same_source(made.get("data", saved.config.source), saved.config.source):
        return False
    if "model" in made:
        return made["model"] == checkpoint.digest(saved) and made.get("average_width") is None
    return path.stat().st_mtime >= (saved.folder / verified_folder.MANIFEST).stat().st_mtime


def _numbers(node: Any, name: str) -> Iterator[tuple[str, float, float | None, float | None]]:
    """Every {"value" or "mean": number, ...} in a document with what stands beside it, named by the way to it."""
    if not isinstance(node, dict):
        return
    value = node.get("value", node.get("mean"))
    if isinstance(value, (int, float)) and math.isfinite(value) and name:
        error, share = (float(one) if isinstance(one, (int, float)) else None for one in map(node.get, _BESIDE))
        yield name, float(value), error, share
        return
    for key, child in node.items():
        yield from _numbers(child, key if name in ("", "metrics") else f"{name}: {key}")
