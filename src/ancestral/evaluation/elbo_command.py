"""`ancestral evaluate`: the bound on held-out images, as a table, a plot and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ancestral.data.pixels import to_bytes, to_unit
from ancestral.diffusion.denoisers.denoiser import Predictor
from ancestral.diffusion.objectives.elbo import Elbo, concatenate, elbo, repeated
from ancestral.diffusion.objectives.statistics import in_json
from ancestral.diffusion.processes.levels import snap
from ancestral.diffusion.processes.types import Advance
from ancestral.errors import UserError
from ancestral.evaluation import anomaly_scores, image_formats
from ancestral.evaluation.measurement import HeldOut, Tensors
from ancestral.runs import build, calibration
from ancestral.runs.config import Config
from ancestral.runs.datasets import images_for
from ancestral.runs.process_kinds import chain, has_noise, need_bound, need_gaussian
from ancestral.runtime import plots
from ancestral.runtime.console import screen, table
from ancestral.runtime.distributed import Processes
from ancestral.runtime.encode import csv_bytes, json_bytes

TERMS = 50  # of the bound measured an image, by default
FEW_TERMS = 5  # of fewer the spread over images says too little: 2 held the truth within two errors half of the time


def measured_terms(steps: int, terms: int | None, exact: bool, name: str) -> int | None:
    """How many terms an image are measured of a bound of so many steps; None: all.

    Raises:
        UserError: by the name of the option, for a number that the bound does not have, or one beside `exact`.
    """
    if exact and terms is not None:
        raise UserError(f"{name}: `exact` measures every term; leave out one of the two")
    terms = min(TERMS, steps) if terms is None else terms
    if not exact and not (isinstance(terms, int) and min(2, steps) <= terms <= steps):
        raise UserError(f"{name}: must be between 2 and {steps}, got {terms!r}")
    return None if exact else terms


def evaluate(
    folder: Path,
    held_out: HeldOut,
    *,
    terms: int | None,
    exact: bool,
    variance: str | None,
    per_image: bool,
    reference: str | None,
    out: Path | None,
) -> None:
    """Measure the bound on held-out images; write a table, a plot and JSON, and with `per_image` scores of each."""
    saved, model = held_out.open(folder)
    need_bound(saved.config, str(folder))
    if reference is not None and not per_image:
        raise UserError("--reference: what is usual matters to scores of single images; add --per-image")
    if per_image:
        need_gaussian(saved.config, "--per-image")
    (data_source, images), out = held_out.images(saved), out or folder
    norm = None
    if per_image:
        _, usual = images_for(saved, reference, "name them: --reference DATA", (data_source, images))
        norm = anomaly_scores.reference_of(usual.train)
    saved = calibration.calibrated(saved, model, images.train)
    times, move = build.training_grid(saved.config), build.transition(saved, variance)
    terms = measured_terms(len(times) - 1, terms, exact, "--terms")
    if terms is not None and terms < min(FEW_TERMS, len(times) - 1):
        screen.print(f"warning: --terms {terms}: of fewer than {FEW_TERMS} the standard error is often far too small")
    repeats = 1 if norm is None else anomaly_scores.REPEATS
    measurement = held_out.measurement(saved, model, images)
    options = {"terms": terms, "variance": variance or saved.config.diffusion.variance}
    settings = {**measurement.settings, **options, "repeats": repeats}

    def measure(predictor: Predictor, x0: Tensor, numbers: range, advance: Advance) -> Tensors:
        noise = measurement.streams("evaluate", numbers)
        found = repeated([elbo(predictor, x0, times, move, noise, terms=terms) for _ in range(repeats)])
        advance(len(numbers))
        return found.tensors()

    def files(parts: list[Tensors], processes: Processes) -> dict[str, bytes]:
        result = concatenate([Elbo.of_tensors(one) for one in parts])
        made: dict[str, bytes] = {}
        if processes.first:
            kind = chain(saved.config)
            facts = {name: settings[name] for name in ("model", "average_width")}
            facts |= {"variance": options["variance"] if kind.only_step is None else None, "data": data_source}
            made = _files(
                result,
                kind.step_name.format(variance=options["variance"]),
                facts,
                _as_scored(saved.config, measurement.images.images[:]),
                exact,
            )
        if norm is not None:
            made |= anomaly_scores.score_files(measurement, norm, result, out / ".traces", processes)
        return made

    measurement.run(out, "evaluate", settings, measure, files, "bound")


def _as_scored(config: Config, images: np.ndarray) -> np.ndarray:
    """The images that the bound scores: rounded to the grey levels of an absorbing chain."""
    if has_noise(config) or config.diffusion.levels == 256:
        return images
    return to_bytes(snap(to_unit(images), config.diffusion.levels))


def _files(result: Elbo, reverse: str, facts: dict[str, Any], images: np.ndarray, exact: bool) -> dict[str, bytes]:
    """Print the bound; returns its files by name."""
    rows = {"bound, bits/dim": in_json(result.bits_per_dim)}
    rows |= {f"  {name}": in_json(values) for name, values in result.parts.items()}
    formats = image_formats.lossless_bits_per_dim(images)
    rows |= {name: {"mean": value, "standard_error": None, "largest_share": None} for name, value in formats.items()}
    kind = "every term" if exact else f"{result.terms.shape[1]} terms an image, unbiased"
    title = f"{len(images)} held-out images, {reverse}, {kind}"
    shown = table(title, "", "bits/dim", "standard error", "largest image")
    for name, row in rows.items():
        value, spread, share = row["mean"], row["standard_error"], row["largest_share"]
        spread, share = "" if spread is None else f"{spread:.4f}", "" if share is None else f"{share:.1%}"
        shown.add_row(name, f"{value:.4f}", spread, share)
    screen.print(shown)
    times, nats = result.per_t(result.terms)
    _, mse = result.per_t(result.mse)
    bits = result.bits(nats).numpy()
    document = {
        "images": len(images),
        **facts,
        "terms": result.terms.shape[1],
        "nats_per_image": float(result.nats.mean()),
        "bits_per_dim": {name.strip(): row for name, row in rows.items()},
    }
    return {
        "evaluation.json": json_bytes(document),
        "bound.csv": csv_bytes(
            ("t", "bits_per_dim", "mse"), zip(times.tolist(), bits.tolist(), mse.tolist(), strict=True)
        ),
        "bound.png": plots.elbo_plot(times.numpy(), bits, float(result.bits_per_dim.mean())),
    }
