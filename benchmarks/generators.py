"""A GAN, a VAE, a flow, an absorbing chain and a diffusion model, each trained on the same images for the same time.

Run: .venv/bin/python benchmarks/generators.py DATA ... [--minutes 5]. The last two are `ancestral train DATA --preset
absorbing` and `--preset images`; the others are in benchmarks/baselines. What is measured is kept under
benchmarks/measured and not measured again. The table is written into benchmarks/results.md, and the numbers and a few
samples of each into src/ancestral/apps/report/generators; without DATA only these are written.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import baselines
import numpy as np
import torch
from common import MEASURED, WORK, Results, options, parsed
from generators_page import published
from time_to_quality import Ours

from ancestral.data import load
from ancestral.data.dataset import DataOptions, Splits
from ancestral.data.pixels import to_bytes, to_unit
from ancestral.diffusion.objectives.statistics import mean_and_error
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.sample import finish
from ancestral.evaluation import features
from ancestral.evaluation.image_formats import lossless_bits_per_dim
from ancestral.runs.sampling_options import SamplingOptions
from ancestral.sampling.sampler import Sampler

KEYS = ("data", "minutes", "name", "what")
DRAWN, HELD_OUT = 2000, 1000  # images, at most: as `ancestral metrics` has it; for bits/dim
BATCH, SHOWN, REPEATS = 64, 64, 5
NOISES = 8  # of a baseline's bound, an image
STAGES = ("training", "speed", "quality", "bits")

Draw = Callable[[range], np.ndarray]  # numbers to bytes (B, H, W, C)


class Baseline:
    """One of `baselines.METHODS`, trained here: the time is the processor's, of its updates alone."""

    def __init__(self, method: str, source: str, splits: Splits, work: Path, threads: int) -> None:
        self.method, self.splits, self.work = baselines.METHODS[method], splits, work

    def train(self, minutes: float) -> None:
        """Unless it is there."""
        if self._facts().exists():
            return
        total = baselines.planned(self.method, self.splits.train, 60 * minutes)
        started = time.process_time()
        network = baselines.train(self.method, self.splits.train, total)
        seconds = time.process_time() - started
        height, width, channels = self.splits.train.shape
        parts = self.method.make((channels, height, width)).parts
        weights = {"weights": _weights(parts), "drawing_weights": _weights(baselines.drawing_part(network))}
        baselines.save(network, self.work, {"seen": total, "seconds": seconds, **weights})

    def facts(self, minutes: float) -> dict[str, Any]:
        """What it cost."""
        return json.loads(self._facts().read_text())

    def drawing(self, minutes: float, how: str) -> tuple[Draw, int]:
        """By the network's method of this name, in one call."""
        network = self._network()

        def draw(numbers: range) -> np.ndarray:
            with torch.inference_mode():
                return to_bytes(getattr(network, how)(Streams(0, "draw", numbers)))

        return draw, 1

    def bits(self, minutes: float) -> list[float] | None:
        """The mean of the bound in bits/dim over held-out images and its standard error; None without a likelihood."""
        network, images = self._network(), self.splits.test.spread(HELD_OUT)
        if not hasattr(network, "nats"):
            return None
        found = []
        with torch.inference_mode():
            for first in range(0, len(images), BATCH):
                x = to_unit(images.images[first : first + BATCH])
                noise = Streams(0, "bits", range(first, first + len(x)))
                found.append(torch.stack([network.nats(x, noise) for _ in range(NOISES)]).double().mean(0))
        return list(mean_and_error(torch.cat(found) / images.images[0].size / np.log(2)))

    def _network(self) -> Any:
        height, width, channels = self.splits.train.shape
        return baselines.load(self.method, (channels, height, width), self.work)

    def _facts(self) -> Path:
        return self.work / "facts.json"


class Chain(Ours):
    """A preset of ours, by `ancestral train`: the time is that of the command, but for starting Python."""

    measured = ("--num-images", str(HELD_OUT), "--device", "cpu")  # the same images as the baselines' are measured on

    def __init__(self, preset: str, source: str, splits: Splits, work: Path, threads: int) -> None:
        super().__init__(source, splits, work, threads)
        self.options = ("--preset", preset, "--device", "cpu")

    def train(self, minutes: float) -> None:
        """Unless it is there."""
        wall = self.run(minutes).folder / "wall.json"
        if wall.exists():
            return
        started = time.perf_counter()
        super().train([minutes])
        wall.write_text(json.dumps(time.perf_counter() - started))

    def facts(self, minutes: float) -> dict[str, Any]:
        """What it cost."""
        run = self.run(minutes)
        found, seconds = run.cost(), json.loads((run.folder / "wall.json").read_text())
        return {**found, "seconds": seconds, "drawing_weights": found["weights"]}

    def drawing(self, minutes: float, how: str) -> tuple[Draw, int]:
        """In so many steps; every step of the chain for "all"."""
        steps = how if how == "all" else int(how)
        sampler = Sampler(self.run(minutes).folder, SamplingOptions(steps=steps, batch_size=BATCH), "cpu")

        def draw(numbers: range) -> np.ndarray:
            return to_bytes(finish(sampler.walk(numbers, {}, lambda _: None)))

        return draw, sampler.calls


