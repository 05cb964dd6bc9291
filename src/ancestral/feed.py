"""From images at rest to images presented: which one is the n-th, as what tensor, flipped or not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ancestral.config import Facts
from ancestral.imageset import ImageSet
from ancestral.rng import Streams, permutation


def facts(images: ImageSet) -> Facts:
    """What a network must know about its data."""
    height, width, channels = images.shape
    return Facts((channels, height, width), images.class_names)


def to_unit(images: np.ndarray) -> Tensor:
    """Bytes (B, H, W, C) to float32 (B, C, H, W) on [-1, 1]: byte / 127.5 - 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def to_bytes(images: Tensor) -> np.ndarray:
    """[-1, 1] (B, C, H, W) to the nearest bytes (B, H, W, C)."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


@lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int) -> np.ndarray:
    return permutation(size, seed, "order", epoch)


def presented(
    images: ImageSet, seed: int, numbers: Sequence[int], flip: bool
) -> tuple[Tensor, Tensor | None, list[int]]:
    """The images of these numbers: (float32 (B, C, H, W), labels (B,) or None, rows of `images`)."""
    rows = [int(_order(len(images), seed, number // len(images))[number % len(images)]) for number in numbers]
    x0 = to_unit(images.images[rows])
    if flip:
        turned = Streams(seed, "flip", numbers).uniform() < 0.5
        x0 = torch.where(turned[:, None, None, None], x0.flip(3), x0)
    labels = None if images.labels is None else torch.from_numpy(images.labels[rows])
    return x0, labels, rows
