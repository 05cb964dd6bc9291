"""Training batches: shuffling, flips, augmentation and noise by image number, prepared ahead in threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ancestral.data import augmentation
from ancestral.data.dataset import ImageSet
from ancestral.data.pixels import scaled, to_bytes
from ancestral.diffusion.processes.streams import OpenStreams, Streams, permutation
from ancestral.diffusion.processes.types import on
from ancestral.runs.conditions import Conditions, all_of

CPU = torch.device("cpu")


@lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    return permutation(size, seed, "order", epoch)


def _rows(size: int, seed: int, numbers: Sequence[int]) -> list[int]:
    """The rows of the images of these numbers: each epoch has an order of its own."""
    epochs, positions = np.divmod(np.asarray(numbers), size)
    rows = np.empty_like(positions)
    for epoch in set(epochs.tolist()):
        now = epochs == epoch
        rows[now] = _order(size, seed, epoch)[positions[now]]
    return rows.tolist()


class Batch(NamedTuple):
    """Images as bytes (B, H, W, C) on the host, which of them are to be flipped, their conditions and rows, and noise.

    What the network sees is made of a part of them, on the device.
    """

    images: Tensor
    flipped: Tensor | None  # bool (B,)
    cond: Conditions
    rows: list[int]
    noise: Callable[[slice], Tensor]  # float32 (B, C, H, W)

    def x0(self, part: slice = slice(None), device: torch.device = CPU) -> Tensor:
        """float32 (B, C, H, W) on [-1, 1]."""
        images = on(device, self.images[part])
        if self.flipped is not None:
            images = torch.where(on(device, self.flipped[part])[:, None, None, None], images.flip(2), images)
        return scaled(images)

    def eps(self, part: slice = slice(None), device: torch.device = CPU) -> Tensor:
        """Noise of the shape of x0."""
        return on(device, self.noise(part))

    def pinned(self) -> Batch:
        """With its bytes in memory from which a device can fetch them by itself."""
        return self._replace(images=self.images.pin_memory())


def batch(
    images: ImageSet,
    seed: int,
    numbers: Sequence[int],
    flip: bool,
    augment: float = 0.0,
    streams: OpenStreams = Streams,
    noise: OpenStreams = Streams,
) -> Batch:
    """The batch of the images of these numbers; each image's part is a function of (seed, number) alone.

    Args:
        images: to choose from.
        seed: of every draw.
        numbers: of the images.
        flip: half of them.
        augment: the probability of each kind of move.
        streams: of what the host draws.
        noise: the streams of the noise.
    """
    rows = _rows(len(images), seed, numbers)
    height, width, channels = images.shape
    eps = noise(seed, "noise", numbers).soon((channels, height, width))
    flipped = streams(seed, "flip", numbers).uniform() < 0.5 if flip else None
    cond = {name: value[rows] for name, value in all_of(images).items()}
    plain = Batch(torch.from_numpy(np.asarray(images.images[rows])), flipped, cond, rows, eps)
    if not augment:
        return plain
    moves = augmentation.draw(seed, numbers, augment, streams)
    cond["augmentation"] = moves.vector()
    moved = torch.from_numpy(to_bytes(augmentation.moved(plain.x0(), moves)))
    return plain._replace(images=moved, flipped=None)


class Prefetcher:
    """Batches, prepared some ahead in threads; the result does not depend on their number.

    Args:
        make: `batch`, of images and numbers alone.
        workers: threads, each with one batch in hand; 0 prepares each batch when it is needed.
        device: that the batches are for.
    """

    def __init__(self, make: Callable[..., Batch], workers: int, device: torch.device = CPU) -> None:
        self.make, self.workers, self.device = make, workers, device
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._ahead: dict[int, Future[Batch]] = {}

    def _prepare(self, images: ImageSet, numbers: range) -> Batch:
        made = self.make(images, numbers=numbers)
        return made.pinned() if self.device.type == "cuda" else made

    def __call__(self, images: ImageSet, numbers: range, stride: int) -> Batch:
        """The batch of these numbers; the next call's numbers will be `stride` further."""
        if self._pool is None:
            return self._prepare(images, numbers)
        ahead = {numbers.start + k * stride: k * stride for k in range(self.workers + 1)}
        self._ahead = {
            start: self._ahead.get(start)
            or self._pool.submit(self._prepare, images, range(start, numbers.stop + shift))
            for start, shift in ahead.items()
        }
        return self._ahead.pop(numbers.start).result()
