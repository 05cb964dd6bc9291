"""`ancestral evaluate`: the bound on held-out images, as a table, a plot and files."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from rich.progress import Progress
from rich.table import Table

from ancestral import baselines, build, checkpoint, data, figures, monitor
from ancestral.bound import Bound, bound, concatenate, mean_and_error
from ancestral.conditions import conditions_of, same_kind
from ancestral.console import device_of, open_model, screen, state_type, together, write_text
from ancestral.errors import UserError
from ancestral.feed import facts, to_unit
from ancestral.jobs import PATIENCE, Job, pieces
from ancestral.rng import Streams


def evaluate(
    folder: Path,
    *,
    data_source: str | None,
    num_images: int,
    terms: int | None,
    exact: bool,
    variance: str | None,
    batch_size: int,
    average_width: float | None,
    seed: int,
    device: str,
) -> None:
    """Measure the bound on held-out images; write a table, a plot and JSON."""
    saved, model = open_model(folder, device, average_width)
    data_source = data_source or saved.config.source
    images = data.load(data_source, saved.config.data)
    if facts(images.test).shape != saved.facts.shape:
        raise UserError(f"{data_source}: images of {facts(images.test).shape}, the model's are {saved.facts.shape}")
    same_kind(saved.config, saved.facts, facts(images.test), data_source)
    test = images.test.spread(num_images)
    if saved.calibration is None:
        saved = replace(saved, calibration=monitor.calibration(saved.config, model, images.train, device_of(model)))
    move, times = build.transition(saved, variance), build.training_grid(saved.config)
    terms = terms if terms is not None else min(50, len(times) - 1)
    if not exact and not 2 <= terms <= len(times) - 1:
        raise UserError(f"--terms: must be between 2 and {len(times) - 1}, got {terms}")
    with together(device_of(model), PATIENCE) as processes:
        settings = {
            "model": checkpoint.digest(saved),
            "average_width": average_width,
            "images": test.digest(),
            "terms": None if exact else terms,
            "variance": variance or saved.config.diffusion.variance,
            "seed": seed,
            "batch_size": batch_size,
        }
        job, work = Job(folder / ".evaluate", settings, processes), pieces(len(test), batch_size)
        with Progress(console=screen, disable=not screen.is_terminal) as bar:
            task = bar.add_task("bound", total=-(-len(test) // processes.size))

            def measure(part: range) -> dict[str, bytes]:
                shown = test.take(part)
                cond = conditions_of(shown, saved.config, device_of(model))
                x0 = to_unit(shown.images).to(device_of(model), state_type(model))
                predictor = build.predictor(model, saved.calibration, **cond)
                noise = Streams(seed, "evaluate", part)
                measured = bound(predictor, x0, times, move, noise, terms=None if exact else terms)
                bar.advance(task, len(part))
                return {"bound.safetensors": safetensors.torch.save(measured.tensors())}

            job.run(work, measure, lambda kept: "bound.safetensors" in kept)
        if processes.first:
            parts = [safetensors.torch.load(files["bound.safetensors"]) for files in job.results(work)]
            result = concatenate([Bound.of_tensors(one) for one in parts])
            measured = {name: settings[name] for name in ("model", "average_width", "variance")} | {"data": data_source}
            _write_evaluation(folder, result, measured, test.images[:], exact)
            job.forget()


def _write_evaluation(folder: Path, result: Bound, measured: dict[str, Any], images: np.ndarray, exact: bool) -> None:
    mean, error = mean_and_error(result.bits_per_dim)
    rows = {"bound, bits/dim": (mean, error)}
    rows |= {f"  {name}": mean_and_error(values) for name, values in result.parts.items()}
    rows |= {name: (value, float("nan")) for name, value in baselines.lossless_bits_per_dim(images).items()}
    kind = "every term" if exact else f"{result.terms.shape[1]} terms an image, unbiased"
    table = Table(title=f"{len(images)} held-out images, {measured['variance']} variance, {kind}", title_justify="left")
    for heading in ("", "bits/dim", "standard error"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, (value, spread) in rows.items():
        table.add_row(name, f"{value:.4f}", "" if np.isnan(spread) else f"{spread:.4f}")
    screen.print(table)
    times, nats = result.per_t(result.terms)
    _, mse = result.per_t(result.mse)
    bits = result.bits(nats).numpy()
    figures.bound_plot(folder / "bound.png", times.numpy(), bits, mean)
    with open(folder / "bound.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["t", "bits_per_dim", "mse"])
        writer.writerows(zip(times.tolist(), bits.tolist(), mse.tolist(), strict=True))
    document = {
        "images": len(images),
        **measured,
        "terms": result.terms.shape[1],
        "nats_per_image": float(result.nats.mean()),
        "bits_per_dim": {
            name.strip(): {"mean": value, "standard_error": None if np.isnan(spread) else spread}
            for name, (value, spread) in rows.items()
        },
    }
    write_text(folder / "evaluation.json", json.dumps(document, indent=1) + "\n")
    screen.print(f"written: {folder / 'evaluation.json'}, {folder / 'bound.csv'}, {folder / 'bound.png'}")
