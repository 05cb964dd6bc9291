"""Image by image: what the bound says of each, how foreign it is, and a look at the most foreign ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from ancestral.data import pictures
from ancestral.data.dataset import ImageSet
from ancestral.diffusion.denoisers.denoiser import Predictor
from ancestral.diffusion.objectives.anomaly import SCORES, Known, Trace, concatenate, p_values, shared_grid, trace
from ancestral.diffusion.objectives.elbo import Elbo, error_per_image
from ancestral.diffusion.processes.streams import Streams
from ancestral.evaluation import image_formats
from ancestral.evaluation.measurement import Measurement
from ancestral.runs import build
from ancestral.runtime.console import Progress, screen, table_of
from ancestral.runtime.distributed import Processes
from ancestral.runtime.resumable_job import Job, cache_folder

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


def per_image(asked: Measurement, norm: ImageSet, found: Elbo, cache: Path, processes: Processes) -> dict[str, bytes]:
    """Score the images, whose bound was measured `REPEATS` times, against known ones; CSV and picture sheet."""
    with Progress() as bar:
        task = bar.add_task("image by image", total=processes.most(len(asked.images) + len(norm)))
        images, known = (
            traced(one, cache, processes, partial(bar.advance, task)) for one in (asked, replace(asked, images=norm))
        )
    return _files(asked.images, found, compare(images, known)) if processes.first else {}


def traced(asked: Measurement, cache: Path, processes: Processes, done: Callable[[int], object]) -> Known:
    """What the model does with each image."""
    grid, table = shared_grid(asked.model.schedule), asked.saved.calibration
    settings = {
        **asked.settings,
        "calibration": None if table is None else sha256(table.numpy().tobytes()).hexdigest(),
        "grid": grid,
    }
    move = build.transition(asked.saved, None)

    def measure(predictor: Predictor, x0: Tensor, numbers: range) -> dict[str, Tensor]:
        found = trace(predictor, x0, grid, move, Streams(asked.seed, "trace", numbers))
        return {name: value.contiguous() for name, value in found._asdict().items()}

    parts = asked.per_batch(Job(cache_folder(cache, settings), settings, processes), measure, done)
    shortest = image_formats.shortest_bits_per_dim(asked.images.images[:])
    return Known(concatenate([Trace(**one) for one in parts]), torch.from_numpy(shortest))


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
