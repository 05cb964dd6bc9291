"""What lossless image files cost: PNG and WebP with their strongest settings."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from ancestral.data import pictures

Settings = dict[str, Any]  # of Pillow's save

LOSSLESS: dict[str, Settings] = {
    "png": {"optimize": True},
    "webp": {"lossless": True, "quality": 100, "method": 6, "exact": True},
}


def encoded(image: np.ndarray, kind: str, settings: Mapping[str, Any]) -> bytes:
    """An image (H, W, C) uint8 as a file."""
    buffer = io.BytesIO()
    pictures.to_pil(image).save(buffer, kind, **settings)
    return buffer.getvalue()


def container(image: np.ndarray, kind: str, settings: Mapping[str, Any]) -> int:
    """Bytes of a file with a single black pixel: signature, header, tables, end. What is left is what pixels cost."""
    return len(encoded(np.zeros_like(image[:1, :1]), kind, settings))


def sizes(images: np.ndarray, kind: str) -> tuple[np.ndarray, int]:
    """(bytes of each image's file, int64 (N,); of which container), with the strongest settings of a format."""
    settings = LOSSLESS[kind]
    return np.array([len(encoded(one, kind, settings)) for one in images]), container(images[0], kind, settings)
