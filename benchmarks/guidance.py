"""How well a guided model draws the class that it was asked for, judged by a classifier of its own.

Run: benchmarks/guidance.py RUN. RUN is a model of grey images with classes that was trained with dropped labels:

    ancestral train mnist --out RUN --set model.labels=true --set model.condition_dropout=0.15

The classifier is a small convolutional network, trained here on the same training images and nothing else; its rate on
the held-out ones is the first row. What is measured is kept under benchmarks/measured and not measured again. The table
is written into benchmarks/results.md.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from common import MEASURED, WORK, Results, options, parsed, publish, shown, table
from torch import Tensor, nn
from torch.nn import functional

from ancestral.data import load, pictures
from ancestral.data.dataset import ImageSet
from ancestral.data.pixels import to_bytes, to_unit
from ancestral.diffusion.denoisers.guidance import EVERYWHERE, Guided, conditional
from ancestral.diffusion.samplers.sample import sample
from ancestral.diffusion.samplers.solvers import SOLVERS
from ancestral.runs import build, checkpoint

STEPS, ROUND = 10, 100
UPDATES, BATCH, SHIFT = 1000, 100, 2  # of the classifier; it sees images shifted by up to so many pixels in 28
ROWS = (  # scale, rescale, interval of log SNR
    *((scale, 0.0, EVERYWHERE) for scale in (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)),
    (5.0, 0.7, EVERYWHERE),
    (5.0, 0.0, (-2.0, 2.5)),
)


def classifier(images: ImageSet, seed: int = 0) -> nn.Module:
    """Trained on these images, shifted at random."""
    x, labels = to_unit(images.images), torch.from_numpy(images.labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            *(nn.Conv2d(1, 32, 5, 2, 2), nn.ReLU(), nn.Conv2d(32, 64, 5, 2, 2), nn.ReLU()),
            *(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64 * x[0, 0, ::4, ::4].numel(), len(images.class_names))),
        )
        reach = SHIFT * x.shape[3] // 28
        optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
        falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, UPDATES)
        for _ in range(UPDATES):
            rows = torch.randint(len(x), (BATCH,))
            moved = torch.roll(x[rows], torch.randint(-reach, reach + 1, (2,)).tolist(), (2, 3))
            optimizer.zero_grad()
            functional.cross_entropy(network(moved), labels[rows]).backward()
            optimizer.step()
            falling.step()
    return network.eval()


@torch.no_grad()
def judged(network: nn.Module, images: np.ndarray, labels: Tensor) -> dict[str, list[float]]:
    """How many of how many are classified as asked, and the standard deviation of pixels within a class."""
    x = to_unit(images)
    right, classes = int((network(x).argmax(1) == labels).sum()), labels.unique()
    spreads = torch.stack([x[labels == one].double().var(0).mean().sqrt() for one in classes])
    error = float(spreads.std()) / math.sqrt(len(classes))
    return {"right": [right, len(x)], "spread": [float(spreads.mean()), error]}


def rate(right: int, count: int) -> str:
    """Their ratio; its error is that of one more right and one more wrong, so that none is not taken for never."""
    careful = (right + 1) / (count + 2)
    return shown((right / count, math.sqrt(careful * (1 - careful) / count)), 3)


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=500)
    given = parsed(parser)
    saved, _ = checkpoint.open_run(given.run)
    model = build.trained(saved, given.run, torch.device("cpu"))
    splits = load.load(saved.config.source, saved.config.data)
    judge = classifier(splits.train)
    held_out = judged(judge, splits.test.images, torch.from_numpy(splits.test.labels))
    labels = torch.arange(given.images) % len(saved.facts.class_names)
    grid = build.sampling_grid(saved.config, "trailing", STEPS)
    digest = checkpoint.digest(saved)

    def measured(scale: float, rescale: float, interval: tuple[float, float]) -> dict[str, list[float]]:
        """One row, and its sheet."""
        drawn = []
        for start in range(0, given.images, ROUND):
            pair = conditional(model, labels=labels[start : start + ROUND])
            guided = Guided(pair, model, scale, rescale, interval, model.clip)
            count = min(ROUND, given.images - start)
            drawn.append(sample(guided, saved.facts.shape, count, grid, SOLVERS["unipc3"], start, ROUND))
        images = to_bytes(torch.cat(drawn))
        WORK.mkdir(parents=True, exist_ok=True)
        pictures.save_sheet(WORK / f"guidance-{scale:g}-{rescale:g}-{interval[0]:g}.png", images[:100], 10)
        return judged(judge, images, labels)

    results = Results(MEASURED / "guidance.jsonl", ("model", "images", "steps", "scale", "rescale", "interval"))
    lines = []
    for scale, rescale, interval in ROWS:
        key = {"scale": scale, "rescale": rescale, "interval": [str(end) for end in interval]}
        lines.append(
            results.once(
                lambda row=(scale, rescale, interval): measured(*row),
                model=digest,
                images=given.images,
                steps=STEPS,
                **key,
            )
        )
    rows = [["held-out images", "", "", rate(*held_out["right"]), shown(held_out["spread"], 3)]]
    for line in lines:
        ends = "" if line["interval"] == [str(end) for end in EVERYWHERE] else " to ".join(line["interval"])
        rows.append([f"{line['scale']:g}", line["rescale"] or "", ends, rate(*line["right"]), shown(line["spread"], 3)])
    headings = ("scale", "rescale", "interval, log SNR", "classified as asked", "std within a class")
    source = f"`{saved.config.source}`, {saved.images:,} images seen in training"
    text = f"{source}; {given.images} images a row, UniPC-3 in {STEPS} steps.\n\n"
    publish("guidance", text + table(headings, rows), given.docs, lines)
