"""A model in 20 calls and in few, what it is tuned into, and a GAN trained for as long as both together.

Minutes are the processor's, of updates alone: each is given as many images as fit at a speed measured beforehand.

Run: .venv/bin/python benchmarks/distillation.py DATA ... [--minutes 10] [--tuning 5] [--rows NAME ...]. What is
measured is kept under benchmarks/measured and not measured again; without DATA only the table is written into
benchmarks/results.md. Samples of each row are kept as a picture beside the runs, to look at.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from baselines.training import fitting
from common import MEASURED, WORK, Results, options, parsed, publish, shown, table
from generators import DRAWN, Baseline, Chain, Draw

from ancestral.data import load, pictures
from ancestral.data.dataset import DataOptions, Splits
from ancestral.evaluation import features
from ancestral.runs import config
from ancestral.runs.config import Config
from ancestral.runs.process_kinds import FEW_CALLS
from ancestral.training import distillation
from ancestral.training.format_choice import choose_format
from ancestral.training.origin import Origin
from ancestral.training.run import Run

TUNED = {"progressive": "progressive", "critic": "adversarial"}  # {name: diffusion.objective}
UNTUNED = (20, 4, 2, 1)
KEYS = ("data", "minutes", "tuning", "row")
BATCH, SHOWN = 64, 64
HEADINGS = ("", "calls", "minutes", "fd-lite0", "kid-lite0", "precision", "recall")


class Model(Chain):
    """A run of the preset `images`."""

    command: ClassVar = "train"

    def __init__(self, source: str, splits: Splits, work: Path, threads: int) -> None:
        super().__init__("images", source, splits, work, threads)
        self.splits = splits

    def train(self, minutes: float) -> None:
        """A run that is complete stays."""
        run = self.run(minutes)
        if (run.folder / "checkpoints").exists():
            return
        length = ("--images", str(_fitting(self.settings(minutes), self.splits, 60 * minutes)))
        run.command(self.command, self.source, "--out", str(run.folder), *length, *self.options)

    def settings(self, minutes: float) -> Config:
        """Of the run."""
        return config.resolve(self.source, "images", {})


class Tuned(Model):
    """A run by `ancestral distill` of another, trained when it is needed; for one number of calls or, None, for any."""

    command: ClassVar = "distill"

    def __init__(
        self, model: Model, minutes: float, objective: str, calls: int | None, splits: Splits, work: Path, threads: int
    ) -> None:
        super().__init__(str(model.run(minutes).folder), splits, work, threads)
        self.begin = partial(model.train, minutes)
        self.chosen, self.calls = {"diffusion.objective": objective}, calls
        counted = () if calls is None else ("--calls", str(calls))
        self.options = ("--device", "cpu", *counted, "--set", f"diffusion.objective={objective}")

    def train(self, minutes: float) -> None:
        """After the model."""
        self.begin()
        super().train(minutes)

    def settings(self, minutes: float) -> Config:
        """Of the run."""
        how = {"calls": self.calls, "data": None, "fresh": False}
        return distillation.settings(Origin(self.source), self.chosen, self.run(minutes).folder, **how)[0]


def _fitting(settings: Config, splits: Splits, seconds: float) -> int:
    """How many images can be trained on in so many seconds of the processor, from a throw-away training."""
    run = Run(Path("unused"), settings, splits, torch.device("cpu"))
    choose_format(run)
    progress = itertools.cycle([0.1, 0.3, 0.5, 0.7, 0.9])  # what a step takes may change on the way
    step = lambda: run.training.step(splits.train, next(progress))  # noqa: E731
    return fitting(step, settings.train.batch_size, seconds)


def _compared(draw: Draw, splits: Splits, picture: Path) -> dict[str, Any]:
    """Every metric against as many training images, with its error."""
    count = min(DRAWN, len(splits.train), len(splits.test))
    images = np.concatenate([draw(range(k, min(k + BATCH, count))) for k in range(0, count, BATCH)])
    picture.write_bytes(pictures.sheet(images[:SHOWN], columns=16))
    found = features.measure(images, splits.train, features.network("lite0"))
    return {"images": count, **{name: list(one) for name, one in found.items()}}


def measure(source: str, given: argparse.Namespace, results: Results) -> None:
    """Every row of one data set that is asked for and not there yet."""
    name, splits = Path(source).stem, load.load(source, DataOptions())
    minutes, tuning = given.minutes, given.tuning
    work = WORK / "distillation" / f"{name}-{minutes:g}-{tuning:g}"
    work.mkdir(parents=True, exist_ok=True)

    def once(row: str, calls: int, one: Model | Baseline, length: float, how: str) -> None:
        def look() -> dict[str, Any]:
            one.train(length)
            draw, made = one.drawing(length, how)
            return {"calls": made, **_compared(draw, splits, work / f"{row}-{calls}.png")}

        results.once(look, data=name, minutes=minutes, tuning=tuning, row=f"{row}, {calls}")

    model = Model(source, splits, work / "model", given.threads)
    for calls in UNTUNED if "model" in given.rows else ():
        once("model", calls, model, minutes, str(calls))
    for kind, objective in TUNED.items():
        for calls in given.calls if kind in given.rows else ():
            only, folder = (calls, f"{kind}-{calls}") if FEW_CALLS[objective].counted else (None, kind)
            tuned = Tuned(model, minutes, objective, only, splits, work / folder, given.threads)
            once(kind, calls, tuned, tuning, str(calls))
    if "GAN" in given.rows:
        once("GAN", 1, Baseline("gan", source, splits, work / "gan", given.threads), minutes + tuning, "draw")


def text(results: Results) -> str:
    """A table for each data set and times."""
    parts = []
    for data, minutes, tuning in dict.fromkeys((one["data"], one["minutes"], one["tuning"]) for one in results.lines):
        kinds = ["model", "GAN", *TUNED]
        lines = results.find(data=data, minutes=minutes, tuning=tuning)
        lines.sort(key=lambda line: (kinds.index(line["row"].partition(",")[0]), -line["calls"]))
        spent = {"model": f"{minutes:g}", "GAN": f"{minutes + tuning:g}"}
        spent |= dict.fromkeys(TUNED, f"{minutes:g} + {tuning:g}")
        rows = [
            (
                kind := one["row"].partition(",")[0],
                one["calls"],
                spent[kind],
                shown(one["fd-lite0"], 1),
                shown(one["kid-lite0"], 4),
                shown(one["precision-lite0"], 3),
                shown(one["recall-lite0"], 3),
            )
            for one in lines
        ]
        parts.append(f"`{data}`, {lines[0]['images']} images of each:\n\n{table(HEADINGS, rows)}")
    return "\n\n".join(parts)


def main() -> None:
    """Measure what is missing, then write the table."""
    parser = options(__doc__ or "")
    parser.set_defaults(threads=1)
    parser.add_argument("data", nargs="*", help="as `ancestral train` takes it: mnist, or a .npz file")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training the model")
    parser.add_argument("--tuning", type=float, default=5.0, help="minutes of tuning it")
    parser.add_argument("--rows", nargs="+", default=["model", *TUNED, "GAN"], help="which kinds")
    parser.add_argument("--calls", type=int, nargs="+", default=[1, 2, 4], help="of tuned models")
    given = parsed(parser)
    results = Results(MEASURED / "distillation.jsonl", KEYS)
    for source in given.data:
        if source not in load.BUILT_IN and not Path(source).exists():
            sys.exit(f"{source}: not here, so it is left out")
        measure(source, given, results)
    publish("distillation", text(results), given.docs, results.lines)


if __name__ == "__main__":
    main()
