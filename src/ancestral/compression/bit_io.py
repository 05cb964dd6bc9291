"""Bits in order, with a check among them now and then."""

from __future__ import annotations

import zlib

import numpy as np

from ancestral.compression.errors import CodecError


def check(bits: np.ndarray) -> np.ndarray:
    """Eight bits that stand for these: the high byte of the CRC-32 of them packed into bytes."""
    return unpacked(bytes([zlib.crc32(np.packbits(bits).tobytes()) >> 24]))


def unpacked(content: bytes) -> np.ndarray:
    """uint8 0 or 1, the highest bit of each byte first."""
    return np.unpackbits(np.frombuffer(content, np.uint8))


class Writer:
    """Collects bits."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._checked = 0

    def number(self, value: int, width: int) -> None:
        """An unsigned integer in so many bits, highest first."""
        self.bits(np.array([value >> bit & 1 for bit in range(width - 1, -1, -1)], np.uint8))

    def bits(self, bits: np.ndarray) -> None:
        """Bits as they are."""
        self._parts.append(bits)

    def check(self) -> None:
        """Eight bits that stand for all since the check before."""
        seen = np.concatenate([np.empty(0, np.uint8), *self._parts[self._checked :]])
        self.bits(check(seen))
        self._checked = len(self._parts)

    def content(self) -> bytes:
        """All bits, the last byte filled up with zeros."""
        return np.packbits(np.concatenate([np.empty(0, np.uint8), *self._parts])).tobytes()


class Reader:
    """Gives them back; past the end there is nothing, which is no error."""

    def __init__(self, content: bytes) -> None:
        self._bits, self.position, self._checked = unpacked(content), 0, 0
        self.short = False  # whether more was asked for than there is

    def number(self, width: int) -> int | None:
        """An unsigned integer of so many bits, or None when they are not all there; then nothing more is."""
        bits = self.bits(width)
        return int("".join(map(str, bits.tolist())), 2) if len(bits) == width else None

    def bits(self, count: int) -> np.ndarray:
        """The next `count` bits, or those of them that are there."""
        taken = self._bits[self.position : self.position + count]
        self.position += len(taken)
        self.short |= len(taken) < count
        return taken

    def check(self) -> None:
        """Compare with the check that was written.

        Raises:
            CodecError: when they differ; not when the check is past the end.
        """
        seen = self._bits[self._checked : self.position]
        stored = self.bits(8)
        if len(stored) == 8 and not np.array_equal(stored, check(seen)):
            raise CodecError(f"damaged between bytes {self._checked // 8} and {self.position // 8} of the picture")
        self._checked = self.position

    def align(self) -> int:
        """Go on at the next whole byte, whose number this is.

        Raises:
            CodecError: when a bit that is skipped is set.
        """
        if self.bits(-self.position % 8).any():
            raise CodecError(f"damaged in byte {self.position // 8} of the picture")
        return self.position // 8


def varint(value: int) -> bytes:
    """An unsigned integer, seven bits a byte, lowest first."""
    content = bytearray()
    while value > 127:
        content.append(value & 127 | 128)
        value >>= 7
    return bytes([*content, value])


def read_varint(content: bytes, start: int, largest: int) -> tuple[int, int] | None:
    """(the integer at `start`, where the next byte is), or None when the content ends within it.

    Raises:
        CodecError: when it is larger than `largest` or written longer than it need be.
    """
    value = 0
    for index, byte in enumerate(content[start : start + 5]):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            if value > largest or (byte == 0 and index):
                raise CodecError(f"damaged: {value} in a field that is at most {largest}")
            return value, start + index + 1
    if len(content) >= start + 5:
        raise CodecError("damaged: a number without an end")
    return None
