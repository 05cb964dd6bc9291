"""What a walk costs in bits, and at which times to stop on the way.

Sending x_s ~ q(x_s | x_t, x0) to one who holds p(x_s | x_t) takes KL(q || p). With the best variance of p, that of a
calibrated predictor, its expectation needs nothing but that variance (Bao et al. 2022, Eq. 9, put into Eq. 5):

    E KL(q || p) = 1/2 log2(1 + r) bits a dimension,   r = E|x0 - x0_hat|^2 (SNR_s - SNR_t)

A grid of few times costs more the larger r; the times that cost the least are found by dynamic programming.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ancestral.diffusion.denoisers.calibrated import X0_EDGES, x0_bucket
from ancestral.diffusion.denoisers.denoiser import Prediction, Predictor
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.streams import Streams

BUCKETS = len(X0_EDGES) + 1


@dataclass(frozen=True)
class Errors:
    """A predictor's squared error at some times, by the bucket of the value it predicts. All float64 (times, buckets).

    Args:
        times: strictly falling.
        x0_var: E|x0 - x0_hat|^2.
        share: of all values that lie in the bucket.
    """

    times: tuple[int, ...]
    x0_var: Tensor
    share: Tensor


@dataclass(frozen=True)
class Costs:
    """What the plan weighs, in bits a dimension.

    Args:
        start: (times,) of a walk that begins there: L_T.
        move: (times, times), row t and column s, of a step; inf where s is not below t.
        end: (times,) of the exact pixels given the prediction there; inf where a walk may not end.
    """

    start: np.ndarray
    move: np.ndarray
    end: np.ndarray


@dataclass(frozen=True)
class Rate:
    """Expected bits of images, by term. float64.

    Args:
        prior: (B,) L_T.
        steps: (B, K) of each step.
        residual: (B,) of the exact pixels.
        dimensions: values an image.
    """

    prior: Tensor
    steps: Tensor
    residual: Tensor
    dimensions: int

    @property
    def bits_per_dim(self) -> Tensor:
        """All terms, (B,)."""
        return (self.prior + self.steps.sum(1) + self.residual) / self.dimensions


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


def normal_end(prediction: Prediction, x0: Tensor) -> Tensor:
    """L_0 of a calibrated predictor in bits an image, (B,): bytes under N(x0_hat, Var[x0 | x_t])."""
    if prediction.x0_var is None:
        raise ValueError("the rate needs Var[x0 | x_t]: an exact denoiser, or a Calibrated one")
    nats = -Normal(prediction.x0, prediction.x0_var.expand_as(prediction.x0)).log_prob_coded(x0)
    return nats.flatten(1).sum(1) / np.log(2)


@torch.no_grad()
def rate(
    denoiser: Predictor,
    x0: Tensor,
    times: Sequence[int],
    noise: Streams,
    end: Callable[[Prediction, Tensor], Tensor] = normal_end,
) -> Rate:
    """What images cost on a grid: each step by the variance that is predicted at an x_t of its own.

    With `normal_end` the expectation is that of `elbo` on [*times, 0] with the optimal variance, if that is right.

    Args:
        denoiser: predicts x0 and its variance.
        x0: (B, ...) on [-1, 1].
        times: strictly falling, the last at least 1.
        noise: one stream an image.
        end: bits an image of the exact pixels, from the prediction at the last time.
    """
    schedule, steps, prediction = denoiser.schedule, [], None
    for t, s in pairwise([*times, 0]):
        x_t = schedule.marginal(x0, t).sample(noise.normal(x0.shape[1:]).to(x0))
        prediction = denoiser(x_t, t)
        if s and prediction.x0_var is not None:
            r = prediction.x0_var.expand_as(x0) * float(schedule.snr(s) - schedule.snr(t))
            steps.append(step_bits(r.double()).flatten(1).sum(1).cpu())
    assert prediction is not None
    prior = schedule.prior(x0, times[0]).cpu().double() / np.log(2)
    by_step = torch.stack(steps, 1) if steps else torch.zeros(len(x0), 0, dtype=torch.float64)
    return Rate(prior, by_step, end(prediction, x0).cpu().double(), x0[0].numel())


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


def bucket_sums(x0_hat: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
    """(sums of |x0 - x0_hat|^2, counts) by bucket of x0_hat, float64."""
    bucket = x0_bucket(x0_hat).flatten().cpu()
    squared = (x0_hat - x0).cpu().double().square().flatten()
    sums = torch.zeros(BUCKETS, dtype=torch.float64).index_add_(0, bucket, squared)
    return sums, bucket.bincount(minlength=BUCKETS).double()
