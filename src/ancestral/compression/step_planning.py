"""What a walk costs in bits, and at which times to stop on the way.

Sending x_s ~ q(x_s | x_t, x0) to one who holds p(x_s | x_t) takes KL(q || p). With the best variance of p, that of a
calibrated predictor, its expectation needs nothing but that variance (Bao et al. 2022, Eq. 9, put into Eq. 5):

    E KL(q || p) = 1/2 log2(1 + r) bits a dimension,   r = E|x0 - x0_hat|^2 (SNR_s - SNR_t)

A grid of few times costs more the larger r; the times that cost the least are found by dynamic programming.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ancestral.diffusion.processes.gaussian import Gaussian


@dataclass(frozen=True)
class Errors:
    """A predictor's squared error at some times, by the bucket of the value it predicts; float64 (times, buckets)."""

    times: tuple[int, ...]  # strictly falling
    x0_var: Tensor  # E|x0 - x0_hat|^2
    share: Tensor  # of all values that lie in the bucket


@dataclass(frozen=True)
class Costs:
    """What the plan weighs, in bits a dimension."""

    start: np.ndarray  # (times,) of a walk that begins there: L_T
    move: np.ndarray  # (times, times), row t and column s, of a step; inf where s is not below t
    end: np.ndarray  # (times,) of the exact pixels given the prediction there; inf where a walk may not end


def step_bits(r: Tensor) -> Tensor:
    """1/2 log2(1 + r)."""
    return torch.log1p(r) / (2 * np.log(2))


def move_costs(schedule: Gaussian, errors: Errors, overhead: float = 1.0) -> np.ndarray:
    """(times, times): bits a dimension of a step between any two of the times, times `overhead`."""
    snr = schedule.snr(torch.tensor(errors.times))
    r = errors.x0_var[:, None] * (snr[None] - snr[:, None]).clamp(min=0)[..., None]
    costs = (errors.share[:, None] * step_bits(r)).sum(2).numpy() * overhead
    return np.where(np.tri(len(snr), dtype=bool), np.inf, costs)


def plan(times: Sequence[int], costs: Costs, most: int) -> list[tuple[tuple[int, ...], float]]:
    """The cheapest walk with k predictions and its bits a dimension, for each k = 1..most, by dynamic programming.

    The number of predictions is that of the times visited: one before each step, and the one that the pixels follow.
    """
    reached, came, plans = costs.start, [], []
    for calls in range(1, min(most, len(times)) + 1):
        if calls > 1:
            through = reached[:, None] + costs.move
            came.append(through.argmin(0))
            reached = through.min(0)
        index = int((reached + costs.end).argmin())
        total = float(reached[index] + costs.end[index])
        if not np.isfinite(total):
            continue
        path = [index]
        for origin in reversed(came):
            path.append(int(origin[path[-1]]))
        plans.append((tuple(times[index] for index in reversed(path)), total))
    return plans


def channel_bits(
    schedule: Gaussian, errors: Errors, times: Sequence[int], dimensions: int, efficiency: float
) -> tuple[tuple[int, ...], ...]:
    """Bits of each step for errors of 2^((q - 8) / 4) times those measured, q = 0..15, at so many bits of KL a bit.

    Integers, computed once and stored: a decoder's own arithmetic decides no length.
    """
    widths = 2 ** ((torch.arange(16, dtype=torch.float64) - 8) / 4)
    counts = []
    for t, s in pairwise(times):
        index = errors.times.index(t)
        r = errors.x0_var[index] * float(schedule.snr(s) - schedule.snr(t))
        bits = (errors.share[index] * step_bits(widths[:, None] * r)).sum(1) * dimensions / efficiency
        counts.append(tuple(max(1, round(n)) for n in bits.tolist()))
    return tuple(counts)
