"""What the commands do, once their options are known to be right."""

from __future__ import annotations

import csv
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from ancestral import baselines, build, checkpoint, config, data, figures, runner
from ancestral.bound import Bound, bound, calibrate, concatenate, mean_and_error
from ancestral.errors import UserError
from ancestral.grids import full
from ancestral.rng import Streams
from ancestral.sample import Film, latents, trajectory
from ancestral.sample import film as keep_frames
from ancestral.train import facts, measure_speed, to_bytes, to_unit

_screen = Console(highlight=False, soft_wrap=True)
FRAMES = 12  # of a film
FILMED = 8  # images in a film
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

    def plan(self, batch_size: int, speed: float) -> int:
        """Images to see in all, a whole number of batches."""
        if self.steps is not None:
            return self.steps * batch_size
        images = self.images or (self.budget or 600.0) * PLANNED_SHARE * speed
        return max(1, round(images / batch_size)) * batch_size


def train(settings: config.Config, folder: Path, length: Length, device: str, *, dry_run: bool, fresh: bool) -> None:
    """Train, or go on training, and say how it goes."""
    images = data.load(settings.source, settings.data)
    for line in images.skipped:
        _screen.print(f"left out: {line}")
    known, on = facts(images.train), build.device(device)
    run = runner.Run(folder, settings, known, on)
    if dry_run:
        _describe(settings, run, images, length, measure_speed(settings, known, on, images.train))
        return
    if fresh and folder.exists():
        aside = folder.with_name(f"{folder.name}-before-{time.strftime('%Y%m%d-%H%M%S')}")
        folder.rename(aside)
        _screen.print(f"the run that was there is now {aside}")
    for problem in run.resume():
        _screen.print(f"warning: {problem}; the checkpoint before it is used")
    if run.complete:
        _screen.print(f"{folder} is complete ({run.total:,} images seen); --fresh trains it anew")
        return
    if not run.total:
        # Only a length in time needs to know how fast this machine is.
        speed = measure_speed(settings, known, on, images.train) if length.images is length.steps is None else 1.0
        run.total = length.plan(settings.train.batch_size, speed)
        _write_text(folder / "config.json", json.dumps(run.document, indent=1) + "\n")
    height, width, channels = images.train.shape
    _screen.print(
        f"{len(images.train):,} images of {height}x{width}x{channels} to train on, {len(images.test):,} held out; "
        f"{_parameters(run):,} parameters on {on}; {run.training.images:,} of {run.total:,} images seen"
    )
    with runner.until_told() as told:
        _watch(run, images, told)
        if not run.complete:
            _screen.print(f"stopped and saved at {run.training.images:,} images; the same command goes on from there")
            sys.exit(runner.STOPPED)
    entries = runner.read_metrics(folder / "metrics.jsonl")
    figures.loss_plot(folder / "loss.png", [entry["images"] for entry in entries], [entry["loss"] for entry in entries])
    _screen.print(f"trained in {run.seconds / 60:.1f} min; now: ancestral sample {folder}")


def _watch(run: runner.Run, images: data.Splits, told: Any) -> None:
    """Run the training with a bar on a terminal, and with a line each half minute elsewhere."""
    bar = Progress(
        TextColumn("{task.percentage:3.0f}%"), BarColumn(), TextColumn("{task.description}"), console=_screen
    )
    last_line = -1e9
    with bar:
        task = bar.add_task("starting", total=run.total, completed=run.training.images, visible=_screen.is_terminal)
        for progress in run.train(images, told):
            bits = "" if progress.held_out_bits is None else f", held out {progress.held_out_bits:.2f} bits/dim"
            left = f"{int(progress.seconds_left) // 60}:{int(progress.seconds_left) % 60:02d} left"
            text = f"loss {progress.loss:.4f}{bits}, {progress.images_per_second:.0f} images/s, {left}"
            bar.update(task, completed=progress.images, description=text)
            if not _screen.is_terminal and time.monotonic() - last_line > 30:
                _screen.print(f"{progress.images:,} of {progress.total:,} images: {text}")
                last_line = time.monotonic()


def _parameters(run: runner.Run) -> int:
    return sum(parameter.numel() for parameter in run.training.network.parameters())


