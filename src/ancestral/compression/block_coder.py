"""Blocks of images, lossless, at the model's bound; decoded again only by the same model in the same environment.

Every probability comes from floating-point outputs of a network. A block is therefore bound to a processor and to a
version of torch. The calls of the network are the same in both directions, batch for batch, with the same number of
threads; the canary, a digest of what the network says to fixed inputs, refuses another environment before any decoding.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ancestral.compression.archive_format import MOST, Block, Setting
from ancestral.compression.bits_back import Chain, OutOfReach, Stack
from ancestral.compression.errors import CodecError
from ancestral.diffusion.denoisers.denoiser import Predictor
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.processes.types import Advance, no_advance
from ancestral.diffusion.samplers.transitions import Ancestral, optimal

WIDEST = 5  # doublings of the largest error of x0 that there is room for
_MARGIN = 3  # words that the coder may hold beside its stack


class Cost(NamedTuple):
    """What a block has cost."""

    nats: Tensor  # (B,) Eq. 3 along the chain that was drawn, the ideal
    one_off: int  # bytes, once a block: bits from which the first latents were drawn, and which nothing gives back


class Coder:
    """Encodes and decodes blocks with one model.

    Args:
        denoiser: knows Var[x0 | x_t], and says the same bits for the same input whenever it is called.
        setting: of the archive; without a canary, the one of this environment is taken.

    Raises:
        CodecError: when this environment computes other bits than the one in which the archive was made.
    """

    def __init__(self, denoiser: Predictor, setting: Setting) -> None:
        self.denoiser = denoiser
        with threads(setting.threads):
            mark = canary(denoiser, setting)
        if setting.canary not in (b"", mark):
            raise CodecError(
                "the model computes other bits here than where the archive was made (another processor, torch or "
                "number of threads); decode it there"
            )
        self.setting = replace(setting, canary=mark)

    def _chain(self, doublings: int) -> Chain:
        one = self.setting
        return Chain(self.denoiser, one.times, Ancestral(optimal), one.bins, 2.0 * 2**doublings)

    def encode(self, pixels: Tensor, advance: Advance = no_advance) -> tuple[Block, Cost]:
        """Images, bytes int64 (B, C, H, W), as a block that was decoded again and compared.

        Raises:
            CodecError: when the model's predictions cannot code them, or decoding does not give them back.
        """
        with threads(self.setting.threads):
            for doublings in range(WIDEST):
                try:
                    payload, cost = _encode(self._chain(doublings), doublings, pixels, advance)
                    break
                except OutOfReach:
                    continue
            else:
                raise CodecError("the model predicts these images too badly to code them; train it on such images")
        block = Block(payload, _crc(pixels))
        self.decode(block, len(pixels), advance)
        return block, cost

    def decode(self, block: Block, count: int, advance: Advance = no_advance) -> Tensor:
        """The images of a block, bytes int64 (count, C, H, W).

        Raises:
            CodecError: when they are not, to the last bit, the ones that were encoded.
        """
        with threads(self.setting.threads):
            pixels = self._decode(block.payload, count, advance)
        if _crc(pixels) != block.pixels_crc:
            raise CodecError("the pixels decoded are not those encoded: the model computes other bits here; decode it "
                             "in the environment in which the archive was made")  # fmt: skip
        return pixels

    def _decode(self, payload: bytes, count: int, advance: Advance) -> Tensor:
        doublings, sizes, words = _unpacked(payload)
        if sum(sizes) != count or doublings >= WIDEST:
            raise CodecError("a block is damaged: its parts do not agree")
        chain, stack, parts = self._chain(doublings), Stack(words), []
        for size in reversed(sizes):
            try:
                parts.append(chain.pop(stack, (size, *self.setting.shape)))
            except OutOfReach:
                raise CodecError("a block is damaged, or the model computes other bits here") from None
            advance(size)
        return torch.cat(parts[::-1])


def _encode(chain: Chain, doublings: int, pixels: Tensor, advance: Advance) -> tuple[bytes, Cost]:
    """Push batch after batch, each as large as the bits there are to draw its latents from, so that only the first
    image of a block pays for its own."""
    words = _first_words(pixels[0].numel())
    stack, sizes, nats, size, done = Stack(words), [], [], 1, 0
    while done < len(pixels):
        size = min(size, len(pixels) - done)
        before, lowest = len(stack), stack.lowest
        stack.lowest = before
        nats.append(chain.push(stack, pixels[done : done + size]))
        if stack.lowest <= _MARGIN:
            raise OutOfReach
        depth = (before - stack.lowest) / size
        stack.lowest = min(stack.lowest, lowest)
        sizes.append(size)
        done += size
        advance(size)
        size = min(MOST, max(1, int((len(stack) - stack.lowest) / (1.1 * max(depth, 1)))))
    untouched = stack.lowest - _MARGIN
    payload = struct.pack(f"<BH{len(sizes)}B", doublings, len(sizes), *sizes) + stack.words()[untouched:].tobytes()
    return payload, Cost(torch.cat(nats), 4 * (len(words) - untouched))


def _unpacked(payload: bytes) -> tuple[int, list[int], np.ndarray]:
    """(doublings, sizes of the batches, words of the stack)."""
    doublings, number = struct.unpack_from("<BH", payload.ljust(3, b"\0"))
    sizes, words = list(payload[3 : 3 + number]), payload[3 + number :]
    if len(sizes) < number or len(words) % 4 or not words.rstrip(b"\0") or words[-4:] == bytes(4):
        raise CodecError("a block is damaged: it has no stack")
    if not all(1 <= size <= MOST for size in sizes):
        raise CodecError("a block is damaged: a batch of its images has an impossible size")
    return doublings, sizes, np.frombuffer(words, "<u4").astype(np.uint32)


def _first_words(dimensions: int) -> np.ndarray:
    """The bits from which the latents of a block's first image are drawn: 32 a dimension, of which few are used."""
    words = np.random.Philox(key=[dimensions, 0]).random_raw(dimensions + 8).astype(np.uint32)
    words[-1] |= 1  # the coder takes no stack whose top word is 0
    return words


def _crc(pixels: Tensor) -> int:
    return zlib.crc32(pixels.to(torch.uint8).contiguous().numpy().tobytes())


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of torch inside; as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def canary(denoiser: Predictor, setting: Setting) -> bytes:
    """8 bytes that depend on every bit of what the model says to fixed inputs: single ones, and a whole batch."""
    digest, times = sha256(), setting.times[:-1]
    calls = [(1, times[0]), (1, times[len(times) // 2]), (1, times[-1]), (MOST, times[len(times) // 2])]
    for number, (size, t) in enumerate(calls):
        x_t = Streams(0, f"canary {number}", range(size)).normal(setting.shape)
        digest.update(denoiser(x_t, t).x0.contiguous().numpy().tobytes())
    return digest.digest()[:8]
