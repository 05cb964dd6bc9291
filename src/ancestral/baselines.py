"""What general lossless image formats need for the same images."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

# A file with a single pixel: signature, header, checksums, end. What is left is what the pixels cost.
_SETTINGS = {"png": {"optimize": True}, "webp": {"lossless": True, "quality": 100, "method": 6, "exact": True}}


def _size(image: np.ndarray, kind: str) -> int:
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, kind, **_SETTINGS[kind])
    return len(buffer.getvalue())


def lossless_bits_per_dim(images: np.ndarray) -> dict[str, float]:
    """Bits per dimension of each format with its strongest settings: whole files, and with the container taken off.

    The container is what a file of one black pixel of the same mode costs. images: uint8 (N, H, W, C).
    """
    result = {}
    for kind in _SETTINGS:
        size = np.mean([_size(image, kind) for image in images])
        container = _size(np.zeros_like(images[0, :1, :1]), kind)
        result[f"{kind} files"] = float(size) * 8 / images[0].size
        result[f"{kind} without container"] = float(size - container) * 8 / images[0].size
    return result
