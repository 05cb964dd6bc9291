"""The times that few steps of a run's model were tuned to: RUN/tuned.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ancestral.diffusion.processes.noise_schedule import NoiseSchedule
from ancestral.diffusion.samplers.grids import explicit
from ancestral.errors import UserError
from ancestral.runs import checkpoint
from ancestral.runtime import disk, verified_folder
from ancestral.runtime.console import screen
from ancestral.runtime.text import quoted

FILE = "tuned.json"


def _read(folder: Path) -> dict[str, Any]:
    """{steps: {"times": [...], "model": digest of the checkpoint, "average_width": width or null}} of a run.

    Raises:
        Damaged: when there is something else.
    """
    try:
        found = disk.document(folder / FILE)
    except disk.Missing:
        return {}
    if not isinstance(found, dict):
        raise disk.Damaged(f"{folder / FILE}: damaged (not an object)")
    return found


def load(
    folder: Path, saved: checkpoint.Checkpoint, average_width: float | None, schedule: NoiseSchedule, steps: int | None
) -> list[int]:
    """The times that were found for so few steps of this very model.

    Raises:
        UserError: when there are none, or they are of another model, or damaged; says how to find them.
    """
    if steps is None:
        raise UserError("--grid tuned: say for how many --steps")
    width = "" if average_width is None else f" --average-width {average_width:g}"
    again = f"ancestral tune-steps {quoted(folder)} --steps {steps}{width}"
    try:
        found = _read(folder).get(str(steps))
    except disk.Damaged as error:
        raise UserError(f"{error}; find the times again: {again}") from None
    if found is None:
        raise UserError(f"--grid tuned: {folder / FILE} has none for {steps} steps; find them first: {again}")
    if not isinstance(found, dict) or "model" not in found:
        raise UserError(f"{folder / FILE}: does not say which model its times are of; find them again: {again}")
    if (found["model"], found.get("average_width")) != (checkpoint.digest(saved), average_width):
        raise UserError(
            f"{folder / FILE}: its times are of another model than {saved.folder} (trained on since, "
            f"or another average); find them again: {again}"
        )
    try:
        return explicit(schedule, found["times"])
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{folder / FILE}: damaged ({error}); find the times again: {again}") from None


def save(folder: Path, saved: checkpoint.Checkpoint, average_width: float | None, times: list[int]) -> None:
    """Keep the times that were found for so few steps of this model."""
    try:
        kept = _read(folder)
    except disk.Damaged as error:
        screen.print(f"warning: {error}; begun anew")
        kept = {}
    found = {"times": times, "model": checkpoint.digest(saved), "average_width": average_width}
    content = json.dumps({**kept, str(len(times) - 1): found}) + "\n"
    verified_folder.write_file(folder / FILE, content.encode())
