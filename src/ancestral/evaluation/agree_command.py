"""`ancestral agree`: bits per dimension of the same images and times by the bound, the flow and an archive."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ancestral.compression.archive_command import Archived, calls, compressed, expanded, open_coder
from ancestral.compression.archive_format import Archive
from ancestral.compression.block_coder import MOST
from ancestral.compression.errors import CodecError
from ancestral.data.pixels import to_unit
from ancestral.diffusion.denoisers.denoiser import Predictor
from ancestral.diffusion.objectives.elbo import elbo
from ancestral.diffusion.objectives.elbo_derivation import along_chains
from ancestral.diffusion.objectives.probability_flow import Noised, flow_bound
from ancestral.diffusion.objectives.statistics import largest_share, mean_and_error
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.transitions import Ancestral, optimal
from ancestral.errors import UserError
from ancestral.evaluation.measurement import write
from ancestral.runs import build, checkpoint
from ancestral.runs.datasets import images_for
from ancestral.runs.process_kinds import need_every_time
from ancestral.runtime.console import Progress, screen, table
from ancestral.runtime.encode import json_bytes
from ancestral.runtime.result_files import held
from ancestral.runtime.resumable_job import pieces

Measure = Callable[[Predictor, Tensor, list[int], Streams], Tensor]  # bits per dimension of each image, (B,)

MEASURES: dict[str, Measure] = {
    "bound, each t by itself": lambda model, x0, times, noise: (
        elbo(model, x0, times, Ancestral(optimal), noise).bits_per_dim
    ),
    "bound, along a chain": lambda model, x0, times, noise: (
        along_chains(model, x0, times, Ancestral(optimal), noise).monte_carlo.bits_per_dim
    ),
    # The same decoder of the last step, and instead of the steps before it the flow that they approach.
    "probability flow": lambda model, x0, times, noise: (
        flow_bound(model, x0, noise, Noised(Ancestral(optimal), times[-2])).bits_per_dim
    ),
}


class Row(NamedTuple):
    """One measure, in bits per dimension; the difference is to the first measure, image by image."""

    mean: float
    error: float  # standard error, over images
    largest_share: float  # of one image in the sum
    difference: float
    difference_error: float


def rows(bits_by_measure: dict[str, Tensor]) -> dict[str, Row]:
    """Each measure's bits per dimension of the same images, (N,), against the first's."""
    first = next(iter(bits_by_measure.values()))
    return {
        name: Row(*mean_and_error(bits), largest_share(bits), *mean_and_error(bits - first))
        for name, bits in bits_by_measure.items()
    }


def agree(
    folder: Path, *, data_source: str | None, num_images: int, steps: int | None, grid: str, block: int, seed: int
) -> None:
    """Measure the bound in each way, write the archive, read it back, and print one table of all."""
    saved, predictor = open_coder(folder)
    need_every_time(saved.config, str(folder))
    data_source, images = images_for(saved, data_source)
    test = images.test.spread(num_images)
    steps = steps or calls(saved.config)
    times, pixels = build.sampling_grid(saved.config, grid, steps), np.asarray(test.images[:])
    name = f"agreement-{steps}"
    with held(folder, name) as results:
        measured = {way: _measured(measure, way, predictor, pixels, times, seed) for way, measure in MEASURES.items()}
        archived = compressed(saved, predictor, pixels, (), times, block, folder / f".{name}")
        archive = archived.content.to_bytes()
        try:
            again = expanded(saved, predictor, Archive.of_bytes(archive), range(len(pixels)))
        except CodecError:
            archived.job.forget()  # they are wrong
            raise
        if not np.array_equal(again, pixels):
            archived.job.forget()
            raise UserError(f"{folder}: an archive does not give the images back; do not use archives on this machine")
        measured["bound, along the archive's chains"] = archived.nats / math.log(2) / math.prod(saved.facts.shape)
        document = _report(rows(measured), archived, len(archive), pixels, {
            "model": checkpoint.digest(saved), "data": data_source, "images": len(pixels), "steps": steps,
            "times": times, "grid": grid, "block": block, "seed": seed,
        })  # fmt: skip
        files = {f"{name}.archive": archive, f"{name}.json": document}
        screen.print("read back and compared")
        write(results, files)
        archived.job.forget()


def _measured(measure: Measure, name: str, model: Predictor, pixels: np.ndarray, times: list[int], seed: int) -> Tensor:
    with Progress() as bar:
        parts = [
            measure(
                model, to_unit(pixels[part.start : part.stop]).double(), times, Streams(seed, f"agree {name}", part)
            )
            for part in bar.track(pieces(len(pixels), MOST), description=name)
        ]
    return torch.cat(parts)


def _report(
    found: dict[str, Row], archived: Archived, on_disk: int, pixels: np.ndarray, settings: dict[str, Any]
) -> bytes:
    """Show what was found; returns it as JSON."""
    values = pixels.size
    header = on_disk - sum(len(one.payload) for one in archived.content.blocks)
    bits = {
        "on_disk": 8 * on_disk / values,
        "of_which_header": 8 * header / values,
        "of_which_begin_blocks": 8 * archived.one_off / values,
    }
    first, own = (found[name] for name in (next(iter(found)), list(found)[-1]))
    title = f"{len(pixels)} held-out images, {settings['steps']} steps, bits/dim"
    shown = table(title, "", "mean", "± of it", "largest image", "- first row", "± of it")
    for name, row in found.items():
        cells = (f"{row.mean:.4f}", f"{row.error:.4f}", f"{row.largest_share:.1%}")
        shown.add_row(name, *cells, f"{row.difference:.4f}", f"{row.difference_error:.4f}")
    # The images differ far more than the ways do: the archive's error is that of its own chains.
    shown.add_row(
        "archive, bytes on disk", f"{bits['on_disk']:.4f}", f"{own.error:.4f}", f"{own.largest_share:.1%}",
        f"{bits['on_disk'] - first.mean:.4f}", f"{own.difference_error:.4f}",
    )  # fmt: skip
    for name in ("of_which_header", "of_which_begin_blocks"):
        shown.add_row(f"  {name.replace('_', ' ')}", f"{bits[name]:.4f}")
    screen.print(shown)
    document = {
        **settings,
        "bits_per_dim": {name: row._asdict() for name, row in found.items()},
        "archive": {"bytes": on_disk, **bits, "milliseconds_per_image": 1000 * archived.seconds},
    }
    return json_bytes(document)
