"""What a page can have done with the model, each as a job: checked before it waits, then run in a thread of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ancestral.apps.server import schemas
from ancestral.apps.server.data_uri import uri_of
from ancestral.apps.server.job import Record
from ancestral.apps.server.job_queue import Work
from ancestral.apps.server.session import ServedRun, finished, shown, uris
from ancestral.data.pixels import to_unit
from ancestral.diffusion.processes.types import no_advance
from ancestral.diffusion.samplers.sample import finish
from ancestral.runs.open import device_of
from ancestral.runs.sampling_options import JUMP, RESAMPLES, SamplingOptions
from ancestral.sampling.command import conditions
from ancestral.sampling.edit_command import ENCODERS, Edit, between, nearest_trained, repainted, with_new_noise
from ancestral.sampling.editor import VARIANTS, Editor


@dataclass(frozen=True)
class Task:
    """A job that may wait."""

    work: Work  # what it does
    rows: int  # images that it draws at once


Action = Callable[[Any], Task]  # of a body


def draw(served: ServedRun, body: schemas.Draw) -> Task:
    """Images of a seed, as `ancestral sample` writes them.

    Raises:
        UserError: when the model cannot draw so.
    """
    options = SamplingOptions(**body.options)
    sampler = served.sampler(options)
    served.need_memory(body.images)
    cond = conditions(served.saved, options.label, None, body.images)
    again = served.again("sample", served.run, **{"seed": body.seed, "num_images": body.images, **body.options})

    def work(record: Record) -> dict[str, Any]:
        steps = sampler.walk(range(body.images), cond, no_advance)
        return finished(finish(shown(record, steps, sampler.steps)), again)

    return Task(work, body.images)


def inpaint(served: ServedRun, body: schemas.Inpaint) -> Task:
    """What is white in a mask, drawn anew, as `ancestral edit inpaint` does it.

    Raises:
        UserError: when an image cannot be used.
    """
    editor = served.editor(with_new_noise(SamplingOptions(**body.options)))
    x0 = _placed(editor, served.decoded(body.image, "image"))
    known = editor.kept_region(served.mask(body.mask, "mask"), "mask")
    edit = repainted(editor, x0, known, JUMP, RESAMPLES)
    flags = {"mask": "mask.png", "seed": body.seed, "num_images": body.images, "steps": body.steps}
    flags |= {"label": served.label(body.label), "out": "out.png"}
    again = served.again("edit", "inpaint", served.run, "image.png", "--fit", **flags)
    return _edited(served, editor, edit, [0] * body.images, list(range(body.images)), again)


def morph(served: ServedRun, body: schemas.Morph) -> Task:
    """Images between two, through mixed states at t, as `ancestral edit interpolate` makes them.

    Raises:
        UserError: when an image cannot be used.
    """
    way = ENCODERS["noise"]
    editor = served.editor(way.step(SamplingOptions(**body.options)))
    ends = _placed(editor, served.decoded(body.a, "a"), served.decoded(body.b, "b"))
    at = nearest_trained(editor, body.t) if body.t <= editor.schedule.T else body.t  # the page offers every t
    edit = between(editor, ends, way, at, body.frames, 1)
    flags = {"at": at, "frames": body.frames, "steps": body.steps, "seed": body.seed}
    flags |= {"label": served.label(body.label), "out": "out.png"}
    again = served.again("edit", "interpolate", served.run, "a.png", "b.png", "--fit", **flags)
    frames = list(range(body.frames))
    return _edited(served, editor, edit, frames, [frame * VARIANTS for frame in frames], again)


def _placed(editor: Editor, *pixels: np.ndarray) -> torch.Tensor:
    return editor.to_state(to_unit(np.stack(pixels)))


def _edited(served: ServedRun, editor: Editor, edit: Edit, rows: list[int], numbers: list[int], again: str) -> Task:
    served.need_memory(len(rows))

    def work(record: Record) -> dict[str, Any]:
        chosen = torch.tensor(rows, device=device_of(editor.model))
        steps = edit.walk(chosen, numbers, editor.predictor(len(rows)))
        return finished(finish(shown(record, steps, edit.calls)), again)

    return Task(work, len(rows))


def noise(served: ServedRun, body: schemas.Noise) -> Work:
    """An image noised up to t, and the x0 that the model predicts from that.

    Raises:
        UserError: when the image cannot be used.
    """
    editor = served.editor(SamplingOptions(**body.options))
    pixels = served.decoded(body.image, "image")

    def work(record: Record) -> dict[str, Any]:
        x0, schedule = _placed(editor, pixels), editor.schedule
        eps = editor.to_state(editor.streams("forward", [0]).normal(editor.shape))
        x_t = schedule.marginal(x0, body.t).sample(eps)
        predicted = editor.predictor(1)(x_t, body.t).x0
        log_snr = float(schedule.log_snr(body.t))
        (shown_x_t,), (shown_x0,) = uris(x_t), uris(predicted)
        return {
            "image": uri_of(pixels),
            "x_t": shown_x_t,
            "x0": shown_x0,
            "signal": float(schedule.signal(body.t)),
            "noise": float(schedule.noise(body.t)),
            "log_snr": log_snr if math.isfinite(log_snr) else None,
            "mse": float((predicted - x0).square().mean()),
        }

    return work