def _describe(settings: config.Config, run: runner.Run, images: data.Splits, length: Length, speed: float) -> None:
    total = length.plan(settings.train.batch_size, speed)
    for key in config.known_keys():
        group, name = key.split(".")
        _screen.print(f"{key} = {json.dumps(asdict(settings)[group][name])}")
    _screen.print(
        f"\n{_parameters(run):,} parameters; {speed:.0f} images/s here; {total:,} images = "
        f"{total // settings.train.batch_size:,} updates = {total / len(images.train):.1f} epochs of "
        f"{len(images.train):,} images, in about {total / speed / 60:.1f} min of training steps"
    )


def sample(
    folder: Path,
    *,
    num_images: int,
    steps: int | None,
    grid: str,
    eta: float | None,
    variance: str | None,
    out: Path | None,
    label: str | None,
    film: bool,
    batch_size: int,
    average_width: float | None,
    seed: int,
    device: str,
) -> None:
    """Draw images into a folder: numbered PNGs, a contact sheet and, if asked, the film of the first ones."""
    saved, model = _open(folder, device, average_width)
    if eta is None and variance is None and steps is not None:
        eta = 0.0  # the ODE wins below a hundred steps, the full chain above
    move = build.transition(saved, variance, eta)
    times = build.grid(model.schedule, grid, steps)
    out = out or folder / "samples"
    labels = _labels(saved, label, num_images)
    batches, started = [], time.monotonic()
    with Progress(console=_screen, disable=not _screen.is_terminal) as bar:
        task = bar.add_task(f"{len(times) - 1} steps", total=num_images * (len(times) - 1))
        for first in range(0, num_images, batch_size):
            numbers = range(first, min(first + batch_size, num_images))
            chosen = None if labels is None else labels[first : numbers.stop].to(_device(model))
            predictor = build.predictor(model, saved.calibration, chosen)
            start = latents(saved.facts.shape, seed, numbers).to(_device(model), _state_type(model))
            walk = _counted(trajectory(predictor, start, times, move, seed, numbers), bar, task, len(numbers))
            keep = _film_times(times) if film and first == 0 else ()
            frames = keep_frames(walk, keep)
            if keep:
                _write_film(frames, out)
            batches.append(to_bytes(frames.final))
    images = np.concatenate(batches)
    for number, image in enumerate(images):
        figures.save_png(out / f"{number:06d}.png", image)
    figures.save_sheet(out / "grid.png", images[:256])
    speed = num_images / (time.monotonic() - started)
    _screen.print(f"{num_images} images, {len(times) - 1} network calls each, {speed:.1f} images/s: {out / 'grid.png'}")


def _counted(walk: Any, bar: Progress, task: Any, images: int) -> Any:
    for step in walk:
        bar.advance(task, images)
        yield step


def _labels(saved: checkpoint.Checkpoint, label: str | None, count: int) -> torch.Tensor | None:
    names = saved.facts.class_names
    if not saved.config.model.labels:
        if label is not None:
            raise UserError("--label: this model was trained without labels; train with --set model.labels=true")
        return None
    if label is None:
        return torch.arange(count) % len(names)
    if label not in names:
        raise UserError(f"--label: unknown class '{label}'; {config.suggest(label, names)}")
    return torch.full((count,), names.index(label))


def _film_times(times: list[int]) -> set[int]:
    """About a dozen times, closer together towards the end, where the picture is made."""
    share = 1 - (1 - np.linspace(0, 1, FRAMES)) ** 1.5
    return {times[round(float(place) * (len(times) - 2))] for place in share}


def _write_film(frames: Film, out: Path) -> None:
    """Rows of pairs: x_t above the x0 predicted from it, one image a pair of rows, time to the right."""
    rows = []
    for image in range(min(FILMED, len(frames.final))):
        final = frames.final[image]
        rows += [*(x[image] for x in frames.x_t), final, *(x[image] for x in frames.x0), final]
    sheet = to_bytes(torch.stack(rows))
    figures.save_sheet(out / "film.png", sheet, columns=len(frames.t) + 1)
    stills = [figures.contact_sheet(to_bytes(x[:16])) for x in (*frames.x_t, frames.final)]
    figures.save_animation(out / "film.gif", stills)