@dataclass(frozen=True)
class Row:
    """A model and a way to draw from it."""

    model: str
    how: str


MODELS: dict[str, Callable[..., Baseline | Chain]] = {
    **{name: partial(Baseline, name) for name in baselines.METHODS},
    "absorbing": partial(Chain, "absorbing"),
    "diffusion": partial(Chain, "images"),
}
ROWS = {
    "gan": Row("gan", "draw"),
    "vae": Row("vae", "draw"),
    "vae-mean": Row("vae", "mean"),
    "flow": Row("flow", "draw"),
    "absorbing": Row("absorbing", "all"),
    "diffusion": Row("diffusion", "50"),
    "diffusion-10": Row("diffusion", "10"),
}


def _weights(network: torch.nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


def _seconds(draw: Draw) -> dict[str, Any]:
    """To draw 64 images at a time, the median of a few."""
    taken = []
    for turn in range(REPEATS + 1):
        started = time.perf_counter()
        draw(range(64))
        taken += [time.perf_counter() - started] if turn else []
    return {"seconds_64": float(np.median(taken)), "fastest_and_slowest": [min(taken), max(taken)]}


def _compared(images: np.ndarray, splits: Splits) -> dict[str, Any]:
    """Every metric against as many training images, with its error."""
    found = features.measure(images, splits.train, features.network("lite0"))
    return {"images": len(images), "train": {name: [one.value, one.error] for name, one in found.items()}}


def _drawn(draw: Draw, count: int, shown: Path) -> np.ndarray:
    images = np.concatenate([draw(range(k, min(k + BATCH, count))) for k in range(0, count, BATCH)])
    shown.parent.mkdir(parents=True, exist_ok=True)
    np.save(shown, images[:SHOWN])
    return images


def measure(source: str, minutes: float, threads: int, stages: list[str], rows: list[str], results: Results) -> None:
    """Every line of one data set that is not there yet."""
    name, splits = Path(source).stem, load.load(source, DataOptions())
    count = min(DRAWN, len(splits.train), len(splits.test))
    held_out = splits.test.spread(HELD_OUT)
    work = WORK / "generators" / f"{name}-{minutes:g}"

    def once(row: str, what: str, look: Callable[[], dict[str, Any]]) -> None:
        if what in stages:
            results.once(look, data=name, minutes=minutes, name=row, what=what)

    once("real", "quality", lambda: _compared(splits.test.spread(count).images[:], splits))
    once("real", "bits", lambda: {"images": len(held_out), "lossless": lossless_bits_per_dim(held_out.images[:])})
    for row in rows:
        one = ROWS[row]
        model = MODELS[one.model](source, splits, work / one.model, threads)
        if "training" in stages:
            model.train(minutes)
        once(one.model, "training", lambda model=model: model.facts(minutes))
        if {"speed", "quality"} & set(stages):
            draw, calls = model.drawing(minutes, one.how)
            once(row, "speed", lambda draw=draw, calls=calls: {"calls": calls, **_seconds(draw)})
            shown = work / "shown" / f"{row}.npy"
            once(row, "quality", lambda draw=draw, shown=shown: _compared(_drawn(draw, count, shown), splits))
        once(one.model, "bits", lambda model=model: {"images": len(held_out), "bits": model.bits(minutes)})


def main() -> None:
    """Measure what is missing, then write the table, the numbers and the samples."""
    parser = options(__doc__ or "")
    parser.set_defaults(threads=1)
    parser.add_argument("data", nargs="*", help="as `ancestral train` takes it: mnist, or a .npz file")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES, help="what is to be measured now")
    given = parsed(parser)
    results = Results(MEASURED / "generators.jsonl", KEYS)
    for source in given.data:
        if source not in load.BUILT_IN and not Path(source).exists():
            sys.exit(f"{source}: not here, so it is left out")
        measure(source, given.minutes, given.threads, given.stages, given.rows, results)
    published(Results(results.path, KEYS), {name: row.model for name, row in ROWS.items()}, given.docs)


if __name__ == "__main__":
    main()
