"""Sizes of the same images in general image formats: lossless, and lossy at many qualities."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from typing import NamedTuple

import numpy as np
from PIL import Image, features

from ancestral.data.lossless_files import LOSSLESS, Settings, container, encoded, sizes
from ancestral.diffusion.objectives.statistics import image_psnr

_QUALITIES = (1, 3, 5, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95, 98, 100)
_COLOUR = ("4:2:0", "4:4:4")  # colour at half the resolution, and at the whole
_LOSSY: dict[str, list[Settings]] = {
    "jpeg": [{"quality": q, "subsampling": c, "optimize": True} for q, c in product(_QUALITIES, _COLOUR)],
    "webp": [{"quality": q, "method": 6} for q in _QUALITIES],
    "avif": [{"quality": q, "subsampling": c, "speed": 4} for q, c in product(_QUALITIES, _COLOUR)],
    "jxl": [{"quality": q, "effort": 7} for q in _QUALITIES if q < 100],  # 100 needs its encoder's "lossless"
}
_PLUGIN = "pillow_jxl"  # that teaches Pillow JPEG XL


class Point(NamedTuple):
    """A size and a quality, over images: bits/dim of whole files, of these without container, and PSNR in dB."""

    bits_per_dim: float
    payload_bits_per_dim: float
    psnr: float  # of the mean squared error over all images


def lossy_formats(channels: int) -> tuple[list[str], list[str]]:
    """(the lossy formats in which images of so many channels can be written here, those in which they cannot)."""
    if find_spec(_PLUGIN):
        import_module(_PLUGIN)
    available = {"jpeg": features.check("jpg") and channels != 4, "jxl": find_spec(_PLUGIN) is not None}
    available |= {name: features.check(name) for name in ("webp", "avif")}
    return [name for name in _LOSSY if available[name]], [name for name in _LOSSY if not available[name]]


def _decoded(file: bytes, channels: int) -> np.ndarray:
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    pixels = np.asarray(Image.open(io.BytesIO(file)).convert(mode))
    return pixels.reshape(*pixels.shape[:2], channels)


def lossless_bits_per_dim(images: np.ndarray) -> dict[str, float]:
    """Bits per dimension of each format with its strongest settings: whole files, and with the container taken off.

    The container is what a file of one black pixel of the same mode costs. images: uint8 (N, H, W, C).
    """
    result = {}
    for kind in LOSSLESS:
        found, container_size = sizes(images, kind)
        size = float(found.mean())
        result[f"{kind} files"] = size * 8 / images[0].size
        result[f"{kind} without container"] = (size - container_size) * 8 / images[0].size
    return result


def shortest_bits_per_dim(images: np.ndarray) -> np.ndarray:
    """Of each image (N, H, W, C) uint8, its shortest lossless file without container in bits/dim, float64 (N,)."""
    payloads = [found - container_size for found, container_size in (sizes(images, kind) for kind in LOSSLESS)]
    return np.min(payloads, axis=0) * 8 / images[0].size


def lossy_points(images: np.ndarray, kind: str) -> list[Point]:
    """Rate and quality of a lossy format, smallest first, without dominated points.

    Means over images uint8 (N, H, W, C), each in a file of its own; `kind` as `lossy_formats` has it. The container is
    that of `lossless_bits_per_dim` at the same settings. Of JPEG it holds tables for one pixel, which are smaller.
    """
    points = []
    for settings in _LOSSY[kind]:
        files = [encoded(image, kind, settings) for image in images]
        decoded = np.stack([_decoded(file, images.shape[-1]) for file in files])
        size, overhead = float(np.mean([len(file) for file in files])), container(images[0], kind, settings)
        unit = 8 / images[0].size
        points.append(Point(size * unit, (size - overhead) * unit, image_psnr(images, decoded)))
    return _undominated(points)


def _undominated(points: Sequence[Point]) -> list[Point]:
    best, kept = -math.inf, []
    for point in sorted(points, key=lambda point: (point.bits_per_dim, -point.psnr)):
        if point.psnr > best:
            best = point.psnr
            kept.append(point)
    return kept
