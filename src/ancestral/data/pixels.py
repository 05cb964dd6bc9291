"""Bytes to the numbers a network sees, and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ancestral.data.dataset import Rows


def to_unit(images: np.ndarray | Rows) -> Tensor:
    """Bytes (B, H, W, C) to float32 (B, C, H, W) on [-1, 1]: byte / 127.5 - 1."""
    return scaled(torch.from_numpy(np.asarray(images)))


def scaled(images: Tensor) -> Tensor:
    """`to_unit` of a tensor, on its device."""
    return images.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def to_bytes(images: Tensor) -> np.ndarray:
    """[-1, 1] (B, C, H, W) to the nearest bytes (B, H, W, C)."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
