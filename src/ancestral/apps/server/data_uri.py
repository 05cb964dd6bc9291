"""Images that come in and go out as data URIs; what comes in is not trusted."""

from __future__ import annotations

import binascii
from base64 import b64decode

import numpy as np

from ancestral.data import decode, pictures
from ancestral.errors import UserError
from ancestral.runtime.encode import data_uri

MOST_BYTES = 4_000_000
MOST_PIXELS = 24_000_000
AT_ONCE = 2  # a picture of MOST_PIXELS takes hundreds of megabytes while it is decoded
_SIGNS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")
_HEADS = tuple(f"data:image/{kind};base64," for kind in ("png", "jpeg", "webp"))


def content(uri: str, field: str) -> bytes:
    """The file in a data URI.

    Raises:
        UserError: naming the field, when it is no base64, too large, or not PNG, JPEG or WebP.
    """
    head = next((one for one in _HEADS if uri.startswith(one)), None)
    if head is None:
        raise UserError(f"{field}: must be a data URI of a PNG, JPEG or WebP file (data:image/png;base64,...)")
    try:
        file = b64decode(uri[len(head) :].encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{field}: what follows 'base64,' is not base64") from None
    if len(file) > MOST_BYTES:
        raise UserError(f"{field}: {len(file)} bytes, at most {MOST_BYTES} are taken; make it smaller first")
    if not file.startswith(_SIGNS):
        raise UserError(f"{field}: not a PNG, JPEG or WebP file")
    return file


def decoded(uri: str, field: str, shape: tuple[int, int, int], background: str, white: int | None) -> np.ndarray:
    """The image in a data URI as uint8 (H, W, C) of this shape (C, H, W): its middle square, scaled.

    Where values have more than 8 bits, `white` becomes 255.

    Raises:
        UserError: as `content`, and when the file is damaged, truncated or of too many pixels.
    """
    file, (channels, height, width) = content(uri, field), shape
    size = height if height == width else None
    try:
        pixels = decode.decode_alone(file, channels, size, background, MOST_PIXELS, field, white)
    except decode.TooManyPixels:
        raise UserError(f"{field}: more than {MOST_PIXELS} pixels; make it smaller first") from None
    if pixels.shape[:2] != (height, width):
        raise UserError(f"{field}: {pixels.shape[0]}x{pixels.shape[1]} pixels, here they must be {height}x{width}")
    return pixels


def uri_of(pixels: np.ndarray) -> str:
    """An image (H, W, C) as the data URI of a PNG file."""
    return data_uri(pictures.png(pixels))
