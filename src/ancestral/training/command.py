"""What `ancestral train` does, once its options are known to be right."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn

from ancestral.data import load
from ancestral.data.dataset import Splits
from ancestral.data.source_paths import public
from ancestral.errors import UserError
from ancestral.runs import build, checkpoint, compute_format, config
from ancestral.runs.compute_format import FORMATS, Timed
from ancestral.runs.config_versions import variance_as_begun
from ancestral.runs.datasets import named_untrained
from ancestral.runs.lock import FOLDER as OWNERS
from ancestral.runs.lock import own
from ancestral.runs.metrics_log import read_metrics
from ancestral.runtime import disk, plots, verified_folder
from ancestral.runtime.console import Progress, TextColumn, screen, together, write_text
from ancestral.runtime.distributed import Processes
from ancestral.runtime.side_tasks import beside
from ancestral.runtime.signals import until_told
from ancestral.training import cost as estimate
from ancestral.training import inventory, trackers
from ancestral.training import run as runner

PLANNED_SHARE = 0.92  # of a time budget goes to training steps; the rest to previews, saving and measuring


@dataclass(frozen=True)
class Length:
    """How long a run is to be: exactly one of a wall time in seconds, images seen, or updates."""

    budget: float | None
    images: int | None
    steps: int | None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.budget, self.images, self.steps)) > 1:
            raise UserError("--budget, --images and --steps each set the length of the run; give one of them")

    def __str__(self) -> str:
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return " ".join(f"--{name} {value:g}" for name, value in given.items()) or "no length given"

    def plan(self, batch_size: int, speed: float) -> int:
        """Images to see in all, a whole number of batches."""
        if self.steps is not None:
            return self.steps * batch_size
        images = self.images or (self.budget or 600.0) * PLANNED_SHARE * speed
        return max(1, round(images / batch_size)) * batch_size


def train(
    settings: config.Config,
    folder: Path,
    length: Length,
    device: str,
    *,
    dry_run: bool,
    fresh: bool,
    track: Sequence[str] = (),
    images: Splits | None = None,
) -> bool:
    """Train, or go on training, and say how it goes; told to stop at any time, it saves.

    Args:
        settings: of the run.
        folder: for the run.
        length: of the run.
        device: by name.
        dry_run: only say what would be done.
        fresh: move a run that is there aside.
        track: trackers to tell as well.
        images: those to train on where they are in memory; otherwise those of the settings' source.

    Returns:
        Whether all was done; False when it was told to stop.
    """
    trackers.check(track)
    on = build.device(device)
    with together(on) as processes:
        return _train(settings, folder, length, on, processes, dry_run=dry_run, fresh=fresh, track=track, images=images)


def _train(
    settings: config.Config,
    folder: Path,
    length: Length,
    on: torch.device,
    processes: Processes,
    *,
    dry_run: bool,
    fresh: bool,
    track: Sequence[str],
    images: Splits | None,
) -> bool:
    settings = replace(settings, source=load.settled(settings.source))
    images = images or load.load(settings.source, settings.data)
    if images.reading.white is not None:  # kept, so that what the run is given later is read as its images were
        settings = replace(settings, data=replace(settings.data, white=images.reading.white))
    if settings.model.labels and images.train.class_names != images.test.class_names:
        raise UserError(
            f"{settings.source}: the images held out have other classes, or none ({images.reading.classes}); label "
            "them like those to train on, or train without: --set model.labels=false"
        )
    known = inventory.understood(images) if processes.first else {}
    for line in inventory.paragraph(images, known) if known else []:
        _say(line)
    settings = settings if fresh else _as_begun(settings, folder)
    run = runner.Run(folder, settings, images, on, str(length), processes, _warn)
    if run.facts.untrained:
        _warn(f"{named_untrained(run.facts.untrained)}: not learned, and cannot be drawn")
    if dry_run:
        _describe(settings, run, length)
        return True
    run.owner = own(folder, _warn) if processes.first else None
    try:
        if fresh and processes.first:
            _set_aside(folder)
        processes.wait()
        return _go_on(run, length, track, known)
    finally:
        if run.owner is not None:
            run.owner.release()


def _as_begun(settings: config.Config, folder: Path) -> config.Config:
    """The settings in the words of today, where the folder's run was begun in those of an earlier version."""
    try:
        begun = disk.document(folder / "config.json", float)
    except (disk.Missing, disk.Damaged):  # what can be resumed is asked for later
        return settings
    asked = settings.diffusion.variance
    meant = variance_as_begun(asked, begun.get("config") if isinstance(begun, dict) else None)
    if meant == asked:
        return settings
    _say(f"diffusion.variance={asked}: when {folder} was begun, this was what is called {meant} now; it goes on so")
    return replace(settings, diffusion=replace(settings.diffusion, variance=meant))


