"""`ancestral rd`: rate and distortion along the reverse process and of image formats, as tables and plots."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ancestral.compression import compress_command
from ancestral.compression.choices import PROFILES
from ancestral.compression.completion import FINISHES
from ancestral.compression.prefix_quality import prefixes
from ancestral.diffusion.denoisers.denoiser import Denoiser, Predictor, Watched
from ancestral.diffusion.objectives.elbo import Elbo, concatenate
from ancestral.diffusion.objectives.elbo_derivation import along_chains
from ancestral.diffusion.objectives.rate_distortion import Curve, curve
from ancestral.diffusion.objectives.statistics import image_psnr
from ancestral.diffusion.processes.types import Advance
from ancestral.errors import UserError
from ancestral.evaluation import image_formats
from ancestral.evaluation.measurement import HeldOut, Tensors
from ancestral.runs import build
from ancestral.runs.checkpoint import Checkpoint
from ancestral.runs.conditions import need_none
from ancestral.runs.open import open_gaussian
from ancestral.runtime import plots
from ancestral.runtime.console import Progress, advancing, screen, table
from ancestral.runtime.distributed import Processes
from ancestral.runtime.encode import csv_bytes, json_bytes

ROWS = 10  # of the table: each tenth of the steps, as Table 4 has it
RATES = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)  # bits/dim at which the distortion is printed
FILES = 64  # images that are compressed, at most


def rate_distortion(
    folder: Path,
    held_out: HeldOut,
    *,
    profile: str | None,
    steps: int | None,
    grid: str,
    variance: str | None,
    out: Path | None,
) -> None:
    """Measure the curve of Figure 5 on held-out images; write a table, plots, CSV and JSON."""
    if profile and held_out.average_width is not None:
        raise UserError("--profile: files are written with the run's own average; leave --average-width out")
    saved, model = held_out.open(folder, open_gaussian)
    if profile:
        compress_command.need_float64(held_out.device)
        need_none(saved.config, str(folder))
    (data_source, splits), out = held_out.images(saved), out or folder
    move, times = build.transition(saved, variance), build.sampling_grid(saved.config, grid, steps)
    measurement = held_out.measurement(saved, model, splits)
    images = measurement.images
    settings = {**measurement.settings, "times": times, "variance": variance or saved.config.diffusion.variance}

    def measure(predictor: Predictor, x0: Tensor, numbers: range, advance: Advance) -> Tensors:
        watched = Watched(predictor, advance)
        return along_chains(watched, x0, times, move, measurement.streams("rd", numbers)).elbo.tensors()

    def files(parts: list[Tensors], processes: Processes) -> dict[str, bytes]:
        if not processes.first:
            return {}
        measured = curve(concatenate([Elbo.of_tensors(one) for one in parts]))
        facts = {name: settings[name] for name in ("model", "average_width", "variance", "seed")}
        facts = {"data": data_source, "images": len(images), **facts}
        packed = _file_quality(folder, saved, model, images.spread(FILES).images[:], profile) if profile else None
        return _files(measured, images.images[:], facts, packed)

    measurement.run(out, "rd", settings, measure, files, f"{len(times) - 1} steps", len(times) - 1)


def _file_quality(folder: Path, saved: Checkpoint, model: Denoiser, images: np.ndarray, name: str) -> dict[str, Any]:
    """Compress images (N, H, W, C) by a profile: bits/dim and PSNR of prefixes, and of each finish at half the size.

    Every file is decoded once, for all prefixes that end with a step.
    """
    model, codebook = compress_command.with_codebook(folder, saved, model)
    profile, originals = PROFILES[name], list(images)
    codec = compress_command.codec_of(model, model, saved, codebook)
    encoding = codec.encoding_calls(originals, profile, [""] * len(originals))
    with advancing("files", encoding + encoding // 2) as advance:  # and decoded
        predictor = Watched(model, lambda images: advance(1))
        watched = compress_command.codec_of(predictor, model, saved, codebook)
        files = watched.encode(originals, profile)
        found = prefixes(watched, originals, profile, files)
    half = round((found.header + float(found.size[:, -1].mean())) / 2)
    cut = [file[:half] for file in files]
    with Progress() as bar:
        decoded = {
            finish: np.stack([one.pixels for one in codec.decode(cut, FINISHES[finish])])
            for finish in bar.track(FINISHES, description="files, finished")
        }
    finished = {finish: image_psnr(images, pixels) for finish, pixels in decoded.items()}
    unit = 8 / images[0].size
    sizes = found.size.mean(0)
    points = [
        image_formats.Point(size * unit, (size - found.header) * unit, shown)
        for size, shown in zip(sizes.tolist(), found.psnr.tolist(), strict=True)
    ]
    whole = float(found.whole.mean())
    screen.print(
        f"{len(files)} files, profile {name}: lossless in {whole:.1f} bytes, {whole * unit:.3f} bits/dim, of which the "
        f"picture is {sizes[-1]:.1f} bytes at {found.psnr[-1]:.2f} dB; the first {half} bytes, finished by "
        + ", ".join(f"{finish}: {decibels:.2f} dB" for finish, decibels in finished.items())
    )
    return {
        "profile": name,
        "images": len(files),
        "lossless_bits_per_dim": whole * unit,
        "header_bytes": found.header,
        "points": [{"bytes": size, **point._asdict()} for size, point in zip(sizes.tolist(), points, strict=True)],
        "finishes": {"bytes": half, "psnr": finished},
    }


def _files(
    measured: Curve, images: np.ndarray, facts: dict[str, Any], files: dict[str, Any] | None
) -> dict[str, bytes]:
    """Print the curve; returns its files by name."""
    _show(measured, facts)
    names = ("step", "t", "rate_bits_per_dim", "rate_error", "rmse", "rmse_error", "psnr")
    columns = (measured.t, measured.rate, measured.rate_error, measured.rmse, measured.rmse_error, measured.psnr)
    rows = zip(range(1, len(measured.t) + 1), *(values.tolist() for values in columns), strict=True)
    formats = compared(images)
    own = {"model, ideal code": list(zip(measured.rate.tolist(), measured.psnr.tolist(), strict=True))}
    if files:
        shown = [(point["payload_bits_per_dim"], point["psnr"]) for point in files["points"]]
        own[f"model, files ({files['profile']}), no header"] = shown
    # Without containers, as the model's rate has none.
    lines = {
        f"{name}, no container": [(p.payload_bits_per_dim, p.psnr) for p in points] for name, points in formats.items()
    }
    at = {rate: measured.rmse_at(rate) for rate in RATES}
    document = {
        **facts,
        "steps": len(measured.t),
        "rate_bits_per_dim": float(measured.rate[-1]),
        "rmse": float(measured.rmse[-1]),
        "lossless_bits_per_dim": measured.lossless,
        "share_of_rate_in_last_tenth": measured.share_in_last_tenth,
        "rmse_at_bits_per_dim": {f"{rate:g}": rmse for rate, rmse in at.items() if not math.isnan(rmse)},
        "files": files,
        "formats": {name: [point._asdict() for point in points] for name, points in formats.items()},
    }
    return {
        "rate_distortion.json": json_bytes(document),
        "rate_distortion.csv": csv_bytes(names, rows),
        "rate_distortion.png": plots.rate_distortion_plot(measured.rate.numpy(), measured.rmse.numpy()),
        "rates.png": plots.rates_plot(own, lines),
    }


def compared(images: np.ndarray) -> dict[str, list[image_formats.Point]]:
    """Rate and quality of each lossy format on the same images; prints which formats are not available here."""
    here, absent = image_formats.lossy_formats(images.shape[-1])
    if absent:
        screen.print(f"left out: {', '.join(absent)} (for jxl: pip install pillow-jxl-plugin)")
    return {name: image_formats.lossy_points(images, name) for name in here}


def _show(measured: Curve, facts: dict[str, Any]) -> None:
    steps = len(measured.t)
    title = f"{facts['images']} held-out images, {steps} steps, {facts['variance']} variance"
    headings = ("t", "rate, bits/dim", "standard error", "RMSE, 0-255", "standard error", "PSNR, dB")
    shown = table(title, "steps done", *headings)
    shown.columns[0].justify = "right"  # numbers too
    for row in sorted({max(0, round(steps * k / ROWS) - 1) for k in range(1, ROWS + 1)}):
        values = (measured.rate, measured.rate_error, measured.rmse, measured.rmse_error, measured.psnr)
        cells = [f"{float(value[row]):.{digits}f}" for value, digits in zip(values, (5, 5, 3, 3, 2), strict=True)]
        shown.add_row(str(row + 1), str(int(measured.t[row])), *cells)
    shown.add_row("lossless", "0", f"{measured.lossless:.5f}", "", "0", "", "")
    screen.print(shown)
    screen.print(f"{measured.share_in_last_tenth:.1%} of the rate is sent in the last tenth of the steps")
    at = [(rate, measured.rmse_at(rate)) for rate in RATES]
    reached = [f"{rate:g} bits/dim: RMSE {rmse:.2f}" for rate, rmse in at if not math.isnan(rmse)]
    screen.print("; ".join(reached))
