"""How near each method of `ancestral edit restore` comes to held-out images, in dB beside plain interpolation.

Run: .venv/bin/python benchmarks/restoration.py RUN [RUN ...]. The damaged image is kept as bytes, as a file would be.
Colourisation is measured for runs of colour images. Writes its table into benchmarks/results.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import MEASURED, Results, options, parsed, publish, shown, table
from PIL import Image
from scipy import ndimage
from torch import Tensor

from ancestral.data import load
from ancestral.data.pixels import to_bytes, to_unit
from ancestral.diffusion.editing.inverse_problems import METHODS, Observation
from ancestral.diffusion.editing.operators import Known, Operator, box_means, gaussian_blur, grey
from ancestral.diffusion.objectives.statistics import psnr
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.loop import walk
from ancestral.diffusion.samplers.sample import finish, latents
from ancestral.diffusion.samplers.transitions import DDIM
from ancestral.runs import build, checkpoint
from ancestral.runs.compute_format import Lowered, for_drawing, laid_out
from ancestral.sampling.edit_command import observed

# Of the network. A gradient costs two calls more, those of mmps six; DPS takes small steps and needs many.
CALLS = {"ddrm": 50, "ddnm": 50, "pigdm": 25, "mmps": 15, "dps": 100}


COLOURED = 0.1  # an image with a channel further than this from the mean of the three, on [-1, 1]


@dataclass(frozen=True)
class Task:
    """An operator, the noise put on what it gives, and what is done without a model."""

    make: Callable[[tuple[int, int, int]], Operator]
    noise: float
    plain: dict[str, Callable[[Operator, Observation, tuple[int, int, int]], Tensor]]


def holes(shape: tuple[int, int, int]) -> Operator:
    """Half of the pixels."""
    return Known(Streams(0, "missing", [0]).normal(shape[1:]) >= 0)


def bicubic(operator: Operator, seen: Observation, shape: tuple[int, int, int]) -> Tensor:
    """Enlarged by Pillow."""
    enlarged = [
        np.stack(
            [np.asarray(Image.fromarray(band).resize(shape[:0:-1], Image.Resampling.BICUBIC)) for band in bands], -1
        )
        for bands in to_bytes(seen.y).transpose(0, 3, 1, 2)
    ]
    return to_unit(np.stack(enlarged)).double()


def as_it_is(operator: Operator, seen: Observation, shape: tuple[int, int, int]) -> Tensor:
    """What was seen; a grey image in every channel."""
    return seen.y.double().expand(-1, *shape)


def wiener(operator: Operator, seen: Observation, shape: tuple[int, int, int]) -> Tensor:
    """The ridge about mid-grey, for pixels of variance 1/2."""
    return 0.5 * operator.ridge(seen.y.double(), torch.tensor(0.5).double(), seen.y_var)


def filled(operator: Operator, seen: Observation, shape: tuple[int, int, int]) -> Tensor:
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


class Bench:
    """A run with held-out images before it."""

    def __init__(self, run: Path, images: int) -> None:
        self.saved, _ = checkpoint.open_run(run)
        self.model = build.trained(self.saved, run, torch.device("cpu"))
        chosen = for_drawing("auto", self.saved, torch.device("cpu"))
        laid_out(self.model.network, chosen.channels_last)
        self.predictor = Lowered(build.predictor(self.model, self.saved.calibration), chosen, last=0)
        self.shape, self.numbers = self.saved.facts.shape, range(images)
        held_out = load.load(self.saved.config.source, self.saved.config.data).test
        self.x0 = to_unit(held_out.spread(images).images[:])
        if self.shape[0] == 3:  # an image without colour is its own grey: nothing to measure
            every = to_unit(held_out.images[:])
            coloured = every[(every - every.mean(1, keepdim=True)).abs().flatten(1).amax(1) > COLOURED]
            self.x0 = coloured[torch.linspace(0, len(coloured) - 1, images).long()]

    def restored(self, way: str, task: Task) -> Tensor:
        """What the way makes of the damaged images."""
        operator = task.make(self.shape)
        seen = observed(operator, self.x0.double(), task.noise, Streams(0, "noise", self.numbers))
        if way in task.plain:
            return task.plain[way](operator, seen, self.shape)
        means = METHODS[way].guide(self.predictor, seen, Streams(0, "reverse", self.numbers), self.model.clip)
        start, grid = latents(self.shape, 0, self.numbers), grids.trailing(self.model.schedule, CALLS[way])
        return finish(walk(means.predictor, start, grid, DDIM(1.0), means.draw))

    def measure(self, way: str, task: Task) -> dict[str, object]:
        """PSNR with its standard error, and seconds of processor."""
        started = time.process_time()
        each = psnr((self.restored(way, task).clamp(-1, 1) - self.x0).square().mean((1, 2, 3)), peak=2)
        error = float(each.std(ddof=1)) / len(self.numbers) ** 0.5
        return {"psnr": [float(each.mean()), error], "seconds": time.process_time() - started}


def main() -> None:
    """Every task by every way."""
    parser = options(__doc__ or "")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--images", type=int, default=64)
    given = parsed(parser)
    results = Results(MEASURED / "restoration.jsonl", ("model", "task", "way", "calls", "images"))
    lines, rows = [], []
    for run in given.runs:
        bench = Bench(run, given.images)
        model = checkpoint.digest(bench.saved)
        for name, task in TASKS.items():
            if (name == "grey") != (bench.shape[0] == 3):
                continue
            for way in (*task.plain, *METHODS):
                key = {"model": model, "task": name, "way": way, "calls": CALLS.get(way, 0), "images": given.images}
                line = results.once(partial(bench.measure, way, task), **key)
                cost = [line["calls"], f"{line['seconds'] / given.images:.2f}"] if way in METHODS else ["", ""]
                rows.append([name, way, *cost, shown(line["psnr"], 2)])
                lines.append(line)
    of = f"{given.images} held-out images of each run, with colour for the grey task"
    note = f"{of}; precision=auto; PSNR in dB, a mean with its standard error over images."
    text = table(["task", "way", "network calls", "s of a core an image", "PSNR"], rows)
    publish("restoration", f"{note}\n\n{text}", given.docs, lines)


if __name__ == "__main__":
    main()
