"""Ten calls and six tuned ones against every step of the paper's chain, on the same model.

Run: .venv/bin/python benchmarks/few_calls.py RUN ... [--images 1000]. What is measured is kept under runs/benchmarks
and not measured again; the table is written into benchmarks/results.md.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import WORK, Results, options, parsed, publish, quality, shown, table

from ancestral.data import load
from ancestral.data.dataset import ImageSet
from ancestral.data.pixels import to_bytes
from ancestral.diffusion.samplers.sample import finish
from ancestral.runs import checkpoint
from ancestral.runs.sampling_options import SamplingOptions
from ancestral.sampling.command import tune_steps
from ancestral.sampling.sampler import Sampler

ROUND, TUNED_ON = 100, 64
WAYS = {  # name: (options, largest share by which its distance may be above the chain's)
    "every step": ({"steps": "all"}, None),
    "10 calls": ({"steps": 10}, 0.05),
    "6 calls": ({"steps": 6}, None),
    "6 calls, tuned": ({"steps": 6, "grid": "tuned"}, 0.10),
}


def drawn(run: Path, chosen: dict[str, Any], count: int) -> np.ndarray:
    """Bytes (N, H, W, C)."""
    sampler = Sampler(run, SamplingOptions(**{"precision": "auto", **chosen}), "cpu")
    batches = []
    for first in range(0, count, ROUND):
        with torch.inference_mode():
            steps = sampler.walk(range(first, min(first + ROUND, count)), {}, lambda images: None)
            batches.append(to_bytes(finish(steps).float()))
    return np.concatenate(batches)


def measured(run: Path, chosen: dict[str, Any], count: int, reference: ImageSet) -> dict[str, list[float]]:
    """The quality of what is drawn so; tuned times are found first."""
    if chosen.get("grid") == "tuned":
        rest = {"embeddings": None, "average_width": None, "seed": 0, "device": "cpu"}
        tune_steps(run, steps=chosen["steps"], num_images=TUNED_ON, **rest)
    return quality(drawn(run, chosen, count), reference)


def main() -> None:
    """Measure what is missing, then write the table."""
    parser = options(__doc__ or "")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--images", type=int, default=1000)
    given = parsed(parser)
    results = Results(WORK / "few_calls.jsonl", ("model", "way", "images"))
    rows, lines = [], []
    for run in given.runs:
        saved, _ = checkpoint.open_run(run)
        train = load.load(saved.config.source, saved.config.data).train
        chain: dict | None = None
        for way, (chosen, bound) in WAYS.items():
            measure = partial(measured, run, chosen, given.images, train)
            line = results.once(measure, model=checkpoint.digest(saved)[:16], way=way, images=given.images)
            lines.append(line)
            chain = chain or line
            (value, error), (whole, whole_error) = line["fd-lite0"], chain["fd-lite0"]
            ratio = value / whole
            ratio_error = ratio * math.hypot(error / value, whole_error / whole)
            verdict = "" if bound is None else f"at most {1 + bound:.2f}: {'met' if ratio <= 1 + bound else 'missed'}"
            against = "" if line is chain else f"{ratio:.3f} ± {ratio_error:.3f}"
            rows.append([run.name, way, shown(line["fd-lite0"], 1), shown(line["kid-lite0"], 4), against, verdict])
    publish(
        "few-calls",
        table(["model", "drawn in", "fd-lite0", "kid-lite0", "fd by the chain's", "goal"], rows),
        given.docs,
        lines,
    )


if __name__ == "__main__":
    main()
