"""`ancestral train`: train or resume a run, with progress on the screen."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn

from ancestral.data import load
from ancestral.data.dataset import Splits
from ancestral.data.inventory import counted
from ancestral.data.shared import load_once
from ancestral.data.source_paths import public
from ancestral.errors import UserError
from ancestral.runs import build, checkpoint, config, current_settings
from ancestral.runs.checkpoint import Checkpoint
from ancestral.runs.datasets import facts, named_untrained
from ancestral.runs.length import Length, typed
from ancestral.runs.lock import need_free, own
from ancestral.runs.memory_need import fits, need_for_training
from ancestral.runs.metrics_log import leg_starts, read_metrics
from ancestral.runtime import plots, verified_folder
from ancestral.runtime.console import Progress, TextColumn, TimeLeft, screen
from ancestral.runtime.distributed import Processes, process_group
from ancestral.runtime.encode import json_bytes
from ancestral.runtime.launch import attempt
from ancestral.runtime.side_tasks import beside
from ancestral.runtime.signals import catch_stop
from ancestral.runtime.text import minutes, quoted
from ancestral.training import cost, health, inventory, legs, model_size, origin, trackers
from ancestral.training.budget import spacing
from ancestral.training.format_choice import choose_format
from ancestral.training.gradient_sync import images_at_a_time
from ancestral.training.origin import Origin
from ancestral.training.outlook import levels_of, outlook
from ancestral.training.run import Run
from ancestral.training.set_aside import need_apart, set_aside

_PASSED_OVER = "{}; the checkpoint before it is used"


def planned(run: Run, length: Length, images_per_second: float) -> int:
    """Images that a leg of a run is to train on, a whole number of batches; the first process decides."""
    options = run.config.train
    run.pace.measured(images_per_second, cost.SECONDS)
    run.time_prediction()
    if run.budget is None:
        images = length.counted(options.batch_size)
        run.pace.spacing = spacing(options, images)
        return images
    images = run.pace.images(run.seconds_left, options)
    return int(run.training.processes.from_first(images))


def _stopped_at_its_end(run: Run) -> bool:
    """Whether a leg has a budget of which what is left was not looked at: a stop in the last update is heeded first."""
    return run.budget is not None and run.training.images >= run.total


def bought(run: Run, length: Length, images: int) -> str:
    """What a length of so many images buys on this machine, in updates and in what they give."""
    updates = images // run.config.train.batch_size
    levels = () if run.begin_with or run.origin else levels_of(run.config, run.facts)
    look = outlook(levels, run.training.images, images, lambda more: run.clock() - run.began + run.pace.seconds(more))
    return f"{typed(str(length))} buys {counted(updates, 'update')} on this machine: {look}"


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
    given: Collection[str] = (),
    begin_with: Origin | None = None,
    began: float | None = None,
) -> bool:
    """Train or resume a run, with progress on the screen; a signal to stop makes it save and return.

    Args:
        settings: of the run.
        folder: for the run.
        length: of the run.
        device: by name.
        dry_run: only print the settings and the cost.
        fresh: move a run in the folder aside and begin anew.
        track: names of trackers.
        images: those to train on where they are in memory; otherwise those of the settings' source.
        given: keys of the settings that were set one by one, not by a preset.
        begin_with: the model that the run begins with; its network and process are the run's.
        began: when the wall time began to count, as of `time.monotonic`; now when left out.

    Returns:
        Whether the run is complete; False when it was stopped.
    """
    began = time.monotonic() if began is None else began
    fresh = fresh and not attempt()  # whoever is begun again goes on
    trackers.check(track)
    need_apart(folder, settings.source, fresh)
    torch_device = build.device(device)
    with process_group(torch_device) as processes:
        plan = _plan(settings, folder, length, torch_device, processes, images, fresh, given, begin_with)
        run = Run(
            folder,
            plan.settings,
            plan.images,
            torch_device,
            str(length),
            processes,
            _warn,
            begin_with=begin_with,
            budget=length.seconds,
            began=began,
            further=length.further,
        )
        if run.facts.untrained:
            _warn(f"{named_untrained(run.facts.untrained)}: not learned, and cannot be drawn")
        if dry_run:
            need_free(folder, _warn)
            for problem in [] if fresh else run.take_up():
                _warn(_PASSED_OVER.format(problem))
            _describe(plan.settings, run, length, plan.law)
            return True
        with _owned(run):
            if fresh and processes.first and (aside := set_aside(folder)) is not None:
                _say(f"the run that was there is now {aside}")
            processes.wait()
            return _train_owned(run, length, track, plan.summary, plan.images_per_second)


@dataclass(frozen=True)
class _Plan:
    """What a run is made of, once its images were read."""

    settings: config.Config  # as the images, this machine and the length have them
    images: Splits
    summary: dict[str, Any]  # of the images, on the first process
    images_per_second: float | None  # where it was measured
    law: model_size.Law | None


def _plan(
    settings: config.Config,
    folder: Path,
    length: Length,
    device: torch.device,
    processes: Processes,
    images: Splits | None,
    fresh: bool,
    given: Collection[str],
    begin_with: Origin | None,
) -> _Plan:
    """Read the images and settle what is open in the settings, saying each; arguments as of `train`.

    Raises:
        UserError: where the images, the settings, the model to begin with and this machine do not go together.
    """
    settings, begun = _of_beginning(settings, folder, length, fresh=fresh, given=given, begin_with=begin_with)
    settings, images = _read(settings, images, processes)
    summary = inventory.summary(images) if processes.first else {}
    for line in inventory.paragraph(images, summary) if summary else []:
        _say(line)
    there = folder if checkpoint.folders(folder) and not fresh else None
    settings, own_settings, of_begun = current_settings.as_begun(settings, given, device, there)
    data_facts = facts(images.train)
    settings, of_images = current_settings.for_images(settings, data_facts, own_settings)
    for line in (of_begun, of_images):
        if line:
            _say(line)
    together = images_at_a_time(settings.train, processes)
    need_for_training(settings, data_facts, together, device)
    if begin_with is not None or length.further:
        images_per_second, law = None, model_size.law(settings, data_facts)
    else:
        train_set = images.train
        settings, images_per_second, law = model_size.sized(
            settings,
            given,
            length.seconds,
            data_facts,
            own_settings,
            lambda config: cost.speed_with(config, train_set, device, processes),
            lambda config: not processes.any(not fits(config, data_facts, together, device)),
            _say,
        )
    if begin_with is not None and begun is None:
        for line in begin_with.check(settings, data_facts, given):
            _say(line)
    return _Plan(settings, images, summary, images_per_second, law)


@contextmanager
def _owned(run: Run) -> Iterator[None]:
    """Nobody else trains this run meanwhile."""
    run.owner = own(run.folder, _warn) if run.training.processes.first else None
    try:
        yield
    finally:
        run.writer.close()
        if run.owner is not None:
            run.owner.release()


def _of_beginning(
    settings: config.Config,
    folder: Path,
    length: Length,
    *,
    fresh: bool,
    given: Collection[str],
    begin_with: Origin | None,
) -> tuple[config.Config, Checkpoint | None]:
    """The settings as the run that goes on has them, or the model that it begins with; and that run, where it is there.

    Raises:
        UserError: where there is nothing to go on with, or a setting does not suit it.
    """
    if not length.further and begin_with is None:
        return settings, None
    begun = None if fresh else checkpoint.latest(folder)[0]
    if begin_with is not None and not length.further:
        begin_with.need_other_than(folder)
        return origin.settings(settings, given, (begun or begin_with.model).config), begun
    if begun is None:
        raise UserError(
            f"{typed(str(length))}: there is no run in {folder} to go on with; leave out the +"
            + (", or --fresh, which begins anew" if fresh else "")
        )
    return legs.own_settings(settings, given, begun.config), begun


def _read(settings: config.Config, images: Splits | None, processes: Processes) -> tuple[config.Config, Splits]:
    """The images, those of the settings' source where none are given; and the settings with what was read in them.

    Raises:
        UserError: where they cannot be read, or those held out have other classes.
    """
    cache = None if settings.data.cache is None else os.path.abspath(settings.data.cache)
    settings = replace(settings, source=load.settled(settings.source), data=replace(settings.data, cache=cache))
    source, options = settings.source, settings.data
    images = images or load_once(processes, lambda: load.load(source, options), options.cache)
    if images.reading.white is not None:  # kept, so that later images of this run are read alike
        settings = replace(settings, data=replace(settings.data, white=images.reading.white))
    if settings.model.labels and images.train.class_names != images.test.class_names:
        raise UserError(
            f"{settings.source}: the images held out have other classes, or none ({images.reading.classes}); label "
            "them like those to train on, or train without: --set model.labels=false"
        )
    lengths = [0 if one.embeddings is None else one.embeddings.shape[1] for one in (images.train, images.test)]
    if settings.model.embedding and lengths[0] != lengths[1] and len(images.test):
        raise UserError(
            f"{settings.source}: vectors of {lengths[0]} numbers to train on, of {lengths[1]} held out; give all alike"
        )
    return settings, images


def _train_owned(
    run: Run, length: Length, track: Sequence[str], summary: dict[str, Any], images_per_second: float | None
) -> bool:
    """Train or resume a run whose folder is locked; whether it is complete.

    Its speed is measured where a plan asks for it and it is None.
    """
    folder, images, processes = run.folder, run.data, run.training.processes
    for problem in run.resume():
        _warn(_PASSED_OVER.format(problem))
    _say_leg(run)
    if processes.first and (run.needs_leg or not (folder / "data.json").is_file()):  # older runs have none
        verified_folder.write_file(folder / "data.json", json_bytes(summary))
    if run.complete and not run.needs_leg:
        if processes.first and not (folder / "loss.png").exists():  # it was stopped before
            _draw_loss(folder)
        _say_complete(run)
        return True
    _prepare(run)
    _begin_leg(run, length, images_per_second)
    height, width, channels = images.train.shape
    parameters = sum(value.numel() for value in run.training.network.parameters())
    with catch_stop() as stop_requested:
        _say(
            f"{len(images.train):,} images of {height}x{width}x{channels} to train on, {len(images.test):,} held out; "
            f"{parameters:,} parameters on {run.training.device} in {run.training.format}; "
            f"{run.training.images:,} of {run.total:,} images seen"
        )
        if processes.first:
            with beside("trackers", _warn):
                shown = {**config.flat(run.document), "config.source": public(run.config.source)}
                run.log.tracker = trackers.open_trackers(track, folder, shown, _warn)
        _train_with_progress(run, stop_requested)
    if run.log.tracker is not None:
        with beside("trackers", _warn):
            run.log.tracker.close()
    if not run.complete:
        _say(f"stopped and saved at {run.training.images:,} images; the same command goes on from there")
        return False
    if processes.first:
        _draw_loss(folder)
        _say_trained(run)
    return True


def _begin_leg(run: Run, length: Length, images_per_second: float | None) -> None:
    """Begin the leg that is asked for, or go on with that which was stopped: how many images it sees."""

    def speed() -> float:  # only a length in time needs to know how fast this machine is
        return images_per_second or cost.measure_speed(run.training, run.data.train)

    if run.needs_leg:
        if run.budget is None:
            run.begin(length.counted(run.config.train.batch_size))
        else:
            run.begin(planned(run, length, speed()))
            _say(bought(run, length, run.total - run.training.images))
        if run.training.processes.first:
            verified_folder.write_file(run.folder / "config.json", json_bytes(run.document))
    elif _stopped_at_its_end(run):
        run.pace.measured(speed(), cost.SECONDS)
        run.correct(run.training.images)


def _say_trained(run: Run) -> None:
    """What took how long, what is wrong with it, and what to do now."""
    advice = f"now: ancestral sample {quoted(run.folder)}"
    for finding in [] if run.health is None else run.health.findings:
        _warn(finding)
        advice = (
            f"what it draws will not look like the images yet: see loss.png in {run.folder}, then train it longer, "
            "with --budget +10m as the length in the same command, or with --fresh and another learning rate "
            f"(train.learning_rate={run.config.train.learning_rate:g} now)"
        )
    held_out, needed = len(run.data.test), health.MIN_IMAGES
    if run.config.data.holdout and held_out < needed and health.calls(run.config, needed):
        mend = (
            "give more images, or raise data.holdout"
            if "data.holdout" in run.data.reading.split
            else "hold out more images"
        )
        _warn(f"what was learned is not checked: {counted(held_out, 'image')} held out, {needed} are needed; {mend}")
    _say(f"trained in {run.seconds / 60:.1f} min; {advice}")


def _draw_loss(folder: Path) -> None:
    """Write the loss of all legs into loss.png."""
    with beside("loss.png", _warn):
        log = [entry for entry in read_metrics(folder / "metrics.jsonl", _warn) if entry["loss"] is not None]
        plot = plots.loss_plot([one["images"] for one in log], [one["loss"] for one in log], leg_starts(log))
        verified_folder.write_file(folder / "loss.png", plot)


def _train_with_progress(run: Run, stop_requested: Callable[[], bool]) -> None:
    """Train with a progress bar on a terminal, and with a line each half minute elsewhere."""
    with Progress(
        TextColumn("{task.percentage:3.0f}%"), BarColumn(), TextColumn("{task.description}"), TimeLeft()
    ) as bar:
        task = bar.add_task("starting", total=1.0)
        for progress in run.train(stop_requested):
            at = "" if progress.previewed_at is None else f" (at {progress.previewed_at:,})"
            bits = (
                "" if progress.held_out_bits is None else f", held-out bound {progress.held_out_bits:.2f} bits/dim{at}"
            )
            text = progress.doing or (
                f"{progress.images:,} of {progress.total:,} images, loss {progress.loss:.4f}{bits}, "
                f"{progress.images_per_second:.0f} images/s"
            )
            done = run.seconds / (run.seconds + progress.seconds_left)
            with suppress(OSError):
                bar.update(task, completed=done, description=text, ends=time.monotonic() + progress.seconds_left)


def _say(line: str) -> None:
    """Print; a closed screen does not end a training."""
    with suppress(OSError):
        screen.print(line)


def _say_leg(run: Run) -> None:
    """Say what a new leg is, where a complete run begins one."""
    if run.complete and run.needs_leg:
        saved = checkpoint.open_run(run.folder)[0]
        for line in legs.described(run.folder, saved, run.config, run.digest, len(run.data.train)):
            _say(line)


def _say_complete(run: Run) -> None:
    _say(f"{run.folder} is complete ({run.total:,} images seen); --budget +10m trains it longer, --fresh anew")


def _warn(line: str) -> None:
    _say(f"warning: {line}")


def _prepare(run: Run) -> None:
    """Choose the compute format of a new run, and take the weights that it begins with."""
    if run.needs_leg and not run.complete:
        if (chosen := choose_format(run)) is not None:
            _say(chosen)
        run.take_weights()


def _describe(settings: config.Config, run: Run, length: Length, law: model_size.Law | None) -> None:
    """What `_train_owned` would do with this run, the cost, and by this law what other budgets would give."""
    _say_leg(run)
    if run.complete and not run.needs_leg:
        _say_complete(run)
        return
    _prepare(run)
    costs = cost.measure(run.training, run.data.train)
    speed = costs.images_per_second
    if run.needs_leg:
        total = planned(run, length, speed)
    else:
        run.pace.measured(speed, cost.SECONDS)
        run.time_prediction()
        if _stopped_at_its_end(run):
            run.correct(run.training.images)
        total = run.total - run.training.images
        screen.print(f"{run.folder}: goes on; {run.training.images:,} of {run.total:,} images seen")
    for key in config.known_keys():
        group, name = key.split(".")
        screen.print(f"{key} = {json.dumps(asdict(settings)[group][name])}")
    screen.print("")
    for line in (*_costs(run, length, costs, total), bought(run, length, total)):
        screen.print(line)
    if law is not None:
        screen.print(model_size.curve(law, run.pace.seconds(total), law.per_second(settings.model.width, speed)))


def _costs(run: Run, length: Length, costs: cost.Cost, total: int) -> list[str]:
    """What an update of a run and a leg of so many images take, a line each."""
    options, speed, batch = run.config.train, costs.images_per_second, run.config.train.batch_size
    kept = checkpoint.KEEP * costs.state_bytes
    averages = 4 * costs.parameters * len(options.average_widths) * options.snapshots
    whole = length.images is None or length.images == length.counted(batch)
    rounded = "" if whole else f" (whole updates of {batch})"
    begun = "" if run.budget is None else f", after {minutes(run.clock() - run.began)} of reading and timing"
    return [
        f"{costs.parameters:,} parameters; an update of {batch} images: {costs.flops / 1e9:,.1f} GFLOP in "
        f"{batch / speed:.3f} s ({speed:.0f} images/s here, {costs.flops / batch * speed / 1e9:,.1f} GFLOP/s)",
        f"memory: {costs.state_bytes / 1e6:,.0f} MB of weights, gradients, moments and averages, "
        f"{costs.activation_bytes / 1e6:,.0f} MB of activations, "
        f"{len(run.data.train) * prod(run.facts.shape) / 1e6:,.0f} MB of images",
        f"disk: {(kept + averages) / 1e6:,.0f} MB, of {checkpoint.KEEP} checkpoints and {options.snapshots} snapshots "
        "of the averages",
        f"{typed(str(length))}: {total:,} images{rounded} = {counted(total // batch, 'update')} = "
        f"{total / len(run.data.train):.1f} epochs of {len(run.data.train):,} images, in about "
        f"{minutes(run.pace.seconds(total))} of training, previews, measuring and saving{begun}",
    ]
