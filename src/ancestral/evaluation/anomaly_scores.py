"""`ancestral evaluate --per-image`: each image's bound and anomaly scores as CSV, and a sheet of the most anomalous."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from ancestral.data import pictures
from ancestral.data.dataset import ImageSet
from ancestral.diffusion.denoisers.denoiser import Predictor
from ancestral.diffusion.objectives.anomaly import SCORES, Trace, Traced, concatenate, p_values, shared_grid, trace
from ancestral.diffusion.objectives.elbo import Elbo, error_per_image
from ancestral.diffusion.processes.types import Advance
from ancestral.errors import UserError
from ancestral.evaluation import image_formats
from ancestral.evaluation.measurement import Measurement, Tensors
from ancestral.runs import build
from ancestral.runtime.console import Progress, screen, table
from ancestral.runtime.distributed import Processes
from ancestral.runtime.encode import csv_bytes
from ancestral.runtime.resumable_job import Job, cache_folder

REPEATS = 4  # independent measurements of each image's bound, for its standard error
REFERENCE = 512  # training images that scores are compared with
BY, FLAGGED = "profile", 0.01  # an image is flagged whose p-value by this score is so small
LEAST, MAY_FLAG = 4, 2 * (round(1 / FLAGGED) - 1)  # reference images, for scores, and for a p-value of FLAGGED
LISTED, ON_SHEET, COLUMNS = 10, 48, 12


def score(images: Traced, reference: Traced) -> dict[str, tuple[Tensor, Tensor]]:
    """By name of the score: values of the images and their p-values, float64 (B,).

    Half of the reference images defines the scores, the other half their distribution.
    """
    norm, null = (Traced(Trace(*(part[k::2] for part in reference.trace)), reference.shortest[k::2]) for k in (0, 1))
    found = {name: (of(images, norm), of(null, norm)) for name, of in SCORES.items()}
    return {name: (values, p_values(values, others)) for name, (values, others) in found.items()}


def reference_of(images: ImageSet) -> ImageSet:
    """Those of some usual images that scores are compared with.

    Raises:
        UserError: for fewer than a standard deviation and a p-value can be had of.
    """
    found = images.spread(REFERENCE)
    if len(found) < LEAST:
        raise UserError(f"--per-image: compares with {LEAST} training images at least, and here are {len(found)}")
    return found


def score_files(
    measurement: Measurement, reference: ImageSet, bound: Elbo, cache: Path, processes: Processes
) -> dict[str, bytes]:
    """Score the images, whose bound was measured `REPEATS` times, against reference images; CSV and picture sheet."""
    with Progress() as bar:
        task = bar.add_task("image by image", total=processes.most(len(measurement.images) + len(reference)))
        traces = [
            traced(one, cache, processes, partial(bar.advance, task))
            for one in (measurement, replace(measurement, images=reference))
        ]
    if not processes.first:
        return {}
    images, usual = map(with_files, traces, (measurement.images, reference))
    return _files(measurement.images, bound, score(images, usual), len(reference))


def with_files(trace: Trace, images: ImageSet) -> Traced:
    """Traces with the shortest lossless file of each image."""
    return Traced(trace, torch.from_numpy(image_formats.shortest_bits_per_dim(images.images[:])))


def traced(measurement: Measurement, cache: Path, processes: Processes, advance: Advance) -> Trace:
    """The traces of the images, from the cache where they are."""
    grid, calibration = shared_grid(measurement.model.schedule), measurement.saved.calibration
    settings = {
        **measurement.settings,
        "calibration": None if calibration is None else sha256(calibration.numpy().tobytes()).hexdigest(),
        "grid": grid,
    }
    move = build.transition(measurement.saved, None)

    def measure(predictor: Predictor, x0: Tensor, numbers: range, advance: Advance) -> Tensors:
        traces = trace(predictor, x0, grid, move, measurement.streams("trace", numbers))
        advance(len(numbers))
        return {name: value.contiguous() for name, value in traces._asdict().items()}

    parts = measurement.per_batch(Job(cache_folder(cache, settings), settings, processes), measure, advance)
    return concatenate([Trace(**one) for one in parts])


def _files(test: ImageSet, elbo: Elbo, scores: dict[str, tuple[Tensor, Tensor]], compared: int) -> dict[str, bytes]:
    columns: dict[str, list[float]] = {"bits_per_dim": elbo.bits_per_dim.tolist()}
    columns["standard_error"] = error_per_image(elbo, REPEATS).tolist()
    columns |= {name: values.tolist() for name, values in elbo.parts.items()}
    for name, (values, p) in scores.items():
        columns |= {name: values.tolist(), f"{name}_p": p.tolist()}
    values, p = scores[BY]
    flags = (p <= FLAGGED).long().tolist()
    order = values.argsort(descending=True, stable=True)[:ON_SHEET].numpy()
    flagged = f"{sum(flags)} of {len(test)} flagged"
    if compared < MAY_FLAG:  # even the least p-value that there can be is larger
        flagged = f"none can be flagged: that takes {MAY_FLAG} training images to compare with, and here are {compared}"
    shown = table(f"most surprising by {BY}; {flagged}", "image", BY, "p", "bits/dim", "standard error")
    for row in order[:LISTED]:
        bits, error = columns["bits_per_dim"][row], columns["standard_error"][row]
        cells = (f"{values[row]:.2f}", f"{p[row]:.4f}", f"{bits:.3f}", f"{error:.3f}")
        shown.add_row(test.names[row], *cells)
    screen.print(shown)
    rows = zip(test.names, *columns.values(), flags, strict=True)
    return {
        "per_image.csv": csv_bytes(["image", *columns, "flagged"], rows),
        "surprising.png": pictures.sheet(test.images[order], COLUMNS, _labels(values[order].tolist())),
    }


def _labels(values: list[float]) -> pictures.Labels:
    """The score above each image; in `per_image.csv` it stands beside the name."""
    return pictures.Labels(f"most surprising by {BY}", images=[f"{value:.1f}" for value in values])
