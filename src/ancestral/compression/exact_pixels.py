"""The exact pixels, given the picture: the last part of a file.

    varint length   payload   4 CRC-32 of the pixels

The payload is `residual_coder`'s, or, where that could not be decoded again, zlib's of the pixels less their left
neighbours.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from ancestral.compression import residual_coder
from ancestral.compression.bit_io import read_varint, varint
from ancestral.compression.errors import CodecError
from ancestral.compression.file_header import Exact
from ancestral.compression.quantiser_cells import WIDEST_GUARD

_WIDER = {Exact.GUARDED: 1.0, Exact.WIDER: 100.0, Exact.WIDEST: 10000.0}


def pack(pixels: np.ndarray, predicted: np.ndarray, table: Any, guard: float, exact: Exact) -> bytes:
    """The part for pixels uint8 (H, W, C), with x0 predicted on [-1, 1], float64 of the same shape."""
    payload = (
        zlib.compress(np.diff(pixels, axis=1, prepend=np.uint8(0)).tobytes(), 9)
        if exact is Exact.STORED
        else residual_coder.encode(pixels, predicted, table, _guard(guard, exact))
    )
    return varint(len(payload)) + payload + _crc(pixels)


def whole(content: bytes, values: int) -> bool:
    """Whether all of it is there; `values` is how many the pixels have.

    Raises:
        CodecError: when there is more, or its length cannot be.
    """
    found = read_varint(content, 0, 8 * values + 1024)
    if found is None:
        return False
    length, begin = found
    if len(content) > begin + length + 4:
        raise CodecError(f"damaged: {len(content) - begin - length - 4} bytes too many")
    return len(content) == begin + length + 4


def unpack(content: bytes, predicted: np.ndarray, table: Any, guard: float, exact: Exact) -> np.ndarray:
    """The pixels from a part that is whole.

    Raises:
        CodecError: when they are not those that were packed.
    """
    _, begin = read_varint(content, 0, 8 * predicted.size + 1024) or (0, 0)
    try:
        pixels = _pixels(content[begin:-4], predicted, table, guard, exact)
    except Exception as error:  # a decoder of damaged bytes raises whatever it trips over
        raise CodecError(f"the exact pixels are damaged ({error}); --lossy gives the picture without them") from None
    if _crc(pixels) != content[-4:]:
        raise CodecError(
            "the exact pixels are not those that were compressed: the file is damaged, or the network differs more "
            "on this machine than the guard allows; --lossy gives the picture without them"
        )
    return pixels


def _pixels(payload: bytes, predicted: np.ndarray, table: Any, guard: float, exact: Exact) -> np.ndarray:
    if exact is not Exact.STORED:
        return residual_coder.decode(payload, predicted, table, _guard(guard, exact), predicted.shape)
    content = zlib.decompressobj().decompress(payload, predicted.size + 1)
    return np.cumsum(np.frombuffer(content, np.uint8).reshape(predicted.shape), axis=1, dtype=np.uint8)


def _guard(guard: float, exact: Exact) -> float:
    return min(guard * _WIDER[exact], WIDEST_GUARD)


def _crc(pixels: np.ndarray) -> bytes:
    return zlib.crc32(np.ascontiguousarray(pixels).tobytes()).to_bytes(4, "little")
