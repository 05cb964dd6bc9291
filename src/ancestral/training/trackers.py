"""Curves and pictures for TensorBoard and Weights & Biases, beside metrics.jsonl, which is always written.

A tracker can never stop, slow or change a run: its entries go through a bounded queue to a thread, those that do not
fit are dropped, and its first error ends it with one warning. A run resumed from a checkpoint logs again what lies
after it.
"""

from __future__ import annotations

import os
import queue
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ancestral.errors import UserError, missing
from ancestral.runs.registry import suggest
from ancestral.runtime import disk

Values = Mapping[str, float]
PENDING = 256  # entries
CLOSE_TIMEOUT = 10.0  # seconds


def scalars(entry: dict[str, Any]) -> dict[str, float]:
    """The numbers of a record by name; the k-th of a list is NAME/k. What is no curve, as a moved end, is left out."""
    flat: dict[str, float] = {}
    for name, value in entry.items():
        values = {f"{name}/{k}": one for k, one in enumerate(value)} if isinstance(value, list) else {name: value}
        flat |= {key: float(one) for key, one in values.items() if isinstance(one, int | float)}
    return flat


class Tracker(Protocol):
    """Takes curves and pictures."""

    def log(self, images: int, values: Values) -> None:
        """Numbers after so many images have been seen."""
        ...

    def picture(self, images: int, name: str, pixels: np.ndarray) -> None:
        """A picture uint8 (H, W, 3)."""
        ...

    def close(self) -> None:
        """Write out what is pending."""
        ...


class TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("settings", "\n".join(f"    {key} = {value}" for key, value in settings.items()))

    def log(self, images: int, values: Values) -> None:
        """One scalar a name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, images)

    def picture(self, images: int, name: str, pixels: np.ndarray) -> None:
        """An image."""
        self._writer.add_image(name, pixels, images, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run in RUN/wandb, offline unless WANDB_MODE says otherwise; `wandb sync` sends it later."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports] # an extra

        name = folder / "wandb-id"  # so that a run that goes on is one run there too
        if not name.exists():
            name.write_text(uuid.uuid4().hex[:8])
        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            project="ancestral",
            name=folder.name,
            id=disk.text(name, 100),
            resume="allow",
            dir=str(folder),
            config=dict(settings),
            mode=os.environ.get("WANDB_MODE", "offline"),  # pyright: ignore[reportArgumentType] # wandb checks it
        )
        self._run.define_metric("*", step_metric="images")

    def log(self, images: int, values: Values) -> None:
        """All in one entry."""
        self._run.log({**values, "images": images})

    def picture(self, images: int, name: str, pixels: np.ndarray) -> None:
        """An image."""
        self._run.log({name: self._wandb.Image(pixels), "images": images})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


class TrackerThread:
    """Runs trackers in a thread.

    Args:
        make: by name, what makes the tracker, called in the thread.
        warn: called with one line for each tracker that failed.
    """

    def __init__(self, make: Mapping[str, Callable[[], Tracker]], warn: Callable[[str], None]) -> None:
        self._make, self._warn, self.dropped = make, warn, 0
        self._queue: queue.Queue[tuple[str, tuple[Any, ...]]] = queue.Queue(PENDING)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def log(self, images: int, values: Values) -> None:
        """Queue, or drop."""
        self._put("log", images, dict(values))

    def picture(self, images: int, name: str, pixels: np.ndarray) -> None:
        """Queue, or drop."""
        self._put("picture", images, name, pixels)

    def close(self) -> None:
        """Wait up to `CLOSE_TIMEOUT` for what is pending."""
        self._put("close")
        self._thread.join(CLOSE_TIMEOUT)
        if self.dropped or self._thread.is_alive():
            self._warn(f"trackers: too slow, {self.dropped} entries left out; metrics.jsonl has everything")

    def _put(self, what: str, *values: Any) -> None:
        try:
            self._queue.put_nowait((what, values))
        except queue.Full:
            self.dropped += 1

    def _work(self) -> None:
        trackers: dict[str, Tracker] = {}
        for name, make in self._make.items():
            self._guarded(name, trackers, lambda make=make, name=name: trackers.__setitem__(name, make()))
        what = ""
        while what != "close":
            what, values = self._queue.get()
            for name, tracker in list(trackers.items()):
                self._guarded(name, trackers, lambda tracker=tracker: getattr(tracker, what)(*values))  # noqa: B023

    def _guarded(self, name: str, trackers: dict[str, Tracker], action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # whatever a tracker raises is its own affair
            trackers.pop(name, None)
            self._warn(f"--track {name}: stopped ({type(error).__name__}: {error}); training goes on")


def check(names: Sequence[str]) -> None:
    """Refuse what cannot be opened, before anything else is done."""
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"--track: unknown tracker '{name}'; {suggest(name, TRACKERS)}")
        if find_spec(name) is None:
            raise missing(f"--track {name}", name, name)


def open_trackers(
    names: Sequence[str], folder: Path, settings: Mapping[str, Any], warn: Callable[[str], None]
) -> TrackerThread | None:
    """The named trackers, or None for no names."""
    makers = {name: lambda name=name: TRACKERS[name](folder, settings) for name in names}
    return TrackerThread(makers, warn) if names else None
