"""Which precision this machine computes a run's layers fastest in, measured: a processor's flags do not say it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from ancestral.runs.config import Config, Facts

REPEATS = 5  # of each precision, in turn; the quickest counts
WORK = 4e9  # floating-point operations of a repeat, about: a few hundredths of a second

Timed = Callable[[torch.dtype], float]  # seconds of one repeat


def speed_of_bfloat16(timed: Timed) -> float:
    """How many times as fast as float32 it is."""
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for kind in seconds:
        timed(kind)  # allocations and kernel choices are not speed
    for _ in range(REPEATS):
        for kind, found in seconds.items():
            found.append(timed(kind))
    return min(seconds[torch.float32]) / min(seconds[torch.bfloat16])


def layers_of(config: Config, facts: Facts, device: torch.device) -> Timed:
    """Forward and backward through two convolutions and a product of matrices, of a run's width, size and layout.

    Torch's own generator is left as it was, and no weight of the run is touched.
    """
    options, (_, height, width) = config.model, facts.shape
    channels, patch = options.width * options.multipliers[0], options.patch
    pixels = max(1, height // patch) * max(1, width // patch)
    images = config.train.micro_batch or config.train.batch_size
    images = max(1, min(images, int(WORK / (3 * 2 * 19 * channels**2 * pixels))))
    with torch.random.fork_rng(devices=[]):
        block = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(1, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.Conv2d(channels, channels, 1),
        ).to(device)
        x = torch.randn(images, channels, max(1, height // patch), max(1, width // patch), device=device)
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    block.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    x = x.contiguous(memory_format=layout).requires_grad_()

    def timed(kind: torch.dtype) -> float:
        block.zero_grad()
        started = time.perf_counter()
        with torch.autocast(device.type, kind, kind != torch.float32):
            total = block(x).float().square().mean()
        total.backward()
        return time.perf_counter() - started

    return timed
