"""The open model: what the server knows of it, and how a walk of it is shown while it goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ancestral.apps.server.batched_network import SIZES, Calls, Shared, rounding_alike
from ancestral.apps.server.data_uri import decoded, uri_of
from ancestral.apps.server.job import Record
from ancestral.data.pixels import to_bytes
from ancestral.diffusion.denoisers.denoiser import Denoiser, with_network
from ancestral.diffusion.samplers.loop import Step
from ancestral.errors import UserError
from ancestral.runs import build
from ancestral.runs.checkpoint import Checkpoint
from ancestral.runs.compute_format import for_drawing, laid_out
from ancestral.runs.memory_need import fits_for_drawing, need_for_drawing
from ancestral.runs.open import device_of, open_gaussian
from ancestral.runs.sampling_options import JUMP, SamplingOptions
from ancestral.runtime.text import quoted
from ancestral.sampling.editor import Editor
from ancestral.sampling.sampler import Sampler

FRAMES = 15.0  # a second, at most
SHARE = 0.1  # of the time, at most, that goes into frames


@dataclass(frozen=True)
class ServedRun:
    """A run that is open, with its network in the thread of `calls`."""

    run: Path  # its folder
    saved: Checkpoint  # its checkpoint
    model: Denoiser  # predicts x0, from any thread
    alike: dict[int, int]  # which sizes of a batch round alike (`batched_network.rounding_alike`)
    calls: Calls  # where networks compute
    average_width: float | None = None  # of the weights' average, if it is not the run's own
    device: str = "auto"  # by the name that was asked for
    precision: str = "device"  # that it draws in, by the name that was asked for

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.saved.facts.shape

    def sampler(self, options: SamplingOptions) -> Sampler:
        """What draws from the model.

        Raises:
            UserError: when an option has no meaning for it.
        """
        options = replace(options, precision=self.precision)
        return Sampler(self.run, options, str(device_of(self.model)), self.opened)

    def editor(self, options: SamplingOptions) -> Editor:
        """What changes given images by the model.

        Raises:
            UserError: when an option has no meaning for it.
        """
        options = replace(options, label=self.label(options.label), precision=self.precision)
        return Editor(self.run, options, str(device_of(self.model)), self.opened)

    def label(self, named: str | None) -> str | None:
        """The class of a given image: the first, for a model with classes when none is named."""
        return self.saved.facts.trained[0] if named is None and self.saved.config.model.labels else named

    def again(self, *words: object, **options: object) -> str:
        """The command that does the same from a shell; options that are None are left out."""
        here = {
            "average_width": self.average_width,
            "device": None if self.device == "auto" else self.device,
            "precision": self.precision if words[0] in ("sample", "edit") and self.precision != "device" else None,
        }
        named = [(f"--{name.replace('_', '-')}", value) for name, value in (options | here).items()]
        given = [part for name, value in named if value is not None for part in (name, value)]
        return " ".join(quoted(str(word)) for word in ("ancestral", *words, *given))

    def decoded(self, uri: str, field: str) -> np.ndarray:
        """An uploaded image as bytes (H, W, C) of the model's size, and of its data's range.

        Raises:
            UserError: naming the field, when it cannot be used.
        """
        data = self.saved.config.data
        return decoded(uri, field, self.shape, data.background, data.white)

    def mask(self, uri: str, field: str) -> np.ndarray:
        """An uploaded mask as bytes (H, W, 1) of the model's size.

        Raises:
            UserError: naming the field, when it cannot be used.
        """
        return decoded(uri, field, (1, *self.shape[1:]), self.saved.config.data.background, None)

    @property
    def unable_to_inpaint(self) -> str | None:
        """Why the page cannot offer it, or None."""
        steps = build.most_steps(self.saved.config)
        return None if steps > JUMP else f"takes {JUMP + 1} steps at least, and this model has {steps}"

    def need_memory(self, images: int) -> None:
        """Refuse to draw so many images at once where they do not fit into memory."""
        need_for_drawing(self.saved.config, self.saved.facts, images, device_of(self.model), "images")

    def opened(self, folder: Path, device: str, average_width: float | None) -> tuple[Checkpoint, Denoiser]:
        """The run as it is open here, for whoever would open it (`open.Opener`)."""
        return self.saved, self.model


def open_served_run(run: Path, device: str, average_width: float | None, precision: str = "device") -> ServedRun:
    """Open a run and measure which batches may be joined.

    Raises:
        UserError: when it cannot be opened, is of another process, or takes vectors.
    """
    saved, model = open_gaussian(run, device, average_width)
    if saved.config.model.embedding:
        raise UserError(f"{run}: this model takes vectors, which a page cannot give; use ancestral sample --embeddings")
    calls, network, computing = Calls(), model.network, device_of(model)
    drawing = for_drawing(precision, saved, computing)
    laid_out(network, drawing.channels_last)
    alone = Shared(network, calls, {})

    def as_computed(**inputs: Tensor) -> Tensor:
        """In the precision of drawing, and in float32, as its last calls and the page's files are."""
        outputs: list[Tensor] = []
        for form in dict.fromkeys((drawing, drawing._replace(precision="float32"))):
            with form.autocast(computing):
                outputs.append(alone(**inputs).float())
        return torch.cat(outputs, 1)

    sizes = [size for size in SIZES if fits_for_drawing(saved.config, saved.facts, size, computing)]
    alike = rounding_alike(as_computed, _example(saved, model), sizes)
    model = with_network(model, Shared(network, calls, alike))
    return ServedRun(run, saved, model, alike, calls, average_width, device, precision)


def _example(saved: Checkpoint, model: Denoiser) -> dict[str, Tensor]:
    """One row of inputs to the network."""
    like = next(model.network.parameters())
    noise = np.random.Generator(np.random.Philox(0)).standard_normal((1, *saved.facts.shape))
    example = {"x": torch.from_numpy(noise).to(like), "time": torch.full((1,), 500.0).to(like)}
    if saved.config.model.labels:
        example["labels"] = torch.zeros(1, dtype=torch.int64, device=like.device)
    return example


def shown(record: Record, steps: Iterator[Step], of: int) -> Iterator[Step]:
    """The same steps, sent to the job's page as frames, some left out but never the last."""
    record.of, due = of, 0.0
    for step in steps:
        record.check()
        record.step += 1
        now = time.monotonic()
        if record.step == of or (now >= due and record.watched()):
            frame = {"x_t": uris(step.x_t), "x0": uris(step.prediction.x0)}
            record.tell("step", {"k": record.step, "of": of, "t": step.t, **frame})
            taken = time.monotonic() - now
            due = now + max(1 / FRAMES, taken / SHARE)
        yield step


def uris(x: Tensor) -> list[str]:
    """Images (B, C, H, W) on [-1, 1] as data URIs."""
    return [uri_of(image) for image in to_bytes(x)]


def finished(x: Tensor, again: str) -> dict[str, Any]:
    """What is said of drawn images, and the command that draws them again."""
    pixels = to_bytes(x)
    digest = sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
    return {"images": [uri_of(image) for image in pixels], "sha256": digest, "again": again}
