"""Whether augmentation helps small sets: distances to other images of the same kind, for equal time.

    benchmarks/augmentation.py DATA.npz [--sizes 100,300,1000] [--probabilities 0,0.12] [--seconds 240] [--name NAME]

Of the training images a few are trained on, and 2,000 others measured against; the test images are not looked at. The
time is the processor's, of training steps alone. What is measured already is not measured again.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from common import MEASURED, WORK, Results, options, origin, parsed, publish, table
from recipe import trial

from ancestral.data.dataset import ImageSet, Splits

OTHERS = 2000


def few(images: ImageSet, size: int) -> Splits:
    """So many images, evenly spread, and others."""
    chosen = np.linspace(0, len(images) - 1, size).round().astype(int)
    rest = np.setdiff1d(np.arange(len(images)), chosen)
    return Splits(images.take(chosen), images.take(rest[np.linspace(0, len(rest) - 1, OTHERS).round().astype(int)]))


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = options(__doc__)
    parser.add_argument("source")
    parser.add_argument("--sizes", default="100,300,1000")
    parser.add_argument("--probabilities", default="0,0.12")
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--name", default="fashion", help="of the data, in the table")
    given = parsed(parser)
    results = Results(MEASURED / "augmentation.jsonl", ("data", "seconds", "size", "augment"))
    for size in map(int, given.sizes.split(",")):
        for augment in map(float, given.probabilities.split(",")):
            sheet = WORK / "augmentation" / f"{given.name}-{size}-{augment:g}.png"
            sheet.parent.mkdir(parents=True, exist_ok=True)
            measure = partial(
                trial,
                given.source,
                given.seconds,
                "images",
                {"train.augment": augment},
                sheet,
                partial(few, size=size),
            )
            results.once(measure, data=given.name, seconds=given.seconds, size=size, augment=augment)
    lines = sorted(results.lines, key=lambda line: (line["data"], line["seconds"], line["size"], line["augment"]))
    rows = [
        (
            line["data"],
            f"{line['size']:,}",
            f"{line['seconds']:g} s",
            f"{line['augment']:g}",
            *(f"{line[name][0]:.3g} ± {line[name][1]:.2g}" for name in ("fd-lite0", "kid-lite0")),
            f"{line['bits_per_dim']:.3f} ± {line['bits_error']:.2g}",
        )
        for line in lines
    ]
    headings = ("data", "trained on", "time", "train.augment", "fd", "kid", "bits/dim of others")
    publish("augmentation", table(headings, rows), given.docs, results.lines or [origin()])


if __name__ == "__main__":
    main()