def _set_aside(folder: Path) -> None:
    """Move all of a run but its ownership into a folder beside it; its checkpoints last, so that it can be resumed."""
    there = sorted(
        (path for path in folder.iterdir() if path.name != OWNERS), key=lambda one: one.name == "checkpoints"
    )
    if there:
        aside = folder.with_name(f"{folder.name}-before-{time.strftime('%Y%m%d-%H%M%S')}")
        aside.mkdir()
        for path in there:
            path.rename(aside / path.name)
        _say(f"the run that was there is now {aside}")


def _go_on(run: runner.Run, length: Length, track: Sequence[str], known: dict[str, Any]) -> bool:
    """Train what there is left to train of a run that is owned; whether that was all."""
    folder, images, settings, processes = run.folder, run.data, run.config, run.training.processes
    for problem in run.resume():
        _warn(f"{problem}; the checkpoint before it is used")
    if processes.first and not (run.total and (folder / "data.json").is_file()):  # older runs have none
        write_text(folder / "data.json", json.dumps(known, indent=1) + "\n")
    if run.complete:
        _say(f"{folder} is complete ({run.total:,} images seen); --fresh trains it anew")
        return True
    if not run.total:
        if (chosen := choose_format(run)) is not None:
            _say(chosen)
        # Only a length in time needs to know how fast this machine is.
        speed = estimate.measure_speed(run.training, images.train) if length.images is length.steps is None else 1.0
        run.total = length.plan(settings.train.batch_size, speed)
        if processes.first:
            write_text(folder / "config.json", json.dumps(run.document, indent=1) + "\n")
    height, width, channels = images.train.shape
    with until_told() as told:
        _say(
            f"{len(images.train):,} images of {height}x{width}x{channels} to train on, {len(images.test):,} held out; "
            f"{_parameters(run):,} parameters on {run.training.device} in {run.training.format}; "
            f"{run.training.images:,} of {run.total:,} images seen"
        )
        if processes.first:
            with beside("trackers", _warn):
                known = {**trackers.flat(run.document), "config.source": public(settings.source)}
                run.tracker = trackers.open_trackers(track, folder, known, _warn)
        _watch(run, told)
    if run.tracker is not None:
        with beside("trackers", _warn):
            run.tracker.close()
    if not run.complete:
        _say(f"stopped and saved at {run.training.images:,} images; the same command goes on from there")
        return False
    if not processes.first:
        return True
    with beside("loss.png", _warn):
        log = [entry for entry in read_metrics(folder / "metrics.jsonl", _warn) if entry["loss"] is not None]
        plot = plots.loss_plot([entry["images"] for entry in log], [entry["loss"] for entry in log])
        verified_folder.write_file(folder / "loss.png", plot)
    findings = [] if run.health is None else run.health.findings
    for finding in findings:
        _warn(finding)
    _say(f"trained in {run.seconds / 60:.1f} min; {_next(run, length, findings=bool(findings))}")
    return True


def _next(run: runner.Run, length: Length, *, findings: bool) -> str:
    """What to do with a run that has ended."""
    if not findings:
        return f"now: ancestral sample {run.folder}"
    rate = run.config.train.learning_rate
    return (
        f"what it draws will not look like the images yet: see loss.png in {run.folder}, then train it longer than "
        f"{length} or with another learning rate (train.learning_rate={rate:g} now), with --fresh or another --out"
    )


