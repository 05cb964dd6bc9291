"""Time grids: which noise levels a walk visits. Each is a strictly falling list of integers that ends at 0.

The next level is always read from the list, never computed. `steps` is the number of network calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ancestral.diffusion.processes.noise_schedule import NoiseSchedule
from ancestral.diffusion.processes.types import numbers


def full(schedule: NoiseSchedule) -> list[int]:
    """T, T-1, ..., 1, 0."""
    return list(range(schedule.T, -1, -1))


def uniform(schedule: NoiseSchedule, steps: int) -> list[int]:
    """Evenly from T to 1.

    diffusers' `linspace` of DDPM and DDIM, but for steps = 1, where theirs is t = 1, and for a time halfway between two
    integers, where theirs may be the other one. Its DPM-Solver, UniPC and DEIS take `steps + 1` times and leave out the
    last.
    """
    _check(schedule, steps)
    return _distinct(torch.linspace(schedule.T, 1, steps, dtype=torch.float64))


def trailing(schedule: NoiseSchedule, steps: int) -> list[int]:
    """T, T - T/steps, ...: every stride of equal length, the last one to 0 included.

    diffusers' `trailing`, but for times halfway between two integers; and in counts such as 61 of 1000 rounding gives
    theirs one time more, at t = 0 of ours.
    """
    _check(schedule, steps)
    return _distinct(schedule.T * torch.arange(steps, 0, -1, dtype=torch.float64) / steps)


def leading(schedule: NoiseSchedule, steps: int) -> list[int]:
    """1, 1 + stride, ...: never starts from pure noise; only for comparison with diffusers' default.

    The `leading` of its DDPM and DDIM; its DPM-Solver, UniPC and DEIS divide T by `steps + 1` and leave out the last.
    """
    _check(schedule, steps)
    return _distinct(1 + schedule.T // steps * torch.arange(steps - 1, -1, -1, dtype=torch.float64))


def quadratic(schedule: NoiseSchedule, steps: int) -> list[int]:
    """sqrt(t) evenly from sqrt(T) to 1: more steps at low noise."""
    _check(schedule, steps)
    return _distinct(torch.linspace(schedule.T**0.5, 1, steps, dtype=torch.float64) ** 2)


def log_snr(schedule: NoiseSchedule, steps: int) -> list[int]:
    """The integers nearest to an even division of log SNR (Lu et al. 2022)."""
    _check(schedule, steps)
    levels = _finite_log_snr(schedule)
    if not len(levels):
        return full(schedule)
    return _nearest(torch.linspace(float(levels[-1]), float(levels[0]), steps, dtype=torch.float64), schedule)


def karras(schedule: NoiseSchedule, steps: int, rho: float = 7.0) -> list[int]:
    """The integers nearest to an even division of sigma^(1/rho), sigma = noise/signal (Karras et al. 2022, Eq. 5)."""
    _check(schedule, steps)
    levels = _finite_log_snr(schedule)
    if not len(levels):
        return full(schedule)
    low, high = numbers((-levels[[0, -1]] / 2).exp() ** (1 / rho))
    sigma = torch.linspace(high, low, steps, dtype=torch.float64) ** rho
    return _nearest(-2 * sigma.log(), schedule)


def refining(schedule: NoiseSchedule, steps: int) -> list[int]:
    """T, then the last ones of `trailing` in 20 steps: for a model whose first x0_hat is an image already."""
    _check(schedule, steps)
    fine = trailing(schedule, max(steps, min(20, schedule.T)))
    return [fine[0], *fine[len(fine) - steps :]]


def between(t: int, s: int, steps: int) -> list[int]:
    """From t down to s in even steps, so many or as many as there are integers."""
    return [round(time) for time in numbers(torch.linspace(t, s, min(steps, t - s) + 1, dtype=torch.float64))]


def explicit(schedule: NoiseSchedule, times: Sequence[int]) -> list[int]:
    """A list of one's own.

    Raises:
        ValueError: unless it falls strictly within T..0 and ends at 0.
    """
    grid = [int(t) for t in times]
    falls = all(t > s for t, s in itertools.pairwise(grid))
    if len(grid) < 2 or not falls or grid[-1] != 0 or grid[0] > schedule.T:
        raise ValueError(f"times must fall strictly from at most {schedule.T} and end at 0, got {grid}")
    return grid


GRIDS: dict[str, Callable[[NoiseSchedule, int], list[int]]] = {
    "uniform": uniform,
    "trailing": trailing,
    "leading": leading,
    "quadratic": quadratic,
    "log-snr": log_snr,
    "karras": karras,
    "refining": refining,
}


def _finite_log_snr(schedule: NoiseSchedule) -> Tensor:
    """log SNR at t = 1..T, without the infinity of a zero terminal SNR: none at T = 1."""
    levels = schedule.log_snr(torch.arange(1, schedule.T + 1))
    return levels[levels.isfinite()]


def _nearest(levels: Tensor, schedule: NoiseSchedule) -> list[int]:
    every = schedule.log_snr(torch.arange(1, schedule.T + 1))
    times = 1 + (every[None] - levels[:, None]).abs().argmin(1)
    times[0] = schedule.T
    return _distinct(times.double())


def _check(schedule: NoiseSchedule, steps: int) -> None:
    if not 1 <= steps <= schedule.T:
        raise ValueError(f"steps must be between 1 and T = {schedule.T}, got {steps}")


def _distinct(times: Tensor) -> list[int]:
    """Round and move apart what rounding made equal, so that `steps` means steps."""
    steps = len(times)
    grid = [round(t) for t in numbers(times)]
    for i in range(1, steps):
        grid[i] = min(grid[i], grid[i - 1] - 1)
    floor = 1
    for i in reversed(range(steps)):
        grid[i] = max(grid[i], floor)
        floor = grid[i] + 1
    return [*grid, 0]
