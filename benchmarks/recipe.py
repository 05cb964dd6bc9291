"""What gives the most in a fixed time of training: one line of JSON a trial, on images that no test uses.

    benchmarks/recipe.py DATA.npz SECONDS OUT.jsonl [NAME [KEY=VALUE ...]]

A trial is a preset with settings; its time is the processor's, of training steps alone. Of the training images a part
is kept apart, and samples and the bound are measured on it. The test images are not looked at.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ancestral.data import load, pictures
from ancestral.data.dataset import ImageSet, Splits
from ancestral.data.pixels import to_bytes, to_unit
from ancestral.diffusion.objectives.elbo import elbo
from ancestral.diffusion.objectives.statistics import mean_and_error
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.sample import sample
from ancestral.diffusion.samplers.solvers import SOLVERS
from ancestral.evaluation import features
from ancestral.runs import build, calibration, config
from ancestral.runs.conditions import conditions_of
from ancestral.runs.config import Config
from ancestral.runs.datasets import facts
from ancestral.training import cost
from ancestral.training.trainer import Training

DRAWN, REFERENCE, BOUND, TERMS = 1000, 1000, 128, 200
CPU = torch.device("cpu")


Division = Callable[[ImageSet], Splits]  # of training images into those that are trained on and those measured against


def apart(images: ImageSet) -> Splits:
    """Every tenth training image, at least 1,000, for trials."""
    every = min(10, len(images) // 1000)
    rows = range(len(images))
    return Splits(images.take([r for r in rows if r % every]), images.take([r for r in rows if r % every == 0]))


def trained(chosen: Config, images: ImageSet, seconds: float) -> tuple[Training, cost.Cost, float]:
    """A training of so many seconds of the processor, what it costs, and the seconds that it had."""
    training, spent = Training(chosen, facts(images), CPU), 0.0
    spending = cost.measure(training, images)
    while spent < seconds:
        # The learning rate follows the time: where the run would end at the speed so far.
        began = time.process_time()
        training.step(images, spent / seconds)
        spent += time.process_time() - began
    return training, spending, spent


def trial(
    source: str,
    seconds: float,
    preset: str,
    settings: dict[str, object],
    sheet: Path,
    divided: Division = apart,
) -> dict[str, object]:
    """Train for so long and measure."""
    chosen = config.resolve(source, preset, {"train.precision": "auto", **settings})
    splits = divided(load.load(source, chosen.data).train)
    training, spending, spent = trained(chosen, splits.train, seconds)
    weights = training.model_weights(training.tensors())
    model = build.ready(chosen, training.facts, weights)
    table = calibration.calibration(chosen, model, splits.train, CPU)
    labels = torch.arange(DRAWN) % len(training.facts.class_names) if chosen.model.labels else None
    times = grids.trailing(model.schedule, 20)
    began = time.perf_counter()
    drawn = []
    for start in range(0, DRAWN, 50):
        part = None if labels is None else labels[start : start + 50]
        predictor = build.predictor(model, None, **({} if part is None else {"labels": part}))
        drawn.append(sample(predictor, training.facts.shape, 50, times, SOLVERS["unipc3"], seed=start))
    images = to_bytes(torch.cat(drawn))
    drawing = time.perf_counter() - began
    pictures.save_sheet(sheet, images[:64])
    quality = features.measure(images, splits.test.spread(REFERENCE), features.network("lite0"))
    held = splits.test.spread(BOUND)
    measured = elbo(
        build.predictor(model, table, **conditions_of(held, chosen, CPU)),
        to_unit(held.images),
        build.training_grid(chosen),
        build.Ancestral(build.optimal),
        Streams(0, "recipe", range(len(held))),
        terms=TERMS,
    )
    bits, error = mean_and_error(measured.bits_per_dim)
    return {
        "preset": preset,
        "settings": settings,
        "seconds": round(spent, 1),
        "images": training.images,
        "parameters": spending.parameters,
        "gflop_an_image": spending.flops / chosen.train.batch_size / 1e9,
        "gflops": spending.flops / chosen.train.batch_size * training.images / spent / 1e9,
        **{name: [round(one.value, 4), round(one.error, 4)] for name, one in quality.items()},
        "bits_per_dim": round(bits, 4),
        "bits_error": round(error, 4),
        "draw_seconds": round(drawing, 1),
    }


def main() -> None:
    """Run a trial unless its name is in the file already."""
    source, seconds, out, name, preset, *assignments = sys.argv[1:]
    path = Path(out)
    done = [json.loads(line)["name"] for line in path.read_text().splitlines()] if path.exists() else []
    if name in done:
        return
    sheet = path.with_suffix("") / f"{name}.png"
    sheet.parent.mkdir(parents=True, exist_ok=True)
    result = trial(source, float(seconds), preset, config.parse_assignments(assignments), sheet)
    with open(path, "a") as file:
        file.write(json.dumps({"name": name, **result}) + "\n")
    print(json.dumps({"name": name, **result}))


if __name__ == "__main__":
    main()
