"""A training run on disk: begins or goes on, plans its length, saves, previews, reports, and stops when told to."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ancestral import build, checkpoint, figures
from ancestral.bound import bound, calibrate, mean_and_error
from ancestral.config import Config, to_json
from ancestral.errors import UserError
from ancestral.feed import facts, to_bytes, to_unit
from ancestral.imageset import ImageSet, Splits
from ancestral.parallel import Processes
from ancestral.reverse import DDIM, Ancestral, large
from ancestral.rng import Streams
from ancestral.sample import sample
from ancestral.train import Record, Training
from ancestral.train import train as records

PREVIEW_SHARE = 0.05  # of the run's time
SAVE_EVERY = 300.0  # seconds
CALIBRATED = 128  # training images on which the model's own error is measured
STOPPED = 75  # exit code of a run that was told to stop and saved: run the same command again


@dataclass(frozen=True)
class Progress:
    """What a person wants to know while it trains."""

    images: int
    total: int
    loss: float  # mean since the last report
    images_per_second: float
    seconds_left: float
    held_out_bits: float | None  # bits/dim on held-out images at the last preview


class Run:
    """A run folder with its training."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        data: Splits,
        device: torch.device,
        length: str = "",
        processes: Processes | None = None,
    ) -> None:
        self.folder, self.config, self.data = folder, config, data
        self.facts = facts(data.train)
        self.digest = data.train.digest()
        self.length = length  # as it was asked for; the total is planned from it once
        self.document = to_json(config, self.facts)
        self.training = Training(config, self.facts, device, processes)
        self.total = 0
        self.seconds = 0.0  # spent training, over all restarts
        self.preview_seconds = 0.0
        self.held_out_bits: float | None = None
        self.complete = False

    def resume(self) -> list[str]:
        """Take up the newest whole checkpoint, if there is one; says which damaged ones were passed over.

        Raises:
            UserError: when the folder's run has other settings, naming them.
        """
        saved, problems = checkpoint.latest(self.folder)
        if saved is None:
            return problems
        if saved.state["length"] != self.length:
            raise UserError(
                f"{self.folder}: the run was planned for another length ({saved.state['length']}, "
                f"{saved.state['total']:,} images); use that, another --out, or --fresh"
            )
        before, now = (_flat(document) for document in (to_json(saved.config, saved.facts), self.document))
        changed = [f"{key} was {before.get(key)}, is {now.get(key)}" for key in now if before.get(key) != now.get(key)]
        if changed:
            raise UserError(
                f"{self.folder}: holds a run with other settings ({'; '.join(changed)}); "
                "use those, another --out, or --fresh"
            )
        if saved.state["data"] != self.digest:
            raise UserError(f"{self.config.source}: not the images that {self.folder} was begun with; use --fresh")
        self.training.load(saved.tensors, saved.images)
        self.total, self.seconds = saved.state["total"], saved.state["seconds"]
        self.held_out_bits = saved.state["held_out_bits"]
        self.complete = saved.state["complete"]
        self.training.processes.wait()  # until each has read what the first will write over
        if self.training.processes.first:
            self._truncate_metrics(saved.images)
        return problems

    def train(self, stop: Callable[[], bool]) -> Iterator[Progress]:
        """Train to the end of the plan, yielding progress about every percent; stop between two steps when told to."""
        every = max(1, self.total // self.config.train.snapshots)
        reported, since, last_save = self.training.images, [], time.monotonic()
        clock = time.monotonic()
        first = self.training.processes.first  # the one that writes
        for record in records(self.training, self.data.train, self.total):
            since.append(record)
            now = time.monotonic()
            self.seconds, clock = self.seconds + now - clock, now
            crossed = record.images // every > (record.images - self.config.train.batch_size) // every
            if first and crossed and record.images < self.total:
                checkpoint.save_snapshot(self.folder, record.images, self.training.averages)
                self._preview(record.images)
            stopping = self.training.processes.any(stop())
            if record.images - reported >= self.total / 100 or record.images >= self.total or stopping:
                yield self._report(since)
                reported, since = record.images, []
            if first and (crossed or now - last_save > SAVE_EVERY or stopping) and record.images < self.total:
                self.save()
                last_save = time.monotonic()
            if stopping:
                return
        self._finish()

    def save(self, calibration: torch.Tensor | None = None) -> None:
        """Write a checkpoint."""
        state = {
            "total": self.total,
            "length": self.length,
            "data": self.digest,
            "seconds": self.seconds,
            "held_out_bits": self.held_out_bits,
            "complete": self.complete,
        }
        training = self.training
        checkpoint.save(
            self.folder, training.images, self.document, training.model_weights, training.tensors(), state, calibration
        )

    def _report(self, since: list[Record]) -> Progress:
        record, loss = since[-1], sum(one.loss for one in since) / len(since)
        speed = record.images / max(self.seconds, 1e-9)
        entry = {
            "images": record.images,
            "loss": loss,
            "loss_by_tenth_of_t": self._by_tenth(since),
            "grad_norm": record.grad_norm,
            "learning_rate": record.learning_rate,
            "seconds": round(self.seconds, 3),
        }
        if self.training.processes.first:
            with open(self.folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps(entry) + "\n")
        left = (self.total - record.images) / speed
        return Progress(record.images, self.total, loss, speed, left, self.held_out_bits)

    def _by_tenth(self, since: list[Record]) -> list[float | None]:
        """Mean loss in each tenth of the time grid, least noise first; None where no image was."""
        places, losses = (torch.cat([getattr(one, name) for one in since]) for name in ("place", "losses"))
        steps = len(self.training.sampler)
        tenth = (steps - 1 - places) * 10 // steps
        return [float(losses[tenth == k].mean()) if (tenth == k).any() else None for k in range(10)]

    def _preview(self, images: int) -> None:
        """A few images and the bound on a few held-out ones, if that has cost little of the time so far."""
        if self.preview_seconds > PREVIEW_SHARE * self.seconds:
            return
        started = time.monotonic()
        with self._averaged() as model:
            grid = build.sampling_grid(self.config, "trailing", 20 if self.config.diffusion.T > 20 else None)
            labels = self._labels(range(16))
            drawn = sample(
                build.predictor(model, None, labels),
                self.facts.shape,
                16,
                grid,
                DDIM(),
                device=self.training.device,
            )
            self.held_out_bits = self._held_out(model)
        previews = self.folder / "previews"
        previews.mkdir(exist_ok=True)
        figures.contact_sheet(to_bytes(drawn)).save(previews / f"{images:09d}.png")
        self.preview_seconds += time.monotonic() - started

    def _held_out(self, model: Any) -> float:
        test, grid = self.data.test.spread(32), build.training_grid(self.config)
        x0 = to_unit(test.images).to(self.training.device)
        result = bound(
            build.predictor(model, None, self._true_labels(test)),
            x0,
            grid,
            Ancestral(large),
            Streams(0, "preview", range(len(test))),
            terms=min(10, len(grid) - 1),
        )
        return mean_and_error(result.bits_per_dim)[0]

    def _true_labels(self, images: ImageSet) -> torch.Tensor | None:
        if not self.config.model.labels or images.labels is None:
            return None
        return torch.from_numpy(images.labels).to(self.training.device)

    def _labels(self, numbers: range) -> torch.Tensor | None:
        if not self.config.model.labels:
            return None
        return torch.tensor([n % len(self.facts.class_names) for n in numbers], device=self.training.device)

    @contextmanager
    def _averaged(self) -> Iterator[Any]:
        """The network with its averaged weights for a moment."""
        training = self.training
        raw = {name: value.clone() for name, value in training.network.state_dict().items()}
        training.network.load_state_dict(training.model_weights)
        try:
            with torch.no_grad():
                yield training.denoiser.eval()
        finally:
            training.network.load_state_dict(raw)

    def _finish(self) -> None:
        """Measure the model's own error on training images, and write the last checkpoint."""
        self.complete = True
        if not self.training.processes.first:
            return
        checkpoint.save_snapshot(self.folder, self.training.images, self.training.averages)
        with self._averaged() as model:
            images = self.data.train.spread(CALIBRATED)
            x0, labels = to_unit(images.images).to(self.training.device), self._true_labels(images)
            table = calibrate(build.predictor(model, None, labels), x0, Streams(0, "calibrate", range(len(images))))
        self.save(table)

    def _truncate_metrics(self, images: int) -> None:
        """Drop what was logged after the checkpoint, which will be logged again."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            kept = [entry for entry in read_metrics(path) if entry["images"] <= images]
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
            temporary.replace(path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file; a line torn by a crash is left out."""
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


@contextmanager
def until_told() -> Iterator[Callable[[], bool]]:
    """A question that answers yes once SIGINT or SIGTERM has come; a second one stops at once."""
    told: list[int] = []

    def hear(number: int, frame: object) -> None:
        told.append(number)
        if len(told) > 1:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(told)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in document.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
