"""Measure a run's model on a set of images, batch by batch and resumably; write the results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ancestral.data.dataset import ImageSet, Splits
from ancestral.data.pixels import to_unit
from ancestral.diffusion.denoisers.denoiser import Denoiser, Predictor
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.processes.types import Advance
from ancestral.runs import build, checkpoint
from ancestral.runs.conditions import conditions_of
from ancestral.runs.datasets import images_for, warn_of_untrained
from ancestral.runs.memory_need import need_for_drawing
from ancestral.runs.open import Opener, device_of, open_model, state_type
from ancestral.runtime.console import advancing, screen
from ancestral.runtime.distributed import LONG, Processes, process_group
from ancestral.runtime.result_files import Results, held
from ancestral.runtime.resumable_job import Job, pieces
from ancestral.runtime.tensor_files import Tensors

# From the predictor of a batch, its x0 (B, C, H, W) and its images' numbers.
Measure = Callable[[Predictor, Tensor, range, Advance], Tensors]


@dataclass(frozen=True)
class Measurement:
    """What is measured, and what its result depends on.

    Raises:
        UserError: where the images of a batch do not fit into memory.
    """

    # the run's checkpoint, with the model's own error measured where the result depends on it
    saved: checkpoint.Checkpoint
    model: Denoiser  # its model
    average_width: float | None  # of the weights' average, where it is not the run's own
    images: ImageSet  # to measure it on
    batch_size: int  # images in a batch
    seed: int  # of every draw

    def __post_init__(self) -> None:
        images = min(self.batch_size, len(self.images))
        need_for_drawing(self.saved.config, self.saved.facts, images, device_of(self.model))

    @property
    def settings(self) -> dict[str, Any]:
        """All that the result depends on, as JSON, besides how it is measured."""
        return {
            "model": checkpoint.digest(self.saved),
            "average_width": self.average_width,
            "images": self.images.digest(),
            "seed": self.seed,
            "batch_size": self.batch_size,
        }

    def streams(self, purpose: str, numbers: range) -> Streams:
        """Noise for the images of these numbers."""
        return build.streams(self.saved.config, device_of(self.model))(self.seed, purpose, numbers)

    def run(
        self,
        out: Path,
        name: str,
        settings: dict[str, Any],
        measure: Measure,
        files: Callable[[list[Tensors], Processes], dict[str, bytes]],
        what: str,
        each: int = 1,
    ) -> None:
        """Measure in all processes of the command, resumably, and replace the set of files of this name in a folder.

        Args:
            out: the folder.
            name: of the set.
            settings: all that the results depend on.
            measure: a batch; advances `each` times an image on the bar that says `what`.
            files: of the results, called in every process; those of the first are written.
        """
        with process_group(device_of(self.model), LONG) as processes, held(out, name, processes) as results:
            warn_of_untrained(self.saved.facts.untrained, self.images)
            job = Job(out / f".{name}", settings, processes)
            with advancing(what, processes.most(len(self.images)) * each) as advance:
                parts = self.per_batch(job, measure, advance)
            made = files(parts, processes)
            processes.wait()
            if processes.first:
                write(results, made)
                job.forget()

    def per_batch(self, job: Job, measure: Measure, advance: Advance) -> list[Tensors]:
        """The results of the batches, in order, from the job where they are there."""
        return job.tensors(self.batches, lambda numbers: measure(*self.batch(numbers), numbers, advance))

    @property
    def batches(self) -> list[range]:
        """The numbers of the images of each batch."""
        return pieces(len(self.images), self.batch_size)

    def batch(self, numbers: range) -> tuple[Predictor, Tensor]:
        """The predictor under the conditions of these images, and their x0 (B, C, H, W)."""
        images, device = self.images.take(numbers), device_of(self.model)
        cond = conditions_of(images, self.saved.config, device)
        x0 = to_unit(images.images).to(device, state_type(self.model))
        return build.predictor(self.model, self.saved.calibration, **cond), x0


@dataclass(frozen=True)
class HeldOut:
    """Which held-out images a run's model is measured on, and how: the options that the measuring commands share."""

    data_source: str | None  # a path or a name; the run's own data where it is None
    num_images: int  # at most, evenly spread
    batch_size: int  # images at a time
    average_width: float | None  # of the weights' average; the run's own where it is None
    seed: int  # of every draw
    device: str  # by name

    def open(self, folder: Path, opener: Opener = open_model) -> tuple[checkpoint.Checkpoint, Denoiser]:
        """The checkpoint and the model of a run.

        Raises:
            UserError: as the opener does.
        """
        return opener(folder, self.device, self.average_width)

    def images(self, saved: checkpoint.Checkpoint) -> tuple[str, Splits]:
        """The name of the data, and all of its images.

        Raises:
            UserError: for images that the model cannot look at.
        """
        return images_for(saved, self.data_source)

    def measurement(self, saved: checkpoint.Checkpoint, model: Denoiser, images: Splits) -> Measurement:
        """The model, measured on so many of the held-out ones of these images.

        Raises:
            UserError: where the images of a batch do not fit into memory.
        """
        test = images.test.spread(self.num_images)
        return Measurement(saved, model, self.average_width, test, self.batch_size, self.seed)


def write(results: Results, files: dict[str, bytes]) -> None:
    """Replace a set of result files by these, and print where they are."""
    results.replace(files.items())
    screen.print(f"written: {', '.join(str(results.root / name) for name in files)}")
