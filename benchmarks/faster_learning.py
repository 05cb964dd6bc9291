"""Ways to learn more in the same time, each against the preset `images`: trials of equal cost, by seed.

Run: .venv-peers/bin/python benchmarks/faster_learning.py DATA --images 24000 [--ways NAME ...] [--seeds 0 1 2]. The
preset sees so many images; a way sees as many as take the same time, by updates of both in turns, since a machine is
not equally fast all day. Of the training images a part is kept apart, and everything is measured on it; the test images
are not looked at. What is measured is kept under benchmarks/measured and not measured again; without DATA only the
table is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import MEASURED, WORK, Results, options, parsed, publish, quality, shown, table
from model_size import drawn_by, held_out_loss
from PIL import Image
from recipe import CPU, apart
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from ancestral.data import load, pictures
from ancestral.data.dataset import ImageSet, Splits
from ancestral.data.pixels import to_bytes
from ancestral.runs import build, config
from ancestral.runs.config import Config
from ancestral.runs.datasets import facts
from ancestral.training.prefetch import Batch
from ancestral.training.trainer import Learner, Training

SMALL = 16  # side of what is trained on first by the ways that begin smaller
EARLY = 0.4  # share of the images that they begin with
ROUNDS, UPDATES = 10, 4  # of a way and of the preset in turns, by which it is known what a way costs

Shown = Callable[[float], ImageSet]  # from a run's progress to the images that it trains on


def unaltered(training: Training, images: ImageSet) -> Shown:
    """The images as they are."""
    return lambda progress: images


def _with_noise(training: Training, chosen: Callable[[Batch], Tensor]) -> None:
    """Train on noise chosen for each batch."""
    make = training.prefetcher.make

    def changed(*given: Any, **named: Any) -> Batch:
        batch = make(*given, **named)
        eps = chosen(batch)
        return batch._replace(noise=lambda part: eps[part])

    training.prefetcher.make = changed


def paired(training: Training, images: ImageSet) -> Shown:
    """Each batch's noise given to its images so that the squared distances add up to the least (Li et al. 2024)."""

    def closest(batch: Batch) -> Tensor:
        eps = batch.eps()
        return eps[linear_sum_assignment(-(batch.x0().flatten(1) @ eps.flatten(1).T).numpy())[1]]

    _with_noise(training, closest)
    return unaltered(training, images)


def nearest(training: Training, images: ImageSet, among: int = 8) -> Shown:
    """Each image's noise the nearest of several drawn for it."""

    def closest(batch: Batch) -> Tensor:
        x0 = batch.x0()
        eps = torch.randn(among, *x0.shape, generator=torch.Generator().manual_seed(batch.rows[0] + training.images))
        return eps[(eps * x0).flatten(2).sum(2).argmax(0), torch.arange(len(x0))]

    _with_noise(training, closest)
    return unaltered(training, images)


def _first(begin: ImageSet, images: ImageSet) -> Shown:
    return lambda progress: begin if progress < EARLY else images


def coarse(training: Training, images: ImageSet) -> Shown:
    """First on images made smaller by the mean of areas."""
    made = [Image.fromarray(one.squeeze(2) if one.shape[2] == 1 else one) for one in images.images[:]]
    small = [np.asarray(one.resize((SMALL, SMALL), Image.Resampling.BOX)) for one in made]
    return _first(replace(images, images=np.stack(small).reshape(-1, SMALL, SMALL, images.shape[2])), images)


def patches(training: Training, images: ImageSet) -> Shown:
    """First on a random square of each image."""
    height, width, _ = images.shape
    corners = np.random.default_rng(0).integers(0, (height - SMALL + 1, width - SMALL + 1), (len(images), 2))
    pairs = zip(images.images[:], corners, strict=True)
    cut = [one[top : top + SMALL, left : left + SMALL] for one, (top, left) in pairs]
    return _first(replace(images, images=np.stack(cut)), images)


