"""What `ancestral sample` and `ancestral tune-steps` do, once their options are known to be right."""

from __future__ import annotations

import json
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from ancestral import build, checkpoint, config, figures, sealed, tuning
from ancestral.console import device_of, open_model, screen, state_type, together, write_text
from ancestral.errors import UserError
from ancestral.feed import to_bytes
from ancestral.grids import explicit
from ancestral.jobs import PATIENCE, Job, pieces
from ancestral.reverse import begin
from ancestral.sample import Film, latents, trajectory
from ancestral.sample import film as keep_frames
from ancestral.schedule import NoiseSchedule
from ancestral.solvers import FEW_STEPS

FRAMES = 12  # of a film
FILMED = 8  # images in a film
FINE = 60  # network calls of the walk that few steps are tuned to
TUNED = "tuned.json"


def sample(
    folder: Path,
    *,
    num_images: int,
    steps: int | None,
    grid: str,
    solver: str | None,
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
    saved, model = open_model(folder, device, average_width)
    if eta is variance is solver is None and steps is not None:
        solver = FEW_STEPS  # the ODE wins below a hundred steps, the full chain above
    move = build.method(saved, solver, variance, eta)
    times = _tuned(folder, model.schedule, steps) if grid == "tuned" else build.sampling_grid(saved.config, grid, steps)
    out = out or folder / "samples"
    labels = _labels(saved, label, num_images)
    with together(device_of(model), PATIENCE) as processes:
        out.mkdir(parents=True, exist_ok=True)
        settings = {
            "model": checkpoint.digest(saved),
            "average_width": average_width,
            "times": times,
            "solver": solver,
            "eta": eta,
            "variance": variance or saved.config.diffusion.variance,
            "label": label,
            "seed": seed,
            "batch_size": batch_size,
        }

        def discard(kept: dict[str, bytes]) -> None:
            for name in json.loads(kept["digests.json"]):
                (out / Path(name).name).unlink(missing_ok=True)

        job, started = Job(out / ".job", settings, processes, discard), time.monotonic()
        work, calls = pieces(num_images, batch_size), len(begin(move, model.schedule, times)[1]) - 1
        with Progress(console=screen, disable=not screen.is_terminal) as bar:
            task = bar.add_task(f"{calls} steps", total=-(-num_images // processes.size) * calls)

            def draw(numbers: range) -> dict[str, bytes]:
                chosen = None if labels is None else labels[numbers.start : numbers.stop].to(device_of(model))
                predictor = build.predictor(model, saved.calibration, chosen)
                start = latents(saved.facts.shape, seed, numbers).to(device_of(model), state_type(model))
                walk = _counted(trajectory(predictor, start, times, move, seed, numbers), bar, task, len(numbers))
                keep = _film_times(times) if film and numbers.start == 0 else ()
                frames = keep_frames(walk, keep)
                if keep:
                    _write_film(frames, out)
                digests = {}
                for number, image in zip(numbers, to_bytes(frames.final), strict=True):
                    content = figures.png(image)
                    sealed.write_file(out / _png(number), content)
                    digests[_png(number)] = sha256(content).hexdigest()
                return {"digests.json": json.dumps(digests).encode()}

            def whole(kept: dict[str, bytes]) -> bool:
                digests = json.loads(kept["digests.json"])
                filmed = not film or _png(0) not in digests or (out / "film.gif").exists()
                return filmed and all(sealed.is_file(out / name, digest) for name, digest in digests.items())

            job.run(work, draw, whole)
        if processes.first:
            first = np.stack([figures.read_png(out / _png(number)) for number in range(min(num_images, 256))])
            figures.save_sheet(out / "grid.png", first)
        drawn = bar.tasks[task].completed / calls * processes.size
        speed = f"{drawn / (time.monotonic() - started):.1f} images/s" if drawn else "all drawn before"
        screen.print(f"{num_images} images, {calls} network calls each, {speed}: {out / 'grid.png'}")


def tune_steps(
    folder: Path, *, steps: int, num_images: int, average_width: float | None, seed: int, device: str
) -> None:
    """Find the best times for so few steps, and keep them with the run."""
    saved, model = open_model(folder, device, average_width)
    fine = build.sampling_grid(saved.config, "karras", min(FINE, len(build.training_grid(saved.config)) - 1))
    labels = _labels(saved, None, num_images)
    predictor = build.predictor(model, saved.calibration, None if labels is None else labels.to(device_of(model)))
    start = latents(saved.facts.shape, seed, range(num_images)).to(device_of(model), state_type(model))
    try:
        times = [fine[place] for place in tuning.shortest(tuning.jumps(predictor, start, fine), steps)]
    except ValueError as error:
        raise UserError(f"--steps: {error}") from None
    path = folder / TUNED
    known = json.loads(path.read_text()) if path.exists() else {}
    write_text(path, json.dumps({**known, str(steps): times}) + "\n")
    screen.print(f"{', '.join(map(str, times))}; now: ancestral sample {folder} --steps {steps} --grid tuned")


def _tuned(folder: Path, schedule: NoiseSchedule, steps: int | None) -> list[int]:
    path = folder / TUNED
    try:
        return explicit(schedule, json.loads(path.read_text())[str(steps)])
    except (FileNotFoundError, KeyError):
        raise UserError(f"--grid tuned: first find the times: ancestral tune-steps {folder} --steps {steps}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); run tune-steps again") from None


def _png(number: int) -> str:
    return f"{number:06d}.png"


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
