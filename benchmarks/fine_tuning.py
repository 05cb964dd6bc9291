"""Beginning with another model against beginning anew, and a run that goes on against one that was planned so long.

Run: .venv/bin/python benchmarks/fine_tuning.py MODEL DATA [--images 60000] [--rates 0.25,1] [--drawn 1000] [--no-legs].
All see equally many images of DATA with the preset `images`, so that all take the same time: anew; from MODEL at these
shares of the preset's learning rate; a run of the images and another leg of as many; and one of twice as many. MODEL
may be a diffusers folder (`diffusers_model.py` writes one): anew then means with its network and process, as far as
they can be set.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from common import WORK, Results, options, parsed, publish, shown, table

from ancestral.runs.config import IMPORTED, PRESETS, resolve
from ancestral.runs.hub import hub

KEYS = ("model", "data", "images", "row")
MEASURED = ("fd-lite0", "kid-lite0", "precision-lite0", "recall-lite0")


def ancestral(*arguments: object) -> None:
    """A command of this package, which prints as it goes."""
    subprocess.run([sys.executable, "-m", "ancestral", *map(str, arguments), "--device", "cpu"], check=True)


def measure(run: Path, drawn: int) -> dict[str, list[float]]:
    """Each metric of the samples against the test images, and bits/dim, with standard errors."""
    ancestral("metrics", run, "--num-images", drawn, "--train-images", drawn)
    ancestral("evaluate", run, "--num-images", 256, "--terms", 100)
    found = json.loads((run / "metrics-lite0.json").read_text())["metrics"]
    made = {name: [found[name]["test"][part] for part in ("value", "standard_error")] for name in MEASURED}
    total = json.loads((run / "evaluation.json").read_text())["bits_per_dim"]["bound, bits/dim"]
    return {**made, "bits_per_dim": [total["mean"], total["standard_error"]]}


def settings_of(model: str) -> Iterator[str]:
    """The options under which a new run has the network and the process of a model."""
    of_model, of_preset = asdict(hub.load(model).config), asdict(resolve("", "images", {}))
    for group in ("model", "diffusion"):
        for name, value in of_model[group].items():
            if value != of_preset[group][name] and f"{group}.{name}" not in IMPORTED:
                yield from ("--set", f"{group}.{name}={json.dumps(value)}")


def rows(
    model: str, data: str, images: int, rates: list[float], legs: bool, work: Path
) -> Mapping[str, list[list[object]]]:
    """{name of a row: its commands, after `ancestral`}; the run lies in a folder of that name."""
    rate = PRESETS["images"]["train.learning_rate"]

    def train(name: str, count: object, *more: object) -> list[object]:
        return ["train", data, "--out", work / name, "--images", count, *more]

    made = {"anew": [train("anew", images, *settings_of(model))]}
    for share in rates:
        name = f"from the model, {share:g} of the rate"
        made[name] = [train(name, images, "--from", model, "--learning-rate", share * rate)]
    if legs:
        name = "and as many further"
        made[name] = [train(name, images), train(name, f"+{images}")]
        made["twice as many"] = [train("twice as many", 2 * images)]
    return made


def main() -> None:
    """Measure what is missing, then write the table."""
    parser = options(__doc__ or "")
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--rates", default="0.25,1")
    parser.add_argument("--drawn", type=int, default=1000)
    parser.add_argument("--legs", action=argparse.BooleanOptionalAction, default=True, help="the rows of two legs")
    given = parsed(parser)
    results = Results(WORK / "fine_tuning.jsonl", KEYS)
    key = {"model": Path(given.model).name, "data": Path(given.data).stem, "images": given.images}
    work = WORK / "fine-tuning" / "-".join(map(str, key.values()))
    work.mkdir(parents=True, exist_ok=True)
    rates = json.loads(f"[{given.rates}]")
    for row, commands in rows(given.model, given.data, given.images, rates, given.legs, work).items():

        def trained(row: str = row, commands: list[list[object]] = commands) -> dict[str, list[float]]:
            shutil.rmtree(work / row, ignore_errors=True)  # of a run of this benchmark that was stopped
            for command in commands:
                ancestral(*command)
            return measure(work / row, given.drawn)

        results.once(trained, row=row, **key)
    digits = {**dict.fromkeys(MEASURED, 3), "fd-lite0": 1, "bits_per_dim": 3}
    lines = [
        [
            line["model"],
            line["data"],
            f"{line['images']:,}",
            line["row"],
            *(shown(line[k], n) for k, n in digits.items()),
        ]
        for line in results.lines
    ]
    headings = ("model", "data", "images", "", "fd-lite0", "kid-lite0", "precision", "recall", "bits/dim")
    publish("fine-tuning", table(headings, lines), given.docs, results.lines)


if __name__ == "__main__":
    main()
