"""Measure a run's model on a set of images, batch by batch and resumably; write the results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ancestral.data.dataset import ImageSet
from ancestral.data.pixels import to_unit
from ancestral.diffusion.denoisers.denoiser import Denoiser, Predictor
from ancestral.runs import build, checkpoint
from ancestral.runs.conditions import conditions_of
from ancestral.runs.datasets import warn_of_untrained
from ancestral.runs.open import device_of, state_type
from ancestral.runtime.console import screen
from ancestral.runtime.distributed import Processes
from ancestral.runtime.result_files import Results
from ancestral.runtime.resumable_job import Job, pieces


@dataclass(frozen=True)
class Measurement:
    """What is measured, and what its result depends on.

    Args:
        saved: the run's checkpoint, with the model's own error measured where the result depends on it.
        model: its model.
        average_width: of the weights' average, where it is not the run's own.
        images: to measure it on.
        batch_size: images in a batch.
        seed: of every draw.
    """

    saved: checkpoint.Checkpoint
    model: Denoiser
    average_width: float | None
    images: ImageSet
    batch_size: int
    seed: int

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

    def job(self, folder: Path, settings: dict[str, Any], processes: Processes) -> Job:
        """The job in a folder that keeps the results; warns of images of classes that were never trained on."""
        warn_of_untrained(self.saved.facts.untrained, self.images)
        return Job(folder, settings, processes)

    def per_batch(
        self,
        job: Job,
        measure: Callable[[Predictor, Tensor, range], dict[str, Tensor]],
        done: Callable[[int], object] = lambda count: None,
    ) -> list[dict[str, Tensor]]:
        """The results of the batches, in order.

        Args:
            job: that keeps them.
            measure: of the predictor for a batch, its x0 (B, C, H, W) and its images' numbers.
            done: called with each batch's size.
        """
        device = device_of(self.model)

        def of_batch(numbers: range) -> dict[str, Tensor]:
            batch = self.images.take(numbers)
            cond = conditions_of(batch, self.saved.config, device)
            x0 = to_unit(batch.images).to(device, state_type(self.model))
            found = measure(build.predictor(self.model, self.saved.calibration, **cond), x0, numbers)
            done(len(numbers))
            return found

        return job.tensors(pieces(len(self.images), self.batch_size), of_batch)


def write(results: Results, files: dict[str, bytes]) -> None:
    """Replace a set of result files by these, and print where they are."""
    results.replace(files.items())
    screen.print(f"written: {', '.join(str(results.root / name) for name in files)}")
