"""Sending a sample of a Gaussian: which of the shared random vectors it is, in a number of bits fixed beforehand.

Both sides know p = N(0, 1) in every dimension. The sender wants a z that looks drawn from q = N(m, 1 / (1 + r)), which
costs about KL(q || p) bits. The candidates are the paths of a shift register: each stage takes in a few bits, and its
state chooses a row of a table of normals for the dimensions of the stage. A path of n bits is one of 2^n vectors; the
best by log q - log p is found by the algorithm of Viterbi. With as many bits a stage as the register is long there is
no memory, and it is the best of 2^n vectors for each chunk of dimensions by itself.

This is minimal random coding (Havasi et al. 2019; the paper's Algorithms 3 and 4) with the best candidate taken instead
of a random one, as in trellis source coding (Marcellin and Fischer 1990). There is no entropy coder, and the bits are
in order: a prefix of them gives the first stages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from ancestral.compression.portable_random import ONE, normals, permutation, signs

Key = tuple[int | str, ...]
TOGETHER = 1024  # stages whose gains are computed at once, 16 MB of them


@dataclass(frozen=True)
class Channel:
    """A shift register."""

    memory: int  # its length in bits; 2^memory states
    branch: int  # bits a stage takes in, at least; `memory` for stages without a memory
    efficiency: float  # bits of KL that a bit sent is counted on to carry

    def encode(self, target: np.ndarray, r: np.ndarray, bits: int, key: Key) -> np.ndarray:
        """The path whose z has the largest log q - log p = sum (1 + r) z m - r z^2 / 2.

        Args:
            target: float64 (D,), m.
            r: float64 (D,), the variance of q is 1 / (1 + r).
            bits: n, how many to spend.
            key: names the permutation and the signs.

        Returns:
            uint8 (n,), each 0 or 1.
        """
        order, flips, stages = self._layout(len(target), bits, key)
        linear, square = _stacked((1 + r) * target * flips, order, stages), _stacked(-r / 2, order, stages)
        rows = 2 ** min(self.memory, bits)
        table = _table(self.memory, linear.shape[1])[:rows].astype(np.float32) / np.float32(ONE)
        squared = np.square(table)
        blocks = (slice(first, first + TOGETHER) for first in range(0, len(stages), TOGETHER))
        gain = (row for some in blocks for row in linear[some] @ table.T + square[some] @ squared.T)
        return _viterbi(gain, rows, [count for count, _, _ in stages], self.memory)

    def decode(self, path: np.ndarray, bits: int, dimensions: int, key: Key) -> np.ndarray:
        """z, float64 (D,), of a path of so many bits; 0 in the stages whose bits are not all there."""
        order, flips, stages = self._layout(dimensions, bits, key)
        z, state, read = np.zeros(dimensions), 0, 0
        table = _table(self.memory, max(stop - start for _, start, stop in stages))
        for count, start, stop in stages:
            if read + count > len(path):
                break
            for bit in path[read : read + count].tolist():
                state = (state << 1 | bit) % 2**self.memory
            read += count
            z[order[start:stop]] = table[state, : stop - start]
        return z * flips / ONE

    def _layout(
        self, dimensions: int, bits: int, key: Key
    ) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int, int]]]:
        """(order of the dimensions, their signs, (bits, first, end) of each stage): dimensions in proportion to bits.

        The last bits are seen by few stages, so the last stage has more dimensions (measured: 3 % at 50 bits).
        """
        each = max(self.branch, -(-bits // dimensions))
        counts = [min(each, bits - first) for first in range(0, bits, each)] or [0]
        shares = [*counts[:-1], counts[-1] + max(0, self.memory - each) // 3]
        ends = np.cumsum(shares).tolist() if bits else [1]
        cuts = [0, *(dimensions * end // ends[-1] for end in ends)]
        order, flips = _shuffle(dimensions, key)
        return order, flips, list(zip(counts, cuts, cuts[1:], strict=False))


BEST_OF = Channel(memory=12, branch=12, efficiency=0.79)
TRELLIS = Channel(memory=12, branch=1, efficiency=0.9)
CHANNELS = {0: BEST_OF, 1: TRELLIS}  # by the number in a profile


@lru_cache(maxsize=4096)
def _shuffle(dimensions: int, key: Key) -> tuple[np.ndarray, np.ndarray]:
    return permutation(dimensions, "order", *key), signs(dimensions, "signs", *key)


@cache
def _column(memory: int, column: int) -> np.ndarray:
    return normals(2**memory, "column", memory, column)


@lru_cache(maxsize=64)
def _table(memory: int, columns: int) -> np.ndarray:
    """int16 (states, columns): a normal value for each state and index in a stage."""
    return np.stack([_column(memory, column) for column in range(columns)], 1)


def _stacked(values: np.ndarray, order: np.ndarray, stages: list[tuple[int, int, int]]) -> np.ndarray:
    """float32 (stages, dimensions of the largest): the values of each stage's dimensions, then zeros."""
    width = max(stop - start for _, start, stop in stages)
    stacked = np.zeros((len(stages), width), np.float32)
    for row, (_, start, stop) in zip(stacked, stages, strict=True):
        row[: stop - start] = values[order[start:stop]]
    return stacked


def _viterbi(gain: Iterable[np.ndarray], reachable: int, counts: list[int], memory: int) -> np.ndarray:
    """The bits of the path from state 0 with the largest sum of gain, (reachable,) of each stage.

    States beyond these are out of reach of so few bits.
    """
    score = np.full(2**memory, -np.inf, np.float32)
    score[0] = 0
    came: list[np.ndarray] = []
    for row, count in zip(gain, counts, strict=True):
        before = score.reshape(2**count, -1)
        came.append(before.argmax(0).astype(np.uint16))
        score = np.repeat(before.max(0), 2**count)
        score[:reachable] += row
    state, bits = int(score.argmax()), []
    for count, origin in zip(reversed(counts), reversed(came), strict=True):
        bits += [state >> bit & 1 for bit in range(count)]
        state >>= count
        state |= int(origin[state]) << memory - count
    return np.array(bits[::-1], np.uint8)
