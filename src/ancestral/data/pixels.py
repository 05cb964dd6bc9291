"""Bytes to the numbers a network sees, and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ancestral.data.dataset import Rows
from ancestral.diffusion.processes.levels import HALF_RANGE


def to_unit(images: np.ndarray | Rows) -> Tensor:
    """Bytes (B, H, W, C) to float32 (B, C, H, W) on [-1, 1]: byte / 127.5 - 1."""
    return scaled(torch.from_numpy(np.asarray(images)))


def scaled(images: Tensor) -> Tensor:
    """`to_unit` of a tensor, on its device."""
    return images.permute(0, 3, 1, 2).float().div(HALF_RANGE).sub(1).contiguous()


def to_bytes(images: Tensor) -> np.ndarray:
    """[-1, 1] (B, C, H, W) to the nearest bytes (B, H, W, C)."""
    levels = ((images.clamp(-1, 1) + 1) * HALF_RANGE).round().to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
