"""The log of a run while it is trained: RUN/metrics.jsonl, a record a line, and the trackers that get the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ancestral.data import pictures
from ancestral.errors import UserError
from ancestral.runs.metrics_log import read_metrics
from ancestral.runtime import disk, verified_folder
from ancestral.runtime.side_tasks import beside
from ancestral.training.preview import Preview, by_tenth_of_t
from ancestral.training.trackers import Tracker, scalars
from ancestral.training.trainer import Record

DIVERGED = 3.0  # the loss over its lowest, from which the run is said to diverge


def entry_of(records: Sequence[Record], times: int, over_lowest: float) -> dict[str, Any]:
    """What the log says of the updates since its last entry.

    Args:
        records: of these updates, at least one.
        times: of the training's grid.
        over_lowest: the median of the latest losses over the lowest that it has been.
    """
    record, applied = records[-1], [one for one in records if one.applied]
    index, losses = (torch.cat([getattr(one, name) for one in applied or records]) for name in ("index", "losses"))
    return {
        "images": record.images,
        "loss": sum(one.loss for one in applied) / len(applied) if applied else None,
        "loss_by_tenth_of_t": by_tenth_of_t(index, losses, times) if applied else [None] * 10,
        "grad_norm": applied[-1].grad_norm if applied else None,
        "largest_grad_norm": max((one.grad_norm for one in applied), default=None),
        "updates_left_out": len(records) - len(applied),
        "loss_over_lowest": over_lowest,
        "learning_rate": record.learning_rate,
    }


class RunLog:
    """The log of a run; faults of writing it do not end the training.

    Args:
        folder: of the run.
        warn: called with one line for each fault.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self.path, self.warn = folder / "metrics.jsonl", warn
        self.tracker: Tracker | None = None  # gets the entries too

    def read(self) -> list[dict[str, Any]]:
        """Its entries.

        Raises:
            Missing: when there is no log.
            Damaged: when the file as a whole cannot be read.
        """
        return read_metrics(self.path, self.warn)

    def append(self, entry: dict[str, Any], preview: Preview | None) -> None:
        """Add an entry, with the images of a preview for the tracker; say so where the loss diverges."""
        if entry["loss_over_lowest"] > DIVERGED:
            self.warn(
                f"the loss has risen to {entry['loss_over_lowest']:.1f} times its lowest: the run diverges; "
                "stop it and lower train.learning_rate"
            )
        with beside(str(self.path), self.warn), open(self.path, "a") as file:
            file.write(json.dumps(entry) + "\n")
        if self.tracker is not None:
            with beside("trackers", self.warn):
                self.tracker.log(entry["images"], scalars(entry))
                if preview is not None:
                    sheet = np.asarray(pictures.contact_sheet(preview.images).convert("RGB"))
                    self.tracker.picture(entry["images"], "preview", sheet)

    def truncate(self, images: int) -> int:
        """Delete the entries after so many images seen. Returns the images seen at the last that is left, 0 for none.

        Raises:
            UserError: when the log cannot be read.
        """
        try:
            entries = [entry for entry in self.read() if entry["images"] <= images]
            with beside(str(self.path), self.warn):
                content = "".join(json.dumps(entry) + "\n" for entry in entries)
                verified_folder.write_file(self.path, content.encode())
        except disk.Missing:
            entries = []
        except disk.Damaged as error:  # the first append to a pipe would block
            raise UserError(f"{error}; move it away, and the log begins anew") from None
        return max((entry["images"] for entry in entries), default=0)