class Changed:
    """An objective whose losses are changed."""

    def __init__(self, objective: Any, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.objective, self.change = objective, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def __call__(self, denoiser: Any, x0: Tensor, t: Tensor, s: Tensor, eps: Tensor, **cond: Tensor) -> Tensor:
        """The changed losses."""
        return self.change(self.objective(denoiser, x0, t, s, eps, **cond), t)


def dispersed(training: Training, images: ImageSet) -> Shown:
    """Features of the middle driven apart: 0.5 log mean exp(-distance^2), of a batch (Wang and He 2025)."""
    seen: list[Tensor] = []
    training.network.get_submodule("middle.0").register_forward_hook(lambda module, given, out: seen.append(out))

    def change(losses: Tensor, t: Tensor) -> Tensor:
        features = seen.pop().float().flatten(1)
        squared = nn.functional.pdist(features).square() / features.shape[1]
        pairs = torch.cat([squared, squared, squared.new_zeros(len(features))])  # both ways, and with itself
        return losses + 0.5 * (torch.logsumexp(-pairs / 0.5, 0) - np.log(len(pairs)))

    training.objective = Changed(training.objective, change)
    return unaltered(training, images)


class LogVariance(nn.Module):
    """Of the loss at each time: a network of one hidden layer on Fourier features of t (EDM2, section 2.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("waves", torch.randn(64, generator=torch.Generator().manual_seed(0)))
        self.out = nn.Linear(128, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) of times 0..1000 to (B,)."""
        angles = t[:, None].float() / 1000 * 2 * torch.pi * self.waves
        return self.out(torch.cat([angles.cos(), angles.sin()], 1)).squeeze(1)


def uncertain(training: Training, images: ImageSet) -> Shown:
    """Losses divided by a learned variance of their time, whose logarithm is added."""
    variance = LogVariance()
    rate = 0.01
    optimizer = torch.optim.Adam(variance.parameters(), lr=rate)
    training.learners["variance-"] = Learner(variance, optimizer, rate)

    def change(losses: Tensor, t: Tensor) -> Tensor:
        u = variance(t)
        return losses.float() / u.exp() + u - u.detach()  # whose gradient is the same; a loss below 0 ends a run

    training.objective = Changed(training.objective, change)
    return unaltered(training, images)


def _with(training: Training, optimizer: torch.optim.Optimizer, rate: float) -> None:
    training.learners[""] = Learner(training.network, optimizer, rate)


def soap(training: Training, images: ImageSet) -> Shown:
    """Adam in the eigenbases of Shampoo (Vyas et al. 2024), an eigenbasis anew every ten updates."""
    from pytorch_optimizer import SOAP

    rate = training.config.train.learning_rate
    optimizer = SOAP(training.network.parameters(), rate, (0.95, 0.95), weight_decay=0.0)
    _with(training, optimizer, rate)
    return unaltered(training, images)


class ScheduleFree:
    """In place of the average, the weights that the optimiser itself averages."""

    def __init__(self, network: nn.Module, optimizer: Any) -> None:
        self.network, self.optimizer = network, optimizer

    def update(self, current: Mapping[str, Tensor], images: int, step: int) -> None:
        """Nothing: the optimiser has done it."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """Those of now."""
        self.optimizer.eval()
        found = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.optimizer.train()
        return found


def schedule_free(training: Training, images: ImageSet) -> Shown:
    """AdamW at one rate all along, and its own average (Defazio et al. 2024)."""
    from schedulefree import AdamWScheduleFree

    rate = training.config.train.learning_rate
    optimizer = AdamWScheduleFree(training.network.parameters(), rate, weight_decay=0.0)
    optimizer.train()
    _with(training, optimizer, rate)
    training.averages = [ScheduleFree(training.network, optimizer)]
    return unaltered(training, images)


@dataclass(frozen=True)
class Way:
    """Settings, and what is altered of a training."""

    settings: Mapping[str, object] = field(default_factory=dict)
    alter: Callable[[Training, ImageSet], Shown] = unaltered


WAYS = {
    "preset": Way(),
    "noise paired in the batch": Way(alter=paired),
    "nearest of 8 noises": Way(alter=nearest),
    "16 px first": Way(alter=coarse),
    "patches of 16 px first": Way(alter=patches),
    "dispersive loss": Way({"train.spike": None}, dispersed),
    "uncertainty weighting": Way(alter=uncertain),
    "batches of 32": Way({"train.batch_size": 32}),
    "batches of 32, 0.7 of the rate": Way({"train.batch_size": 32, "train.learning_rate": 4.2e-3}),
    "batches of 128": Way({"train.batch_size": 128}),
    "batches of 128, 1.4 times the rate": Way({"train.batch_size": 128, "train.learning_rate": 8.4e-3}),
    "SOAP at 3e-3": Way({"train.learning_rate": 3e-3}, soap),
    "AdamW at 2e-3": Way({"train.learning_rate": 2e-3, "train.optimizer": "adamw"}),
    "schedule-free AdamW at 5e-3": Way({"train.learning_rate": 5e-3, "train.decay": 0.0}, schedule_free),
    "wider log-normal": Way({"diffusion.times": "log-normal-wide"}),
    "longer average": Way({"train.average": 1}),
}


def begun(source: str, way: Way, seed: int, images: ImageSet) -> tuple[Config, Training, Shown]:
    """A training that has not made a step."""
    chosen = config.resolve(source, "images", {**way.settings, "train.seed": seed})
    training = Training(chosen, facts(images), CPU)
    return chosen, training, way.alter(training, images)


def cost(source: str, way: Way, images: ImageSet) -> float:
    """Of an image that is trained on, in those of the preset: by updates in turns, all along a run's progress."""
    pair = [begun(source, one, 0, images)[1:] for one in (WAYS["preset"], way)]
    seconds = [0.0, 0.0]
    for turn in range(-1, ROUNDS):  # the first is to warm up
        progress = max(turn + 0.5, 0) / ROUNDS
        for index, (training, show) in enumerate(pair):
            began = time.perf_counter()
            for _ in range(UPDATES):
                training.step(show(progress), progress)
            if turn >= 0:
                seconds[index] += (time.perf_counter() - began) / training.config.train.batch_size
    preset, other = seconds
    return other / preset


def trial(splits: Splits, source: str, way: Way, seed: int, images: int, sheet: Path) -> dict[str, object]:
    """Train at the cost of so many images of the preset, and measure."""
    spent = 1.0 if way is WAYS["preset"] else cost(source, way, splits.train)
    chosen, training, show = begun(source, way, seed, splits.train)
    while (progress := training.images * spent / images) < 1:
        training.step(show(progress), progress)
    if isinstance(training.objective, Changed):
        training.objective = training.objective.objective  # the loss is measured alike for all
    weights = training.averages[chosen.train.average].weights
    drawn = to_bytes(drawn_by(training, build.ready(chosen, training.facts, weights)))
    sheet.parent.mkdir(parents=True, exist_ok=True)
    pictures.save_sheet(sheet, drawn[:64])
    loss = held_out_loss(training, weights, splits.test.spread(1000))
    judged = quality(drawn, splits.test.spread(len(drawn)), splits.train)
    return {"seen": training.images, "cost": spent, "loss": loss, **judged}


JUDGED = {"loss": 4, "fd-lite0": 1, "kid-lite0": 4, "recall-lite0": 3, "fd-classifier": 2, "tv-classifier": 3}


def lines(found: list[dict]) -> list[list[object]]:
    """Of the table: the mean over the seeds of each, with its standard error where there are several."""
    rows = []
    for name in WAYS:
        alike = [one for one in found if one["way"] == name]
        if not alike:
            continue
        seen, spent = (np.mean([one[name] for one in alike]) for name in ("seen", "cost"))
        row: list[object] = [name, len(alike), f"{spent:.2f}", f"{seen:,.0f}"]
        for judge, digits in JUDGED.items():
            values = [one[judge][0] for one in alike if judge in one]
            error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else alike[0][judge][1]
            row.append(shown((float(np.mean(values)), float(error)), digits))
        rows.append(row)
    return rows


def main() -> None:
    """Measure what is missing, then write the table."""
    parser = options(__doc__ or "")
    parser.add_argument("data", nargs="?", help="as `ancestral train` takes it")
    parser.add_argument("--images", type=int, default=24_000, help="that the preset is trained on")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parsed(parser)
    results = Results(MEASURED / "faster_learning.jsonl", ("data", "images", "way", "seed"))
    if given.data is not None:
        name = Path(given.data).stem
        splits = apart(load.load(given.data, config.resolve(given.data, "images", {}).data).train)
        for seed in given.seeds:
            for way in given.ways:
                sheet = WORK / "faster_learning" / name / f"{way} {seed}.png"
                results.once(
                    lambda way=way, seed=seed, sheet=sheet: trial(
                        splits, given.data, WAYS[way], seed, given.images, sheet
                    ),
                    **{"data": name, "images": given.images, "way": way, "seed": seed},
                )
    parts = []
    for data, images in sorted({(one["data"], one["images"]) for one in results.lines}):
        rows = lines(results.find(data=data, images=images))
        headings = ["", "seeds", "cost of an image", "images seen", *JUDGED]
        parts.append(f"{data}, at the cost of {images:,} images of the preset:\n\n{table(headings, rows)}")
    publish("faster-learning", "\n\n".join(parts), given.docs, results.lines)


if __name__ == "__main__":
    main()
