"""Stand-in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ancestral.bound import calibrate
from ancestral.codec.residual import ResidualTable
from ancestral.rng import Streams


@dataclass(frozen=True)
class Profile:
    id: int
    times: tuple[int, ...]
    counts: tuple[tuple[int, ...], ...]
    channel: int
    guard: float


@dataclass(frozen=True)
class Codebook:
    x0_var: Tensor
    profiles: dict[int, Profile]
    residual: ResidualTable
    model_id: bytes
    canary: Any = None


def levels(base: float, most: int) -> tuple[int, ...]:
    return tuple(min(most, round(base * 2 ** ((k - 9) / 2))) for k in range(16))


def measure(model: Any, images: Tensor, steps: int = 16, stop: float = 1.2, channel: int = 1, table=None) -> Codebook:
    schedule = model.schedule
    table = calibrate(model, images, Streams(0, "codec", range(len(images)))) if table is None else table
    D = images[0].numel()
    ts = torch.arange(1, schedule.T + 1)
    noise = Streams(1, "codec", range(len(images)))
    from ancestral.grids import log_snr
    grid = log_snr(schedule, 60)[:-1]
    mse = []
    for t in grid:
        x_t = schedule.marginal(images, t).sample(noise.normal(images.shape[1:]).to(images))
        mse.append(float((model(x_t, t).x0 - images).square().mean()))
    lam = schedule.log_snr(torch.tensor(grid)).numpy()
    mse_all = np.exp(np.interp(schedule.log_snr(ts).numpy(), lam, np.log(mse)))
    snr = schedule.snr(ts).numpy()
    last = int(np.argmin(np.abs(snr**-0.5 * 127.5 - stop))) + 1
    cost = mse_all[last - 1:-1] * -np.diff(snr[last - 1:])  # per step t -> t-1 with index t=last+1..T
    cum = np.concatenate([[0], np.cumsum(cost[::-1])])  # from T downwards
    rate = np.cumsum(np.concatenate([[0], np.sqrt(cost[::-1] * 0 + cost[::-1])])) * 0 + cum
    wanted = np.linspace(0, rate[-1], steps + 1)
    idx = [int(np.argmin(np.abs(rate - w))) for w in wanted]
    times = sorted({schedule.T - i for i in idx}, reverse=True)
    counts = []
    for t, s in zip(times, times[1:]):
        r = mse_all[t - 1] * (snr[s - 1] - snr[t - 1])
        counts.append(levels(D * 0.5 * np.log2(1 + r) / 0.9 * 0.8, 8 * D))
    profile = Profile(0, tuple(times), tuple(counts), channel, 1e-4)
    return Codebook(table, {0: profile}, ResidualTable(), b"01234567", None)
