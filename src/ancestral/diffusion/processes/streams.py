"""Randomness as a function: every draw is keyed by (seed, purpose, number), never by what was drawn before.

`number` is a global count (of the image presented in training, of the image sampled), so that image n meets
the same numbers whatever the batch size, the number of processes, or the restarts between. The streams are
counter-based (Philox, Salmon et al. 2011): two keys never share a stream, and opening one costs microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor


def key(*parts: int | str) -> int:
    """64 bits that stand for these parts."""
    text = "/".join(map(str, parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def stream(seed: int, purpose: str, number: int) -> np.random.Generator:
    """The random stream of one purpose and one number."""
    # As an array: of a list numpy would make floats, and lose the low bits of large keys.
    return np.random.Generator(np.random.Philox(key=np.array([key(seed, purpose), number], np.uint64)))


class Streams:
    """One stream for each image of a batch; every draw takes the next values of each."""

    def __init__(self, seed: int, purpose: str, numbers: Iterable[int]) -> None:
        self._streams = [stream(seed, purpose, number) for number in numbers]

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal float64 values, shape (B, *shape)."""
        return torch.as_tensor(np.stack([one.standard_normal(tuple(shape)) for one in self._streams]))

    def uniform(self, shape: Sequence[int] = ()) -> Tensor:
        """Uniform float64 values in [0, 1), shape (B, *shape); one an image when left out."""
        return torch.as_tensor(np.stack([one.random(tuple(shape)) for one in self._streams]))

    def soon(self, shape: Sequence[int]) -> Callable[[slice], Tensor]:
        """The rows of `normal` as float32, for when they are needed: what the host does for them is done now."""
        return self.normal(shape).float().__getitem__


OpenStreams = Callable[[int, str, Sequence[int]], Streams]  # of a seed, a purpose and numbers


def permutation(size: int, seed: int, purpose: str, number: int) -> np.ndarray:
    """A random order of 0..size-1."""
    return stream(seed, purpose, number).permutation(size)
