"""Image by image: what the bound says of each, how foreign it is, and a look at the most foreign ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import safetensors.torch
import torch
from rich.table import Table
from torch import Tensor

from ancestral.data import pictures
from ancestral.data.dataset import ImageSet
from ancestral.data.pixels import to_unit
from ancestral.diffusion.denoisers.denoiser import Denoiser
from ancestral.diffusion.objectives.anomaly import SCORES, Known, Trace, concatenate, p_values, shared_grid, trace
from ancestral.diffusion.objectives.elbo import Elbo, error_per_image
from ancestral.diffusion.processes.streams import Streams
from ancestral.evaluation import image_formats
from ancestral.runs import build, checkpoint
from ancestral.runs.conditions import conditions_of
from ancestral.runs.open import device_of, state_type
from ancestral.runtime.console import Progress, screen, table_of
from ancestral.runtime.distributed import Processes
from ancestral.runtime.resumable_job import Job, pieces, place

REPEATS = 4  # independent measurements of each image's bound, for its standard error
NORM = 512  # training images that scores are compared with
BY, FLAGGED = "profile", 0.01  # an image is flagged whose p-value by this score is so small
LISTED, SHOWN, COLUMNS = 10, 48, 12  # in the table; on the sheet


@dataclass(frozen=True)
class Surprise:
    """Of each image, by score: its value and its p-value among known images, float64 (B,)."""

    values: dict[str, Tensor]
    p: dict[str, Tensor]

    @property
    def order(self) -> Tensor:
        """The images, most foreign first."""
        return self.values[BY].argsort(descending=True, stable=True)


def compare(images: Known, norm: Known) -> Surprise:
    """Score images. Half of the known ones say what is usual, the other half how scores are spread."""
    usual, others = (Known(Trace(*(part[k::2] for part in norm.trace)), norm.shortest[k::2]) for k in (0, 1))
    values = {name: score(images, usual) for name, score in SCORES.items()}
    return Surprise(values, {name: p_values(values[name], SCORES[name](others, usual)) for name in values})


@dataclass(frozen=True)
class Tracing:
    """How images are traced: a run's model as it was opened, and where pieces of the work are kept."""

    saved: checkpoint.Checkpoint
    model: Denoiser
    average_width: float | None
    seed: int
    batch_size: int
    cache: Path

    def __call__(self, images: ImageSet, processes: Processes, told: Callable[[int], object]) -> Known:
        """What the model does with each image; `told` of each batch's size."""
        grid, device = shared_grid(self.model.schedule), device_of(self.model)
        table = self.saved.calibration
        settings = {
            "model": checkpoint.digest(self.saved),
            "average_width": self.average_width,
            "calibration": None if table is None else sha256(table.numpy().tobytes()).hexdigest(),
            "images": images.digest(),
            "grid": grid,
            "seed": self.seed,
            "batch_size": self.batch_size,
        }
        job, work = Job(place(self.cache, settings), settings, processes), pieces(len(images), self.batch_size)

        def measure(part: range) -> dict[str, bytes]:
            shown = images.take(part)
            cond = conditions_of(shown, self.saved.config, device)
            predictor = build.predictor(self.model, self.saved.calibration, **cond)
            x0 = to_unit(shown.images).to(device, state_type(self.model))
            found = trace(predictor, x0, grid, build.transition(self.saved, None), Streams(self.seed, "trace", part))
            told(len(part))
            return {"trace.safetensors": safetensors.torch.save(_contiguous(found))}

        job.run(work, measure, lambda kept: "trace.safetensors" in kept)
        parts = [Trace(**safetensors.torch.load(kept["trace.safetensors"])) for kept in job.results(work)]
        return Known(concatenate(parts), torch.from_numpy(image_formats.shortest_bits_per_dim(images.images[:])))


def _contiguous(found: Trace) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in found._asdict().items()}


def per_image(tracing: Tracing, test: ImageSet, norm: ImageSet, elbo: Elbo, processes: Processes) -> dict[str, bytes]:
    """Score the images, whose bound was measured `REPEATS` times, against known ones; CSV and picture sheet."""
    with Progress() as bar:
        task = bar.add_task("image by image", total=-(-(len(test) + len(norm)) // processes.size))
        images, known = (tracing(one, processes, lambda seen: bar.advance(task, seen)) for one in (test, norm))
    return _files(test, elbo, compare(images, known)) if processes.first else {}


def _files(test: ImageSet, elbo: Elbo, found: Surprise) -> dict[str, bytes]:
    columns: dict[str, list[float]] = {"bits_per_dim": elbo.bits_per_dim.tolist()}
    columns["standard_error"] = error_per_image(elbo, REPEATS).tolist()
    columns |= {name: values.tolist() for name, values in elbo.parts.items()}
    for name in found.values:
        columns |= {name: found.values[name].tolist(), f"{name}_p": found.p[name].tolist()}
    flags = (found.p[BY] <= FLAGGED).long().tolist()
    order = found.order[:SHOWN].numpy()
    table = Table(title=f"most surprising by {BY}; {sum(flags)} of {len(test)} flagged", title_justify="left")
    for heading in ("image", BY, "p", "bits/dim", "standard error"):
        table.add_column(heading, justify="left" if heading == "image" else "right")
    for row in order[:LISTED]:
        bits, error = columns["bits_per_dim"][row], columns["standard_error"][row]
        cells = (f"{found.values[BY][row]:.2f}", f"{found.p[BY][row]:.4f}", f"{bits:.3f}", f"{error:.3f}")
        table.add_row(test.names[row], *cells)
    screen.print(table)
    rows = zip(test.names, *columns.values(), flags, strict=True)
    return {
        "per_image.csv": table_of(["image", *columns, "flagged"], rows),
        "surprising.png": pictures.sheet(test.images[order], COLUMNS),
    }
