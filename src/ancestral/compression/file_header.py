"""The first bytes of a file: what it is, of which model, by which profile.

Little-endian. An image of the model's own shape has a short header, as its whole file may be 200 bytes:

    2 magic   1 version << 4 | large << 3 | exact   1 profile   4 model   1 CRC                     9 bytes
    2 magic   1 version << 4 | large << 3 | exact   1 profile   8 model   height, width   4 CRC    18 bytes and more

`exact` says how the exact pixels follow the picture (see `Exact`). Height and width are varints. The CRC is CRC-32 of
all before it, of which the short header has the high byte. CRCs find accidents; they do not protect against intent.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import IntEnum

from ancestral.compression.bit_io import read_varint, varint
from ancestral.compression.errors import CodecError

MAGIC = b"\xa1c"
VERSION = 1
MOST_PIXELS = 2**24  # of an image
SUFFIX = ".anc"


class Exact(IntEnum):
    """How the exact pixels are coded: given the predicted image with a guard, a stronger one, or without it."""

    GUARDED = 0
    WIDER = 1
    WIDEST = 2
    STORED = 3


@dataclass(frozen=True)
class Header:
    """What the first bytes say."""

    profile: int
    model: bytes  # 8 bytes, or their first 4
    exact: Exact
    size: tuple[int, int] | None  # height and width; None for the model's own

    def content(self) -> bytes:
        """The bytes."""
        large = self.size is not None
        start = MAGIC + bytes([VERSION << 4 | large << 3 | self.exact, self.profile])
        if self.size is None:
            start += self.model[:4]
            return start + _crc(start)[3:]
        start += self.model + varint(self.size[0]) + varint(self.size[1])
        return start + _crc(start)


def _crc(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(4, "little")


def parse(content: bytes) -> tuple[Header, int]:
    """(the header, where the picture begins).

    Raises:
        CodecError: when it is not such a file, of another version, cut within its header, or damaged.
    """
    if content[:2] != MAGIC[: len(content)]:
        raise CodecError("not a file that ancestral compress has written")
    if len(content) < 4:
        raise CodecError(f"cut within its header, after {len(content)} bytes")
    version, large, exact = content[2] >> 4, content[2] >> 3 & 1, content[2] & 7
    if version != VERSION:
        raise CodecError(f"format version {version}; this program reads version {VERSION}")
    if exact not in list(Exact):
        raise CodecError("damaged: the header is not what was written")
    end, size = (8, None) if not large else (12, _size(content))
    if size:
        end += len(varint(size[0])) + len(varint(size[1]))
    checked = _crc(content[:end])[0 if large else 3 :]
    if len(content) < end + len(checked):
        raise CodecError(f"cut within its header, after {len(content)} bytes")
    if content[end : end + len(checked)] != checked:
        raise CodecError("damaged: the header is not what was written")
    if size and (0 in size or size[0] * size[1] > MOST_PIXELS):
        raise CodecError(f"says that it is {size[0]}x{size[1]}; images have 1 to {MOST_PIXELS} pixels")
    return Header(content[3], content[4 : 12 if large else 8], Exact(exact), size), end + len(checked)


def _size(content: bytes) -> tuple[int, int]:
    height = read_varint(content, 12, MOST_PIXELS)
    width = height and read_varint(content, height[1], MOST_PIXELS)
    if not height or not width:
        raise CodecError(f"cut within its header, after {len(content)} bytes")
    return height[0], width[0]


def check_model(header: Header, model_id: bytes) -> None:
    """Refuse a file of another model."""
    if header.model != model_id[: len(header.model)]:
        own = model_id[: len(header.model)].hex()
        raise CodecError(f"made with model {header.model.hex()}; this run is model {own}: decompress with its own run")