def evaluate(
    folder: Path,
    *,
    data_source: str | None,
    num_images: int,
    terms: int,
    exact: bool,
    variance: str | None,
    batch_size: int,
    average_width: float | None,
    seed: int,
    device: str,
) -> None:
    """Measure the bound on held-out images; write a table, a plot and JSON."""
    saved, model = _open(folder, device, average_width)
    images = data.load(data_source or saved.config.source, saved.config.data)
    if facts(images.test).shape != saved.facts.shape:
        raise UserError(f"{data_source}: images of {facts(images.test).shape}, the model's are {saved.facts.shape}")
    test = images.test.take(_spread(len(images.test), num_images))
    if saved.calibration is None:
        saved = replace(saved, calibration=_calibrated(saved, model, images.train))
    move, times = build.transition(saved, variance), full(model.schedule)
    if not exact and not 2 <= terms <= len(times) - 1:
        raise UserError(f"--terms: must be between 2 and T = {len(times) - 1}, got {terms}")
    measured: list[Bound] = []
    with Progress(console=_screen, disable=not _screen.is_terminal) as bar:
        task = bar.add_task("bound", total=len(test))
        for first in range(0, len(test), batch_size):
            part = range(first, min(first + batch_size, len(test)))
            x0 = to_unit(test.images[first : part.stop]).to(_device(model), _state_type(model))
            predictor = build.predictor(model, saved.calibration, _test_labels(saved, test, part, model))
            noise = Streams(seed, "evaluate", part)
            measured.append(bound(predictor, x0, times, move, noise, terms=None if exact else terms))
            bar.advance(task, len(part))
    result = concatenate(measured)
    _write_evaluation(folder, result, variance or saved.config.diffusion.variance, test.images, exact)


def _spread(size: int, count: int) -> np.ndarray:
    """`count` rows spread evenly over `size`, so that every class is among them."""
    return np.linspace(0, size - 1, min(size, count)).round().astype(int)


def _test_labels(
    saved: checkpoint.Checkpoint, test: data.ImageSet, part: range, model: torch.nn.Module
) -> torch.Tensor | None:
    if not saved.config.model.labels:
        return None
    if test.labels is None:
        raise UserError("the model was trained with labels, but these images have none")
    return torch.from_numpy(test.labels[part.start : part.stop]).to(_device(model))


def _calibrated(saved: checkpoint.Checkpoint, model: Any, train_images: data.ImageSet) -> torch.Tensor:
    part = range(min(64, len(train_images)))
    x0 = to_unit(train_images.images[: part.stop]).to(_device(model))
    labels = _test_labels(saved, train_images, part, model)
    return calibrate(build.predictor(model, None, labels), x0, Streams(0, "calibrate", part))


def _write_evaluation(folder: Path, result: Bound, variance: str, images: np.ndarray, exact: bool) -> None:
    mean, error = mean_and_error(result.bits_per_dim)
    rows = {"bound, bits/dim": (mean, error)}
    rows |= {f"  {name}": mean_and_error(values) for name, values in result.parts.items()}
    rows |= {name: (value, float("nan")) for name, value in baselines.lossless_bits_per_dim(images).items()}
    kind = "every term" if exact else f"{result.terms.shape[1]} terms an image, unbiased"
    table = Table(title=f"{len(images)} held-out images, {variance} variance, {kind}", title_justify="left")
    for heading in ("", "bits/dim", "standard error"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, (value, spread) in rows.items():
        table.add_row(name, f"{value:.4f}", "" if np.isnan(spread) else f"{spread:.4f}")
    _screen.print(table)
    times, nats = result.per_t(result.terms)
    _, mse = result.per_t(result.mse)
    bits = (nats / result.dimensions / np.log(2)).numpy()
    figures.bound_plot(folder / "bound.png", times.numpy(), bits, mean)
    with open(folder / "bound.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["t", "bits_per_dim", "mse"])
        writer.writerows(zip(times.tolist(), bits.tolist(), mse.tolist(), strict=True))
    document = {
        "images": len(images),
        "variance": variance,
        "terms": result.terms.shape[1],
        "nats_per_image": float(result.nats.mean()),
        "bits_per_dim": {
            name.strip(): {"mean": value, "standard_error": None if np.isnan(spread) else spread}
            for name, (value, spread) in rows.items()
        },
    }
    _write_text(folder / "evaluation.json", json.dumps(document, indent=1) + "\n")
    _screen.print(f"written: {folder / 'evaluation.json'}, {folder / 'bound.csv'}, {folder / 'bound.png'}")


def _open(folder: Path, device: str, average_width: float | None) -> tuple[checkpoint.Checkpoint, Any]:
    saved, problems = checkpoint.open_run(folder)
    for problem in problems:
        _screen.print(f"warning: {problem}; the checkpoint before it is used")
    return saved, build.trained(saved, folder, build.device(device), average_width)


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def _state_type(model: torch.nn.Module) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float32 if _device(model).type == "mps" else torch.float64


def _write_text(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
