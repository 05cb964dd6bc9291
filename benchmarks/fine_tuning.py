"""Beginning with another model against beginning anew, and a run that goes on against one that was planned so long.

Run: .venv/bin/python benchmarks/fine_tuning.py MODEL DATA [--length 10m] [--rates 0.25,1] [--drawn 1000] [--no-legs].
All train on DATA with the preset `images`, for a time (10m: starting and saving included) or a number of images: anew;
from MODEL at these shares of the preset's learning rate; a run and another leg of the same length; and one of twice
that length. MODEL may be a diffusers folder (`diffusers_model.py` writes one): anew then means with its network and
process, as far as they can be set. Without MODEL only the table is written.
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

from common import MEASURED, WORK, Results, options, parsed, publish, shown, table

from ancestral.runs import checkpoint
from ancestral.runs.config import IMPORTED, PRESETS, resolve
from ancestral.runs.hub import hub

KEYS = ("model", "data", "length", "row")
METRICS = ("fd-lite0", "kid-lite0", "precision-lite0", "recall-lite0")


def ancestral(*arguments: object) -> None:
    """A command of this package, which prints as it goes."""
    subprocess.run([sys.executable, "-m", "ancestral", *map(str, arguments), "--device", "cpu"], check=True)


def measure(run: Path, drawn: int) -> dict[str, object]:
    """Images seen; each metric of the samples against the test images, and bits/dim, with standard errors."""
    ancestral("metrics", run, "--num-images", drawn, "--train-images", drawn)
    ancestral("evaluate", run, "--num-images", 256, "--terms", 100)
    found = json.loads((run / "metrics-lite0.json").read_text())["metrics"]
    made = {name: [found[name]["test"][part] for part in ("value", "standard_error")] for name in METRICS}
    total = json.loads((run / "evaluation.json").read_text())["bits_per_dim"]["bound, bits/dim"]
    return {
        "seen": checkpoint.open_run(run)[0].images,
        **made,
        "bits_per_dim": [total["mean"], total["standard_error"]],
    }


def settings_of(model: str) -> Iterator[str]:
    """The options under which a new run has the network and the process of a model."""
    of_model, of_preset = asdict(hub.load(model).config), asdict(resolve("", "images", {}))
    for group in ("model", "diffusion"):
        for name, value in of_model[group].items():
            if value != of_preset[group][name] and f"{group}.{name}" not in IMPORTED:
                yield from ("--set", f"{group}.{name}={json.dumps(value)}")


def rows(
    model: str, data: str, length: str, rates: list[float], legs: bool, work: Path
) -> Mapping[str, list[list[object]]]:
    """{name of a row: its commands, after `ancestral`}; the run lies in a folder of that name."""
    rate = PRESETS["images"]["train.learning_rate"]
    number = length.rstrip("smh")
    unit = length.removeprefix(number)

    def train(name: str, how_long: str, *more: object) -> list[object]:
        return ["train", data, "--out", work / name, "--budget" if unit else "--images", how_long, *more]

    made = {"anew": [train("anew", length, *settings_of(model))]}
    for share in rates:
        name = f"from the model, {share:g} of the rate"
        made[name] = [train(name, length, "--from", model, "--learning-rate", share * rate)]
    if legs:
        name = "and as long further"
        made[name] = [train(name, length), train(name, f"+{length}")]
        made["twice as long"] = [train("twice as long", f"{2 * int(number)}{unit}")]
    return made


def compare(given: argparse.Namespace, results: Results) -> None:
    """Every row of a model and data that is not there yet."""
    key = {"model": Path(given.model).name, "data": Path(given.data).stem, "length": given.length}
    work = WORK / "fine-tuning" / "-".join(map(str, key.values()))
    work.mkdir(parents=True, exist_ok=True)
    rates = json.loads(f"[{given.rates}]")
    for row, commands in rows(given.model, given.data, given.length, rates, given.legs, work).items():

        def trained(row: str = row, commands: list[list[object]] = commands) -> dict[str, object]:
            shutil.rmtree(work / row, ignore_errors=True)  # of a run of this benchmark that was stopped
            for command in commands:
                ancestral(*command)
            return measure(work / row, given.drawn)

        results.once(trained, row=row, **key)


def main() -> None:
    """Measure what is missing, then write the table."""
    parser = options(__doc__ or "")
    parser.add_argument("model", nargs="?")
    parser.add_argument("data", nargs="?")
    parser.add_argument("--length", default="60000", help="of a training: a number of images, or a time: 10m")
    parser.add_argument("--rates", default="0.25,1")
    parser.add_argument("--drawn", type=int, default=1000)
    parser.add_argument("--legs", action=argparse.BooleanOptionalAction, default=True, help="the rows of two legs")
    given = parsed(parser)
    results = Results(MEASURED / "fine_tuning.jsonl", KEYS)
    if given.model is not None:
        compare(given, results)
    digits = {**dict.fromkeys(METRICS, 3), "fd-lite0": 1, "bits_per_dim": 3}
    lines = [
        [
            line["model"],
            line["data"],
            line["length"] if line["length"][-1] in "smh" else f"{int(line['length']):,} images",
            line["row"],
            f"{line['seen']:,}",
            *(shown(line[k], n) for k, n in digits.items()),
        ]
        for line in results.lines
    ]
    headings = (
        "model",
        "data",
        "trained for",
        "",
        "images seen",
        "fd-lite0",
        "kid-lite0",
        "precision",
        "recall",
        "bits/dim",
    )
    publish("fine-tuning", table(headings, lines), given.docs, results.lines)


if __name__ == "__main__":
    main()
