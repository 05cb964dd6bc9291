"""What data are here: images as bytes with labels and names, split into a part to train on and one never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b, sha256
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from ancestral.errors import UserError


@dataclass(frozen=True)
class DataOptions:
    """How images are read."""

    size: Annotated[int, Meta(ge=1)] | None = None  # side after a centre crop; None: the images' own
    channels: Literal[1, 3, 4] | None = None  # None: 1 if every file is grey, otherwise 3
    background: str = "white"  # behind transparent pixels
    bad_images: Literal["refuse", "skip"] = "refuse"
    holdout: Annotated[float, Meta(gt=0, lt=1)] = 0.1  # for testing, where the source has no split of its own
    max_pixels: Annotated[int, Meta(ge=1)] = 32_000_000
    limit: Annotated[int, Meta(ge=1)] | None = None  # use only the first so many training images


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images as bytes (N, H, W, C), labels int64 (N,) or None, and a name for each to speak of it."""

    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    def spread(self, count: int) -> ImageSet:
        """At most `count` images, evenly spread, so that sets sorted by class show every class."""
        return self.take(np.linspace(0, len(self) - 1, min(len(self), count)).round().astype(int))

    def digest(self) -> str:
        """SHA-256 of the pixels and labels: whether these are the same images in the same order."""
        labels = b"" if self.labels is None else self.labels.tobytes()
        return sha256(np.ascontiguousarray(self.images).tobytes() + labels).hexdigest()

    def take(self, rows: Sequence[int] | np.ndarray) -> ImageSet:
        """The images of these rows."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, images=self.images[rows], labels=labels, names=tuple(self.names[row] for row in rows))


@dataclass(frozen=True, eq=False)
class Splits:
    """Images to train on, images never trained on, and a line for each file that was left out."""

    train: ImageSet
    test: ImageSet
    skipped: tuple[str, ...] = ()


def held_out(names: Sequence[str], share: float, source: str) -> np.ndarray:
    """Which of the names are for testing: a function of each name alone, so that new files move no old one.

    Raises:
        UserError: when there are fewer than two.
    """
    if len(names) < 2:
        raise UserError(
            f"{source}: at least 2 images are needed, one to train on and one to test on; found {len(names)}"
        )
    place = [int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64 for name in names]
    test = np.array(place) < share
    if not test.any():
        test[np.argmin(place)] = True
    if test.all():
        test[np.argmax(place)] = False
    return test


def split_off(whole: ImageSet, share: float, source: str) -> Splits:
    """A set without a split of its own, with a share of it held out for testing.

    Raises:
        UserError: when there are fewer than two images.
    """
    test = held_out(whole.names, share, source)
    return Splits(whole.take(np.flatnonzero(~test)), whole.take(np.flatnonzero(test)))
