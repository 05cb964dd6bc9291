"""More than 8 bits a value: all of the bits that a file holds, and which value is white.

Pillow says "RGB" of 16-bit colour and drops the low bytes; only the way it unpacks the file tells, and unpacking it
once more with the two bytes of a value taken the other way round gives them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from ancestral.data import pictures

_WIDE = re.compile(r"(?<=;16)[BLN]")  # in the names of Pillow's raw modes: two bytes a value, which first
_OTHER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
WIDEST = 65535  # white in a single file of more than 8 bits, where nothing else is known
_JPEG2000 = b"\xff\x4f\xff\x51"  # the head of its code stream


class Unreadable(Exception):
    """Bits that no reader here gives."""


def white_for(largest: int) -> int:
    """The smallest 2^k - 1, k = 8..16, that covers a value: what is white where nothing says so."""
    return 2 ** max(8, largest.bit_length()) - 1


def scaled(values: np.ndarray, white: int) -> np.ndarray:
    """Values 0..white as the nearest bytes, 255 for white."""
    return ((values.astype(np.uint32) * np.uint32(510) + np.uint32(white)) // np.uint32(2 * white)).astype(np.uint8)


def kind(image: ImageFile.ImageFile) -> str | None:
    """How an opened file, not yet decoded, holds more than 8 bits a value; None where it does not."""
    if image.mode.startswith("I"):
        return "grey"
    tiles = [tile[3] for tile in image.tile]
    if _WIDE.search(str(tiles)):
        return "words"
    if image.format == "PPM" and any(isinstance(one, tuple) and one[1] > 255 for one in tiles):
        return "scaled"
    return "jpeg2000" if image.format == "JPEG2000" and _bits_of_jpeg2000(image) > 8 else None


def is_apart(image: ImageFile.ImageFile) -> bool:
    """Whether a TIFF holds the 16 bits of each colour in a plane of its own."""
    tags: Any = getattr(image, "tag_v2", {})
    bits: Any = tags.get(258, ())
    return tags.get(284) == 2 and max(bits if isinstance(bits, tuple) else (bits,), default=8) > 8


def declares_white(image: ImageFile.ImageFile) -> bool:
    """Whether the format says how many bits are used, so that Pillow has scaled them to 16 (or 8)."""
    return image.format in ("PPM", "JPEG2000") or _white_is_zero(image)


def is_read_at_8(image: ImageFile.ImageFile) -> bool:
    """Whether Pillow gives 8 bits of more, in AVIF and HEIF."""
    if image.format == "AVIF":
        box = _head(image, 1 << 16).partition(b"av1C")[2]  # profile and level; tier, high bit depth, ...
        return len(box) > 2 and bool(box[2] & 0x40)
    return image.format == "HEIF" and image.info.get("bit_depth", 8) > 8


def _white_is_zero(image: ImageFile.ImageFile) -> bool:
    """A negative, which Pillow turns into a positive at 8 bits and less only."""
    return image.format == "TIFF" and getattr(image, "tag_v2", {}).get(262) == 0


def values(image: ImageFile.ImageFile, again: Callable[[], ImageFile.ImageFile]) -> np.ndarray:
    """All bits of an opened file with more than 8 a value, (H, W, C) integers; up to 65535 where it declares white.

    Args:
        image: for which `kind` says so; it is decoded.
        again: opens the same file once more.

    Raises:
        Unreadable: for signed or 32-bit values and for colour that Pillow gives only 8 bits of.
    """
    how = kind(image)
    if how == "jpeg2000":
        raise Unreadable("colour of more than 8 bits in JPEG 2000, of which 8 could be read; save it as 16-bit PNG")
    if how == "scaled":
        return np.asarray(image).astype(np.int64).reshape(image.height, image.width, -1) * 257
    if how == "grey":
        found = np.asarray(image).astype(np.int64)[..., None]
        if found.min() < 0 or found.max() > 65535:
            raise Unreadable("grey values beyond 0..65535 have no agreed range; save it with 8 or 16 bits")
        return 65535 - found if _white_is_zero(image) else found
    if image.format == "PNG" and image.mode == "RGBA" and "LA;16B" in str(image.tile):
        image.tile = [tile._replace(args="RGBA") for tile in image.tile]  # the four bytes of grey and of opacity
        parts = np.asarray(image).astype(np.int64)
        return parts[..., [0, 0, 0, 2]] * 256 + parts[..., [1, 1, 1, 3]]
    with again() as other:
        order = _WIDE.findall(str(other.tile))[0]
        other.tile = [tile._replace(args=_turned(tile.args)) for tile in other.tile]
        high, low = np.asarray(image).astype(np.int64), np.asarray(other).astype(np.int64)
    if order not in _OTHER or image.mode not in ("RGB", "RGBA"):
        raise Unreadable(f"16-bit {image.mode} colours; save it as 16-bit PNG")
    return high * 256 + low


def _turned(args: Any) -> Any:
    if isinstance(args, tuple):
        return tuple(_turned(one) for one in args)
    return _WIDE.sub(lambda found: _OTHER[found.group()], args) if isinstance(args, str) else args


def to_bytes(found: np.ndarray, white: int, clear: object, orientation: int) -> Image.Image:
    """The values as an image of bytes, turned and transparent as the file says; opacity is always out of 65535."""
    colour, opacity = scaled(found[..., :3], white), scaled(found[..., 3:], 65535)
    if found.shape[2] < 4 and isinstance(clear, (int, tuple)):
        opacity = np.where((found == np.array(clear)).all(-1, keepdims=True), 0, 255).astype(np.uint8)
    if opacity.shape[2]:
        colour = np.concatenate([np.broadcast_to(colour, (*colour.shape[:2], 3)), opacity], 2)
    image = pictures.to_pil(colour)
    image.getexif()[0x0112] = orientation
    return image


def _head(image: ImageFile.ImageFile, size: int) -> bytes:
    """The first bytes of the file, all with -1."""
    file: Any = image.fp
    position = file.tell()
    try:
        file.seek(0)
        return file.read(size)
    finally:
        file.seek(position)


def _bits_of_jpeg2000(image: ImageFile.ImageFile) -> int:
    """The most bits of a component, where there are several; one alone is given in full as 16-bit grey."""
    _, _, found = _head(image, -1).partition(_JPEG2000)  # descriptions and profiles may lie before it
    count = int.from_bytes(found[36:38], "big")
    bits = [(found[38 + 3 * n] & 0x7F) + 1 for n in range(count) if 38 + 3 * n < len(found)]
    return max(bits, default=8) if count > 1 else 8
