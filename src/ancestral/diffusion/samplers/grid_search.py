"""The best times for few steps of a trained model: by where the steps end, or by what each of them costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Predictor
from ancestral.diffusion.samplers.loop import walk
from ancestral.diffusion.samplers.sample import finish
from ancestral.diffusion.samplers.transitions import Planned, Transition

REACH = 0.5, 0.3, 0.18, 0.11, 0.065  # of the way to its neighbours that a time is moved, sweep by sweep


class Search(NamedTuple):
    """How the best times for few steps are found.

    Args:
        best: `best(predictor, x_T, all_times, fine_grid, initial_grids)` returns the best grid.
        calls: `calls(fine_steps, steps, number_of_initial_grids)`: upper bound on network calls per image.
    """

    best: Callable[[Any, Tensor, Sequence[int], Sequence[int], Sequence[Sequence[int]]], list[int]]
    calls: Callable[[int, int, int], int]


def by_ends(method: Transition | Planned) -> Search:
    """The times with which few steps of a method without noise end nearest to its fine walk (see `nearest_end`)."""

    def best(
        denoiser: Predictor, start: Tensor, every: Sequence[int], fine: Sequence[int], begun: Sequence[Sequence[int]]
    ) -> list[int]:
        if len(begun[0]) >= len(fine):
            raise ValueError(f"must be fewer than the {len(fine) - 1} of the walk that they are compared with")
        return nearest_end(denoiser, start, every, _end(denoiser, start, fine, method), begun, method)

    def calls(fine: int, steps: int, begun: int) -> int:
        return fine + (begun + len(REACH) * 2 * (steps - 1)) * steps

    return Search(best, calls)


def nearest_end(
    denoiser: Predictor,
    start: Tensor,
    every: Sequence[int],
    truth: Tensor,
    begun: Sequence[Sequence[int]],
    method: Transition | Planned,
) -> list[int]:
    """The times between which steps of this method end at the least mean square distance from the truth.

    From the best of some grids one time after the other is moved towards either neighbour where that is nearer, less
    far in each sweep. The whole walk is looked at, as Tong et al. 2024 (LD3) do by gradients: what a single step misses
    says little of its end.

    Args:
        denoiser: the model.
        start: states at the first time, (B, ...).
        every: the times to choose from, falling to 0.
        truth: where the walk should end, (B, ...).
        begun: grids to begin with, of so many steps.
        method: of the steps, without noise.
    """
    place = {t: index for index, t in enumerate(every)}

    def missed(times: Sequence[int]) -> float:
        return float((_end(denoiser, start, [every[one] for one in times], method) - truth).square().mean())

    least, best = min((missed(grid), grid) for grid in ([place[t] for t in times] for times in begun))
    for reach in REACH:
        for k in range(1, len(best) - 1):
            before, here, after = best[k - 1 : k + 2]
            for index in (here - max(1, int(reach * (here - before))), here + max(1, int(reach * (after - here)))):
                moved = [*best[:k], index, *best[k + 1 :]]
                if before < index < after and (distance := missed(moved)) < least:
                    best, least = moved, distance
    return [every[one] for one in best]


def _end(denoiser: Predictor, start: Tensor, times: Sequence[int], method: Transition | Planned) -> Tensor:
    return finish(walk(denoiser, start, times, method, lambda move: move.p.mean))


def shortest(cost: np.ndarray, steps: int) -> list[int]:
    """The indices of the path from the first to the last in `steps` jumps that costs least in all.

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
        through = best[:, None] + cost
        came.append(through.argmin(0))
        best = through.min(0)
    if not np.isfinite(best[-1]):
        raise ValueError(f"no {steps} steps lead from the first time to the last; use fewer")
    path = [points - 1]
    for sources in reversed(came):
        path.append(int(sources[path[-1]]))
    return path[::-1]
