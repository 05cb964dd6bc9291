"""A training run on disk: resuming, checkpoints, previews, the log of metrics, and stopping on request."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ancestral.data import pictures
from ancestral.data.dataset import Splits
from ancestral.data.source_paths import same_source
from ancestral.diffusion.denoisers.denoiser import Denoiser, images_per_call
from ancestral.errors import UserError
from ancestral.networks.ema import PowerAverage
from ancestral.runs import build, checkpoint
from ancestral.runs import calibration as run_calibration
from ancestral.runs.background_save import BackgroundWriter
from ancestral.runs.checkpoint import OriginState
from ancestral.runs.compute_format import ComputeFormat
from ancestral.runs.config import Config, to_json
from ancestral.runs.datasets import facts
from ancestral.runs.divided_checkpoint import DividedWriter
from ancestral.runs.lock import Owner
from ancestral.runs.plan import Plan, from_state
from ancestral.runtime import verified_folder
from ancestral.runtime.distributed import Processes
from ancestral.runtime.encode import json_bytes
from ancestral.runtime.side_tasks import beside
from ancestral.runtime.signals import StopSignal
from ancestral.runtime.text import quoted
from ancestral.training import legs, preview
from ancestral.training.budget import CALIBRATING, MEASURING, PREVIEW_SHARE, SAVING, pace, spacing
from ancestral.training.gradient_sync import whole
from ancestral.training.health import Health, health
from ancestral.training.origin import Origin
from ancestral.training.run_log import RunLog, entry_of
from ancestral.training.trainer import NotFinite, Record, Training, train

SAVE_EVERY = 300.0  # seconds
FAILED_SAVES = 3  # in a row, before the run stops


@dataclass(frozen=True)
class Progress:
    """The state of a training for display; `doing` names what is done after the last update."""

    images: int
    total: int
    loss: float  # mean since the last report
    images_per_second: float
    seconds_left: float
    held_out_bits: float | None  # bits/dim on held-out images at the last preview
    doing: str = ""
    previewed_at: int | None = None  # images seen when `held_out_bits` was measured; None where that is not known


class Run:
    """A run folder and its training.

    Args:
        length: as requested; the plan is made from it once.
        warn: called with one line for each fault that does not stop the run.
        begin_with: the model whose weights it begins with.
        budget: of wall time for a leg, in seconds, to which its end is moved.
        began: when the time of this process begins to count, by `clock`.
        clock: seconds.
        further: whether the length is in addition to what a complete run has seen.
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
        begin_with: Origin | None = None,
        budget: float | None = None,
        began: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        further: bool = False,
    ) -> None:
        self.folder, self.config, self.data = folder, config, data
        self.facts = facts(data.train)
        together = processes or Processes()
        digest = data.train.digest() if together.first else ""
        together.wait_long()
        self.digest = together.text_of(0, digest)
        self.length, self.warn = length, warn
        self.log = RunLog(folder, lambda line: self.warn(line))
        self.owner: Owner | None = None  # checked before each save: is this still the folder's only trainer?
        self.begin_with, self.further = begin_with, further
        self.needs_leg = True  # before the next update
        self.origin: OriginState | None = None  # of the model that it began with
        self.document = to_json(config, self.facts)
        self.training = Training(config, self.facts, device, processes)
        self.divided = DividedWriter(folder, self.training.processes) if self.training.divided else None
        self.writer = self.divided or BackgroundWriter()
        self.plan = Plan()
        self.clock, self.began = clock, clock() if began is None else began
        self.seconds_before = 0.0  # taken by earlier processes, as far as they were saved
        self.budget = budget
        self.pace = pace(config, len(data.test), 0, budget)
        self.corrections: list[list[int]] = []  # [images seen, new end], until they are logged
        self.preview_seconds = 0.0
        self.preview: preview.Preview | None = None  # the last one, until it is logged
        self.held_out_bits: float | None = None
        self.previewed_at: int | None = None
        self.last_loss = math.nan  # reported
        self.health: Health | None = None  # measured at the end
        self.failed_saves = 0  # in a row
        self.complete = False
        self.fastest_on: str | None = None  # the processor on which the format was measured as the fastest of all

    def resume(self) -> list[str]:
        """Load the newest whole checkpoint, if there is one; returns what is wrong with damaged newer ones.

        Records, averages and previews after it are deleted: they will be made again.

        Raises:
            UserError: when the folder's run has other settings, naming them.
        """
        problems = self.take_up()
        self._delete_after(self.training.images)
        return problems

    def take_up(self) -> list[str]:
        """What `resume` does, without a change of the folder; a new leg is still to be begun, where it needs one."""
        saved, problems = checkpoint.latest(self.folder)
        if saved is None:
            return problems
        self.origin = saved.state.get("origin")
        self._need_same_origin()
        self.needs_leg = legs.begins_leg(
            self.folder, saved, self.config, self.facts, self.digest, self.length, further=self.further
        )
        self._restore_format(saved)
        self.training.load(saved.tensors, saved.images, str(saved.folder / "state.safetensors"))
        self.plan = from_state(saved.state, str(saved.folder / "state.json"))
        self.seconds_before = saved.state["seconds"]
        self.pace = pace(self.config, len(self.data.test), self.plan.legs[-1].spaced, self.budget)
        self.held_out_bits = saved.state["held_out_bits"]
        self.complete = saved.state["complete"]
        return problems

    @property
    def total(self) -> int:
        """Images seen at the end of the plan; 0 before the run has begun."""
        return self.plan.end

    def begin(self, images: int) -> None:
        """Plan a leg of so many images."""
        self.plan = self.plan.further(images, self.length, self.digest, self.seconds_before)
        self.pace.spacing = spacing(self.config.train, images)
        self.complete = self.needs_leg = False

    def time_prediction(self) -> None:
        """Time a call of the network, by which what previews and the end take is known before the first update."""
        averages = self.training.whole_averages()
        if self.training.processes.first:
            model = self._model(averages)
            images = images_per_call(run_calibration.MOST_IMAGES, *self.facts.shape[1:])
            for _ in range(2):  # the first allocates
                started = self.clock()
                preview.predict_once(self.config, self.facts, model, images, self.training.device)
                self.pace.predicted(images, self.clock() - started)

    @property
    def seconds(self) -> float:
        """Wall time of the run, over all restarts, the start of each process included."""
        return self.seconds_before + self.clock() - self.began

    @property
    def seconds_left(self) -> float:
        """Of the budget of the leg that is under way or about to begin."""
        assert self.budget is not None
        before = self.seconds_before if self.complete or not self.plan.legs else self.plan.legs[-1].began
        return self.budget - (self.seconds - before)

    def _need_same_origin(self) -> None:
        """Refuse another model to begin with than the folder's run began with."""
        asked, began = self.begin_with, self.origin and self.origin["name"]
        if asked is None and (began is None or self.further):
            return
        if asked is None:
            raise UserError(
                f"{self.folder}: holds a run that began with a model; add --from {quoted(began)}, or --fresh"
            )
        if began is None or not (began == asked.name or same_source(began, asked.given)):
            raise UserError(
                f"{self.folder}: holds a run that began with {began or 'no model'}, not with {asked.name}; begin with "
                "the same, or use another --out or --fresh"
            )

    def take_weights(self) -> None:
        """Begin with the weights of the model that was named, if one was.

        Raises:
            UserError: where the objective needs one and none was.
        """
        if self.begin_with is None and self.origin is None and self.training.objective.needs_model:
            raise UserError(
                f"diffusion.objective: {self.config.diffusion.objective} tunes a trained model, and none is named; use "
                "ancestral distill MODEL"
            )
        if self.begin_with is not None:
            new = {name: whole(value) for name, value in self.training.network.state_dict().items()}
            weights = self.begin_with.weights(self.config, self.facts, new)
            self.training.begin_with(weights, self.begin_with.name)
            self.origin = self.begin_with.state

    def use_format(self, compute_format: ComputeFormat) -> None:
        """Begin anew in this compute format."""
        if compute_format != self.training.format:
            old = self.training
            self.training = Training(self.config, self.facts, old.device, old.processes, compute_format)

    def _restore_format(self, saved: checkpoint.Checkpoint) -> None:
        """Use the checkpoint's compute format, as far as the settings leave it open."""
        state = saved.state
        before = ComputeFormat(
            state.get("precision", self.training.format.precision),
            bool(state.get("channels_last", saved.config.train.channels_last)),
        )
        layouts = {one.channels_last for one in self.training.formats}
        precision = before.precision if self.config.train.precision == "auto" else self.config.train.precision
        last = (before if layouts == {False, True} else self.training.formats[-1]).channels_last
        self.use_format(ComputeFormat(precision, last))
        self.fastest_on = state.get("fastest_on")

    def train(self, stop: Callable[[], bool]) -> Iterator[Progress]:
        """Train to the end of the plan, yielding progress about every percent; stop after a step once `stop()` is true.

        Raises:
            NotFinite: when the run cannot go on; the batch that stopped it is saved under RUN/stopped.
        """
        clock, processes, batch = self.clock, self.training.processes, self.config.train.batch_size
        reported, new = self.training.images, []
        last_save = last_check = before = clock()

        def flags(now: float) -> tuple[bool, bool, bool]:
            """Whether to stop, to save as the last is long ago, and to look at the budget, which the first decides."""
            late = self.budget is not None and now - last_check > self.budget / 100
            return stop(), processes.first and now - last_save > SAVE_EVERY, processes.first and late

        self.training.flags = lambda: flags(clock()) if processes.size > 1 else ()
        for record in self._records():
            new.append(record)
            now = clock()
            self.pace.trained(batch, now - before)
            leg = self.plan.legs[-1]
            done, every = record.images - leg.start, spacing(self.config.train, leg.spaced)
            crossed = done // every > (done - batch) // every
            if crossed and record.images < self.total:
                self._preview()
                processes.wait_long()
            # Several have agreed with the losses, in one call.
            stopping, unsaved, late = record.flags if processes.size > 1 else flags(now)
            reports, ends = record.images - reported >= leg.spaced / 100, record.images >= self.total
            steering = self.budget is not None and not stopping
            if steering and (ends or ((late or reports) and not self.pace.warming)):
                self.correct(record.images)
                last_check = now
            if reports or record.images >= self.total or stopping:
                yield self._report(new)
                reported, new = record.images, []
            due = crossed or stopping or unsaved
            if due and (stopping or record.images < self.total):
                self._save_if_possible(must=stopping)
                last_save = clock()
            if stopping:
                return
            before = clock()
        yield from self._finish(stop)

    def correct(self, images: int) -> None:
        """Move the end of the leg to where its budget will be used up, if it is not there nearly; the first decides.

        The plan goes on from the update just made: where that was the leg's first, it is planned anew. At its end
        predictions are timed once more, since all that comes is predicted, and other work may have made them slow.
        """
        assert self.budget is not None
        options, first = self.config.train, self.training.processes.from_first
        batch, end = options.batch_size, self.total
        astray = bool(first(float(self.pace.astray(end - images, self.seconds_left))))
        if astray and images >= end:
            self.time_prediction()
        left = self.seconds_left
        if astray and (images < end or left > self.pace.seconds(batch)):
            end = images + batch * self.pace.updates(left, batch)
        end = int(first(end))
        if end != self.total:
            self.plan = self.plan.corrected(images - batch, end)
            self.pace.spacing = spacing(options, self.plan.legs[-1].spaced)
            self.corrections.append([images - batch, end])

    def _records(self) -> Iterator[Record]:
        """The training's records; the batch of an update that stops it is saved for inspection."""
        try:
            yield from train(self.training, self.data.train, lambda: self.plan)
        except NotFinite as stopped:
            state = self.training.tensors()
            if self.training.processes.first:
                folder = checkpoint.save_for_inspection(
                    self.folder, self.training.images, stopped.batch, {**state, **stopped.inputs}
                )
                raise UserError(f"{stopped}; the batch and the state before it are in {folder}") from None
            self.training.processes.wait()  # the first names the folder, and who speaks first is heard
            raise

    def save(self, calibration: torch.Tensor | None = None) -> None:
        """Write a checkpoint: the first process, or where weights are divided each its part.

        In the background, but for one process on a CPU, which would write with the cores that it trains on.

        Raises:
            Unwritable: where the disk refuses it, or refused the one before in the background.
        """
        if self.owner is not None:
            self.owner.check()
        training = self.training
        state = {
            "total": self.total,
            "length": self.length,
            "data": self.digest,
            "seconds": self.seconds,
            "held_out_bits": self.held_out_bits,
            "complete": self.complete,
            "legs": self.plan.to_json(),
            **({} if self.origin is None else {"origin": self.origin}),
            **training.format._asdict(),  # what auto stands for in this run
            "fastest_on": self.fastest_on,
        }
        if self.divided is not None:
            self.divided.save(training.images, self.document, training.parts(), state, calibration)
        elif training.processes.first:
            alone = training.processes.size == 1 and training.device.type == "cpu"
            tensors = training.tensors() if alone else {name: part for name, (part, _) in training.parts().items()}
            weights = training.model_weights(tensors)
            write = partial(
                checkpoint.save, self.folder, training.images, self.document, weights, tensors, state, calibration
            )
            if alone:
                write()
            else:
                self.writer.begin(write)

    def _save_last(self, calibration: torch.Tensor | None = None) -> None:
        """Save, and wait until it is written."""
        with suppress(verified_folder.Unwritable):  # of the save before; this one is what counts
            self.writer.finish()
        self.save(calibration)
        self.writer.finish()

    def _save_if_possible(self, must: bool) -> None:
        """Save; after a failed write the next save tries again, and several in a row end the run."""
        started = self.clock()
        try:
            self._save_last() if must else self.save()
            self.pace.saving = max(self.clock() - started, self.writer.seconds)
            self.failed_saves = 0
        except verified_folder.Unwritable as error:
            self.failed_saves += 1
            if must or self.failed_saves == FAILED_SAVES:
                raise
            self.warn(f"{error}; training goes on, older checkpoints are untouched")

    def _report(self, records: list[Record]) -> Progress:
        """Log the records since the last report."""
        entry = entry_of(records, len(self.training.sampler), self.training.spikes.over_lowest)
        entry["seconds"] = round(self.seconds, 3)
        if self.corrections:
            entry["end_moved"], self.corrections = self.corrections, []
        if (leg := len(self.plan.legs)) > 1:
            entry["leg"] = leg
        if self.preview is not None:
            entry["held_out_bits_per_dim"] = self.preview.bits_per_dim
            entry["held_out_bits_by_tenth_of_t"] = self.preview.bits_by_tenth
        if self.training.processes.first:
            self.log.append(entry, self.preview)
            self.preview = None
        left = self.pace.seconds(max(0, self.total - entry["images"]))
        self.last_loss = math.nan if entry["loss"] is None else entry["loss"]
        return self._progress(left)

    def _progress(self, left: float, doing: str = "") -> Progress:
        speed = 1 / max(self.pace.image, 1e-9)
        found = self.held_out_bits, doing, self.previewed_at
        return Progress(self.training.images, self.total, self.last_loss, speed, left, *found)

    def _preview(self) -> None:
        """Save the averages; draw samples and measure the bound, while previews take less than `PREVIEW_SHARE`."""
        averages = self.training.whole_averages()
        if not self.training.processes.first:
            return
        images, started = self.training.images, self.clock()
        with beside("averages", self.warn):
            checkpoint.save_snapshot(self.folder, images, averages)
        kept = self.clock()
        self.pace.keeping = kept - started
        if self.preview_seconds <= PREVIEW_SHARE * self.seconds:
            with beside("preview", self.warn):
                model = self._model(averages)
                self.preview = preview.preview(self.config, self.facts, model, self.data.test, self.training.device)
                self.held_out_bits, self.previewed_at = self.preview.bits_per_dim, images
                pictures.save_sheet(self.folder / "previews" / f"{images:09d}.png", self.preview.images)
            self.pace.previewed(self.clock() - kept)
        self.preview_seconds += self.clock() - started

    def _model(self, averages: list[PowerAverage]) -> Denoiser:
        """The model with the average of the weights that the settings choose."""
        return build.ready(self.config, self.facts, averages[self.config.train.average].weights).to(
            self.training.device
        )

    def _finish(self, stop: Callable[[], bool]) -> Iterator[Progress]:
        """Calibrate, measure and save; whoever is told to stop twice saves what is trained, and does the end later."""
        try:
            yield from self._end(stop)
        except StopSignal:
            if self.divided is None:  # parts are written by all together
                self.complete = False  # also while that was being written
                self._save_last()
            raise

    def _end(self, stop: Callable[[], bool]) -> Iterator[Progress]:
        """Calibrate the variances on training images, measure the health of the run, and write the last checkpoint."""
        averages, table = self.training.whole_averages(), None
        first = self.training.processes.first
        yield self._ending(CALIBRATING)
        if first:
            with beside("averages", self.warn):
                checkpoint.save_snapshot(self.folder, self.training.images, averages)
            with beside("calibration", self.warn):
                table = run_calibration.calibration(
                    self.config,
                    self._model(averages),
                    self.data.train,
                    self.training.device,
                    count=self.pace.calibration_images,
                )
        self.training.processes.wait_long()
        if self.training.processes.any(stop()):
            self._save_last()
            return
        yield self._ending(MEASURING)
        if first:
            with beside("health", self.warn):
                # A run that began with a model need not lower its loss.
                log = [] if self.origin else self.log.read()
                self.health = health(self.config, self._model(averages), table, self.data, log)
                verified_folder.write_file(self.folder / "health.json", json_bytes(self.health.to_json()))
        yield self._ending(SAVING)
        self.training.processes.wait_long()
        self.complete = True
        self._save_last(table)

    def _ending(self, doing: str) -> Progress:
        """What is done at the end, and how long that and what follows take."""
        parts = self.pace.ending
        following = list(parts)[list(parts).index(doing) :]
        return self._progress(sum(parts[one] for one in following), doing)

    def _delete_after(self, images: int) -> None:
        """Delete records, averages and previews that a killed run has left from after its checkpoint."""
        self.training.processes.wait()  # until each has read what the first will write over
        if not self.training.processes.first:
            return
        reached = self.log.truncate(images)
        if self.plan.legs and images - reached >= max(1, self.plan.legs[-1].spaced / 100):  # a record is due
            self.warn(f"{self.log.path}: has no record of images {reached:,} to {images:,}; it goes on after them")
        with beside("averages and previews of before", self.warn):
            for later in (*self.folder.glob("averages/*"), *self.folder.glob("previews/*.png")):
                if later.stem.isdigit() and int(later.stem) > images:
                    shutil.rmtree(later) if later.is_dir() else later.unlink()
