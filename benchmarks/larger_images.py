"""Photographs of 64 px: what `diffusion.shift` gives, and what an hour of a core does.

Run: .venv/bin/python benchmarks/larger_images.py GROUND.npz [--ways ...], the set of benchmarks/ground_photographs.py.
What is measured is kept under benchmarks/measured and not measured again; without a set only the table is written.
"""

from __future__ import annotations

from pathlib import Path

from common import MEASURED, WORK, Results, options, parsed, processor, publish, quality, shown, table
from own_run import OwnRun

from ancestral.data import load
from ancestral.data.dataset import DataOptions

COUNT = 500  # images drawn by each, and compared
SHORT, LONG = 20_480, 262_144  # images: five and a half minutes, and an hour, of a core of an AMD EPYC at width 16
COST = 64 / 23  # of an image at width 32, that of one at width 16 being 1
WAYS = {
    "shift 1": (SHORT, "--set", "diffusion.shift=1"),
    "shift 2": (SHORT,),
    "shift 2, width 16": (LONG,),
    "shift 2, width 32": (round(LONG / COST), "--set", "model.width=32"),
}
JUDGED = {"fd-lite0": 1, "kid-lite0": 4, "precision-lite0": 3, "recall-lite0": 3}
KEYS = ("data", "way", "seed", "images")


def measure(data: Path, way: str, seed: int) -> dict[str, object]:
    """Train, draw and measure as a user would, by the commands; a run that is there goes on."""
    run = OwnRun(WORK / data.stem / f"{way.replace(',', '').replace(' ', '-')}-{seed}", 1)
    images, *more = WAYS[way]
    run.train(str(data), "--images", str(images), "--set", f"train.seed={seed}", *map(str, more))
    drawn, train = run.draw(COUNT, "samples"), load.load(str(data), DataOptions()).train
    return {**run.cost(), "bits": run.bits(), **quality(drawn, train)}


def main() -> None:
    """Measure what is missing, then write the table."""
    parser = options(__doc__ or "")
    parser.add_argument("data", type=Path, nargs="?", help="the .npz file of benchmarks/ground_photographs.py")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seed", type=int, default=0)
    given = parsed(parser)
    results = Results(MEASURED / "larger_images.jsonl", KEYS)
    if given.data is not None:
        splits, name = load.load(str(given.data), DataOptions()), given.data.stem
        held_out = splits.test.spread(COUNT).images[:]
        results.once(lambda: quality(held_out, splits.train), data=name, way="held-out images", seed=0, images=COUNT)
        for way in given.ways:
            results.once(
                lambda way=way: measure(given.data, way, given.seed), data=name, way=way, seed=given.seed, images=COUNT
            )
    rows = [
        [
            line["way"],
            f"{line['seen']:,}" if "seen" in line else "",
            f"{line['seconds'] / 60:.0f}" if "seconds" in line else "",
            line["seed"] if "seen" in line else "",
            processor(line),
            *(shown(line.get(name), digits) for name, digits in JUDGED.items()),
            shown(line.get("bits"), 3),
        ]
        for line in sorted(results.lines, key=lambda line: (line.get("seen", 0), line["way"], line["seed"]))
    ]
    headings = ["", "images seen", "minutes", "seed", "on", *JUDGED, "bits/dim"]
    text = f"{COUNT} images drawn by each in 20 calls, as `ancestral sample` does:\n\n" + table(headings, rows)
    publish("larger-images", text, given.docs, results.lines)


if __name__ == "__main__":
    main()
