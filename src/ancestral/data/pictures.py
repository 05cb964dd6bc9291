"""PNG and GIF files and contact sheets from arrays of bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ancestral.runtime import verified_folder


def contact_sheet(images: np.ndarray, columns: int | None = None, side: int = 64, gap: int = 2) -> Image.Image:
    """Images (N, H, W, C) in rows, each enlarged by a whole factor to about `side` pixels, on grey."""
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    factor = max(1, side // max(height, width))
    images = images.repeat(factor, 1).repeat(factor, 2)
    tall, wide = images.shape[1] + gap, images.shape[2] + gap
    sheet = np.full((math.ceil(count / columns) * tall + gap, columns * wide + gap, channels), 128, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * tall + gap, index % columns * wide + gap
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return Image.fromarray(sheet.squeeze(2) if channels == 1 else sheet[..., : 4 if channels == 4 else 3])


def animation(frames: Sequence[Image.Image], milliseconds: int = 120) -> bytes:
    """A looping GIF that rests on its last frame, as bytes."""
    file = io.BytesIO()
    durations = [milliseconds] * (len(frames) - 1) + [2000]
    frames[0].save(file, "gif", save_all=True, append_images=list(frames[1:]), duration=durations, loop=0)
    return file.getvalue()


def png(image: np.ndarray) -> bytes:
    """One image (H, W, C) at its own size, as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(file, "png")
    return file.getvalue()


def is_png(content: bytes, shape: tuple[int, ...]) -> bool:
    """Whether these bytes are a picture of this shape, (H, W, C)."""
    try:
        image = Image.open(io.BytesIO(content), formats=["PNG"])
        return (image.height, image.width, len(image.getbands())) == shape
    except (OSError, ValueError, SyntaxError):
        return False


def read_png(path: Path) -> np.ndarray:
    """An image written by `png`, (H, W, C)."""
    pixels = np.asarray(Image.open(path))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def sheet(images: np.ndarray, columns: int | None = None) -> bytes:
    """A contact sheet as the bytes of a PNG file."""
    file = io.BytesIO()
    contact_sheet(images, columns).save(file, "png")
    return file.getvalue()


def save_sheet(path: Path, images: np.ndarray, columns: int | None = None) -> None:
    """A contact sheet as a PNG file, whole or not at all."""
    verified_folder.write_file(path, sheet(images, columns))