def choose_format(run: runner.Run, layers: Callable[..., Timed] = compute_format.layers_of) -> str | None:
    """What `auto` stands for in a run that begins: on a CPU the fastest, by a short measurement; a line that says so.

    The first process measures, for all. None is said where the settings leave nothing open.
    """
    training, processes = run.training, run.training.processes
    settings, device, seconds = run.config.train, training.device, {}
    automatic = [name for name in ("precision", "channels_last") if getattr(settings, name) == "auto"]
    if not automatic:
        return None
    chosen = training.format
    if processes.first and device.type == "cpu" and len(training.formats) > 1:
        seconds = compute_format.measured(training.formats, layers(run.config, run.facts, device))
        chosen = compute_format.fastest(seconds)
        if len(automatic) == 2:
            run.fastest_on = compute_format.processor()
    run.compute_in(FORMATS[int(processes.from_first(float(FORMATS.index(chosen))))])
    how = compute_format.told(seconds) if seconds else "nothing to choose between on this device"
    return f"{' and '.join(f'train.{name}' for name in automatic)} = auto: {run.training.format} ({how})"


def _watch(run: runner.Run, told: Any) -> None:
    """Run the training with a bar on a terminal, and with a line each half minute elsewhere."""
    columns = TextColumn("{task.percentage:3.0f}%"), BarColumn(), TextColumn("{task.description}")
    bar = Progress(*columns)
    last_line = -1e9
    with bar:
        task = bar.add_task("starting", total=run.total, completed=run.training.images)
        for progress in run.train(told):
            bits = "" if progress.held_out_bits is None else f", held out {progress.held_out_bits:.2f} bits/dim"
            left = f"{int(progress.seconds_left) // 60}:{int(progress.seconds_left) % 60:02d} left"
            text = f"loss {progress.loss:.4f}{bits}, {progress.images_per_second:.0f} images/s, {left}"
            with suppress(OSError):
                bar.update(task, completed=progress.images, description=text)
            if not screen.is_terminal and time.monotonic() - last_line > 30:
                _say(f"{progress.images:,} of {progress.total:,} images: {text}")
                last_line = time.monotonic()


def _parameters(run: runner.Run) -> int:
    return sum(parameter.numel() for parameter in run.training.network.parameters())


def _say(line: str) -> None:
    """Print, if there is a screen: a training does not end because nobody reads what it says."""
    with suppress(OSError):
        screen.print(line)


def _warn(line: str) -> None:
    _say(f"warning: {line}")


def _describe(settings: config.Config, run: runner.Run, length: Length) -> None:
    if (chosen := choose_format(run)) is not None:
        screen.print(chosen)
    cost = estimate.measure(run.training, run.data.train)
    speed, batch = cost.images_per_second, settings.train.batch_size
    total = length.plan(settings.train.batch_size, speed)
    for key in config.known_keys():
        group, name = key.split(".")
        screen.print(f"{key} = {json.dumps(asdict(settings)[group][name])}")
    screen.print("")
    for line in (
        f"{cost.parameters:,} parameters; an update of {batch} images: {cost.flops / 1e9:,.1f} GFLOP in "
        f"{batch / speed:.3f} s ({speed:.0f} images/s here, {cost.flops / batch * speed / 1e9:,.1f} GFLOP/s)",
        f"memory: {cost.state_bytes / 1e6:,.0f} MB of weights, gradients, moments and averages, "
        f"{cost.activation_bytes / 1e6:,.0f} MB of activations, "
        f"{len(run.data.train) * prod(run.facts.shape) / 1e6:,.0f} MB of images",
        f"disk: {cost.state_bytes / 1e6:,.0f} MB a checkpoint, of which {checkpoint.KEEP} are kept",
        f"{length}: {total:,} images = {total // batch:,} updates = {total / len(run.data.train):.1f} epochs of "
        f"{len(run.data.train):,} images, in about {total / speed / 60:.1f} min of training steps",
    ):
        screen.print(line)
