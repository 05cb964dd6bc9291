"""Training batches: shuffling, flips, augmentation and noise by image number, prepared ahead in threads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ancestral.data import augmentation
from ancestral.data.dataset import ImageSet
from ancestral.data.pixels import to_unit
from ancestral.diffusion.processes.streams import Streams, permutation
from ancestral.runs.conditions import Conditions, all_of


@lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    return permutation(size, seed, "order", epoch)


class Batch(NamedTuple):
    """Images x0 float32 (B, C, H, W), their conditions, their rows in the set, and noise of the shape of x0."""

    x0: Tensor
    cond: Conditions
    rows: list[int]
    eps: Tensor


def batch(images: ImageSet, seed: int, numbers: Sequence[int], flip: bool, augment: float = 0.0) -> Batch:
    """The batch of the images of these numbers; each image's part is a function of (seed, number) alone."""
    rows = [int(_order(len(images), seed, number // len(images))[number % len(images)]) for number in numbers]
    x0 = to_unit(images.images[rows])
    if flip:
        flipped = Streams(seed, "flip", numbers).uniform() < 0.5
        x0 = torch.where(flipped[:, None, None, None], x0.flip(3), x0)
    cond = {name: value[rows] for name, value in all_of(images).items()}
    if augment:
        moves = augmentation.draw(seed, numbers, augment)
        x0, cond["augmentation"] = augmentation.moved(x0, moves), moves.vector()
    return Batch(x0, cond, rows, Streams(seed, "noise", numbers).normal(x0.shape[1:]).float())


class Prefetcher:
    """`batch`, prepared some batches ahead in threads; the result does not depend on their number.

    Args:
        workers: threads, each with one batch in hand; 0 prepares each batch when it is needed.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._ahead: dict[int, Future[Batch]] = {}

    def __call__(
        self, images: ImageSet, seed: int, numbers: range, flip: bool, stride: int, augment: float = 0.0
    ) -> Batch:
        """The batch of these numbers; the next call's numbers will be `stride` further."""
        if self._pool is None:
            return batch(images, seed, numbers, flip, augment)
        ahead = {numbers.start + k * stride: k * stride for k in range(self.workers + 1)}
        self._ahead = {
            start: self._ahead.get(start)
            or self._pool.submit(batch, images, seed, range(start, numbers.stop + shift), flip, augment)
            for start, shift in ahead.items()
        }
        return self._ahead.pop(numbers.start).result()
