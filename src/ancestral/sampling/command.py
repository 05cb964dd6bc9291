"""What `ancestral sample` and `ancestral tune-steps` do, once their options are known to be right."""

from __future__ import annotations

import time
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from ancestral.data import cache, pictures
from ancestral.data.inventory import counted, listed
from ancestral.data.pictures import Labels
from ancestral.data.pixels import to_bytes
from ancestral.diffusion.denoisers.denoiser import Watched
from ancestral.diffusion.processes.types import Advance
from ancestral.diffusion.samplers.grids import GRIDS
from ancestral.diffusion.samplers.sample import beginning, latents
from ancestral.diffusion.samplers.sample import film as keep_frames
from ancestral.errors import UserError
from ancestral.runs import build, checkpoint, tuned_times
from ancestral.runs.conditions import Conditions, class_of, in_turn
from ancestral.runs.memory_need import need_for_drawing
from ancestral.runs.open import device_of, open_model, state_type
from ancestral.runs.process_kinds import chain
from ancestral.runs.sampling_options import SamplingOptions
from ancestral.runtime import verified_folder
from ancestral.runtime.console import Progress, advancing, screen
from ancestral.runtime.distributed import LONG, process_group
from ancestral.runtime.result_files import held
from ancestral.runtime.resumable_job import Files, Job
from ancestral.runtime.text import quoted
from ancestral.sampling.drawn_files import FILM, Array, ImageFiles, Pngs, film_files, film_times
from ancestral.sampling.sampler import Sampler

GRID = "grid.png"
SHOWN = 256  # images on the contact sheet
CLASSES = 8  # named, at most
FINE = 60  # network calls of the walk that few steps are compared with


def sample(
    folder: Path,
    options: SamplingOptions,
    *,
    num_images: int,
    out: Path | None,
    film: bool,
    array: bool = False,
    embeddings: Path | None,
    device: str,
) -> None:
    """Draw images into a folder: numbered PNGs or one array, a contact sheet and, if asked, the film of the first."""
    sampler = Sampler(folder, options, device)
    work = sampler.pieces(num_images)
    out = out or folder / "samples"
    kind: ImageFiles = Array() if array else Pngs()
    cond = conditions(sampler.saved, options.label, embeddings, num_images)
    classes = [sampler.saved.facts.class_names[int(number)] for number in cond.get("labels", ())]
    named = kind.classes(cond["labels"], classes) if classes else {}
    vectors = sha256(cond["embedding"].numpy().tobytes()).hexdigest() if "embedding" in cond else None
    channels, *sides = sampler.saved.facts.shape
    shape = (*sides, channels)

    def draw(advance: Advance, numbers: range) -> Files:
        keep = film_times(sorted(set(sampler.visits), reverse=True)) if film and numbers.start == 0 else ()
        frames = keep_frames(sampler.walk(numbers, cond, advance), keep)
        drawn = kind.packed(numbers, to_bytes(frames.final))
        if keep:
            seen = [sampler.model.schedule.shown(x_t) for x_t in frames.x_t]
            drawn |= film_files(frames._replace(x_t=seen))
        return drawn

    def whole(numbers: range, kept: Files) -> bool:
        filmed = not film or numbers.start > 0 or set(FILM) <= kept.keys()
        return filmed and kind.whole(numbers, kept, shape)

    with process_group(device_of(sampler.model), LONG) as processes, held(out, "sample", processes) as results:
        results.need_free([*kind.names(num_images), GRID, *(FILM if film else ()), *named])
        for note in sampler.notes:
            screen.print(note)
        if classes and options.label is None:
            screen.print(f"classes in turn: {listed(sampler.saved.facts.trained, CLASSES)} (--label draws one)")
        settings = {**sampler.settings, "label": options.label, "embeddings": vectors, **kind.settings}
        job = Job(out / ".job", settings, processes)
        started = time.monotonic()
        with Progress() as bar:
            task = bar.add_task(f"{sampler.steps} steps", total=processes.most(num_images) * sampler.steps)
            job.run(work, partial(draw, partial(bar.advance, task)), whole)
        if processes.first:
            drawn = kind.joined(job, work, shape)
            first = kind.first(drawn, min(num_images, SHOWN))
            grid = pictures.sheet(first, labels=Labels(images=classes[: len(first)]))
            for path in results.replace({**drawn, **named, GRID: grid}.items(), covers=(GRID, *FILM)):
                screen.print(f"kept, as it was changed since it was drawn: {path}")
        new = bar.tasks[task].completed / sampler.steps * processes.size
        speed = f"{new / (time.monotonic() - started):.1f} images/s" if new else "all drawn before"
        solver = "" if sampler.solver is None else f" of {sampler.solver}"
        each = f"{counted(sampler.calls, 'network call')} each{solver}"
        screen.print(f"{counted(num_images, 'image')}, {each}, {speed}: {out / GRID}")
        if options.steps is None and sampler.steps < sampler.every:
            screen.print(chain(sampler.saved.config).more.format(every=sampler.every))


