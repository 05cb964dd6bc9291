"""One image file to bytes, whatever its format, mode or orientation; never squashed, never trusted."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageOps

from ancestral.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
_GREY_MODES = {"1", "L", "LA", "I;16", "I;16B", "I;16L", "I"}
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_WIDE = re.compile(";16[BLN]")  # in the names of Pillow's raw modes: two bytes a value


class BadImage(UserError):
    """A file that cannot be used, and why."""


def _open(file: Path | bytes, name: str, max_pixels: int) -> Image.Image:
    """The file's header, its size checked before a single pixel is decoded."""
    try:
        if isinstance(file, Path) and file.exists() and not file.is_file():
            raise BadImage(f"{name}: not a regular file")  # a pipe would be waited for without end
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on metadata, which is not used, and bombs: see the limit below
            image = Image.open(file if isinstance(file, Path) else io.BytesIO(file), formats=_FORMATS)
    except BadImage:
        raise
    except OSError as error:
        reason = error.strerror or "not an image of a known format, or damaged"
        raise BadImage(f"{name}: cannot be read ({reason})") from None
    except Exception as error:  # a parser raises whatever it trips over: struct.error, KeyError, ...
        raise BadImage(f"{name}: refused ({error})") from None
    if image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height}"
        image.close()
        raise BadImage(f"{name}: {size} is over the limit of {max_pixels} pixels; raise data.max_pixels if it is meant")
    return image


def is_grey(path: Path, max_pixels: int) -> bool:
    """Whether the file's mode has no colour.

    Raises:
        BadImage: as `decode`.
    """
    with _open(path, str(path), max_pixels) as image:
        return image.mode in _GREY_MODES


def decode(
    file: Path | bytes, channels: int, size: int | None, background: str, max_pixels: int, name: str | None = None
) -> np.ndarray:
    """The first frame as uint8 (H, W, C), upright, composited on `background` unless C is 4.

    With a `size`, the middle square scaled to it; otherwise the image's own size.

    Raises:
        BadImage: naming the file, when it is damaged, truncated, too large or of a mode without a meaning as bytes.
    """
    name = name or str(file)
    with _open(file, name, max_pixels) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `_open`
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
        except Exception as error:  # as in `_open`
            raise BadImage(f"{name}: damaged or truncated ({error})") from None
        if upright.mode == "F":
            raise BadImage(f"{name}: floating-point pixels have no agreed range; save it with 8 or 16 bits")
        if upright.mode == "I" and np.any(np.asarray(upright) != np.asarray(upright).clip(0, 65535)):
            raise BadImage(f"{name}: grey values beyond 0..65535 have no agreed range; save it with 8 or 16 bits")
        square = _fit(_convert(upright, channels, background), size)
    return np.asarray(square).reshape(square.height, square.width, channels)


def exact(path: Path, channels: int, max_pixels: int) -> np.ndarray:
    """The first frame as uint8 (H, W, C), upright, if it has these channels and no others: nothing is converted away.

    Raises:
        BadImage: as `decode`, and when the file holds more than that: colour, transparency, 16 bits, another colour
            space or more frames.
    """
    with _open(path, str(path), max_pixels) as image:
        # Pillow says "RGB" of 16-bit colour too, and drops the low bytes; only the way it unpacks them tells.
        if image.mode.startswith(("I", "F")) or _WIDE.search(str([tile[3] for tile in getattr(image, "tile", ())])):
            raise BadImage(f"{path}: more than 8 bits a value; save it with 8 bits, as that is what is kept")
        if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            raise BadImage(f"{path}: {image.mode} colours change when made into RGB; convert it to RGB first")
        if _frames(image, str(path)) > 1:
            raise BadImage(f"{path}: has several frames, of which one would be kept; save them one by one")
    pixels = decode(path, 4, None, "white", max_pixels)
    if channels < 4 and bool((pixels[:, :, 3] < 255).any()):
        raise BadImage(f"{path}: has transparency, and this model has none; flatten it first")
    if channels == 1 and bool((pixels[:, :, :1] != pixels[:, :, 1:3]).any()):
        raise BadImage(f"{path}: has colour, and this model is of grey images; convert it to grey first")
    return np.ascontiguousarray(pixels[:, :, :channels])


def _frames(image: Image.Image, name: str) -> int:
    if image.format == "MPO":  # a photo whose other frames are its preview or its gain map
        return 1
    try:
        return getattr(image, "n_frames", 1)
    except Exception as error:  # as in `_open`
        raise BadImage(f"{name}: damaged or truncated ({error})") from None


def adapt(pixels: np.ndarray, channels: int, size: int | None, background: str) -> np.ndarray:
    """An array (H, W, C) as a file of it would be decoded."""
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    square = _fit(_convert(image, channels, background), size)
    return np.asarray(square).reshape(square.height, square.width, channels)


def _convert(image: Image.Image, channels: int, background: str) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16 bits at 255.
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if channels != 4:
            canvas = Image.new("RGBA", image.size, ImageColor.getrgb(background))
            image = Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert(_MODES[channels])


def _fit(image: Image.Image, size: int | None) -> Image.Image:
    """The centre square at `size`, cut at whole pixels: a cut through pixels would blur all of them."""
    if size is None:
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square if side == size else square.resize((size, size), Image.Resampling.LANCZOS)
