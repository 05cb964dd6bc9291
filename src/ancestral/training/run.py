"""A training run on disk: begins or goes on, plans its length, saves, previews, reports, and stops when told to."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ancestral.data import pictures
from ancestral.data.dataset import Splits
from ancestral.data.source_paths import same_place
from ancestral.diffusion.denoisers.denoiser import Denoiser
from ancestral.errors import UserError
from ancestral.runs import build, checkpoint
from ancestral.runs import calibration as run_calibration
from ancestral.runs.compute_format import ComputeFormat
from ancestral.runs.config import Config, to_json
from ancestral.runs.datasets import facts
from ancestral.runs.lock import Owner
from ancestral.runs.metrics_log import read_metrics
from ancestral.runtime import disk, verified_folder
from ancestral.runtime.distributed import Processes
from ancestral.runtime.side_tasks import beside
from ancestral.training import preview
from ancestral.training.health import Health, health
from ancestral.training.trackers import Tracker, flat, numbers_of
from ancestral.training.trainer import NotFinite, Record, Training
from ancestral.training.trainer import train as records

PREVIEW_SHARE = 0.05  # of the run's time
SAVE_EVERY = 300.0  # seconds
# Settings of how, not of what: they may change when a run goes on. Older runs do not say which classes they have not
# seen, nor the white that they found; that the images are the same is checked.
_HOW = "data.cache train.micro_batch train.workers train.parallel train.compile train.channels_last train.recompute"
HOW = {f"config.{name}" for name in _HOW.split()} | {"facts.untrained", "config.data.white"}
FAILED_SAVES = 3  # in a row, before the run stops
DIVERGED = 3.0  # times its lowest, when the loss is said to diverge


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
    """A run folder with its training.

    Args:
        length: as it was asked for; the total is planned from it once.
        warn: told, in one line each, what went wrong without stopping the run.
        tracker: told what metrics.jsonl is told.
        owner: asked before each save whether this is still the folder's only trainer.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        data: Splits,
        device: torch.device,
        length: str = "",
        processes: Processes | None = None,
        warn: Callable[[str], None] = print,
        tracker: Tracker | None = None,
        owner: Owner | None = None,
    ) -> None:
        self.folder, self.config, self.data = folder, config, data
        self.facts = facts(data.train)
        self.digest = data.train.digest()
        self.length, self.warn, self.tracker, self.owner = length, warn, tracker, owner
        self.document = to_json(config, self.facts)
        self.training = Training(config, self.facts, device, processes)
        self.total = 0
        self.seconds = 0.0  # spent training, over all restarts
        self.preview_seconds = 0.0
        self.preview: preview.Preview | None = None  # the last one, until it is reported
        self.held_out_bits: float | None = None
        self.health: Health | None = None  # known at the end
        self.failed_saves = 0  # in a row
        self.complete = False
        self.fastest_on: str | None = None  # the processor on which the format was found to be the fastest of all

    def resume(self) -> list[str]:
        """Take up the newest whole checkpoint, if there is one; says which damaged ones were passed over.

        What was logged, averaged and drawn after it is dropped: it will be again.

        Raises:
            UserError: when the folder's run has other settings, naming them.
        """
        saved, problems = checkpoint.latest(self.folder)
        if saved is None:
            self._forget_after(0)
            return problems
        if saved.state["length"] != self.length:
            raise UserError(
                f"{self.folder}: the run was planned for another length ({saved.state['length']}, "
                f"{saved.state['total']:,} images); use that, another --out, or --fresh"
            )
        before, now = (flat(document) for document in (to_json(saved.config, saved.facts), self.document))
        same = {"config.source"} if same_place(before["config.source"], now["config.source"]) else set()
        differing = [key for key in {**before, **now} if before.get(key) != now.get(key) and key not in HOW | same]
        changed = [f"{key} was {before.get(key)}, is {now.get(key)}" for key in differing]
        if changed:
            raise UserError(
                f"{self.folder}: holds a run with other settings ({'; '.join(changed)}); "
                "use those, another --out, or --fresh"
            )
        if saved.state["data"] != self.digest:
            raise UserError(f"{self.config.source}: not the images that {self.folder} was begun with; use --fresh")
        self._go_on_in(saved)
        self.training.load(saved.tensors, saved.images, str(saved.folder / "state.safetensors"))
        self.total, self.seconds = saved.state["total"], saved.state["seconds"]
        self.held_out_bits = saved.state["held_out_bits"]
        self.complete = saved.state["complete"]
        self._forget_after(saved.images)
        return problems

    def compute_in(self, chosen: ComputeFormat) -> None:
        """Begin anew, computing in this format."""
        if chosen != self.training.format:
            old = self.training
            self.training = Training(self.config, self.facts, old.device, old.processes, chosen)

    def _go_on_in(self, saved: checkpoint.Checkpoint) -> None:
        """Compute as the run has so far, as far as the settings leave that open."""
        open_here, state = self.training.formats, saved.state
        was = ComputeFormat(
            state.get("precision", self.training.format.precision),
            bool(state.get("channels_last", saved.config.train.channels_last)),
        )
        layouts = {one.channels_last for one in open_here}
        precision = was.precision if self.config.train.precision == "auto" else self.config.train.precision
        last = was.channels_last if layouts == {False, True} else open_here[-1].channels_last
        self.compute_in(ComputeFormat(precision, last))
        self.fastest_on = state.get("fastest_on")

    def train(self, stop: Callable[[], bool]) -> Iterator[Progress]:
        """Train to the end of the plan, yielding progress about every percent; stop between two steps when told to.

        Raises:
            NotFinite: when the run cannot go on; what it stopped at is kept under RUN/stopped.
        """
        every = max(1, self.total // self.config.train.snapshots)
        reported, since, last_save = self.training.images, [], time.monotonic()
        clock, together = time.monotonic(), self.training.processes
        for record in self._records():
            since.append(record)
            now = time.monotonic()
            self.seconds, clock = self.seconds + now - clock, now
            crossed = record.images // every > (record.images - self.config.train.batch_size) // every
            if crossed and record.images < self.total:
                self._look()
            stopping = together.any(stop())
            if record.images - reported >= self.total / 100 or record.images >= self.total or stopping:
                yield self._report(since)
                reported, since = record.images, []
            due = crossed or stopping or together.any(together.first and now - last_save > SAVE_EVERY)
            if due and record.images < self.total:
                self._save_if_possible(must=stopping)
                last_save = time.monotonic()
            if stopping:
                return
        self._finish()

    def _records(self) -> Iterator[Record]:
        """The training's records; an update that stops it is kept for inspection."""
        try:
            yield from records(self.training, self.data.train, self.total)
        except NotFinite as stopped:
            state = self.training.tensors()
            if self.training.processes.first:
                kept = checkpoint.save_for_inspection(
                    self.folder, self.training.images, stopped.batch, {**state, **stopped.inputs}
                )
                raise UserError(f"{stopped}; the batch and the state before it are in {kept}") from None
            raise

    def save(self, calibration: torch.Tensor | None = None) -> None:
        """Write a checkpoint; all processes must take part, the first one writes."""
        if self.owner is not None:
            self.owner.check()
        training, tensors = self.training, self.training.tensors()
        state = {
            "total": self.total,
            "length": self.length,
            "data": self.digest,
            "seconds": self.seconds,
            "held_out_bits": self.held_out_bits,
            "complete": self.complete,
            **training.format._asdict(),  # what auto stands for in this run
            "fastest_on": self.fastest_on,
        }
        if training.processes.first:
            weights = training.model_weights(tensors)
            checkpoint.save(self.folder, training.images, self.document, weights, tensors, state, calibration)

    def _save_if_possible(self, must: bool) -> None:
        """Save; a disk that refuses is tried again at the next save, and ends the run only after several."""
        try:
            self.save()
            self.failed_saves = 0
        except verified_folder.Unwritable as error:
            self.failed_saves += 1
            if must or self.failed_saves == FAILED_SAVES:
                raise
            self.warn(f"{error}; training goes on, older checkpoints are untouched")

    def _report(self, since: list[Record]) -> Progress:
        record, made = since[-1], [one for one in since if one.made]
        loss = sum(one.loss for one in made) / len(made) if made else None
        speed = record.images / max(self.seconds, 1e-9)
        places, losses = (torch.cat([getattr(one, name) for one in made or since]) for name in ("place", "losses"))
        by_tenth = preview.by_tenth_of_t(places, losses, len(self.training.sampler)) if made else [None] * 10
        entry: dict[str, Any] = {
            "images": record.images,
            "loss": loss,
            "loss_by_tenth_of_t": by_tenth,
            "grad_norm": made[-1].grad_norm if made else None,
            "largest_grad_norm": max((one.grad_norm for one in made), default=None),
            "updates_left_out": len(since) - len(made),
            "loss_over_lowest": self.training.guard.risen,
            "learning_rate": record.learning_rate,
            "seconds": round(self.seconds, 3),
        }
        if self.preview is not None:
            entry["held_out_bits_per_dim"] = self.preview.bits_per_dim
            entry["held_out_bits_by_tenth_of_t"] = self.preview.bits_by_tenth
        if self.training.processes.first:
            self._log(entry)
        left = (self.total - record.images) / speed
        return Progress(record.images, self.total, math.nan if loss is None else loss, speed, left, self.held_out_bits)

    def _log(self, entry: dict[str, Any]) -> None:
        if entry["loss_over_lowest"] > DIVERGED:
            self.warn(
                f"the loss has risen to {entry['loss_over_lowest']:.1f} times its lowest: the run diverges; "
                "stop it and lower train.learning_rate"
            )
        with beside(str(self.folder / "metrics.jsonl"), self.warn), open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(entry) + "\n")
        if self.tracker is not None:
            with beside("trackers", self.warn):
                self.tracker.log(entry["images"], numbers_of(entry))
                if self.preview is not None:
                    sheet = np.asarray(pictures.contact_sheet(self.preview.images).convert("RGB"))
                    self.tracker.picture(entry["images"], "preview", sheet)
        self.preview = None

    def _look(self) -> None:
        """Keep the averages; a few images and the bound on some held-out ones, if that has cost little so far."""
        averages = self.training.whole_averages()
        if not self.training.processes.first:
            return
        images, started = self.training.images, time.monotonic()
        with beside("averages", self.warn):
            checkpoint.save_snapshot(self.folder, images, averages)
        if self.preview_seconds <= PREVIEW_SHARE * self.seconds:
            with beside("preview", self.warn):
                shown = self._shown(averages[self.config.train.average].weights)
                self.preview = preview.preview(self.config, self.facts, shown, self.data.test, self.training.device)
                self.held_out_bits = self.preview.bits_per_dim
                pictures.save_sheet(self.folder / "previews" / f"{images:09d}.png", self.preview.images)
        self.preview_seconds += time.monotonic() - started

    def _shown(self, weights: dict[str, torch.Tensor]) -> Denoiser:
        return build.ready(self.config, self.facts, weights).to(self.training.device)

    def _finish(self) -> None:
        """Measure the model's own error on training images and what it has learned; write the last checkpoint."""
        self.complete = True
        averages, table = self.training.whole_averages(), None
        if self.training.processes.first:
            with beside("averages", self.warn):
                checkpoint.save_snapshot(self.folder, self.training.images, averages)
            with beside("calibration", self.warn):
                shown = self._shown(averages[self.config.train.average].weights)
                table = run_calibration.calibration(self.config, shown, self.data.train, self.training.device)
            with beside("health", self.warn):
                shown = self._shown(averages[self.config.train.average].weights)
                log = read_metrics(self.folder / "metrics.jsonl", self.warn)
                self.health = health(self.config, shown, table, self.data, log)
                document = json.dumps(self.health.to_json(), indent=1) + "\n"
                verified_folder.write_file(self.folder / "health.json", document.encode())
        self.save(table)

    def _forget_after(self, images: int) -> None:
        """Drop what a run that was killed has left from after its checkpoint: records, averages, previews."""
        self.training.processes.wait()  # until each has read what the first will write over
        if not self.training.processes.first:
            return
        path = self.folder / "metrics.jsonl"
        try:
            kept = [entry for entry in read_metrics(path, self.warn) if entry["images"] <= images]
            with beside(str(path), self.warn):
                verified_folder.write_file(path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
        except disk.Missing:
            kept = []
        except disk.Damaged as error:  # a pipe would be waited for at the first record
            raise UserError(f"{error}; move it away, and the log begins anew") from None
        reached = max((entry["images"] for entry in kept), default=0)
        if images - reached >= max(1, self.total / 100):  # as often as there is a record
            self.warn(f"{path}: has no record of images {reached:,} to {images:,}; it goes on after them")
        with beside("averages and previews of before", self.warn):
            for later in (*self.folder.glob("averages/*"), *self.folder.glob("previews/*.png")):
                if later.stem.isdigit() and int(later.stem) > images:
                    shutil.rmtree(later) if later.is_dir() else later.unlink()
