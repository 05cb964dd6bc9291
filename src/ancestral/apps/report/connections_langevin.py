"""Langevin steps at one noise level from held-out images, and three ways down that use them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ancestral.apps.report import plots
from ancestral.apps.report.part import Words
from ancestral.apps.report.subject import Subject
from ancestral.data.dataset import ImageSet
from ancestral.data.pixels import to_bytes
from ancestral.diffusion.denoisers.denoiser import Prediction
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.langevin import Langevin, langevin
from ancestral.diffusion.samplers.loop import from_model, walk
from ancestral.diffusion.samplers.sample import finish, trajectory
from ancestral.diffusion.samplers.solvers import SOLVERS
from ancestral.diffusion.samplers.transitions import Planned, Transition, begin
from ancestral.runs import build

CHAINS, SHARE = 6, 0.2  # chains a level; h / noise^2
SHOWN = (0, 1, 3, 10, 30, 100)  # steps after which the predicted x0 is shown
# Three ways down: (name, method, grid, steps of the grid). Langevin's levels must lie close, so there are many of them.
WAYS: tuple[tuple[str, Transition | Planned, str, int], ...] = (
    ("euler-ancestral", SOLVERS["euler-ancestral"], "trailing", 40),
    ("pc", SOLVERS["pc"], "trailing", 20),
    ("langevin", Langevin(steps=1, share=0.4), "log-snr", 150),
)
DRAWN = 6


@dataclass(frozen=True)
class Wandering:
    """Chains of Langevin steps at one time.

    Args:
        t: the time.
        x0: predicted after SHOWN steps, (CHAINS, SHOWN, C, H, W).
        moved: root mean square of each chain's steps, in units of the noise, (CHAINS,).
        forgotten: squared distance of the last x0 from the first, over the mean between two chains' first ones,
            (CHAINS,): 1 where nothing of the beginning is left, and fewer where it is.
    """

    t: int
    x0: Tensor
    moved: Tensor
    forgotten: Tensor


def wander(subject: Subject, images: ImageSet, t: int) -> Wandering:
    """Walk from images noised to t, without leaving t."""
    schedule, count = subject.schedule, len(images)
    noise = Streams(subject.seed, "explain-langevin", range(count))
    x0 = subject.x0(images)
    x_t = schedule.marginal(x0, t).draw(noise)
    times = [t] * (SHOWN[-1] + 2)
    kept, squares = [], []
    steps = walk(subject.conditioned(images), x_t, times, _move, from_model(noise))
    for number, step in enumerate(steps):
        if number in SHOWN:
            kept.append(step.prediction.x0)
        squares.append((step.x_s - step.x_t).square().flatten(1).mean(1))
    seen = torch.stack(kept, 1)
    first, last = (seen[:, k].flatten(1).cpu().double() for k in (0, -1))
    between = torch.pdist(first).square().mean().clamp(min=1e-12)
    forgotten = (last - first).square().sum(1) / between
    moved = (torch.stack(squares).mean(0) / float(schedule.noise_var(t))).sqrt()
    return Wandering(t, seen, moved, forgotten)


def _move(schedule: Gaussian, x_t: Tensor, prediction: Prediction, t: int, s: int) -> Normal:
    return langevin(schedule, x_t, prediction, t, SHARE)


def drawn(subject: Subject) -> dict[str, tuple[np.ndarray, int]]:
    """By each way's name: DRAWN images of the same latents, (N, H, W, C) uint8, and the calls an image took."""
    found, numbers = {}, range(DRAWN)
    for name, move, grid, steps in WAYS:
        times = build.sampling_grid(subject.config, grid, min(steps, len(subject.times) - 1))
        found[name] = _drawn(subject, move, times, numbers)
    return found


def _drawn(subject: Subject, move: Transition | Planned, times: list[int], numbers: range) -> tuple[np.ndarray, int]:
    visits = begin(move, subject.schedule, times)[1]
    steps = trajectory(subject.drawn(numbers, move), subject.latents(numbers), times, move, subject.seed, numbers)
    return to_bytes(finish(steps)), len(visits) - 1


def draw_chains(levels: list[Wandering], shown: int, words: Words) -> str:
    """A row a chain, a column for each number of steps."""
    states = torch.cat([one.x0[:shown] for one in levels])
    rows = [f"t = {one.t}" if k == 0 else "" for one in levels for k in range(min(shown, len(one.x0)))]
    return plots.sheet(plots.pixels(states), [words["axes"]["steps"].format(SHOWN[0]), *map(str, SHOWN[1:])], rows)


def draw_ways(ways: dict[str, tuple[np.ndarray, int]], words: Words) -> str:
    """A row a way."""
    rows = [f"{words['names'][name]} ({calls})" for name, (_, calls) in ways.items()]
    return plots.sheet(np.stack([images for images, _ in ways.values()]), (), rows)