def tune_steps(
    folder: Path,
    *,
    steps: int,
    num_images: int,
    embeddings: Path | None,
    average_width: float | None,
    seed: int,
    device: str,
) -> None:
    """Find the best times for so few steps, and keep them with the run."""
    saved, model = open_model(folder, device, average_width)
    need_for_drawing(saved.config, saved.facts, num_images, device_of(model), option="--num-images")
    kind = chain(saved.config)
    if kind.search is None:
        raise UserError("tune-steps: compares with the flow, which a model for few calls does not follow")
    every = build.training_grid(saved.config)
    fine = build.sampling_grid(saved.config, "trailing", min(FINE, len(every) - 1))
    named = (build.sampling_grid(saved.config, name, steps) for name in GRIDS)
    begun = list(dict.fromkeys(tuple(times) for times in named if times[0] == every[0]))
    cond = conditions(saved, None, embeddings, num_images)
    on = {name: value.to(device_of(model)) for name, value in cond.items()}
    predictor = build.predictor(build.drawing(model, saved.config, kind.default_step(steps)), saved.calibration, **on)
    noise = latents(saved.facts.shape, seed, range(num_images), build.streams(saved.config, device_of(model))).to(
        device_of(model), state_type(model)
    )
    with held(folder, "tuned"):  # refused before the search, where nothing can be kept
        verified_folder.need_writable(folder / tuned_times.FILE)
    try:
        with advancing(f"{steps} steps", kind.search.calls(len(fine) - 1, steps, len(begun)) * num_images) as advance:
            watched = Watched(predictor, advance)
            times = kind.search.best(watched, beginning(model.schedule, noise), every, fine, begun)
    except ValueError as error:
        raise UserError(f"--steps: {error}") from None
    with held(folder, "tuned"):  # as what is there is read and written again
        tuned_times.save(folder, saved, average_width, times)
    screen.print(f"{', '.join(map(str, times))}; now: ancestral sample {quoted(folder)} --steps {steps} --grid tuned")


def conditions(saved: checkpoint.Checkpoint, label: str | None, embeddings: Path | None, count: int) -> Conditions:
    """The conditions of so many images: one class or all in turn, the vectors of a file in turn.

    Raises:
        UserError: when the model takes none of the kind, or of another kind.
    """
    cond: Conditions = {}
    number = class_of(saved.config, saved.facts, label)
    if number is not None:
        cond["labels"] = torch.full((count,), number)
    elif saved.config.model.labels:
        cond["labels"] = in_turn(saved.facts, range(count))
    if saved.config.model.embedding:
        length = saved.facts.embedding
        if embeddings is None:
            raise UserError(
                f"--embeddings: this model takes a vector of {length} numbers; give a .npy file (N, {length})"
            )
        vectors = cache.vectors(embeddings)
        if vectors.shape[1] != length:
            raise UserError(f"{embeddings}: vectors of {vectors.shape[1]} numbers, the model's have {length}")
        cond["embedding"] = torch.from_numpy(vectors[np.arange(count) % len(vectors)])
    elif embeddings is not None:
        raise UserError("--embeddings: this model was trained without; train with --set model.embedding=true")
    return cond
