"""The random numbers that a file was made with, the same on every machine: part of the format.

Everything is integers: the raw 64-bit words of Philox4x64-10 (Salmon et al. 2011) for a key of names and numbers, and a
table of 65,536 normal quantiles in fixed point that ships with the package. No library's normal deviates, whose last
bits and whose order change from release to release, and no sum of floats come near it.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib.resources import files

import numpy as np

from ancestral.diffusion.processes.streams import key

ONE = 2**12  # a standard normal is kept in units of 1 / ONE
_DIGEST = "2c80abe71f046094d7f8d8597d31e370cd0ee003c451a7b83d2f7f7f0bee4fe0"


def raw(count: int, *parts: int | str) -> np.ndarray:
    """`count` uint64 words of the stream that these parts name."""
    # An array of its own type: of a list with a number beyond 2^63 numpy makes floats.
    return np.random.Philox(key=np.array([key("codec", *parts), 0], np.uint64)).random_raw(count)


@cache
def normal_table() -> np.ndarray:
    """int16 (65536,): round(ONE Phi^-1((i + 1/2) / 65536)), from the upper half that is in the package.

    Raises:
        RuntimeError: when the file is not the one that the format was defined with.
    """
    content = (files("ancestral.compression") / "normal.bin").read_bytes()
    if sha256(content).hexdigest() != _DIGEST:
        raise RuntimeError("ancestral/compression/normal.bin: damaged (its digest is not the format's); install again")
    upper = np.frombuffer(content, "<u2").astype(np.int16)
    return np.concatenate([-upper[::-1], upper])


def normals(count: int, *parts: int | str) -> np.ndarray:
    """`count` standard normal values in units of 1 / ONE, int16."""
    words = raw(-(-count // 4), *parts)
    return normal_table()[words.astype("<u8").view("<u2")[:count]]


def signs(count: int, *parts: int | str) -> np.ndarray:
    """`count` values of -1 or 1, int8: the bits of the words, lowest first, a set bit being -1."""
    words = raw(-(-count // 64), *parts)
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")[:count]
    return 1 - 2 * bits.astype(np.int8)


def permutation(count: int, *parts: int | str) -> np.ndarray:
    """An order of 0..count-1, int64: Fisher and Yates from the top, j = (32 high bits of a word * (i + 1)) >> 32.

    The bias of an order, below count / 2^32, is no matter here; that the order is the same everywhere is.
    """
    order = list(range(count))
    for i, word in zip(range(count - 1, 0, -1), raw(max(count - 1, 0), *parts).tolist(), strict=True):
        j = ((word >> 32) * (i + 1)) >> 32
        order[i], order[j] = order[j], order[i]
    return np.array(order, dtype=np.int64)
