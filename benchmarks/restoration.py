"""How near each method of `ancestral edit restore` comes to held-out images, in dB beside plain interpolation.

Run: .venv/bin/python benchmarks/restoration.py RUN [RUN ...]. The damaged image is kept as bytes, as a file would be.
Colourisation is measured for runs of colour images. Writes its table into docs/benchmarks.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import Results, WORK, options, origin, parsed, publish, shown, table
from PIL import Image
from scipy import ndimage
from torch import Tensor

from ancestral import build, checkpoint, data, grids
from ancestral.editing import measured
from ancestral.feed import to_bytes, to_unit
from ancestral.inverse import METHODS, Measurement, psnr
from ancestral.operators import Known, Operator, box_means, gaussian_blur, grey
from ancestral.reverse import DDIM
from ancestral.rng import Streams
from ancestral.sample import finish, latents
from ancestral.walk import walk

CALLS = 50


@dataclass(frozen=True)
class Task:
    """An operator, the noise put on what it gives, and what is done without a model."""

    make: Callable[[tuple[int, int, int]], Operator]
    noise: float
    plain: dict[str, Callable[[Operator, Measurement, tuple[int, int, int]], Tensor]]


def holes(shape: tuple[int, int, int]) -> Operator:
    """Half of the pixels."""
    return Known(Streams(0, "missing", [0]).normal(shape[1:]) >= 0)


def bicubic(operator: Operator, seen: Measurement, shape: tuple[int, int, int]) -> Tensor:
    """Enlarged by Pillow."""
    enlarged = [
        np.stack(
            [np.asarray(Image.fromarray(band).resize(shape[:0:-1], Image.Resampling.BICUBIC)) for band in bands], -1
        )
        for bands in to_bytes(seen.y).transpose(0, 3, 1, 2)
    ]
    return to_unit(np.stack(enlarged)).double()


def as_it_is(operator: Operator, seen: Measurement, shape: tuple[int, int, int]) -> Tensor:
    """What was seen; a grey image in every channel."""
    return seen.y.double().expand(-1, *shape)


def wiener(operator: Operator, seen: Measurement, shape: tuple[int, int, int]) -> Tensor:
    """The ridge about mid-grey, for pixels of variance 1/2."""
    return 0.5 * operator.ridge(seen.y.double(), torch.tensor(0.5).double(), seen.y_var)


def filled(operator: Operator, seen: Measurement, shape: tuple[int, int, int]) -> Tensor:
    """Each missing pixel with the mean of the known ones about it, weighed by a Gaussian of one pixel."""
    known = operator.singular.numpy() * np.ones(shape[1:])
    weight = ndimage.gaussian_filter(known, 1.0)
    mean = ndimage.gaussian_filter(seen.y.double().numpy(), 1.0, axes=(2, 3)) / weight
    return torch.from_numpy(np.where(known > 0, seen.y.double().numpy(), mean))


TASKS = {
    "2x": Task(lambda shape: box_means(shape, 2), 0.0, {"bicubic": bicubic}),
    "4x": Task(lambda shape: box_means(shape, 4), 0.0, {"bicubic": bicubic}),
    "blur of 1.5 pixels, noise 0.05": Task(
        lambda shape: gaussian_blur(shape, 1.5), 0.05, {"as it is": as_it_is, "ridge": wiener}
    ),
    "half missing": Task(holes, 0.0, {"mid-grey": as_it_is, "mean of neighbours": filled}),
    "grey": Task(grey, 0.0, {"as it is": as_it_is}),
}


def main() -> None:
    """Every task by every method."""
    parser = options(__doc__ or "")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=64)
    given = parsed(parser)
    results = Results(WORK / "restoration.jsonl", ("model", "task", "method", "images"))
    rows, used = [], []
    for run in given.runs:
        saved, _ = checkpoint.open_run(run)
        model = build.trained(saved, run, torch.device("cpu"))
        predictor, shape = build.predictor(model, saved.calibration), saved.facts.shape
        source = saved.config.source if Path(saved.config.source).exists() else given.data
        held_out = data.load(source, saved.config.data).test.spread(given.images)
        x0, numbers = to_unit(held_out.images[:]).double(), range(given.images)
        for name, task in TASKS.items():
            if (shape[0] == 1) == (name == "grey"):
                continue
