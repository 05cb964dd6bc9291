"""Drawing as `--precision auto`, throughout and with the last calls in float32: speed and distance to the data.

Run: .venv-peers/bin/python benchmarks/drawing_precision.py RUN ... What is measured is kept under benchmarks/measured
and not measured again; without RUN only the table is written into benchmarks/results.md.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from common import MEASURED, SHOWN, Results, cells, of_runs, publish, quality, spread, table

from ancestral.data import load
from ancestral.data.pixels import to_bytes
from ancestral.diffusion.samplers.sample import finish
from ancestral.runs import checkpoint
from ancestral.runs.sampling_options import SamplingOptions
from ancestral.runtime.resumable_job import pieces
from ancestral.sampling.command import conditions
from ancestral.sampling.sampler import Sampler

STEPS = (4, 10, 20)
WAYS = {"float32": "float32", "auto, throughout": "auto", "auto, the last calls in float32": "auto"}
TOGETHER = 64


def measure(run: Path, steps: int, count: int) -> dict[str, object]:
    """Every way's distances, and its seconds a piece; pieces are drawn in turns."""
    saved, _ = checkpoint.open_run(run)
    train = load.load(saved.config.source, saved.config.data).train
    samplers = {way: Sampler(run, SamplingOptions(steps=steps, precision=one), "cpu") for way, one in WAYS.items()}
    samplers["auto, throughout"].last = -1
    cond, seconds = conditions(saved, None, None, count), {way: list[float]() for way in WAYS}
    images = {way: list[np.ndarray]() for way in WAYS}
    with torch.inference_mode():
        for part in pieces(count, TOGETHER):
            for way, sampler in samplers.items():
                started = time.process_time()
                images[way].append(to_bytes(finish(sampler.walk(part, cond, lambda _: None))))
                seconds[way].append(time.process_time() - started)
    found = {way: quality(np.concatenate(drawn), train, train) for way, drawn in images.items()}
    formats = {way: str(sampler.format) for way, sampler in samplers.items()}
    data = Path(saved.config.source).stem
    return {"data": data, "seen": saved.images, "formats": formats, "seconds": seconds, "found": found}


def main() -> None:
    """Measure what is missing, then write the table."""
    given = of_runs(__doc__ or "")
    results = Results(MEASURED / "drawing_precision.jsonl", ("model", "steps", "images"))
    for run in given.runs:
        model = checkpoint.digest(checkpoint.open_run(run)[0])[:16]
        for steps in STEPS:
            key = {"model": model, "steps": steps, "images": given.images}
            results.once(lambda run=run, steps=steps: measure(run, steps, given.images), **key)
    rows = [
        [
            f"{line['data']}, {line['seen']:,}",
            line["steps"],
            way,
            line["formats"][way],
            spread(np.array(line["seconds"]["float32"]) / np.array(line["seconds"][way])),
            *cells(found),
        ]
        for line in results.lines
        for way, found in line["found"].items()
    ]
    headings = ["set, images seen", "calls", "", "is", "speed", *SHOWN]
    publish("drawing-precision", table(headings, rows), given.docs, results.lines)


if __name__ == "__main__":
    main()
