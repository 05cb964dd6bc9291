"""A file of many images, coded in blocks by `block_coder`.

    magic, version, length of the header, CRC-32 of the header
    header, deflated: model, canary, threads, T, lattice, shape, count, block size, times, index of the blocks, names
    blocks: one after the other, each decodable alone

A reader has all that decoding needs, and knows whether the file is damaged before anything is decoded.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ancestral.compression.errors import CodecError

MAGIC, VERSION = b"ANCB", 1
LARGEST_HEADER = 1 << 28
MOST = 64  # images in one call of the network; a block has a byte for each call
MOST_THREADS = 512  # a library that is asked for more than the system has ends the process
_PREFIX, _FIXED, _ENTRY = struct.Struct("<4sBII"), struct.Struct("<8s8sHIfHHHIII"), struct.Struct("<III")


class Block(NamedTuple):
    """Some images, decodable alone."""

    payload: bytes
    pixels_crc: int

    @property
    def payload_crc(self) -> int:
        """CRC-32 of the payload: whether the file is damaged, known before anything is decoded."""
        return zlib.crc32(self.payload)


@dataclass(frozen=True)
class Setting:
    """Everything that decoding must repeat."""

    model: bytes  # 8, which model
    times: tuple[int, ...]  # falling to 0
    T: int
    shape: tuple[int, int, int]  # (C, H, W)
    threads: int  # of torch: another number adds up in another order
    canary: bytes = b""  # 8, see `block_coder.canary`
    bins: float = 1.0  # lattice points a standard deviation


@dataclass(frozen=True)
class Archive:
    """The content of a file."""

    setting: Setting
    count: int
    block: int  # images a block; the last may hold fewer
    names: tuple[str, ...]  # of the images, or none
    blocks: tuple[Block, ...]

    def to_bytes(self) -> bytes:
        """As a file."""
        one = self.setting
        fixed = _FIXED.pack(
            one.model, one.canary, one.threads, one.T, one.bins, *one.shape, self.count, self.block, len(one.times)
        )
        index = [_ENTRY.pack(len(each.payload), each.pixels_crc, each.payload_crc) for each in self.blocks]
        names = "\0".join(self.names).encode("utf-8", "surrogateescape")
        body = zlib.compress(fixed + np.array(one.times, "<u4").tobytes() + b"".join(index) + names, 9)
        prefix = _PREFIX.pack(MAGIC, VERSION, len(body), zlib.crc32(body))
        return prefix + body + b"".join(each.payload for each in self.blocks)

    @classmethod
    def of_bytes(cls, content: bytes) -> Archive:
        """The inverse of `to_bytes`; the blocks' payloads are not looked at.

        Raises:
            CodecError: for anything that is no whole archive of this version.
        """
        if content[:4] != MAGIC or len(content) < _PREFIX.size:
            raise CodecError("not an archive: the first bytes are others; make one with: ancestral archive")
        _, version, length, crc = _PREFIX.unpack_from(content)
        if version != VERSION:
            raise CodecError(f"an archive of version {version}; this program reads version {VERSION}")
        body = content[_PREFIX.size : _PREFIX.size + length]
        if len(body) < length or zlib.crc32(body) != crc:
            raise CodecError("the header is damaged or cut off; fetch the file again")
        return cls._of_header(_inflated(body), content[_PREFIX.size + length :])

    @classmethod
    def _of_header(cls, body: bytes, rest: bytes) -> Archive:
        try:
            model, mark, threads, T, bins, *shape, count, block, steps = _FIXED.unpack_from(body)
            times = np.frombuffer(body, "<u4", steps, _FIXED.size)
            start, number = _FIXED.size + 4 * steps, -(-count // block)
            last = count - (number - 1) * block  # images in the last block
        except (struct.error, ValueError, ZeroDivisionError) as error:
            raise CodecError(f"the header is damaged ({error})") from None
        # A small file may claim any number of blocks and images: nothing is made of a number before there is a byte
        # for each call of each block.
        if (number - 1) * -(-block // MOST) + -(-last // MOST) > len(rest):
            raise CodecError(f"the header is damaged: {count} images in {len(rest)} bytes")
        texts = start + _ENTRY.size * number
        named = body.count(b"\0", texts) + 1 if len(body) > texts else 0
        falls = steps >= 2 and bool((times[1:] < times[:-1]).all()) and times[-1] == 0 and times[0] <= T
        fits = len(body) - texts >= max(0, 2 * named - 1)  # a name has a letter, and a zero before the next
        if not falls or not fits or named not in (0, count) or not 0 < bins < 1e3:
            raise CodecError("the header is damaged: its parts do not agree")
        if not count:
            raise CodecError("the header is damaged: it names no images")
        if not 0 < threads <= MOST_THREADS:
            raise CodecError(f"made with {threads} threads of torch; 1 to {MOST_THREADS} can be asked for")
        entries = list(_ENTRY.iter_unpack(body[start:texts]))
        if sum(entry[0] for entry in entries) != len(rest):
            missing = sum(entry[0] for entry in entries) - len(rest)
            raise CodecError(f"the file is {missing} bytes short" if missing > 0 else f"{-missing} bytes too many")
        blocks, offset = [], 0
        for size, pixels_crc, payload_crc in entries:
            blocks.append(Block(rest[offset : offset + size], pixels_crc))
            if blocks[-1].payload_crc != payload_crc:
                raise CodecError(f"block {len(blocks) - 1} is damaged; fetch the file again")
            offset += size
        names = tuple(body[texts:].decode("utf-8", "surrogateescape").split("\0")) if named else ()
        setting = Setting(model, tuple(times.tolist()), T, (shape[0], shape[1], shape[2]), threads, mark, bins)
        return cls(setting, count, block, names, tuple(blocks))


def _inflated(body: bytes) -> bytes:
    inflate = zlib.decompressobj()
    try:
        content = inflate.decompress(body, LARGEST_HEADER)
    except zlib.error as error:
        raise CodecError(f"the header is damaged ({error})") from None
    if not inflate.eof:
        raise CodecError("the header is damaged: it has no end")
    return content


def rows_of(archive: Archive, selected: range) -> Iterator[tuple[int, range]]:
    """(block, its rows that are selected) for each block that has some."""
    first, last = selected.start // archive.block, -(-selected.stop // archive.block)
    for number in range(first, last):
        start = number * archive.block
        yield number, range(max(selected.start, start), min(selected.stop, start + archive.block))
