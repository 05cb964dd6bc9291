"""The best times for few steps of a trained model: a shortest path through one fine walk (Chen et al. 2024, GITS).

A jump from one time of the fine walk to a later one costs what it misses of the walk's own state there. Early misses
grow on the way, so each step multiplies what was missed before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Predictor
from ancestral.diffusion.samplers.loop import walk
from ancestral.diffusion.samplers.transitions import DDIM

GROWTH = 1.15  # of a miss, over each step after it


def jumps(denoiser: Predictor, start: Tensor, fine: Sequence[int]) -> np.ndarray:
    """What a jump from fine[i] to fine[j] misses, root mean square over images and dimensions; inf for j <= i.

    Args:
        denoiser: the model.
        start: states at fine[0], (B, ...).
        fine: falling times, ending at 0; one network call each.
    """
    jump = DDIM()
    trail = list(walk(denoiser, start, fine, jump, lambda move: move.p.mean))
    states = [start, *(step.x_s for step in trail)]
    cost = np.full((len(fine), len(fine)), np.inf)
    for i, step in enumerate(trail):
        for j in range(i + 1, len(fine)):
            landed = jump(denoiser.schedule, step.x_t, step.prediction, step.t, fine[j]).mean
            cost[i, j] = float((landed - states[j]).square().mean().sqrt())
    return cost


def shortest(cost: np.ndarray, steps: int, growth: float = GROWTH) -> list[int]:
    """The indices of the path from the first to the last in `steps` jumps that misses least in all.

    Raises:
        ValueError: when there are not so many points, or no such path.
    """
    points = len(cost)
    if not 1 <= steps < points:
        raise ValueError(f"steps must be between 1 and {points - 1}, got {steps}")
    best = np.full(points, np.inf)
    came: list[np.ndarray] = []
    best[0] = 0.0
    for _ in range(steps):
        through = growth * best[:, None] + cost
        came.append(through.argmin(0))
        best = through.min(0)
    if not np.isfinite(best[-1]):
        raise ValueError(f"no {steps} steps lead from the first time to the last; use fewer")
    path = [points - 1]
    for sources in reversed(came):
        path.append(int(sources[path[-1]]))
    return path[::-1]
