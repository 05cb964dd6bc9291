"""Image sets: bytes with labels and names, split into a part to train on and one never trained on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b, sha256
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from msgspec import Meta

from ancestral.data.duplicates import groups
from ancestral.data.inventory import Reading
from ancestral.errors import UserError


@dataclass(frozen=True)
class DataOptions:
    """How images are read."""

    size: Annotated[int, Meta(ge=1)] | None = None  # side after a centre crop; None: the images' own
    channels: Literal[1, 3, 4] | None = None  # None: 1 if every file is grey, otherwise 3
    background: str = "white"  # behind transparent pixels
    bad_images: Literal["refuse", "skip"] = "refuse"  # what to do with a file that cannot be read
    holdout: Annotated[float, Meta(gt=0, lt=1)] = 0.1  # for testing, where the source has no split of its own
    max_pixels: Annotated[int, Meta(ge=1, le=178_000_000)] = 32_000_000  # above it Pillow has a limit of its own
    white: Annotated[int, Meta(ge=1, le=65535)] | None = None  # of more than 8 bits; None: 2^k - 1 above the largest
    limit: Annotated[int, Meta(ge=1)] | None = None  # use only the first so many training images
    cache: str | None = None  # folder for decoded images, which are then mapped instead of held in memory


MOST_CLASSES = 100_000  # a label at or above is no class number but a mistake


class Rows:
    """Rows of an array, possibly one mapped from a file, that are read when they are asked for."""

    def __init__(self, source: np.ndarray, rows: np.ndarray) -> None:
        self.source, self.rows = source, rows
        self.shape, self.dtype = (len(rows), *source.shape[1:]), source.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: Any) -> np.ndarray:
        return np.asarray(self.source[self.rows[chosen]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:]


class Item(NamedTuple):
    """One image on its way into a set."""

    pixels: np.ndarray  # uint8 (H, W, C)
    label: int | None
    name: str


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images as bytes (N, H, W, C), labels int64 (N,) or None, and a name for each to speak of it.

    `embeddings` are vectors of the user's own, float32 (N, E), or None. `unlabelled` counts the images without a label
    where others had one: then there are no labels.
    """

    images: np.ndarray | Rows
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    embeddings: np.ndarray | None = None
    unlabelled: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def classes(self, source: str) -> str:
        """Where the labels come from, `source`, or that there are none, and why."""
        if self.labels is not None:
            return source
        return f"none, since {self.unlabelled:,} of {len(self):,} have no label" if self.unlabelled else "none"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    def spread(self, count: int) -> ImageSet:
        """At most `count` images, evenly spread, so that sets sorted by class show every class."""
        return self.take(spread(len(self), count))

    def digest(self) -> str:
        """SHA-256 of the pixels, labels and embeddings: whether these are the same images in the same order."""
        digest = sha256()
        for start in range(0, len(self), 1024):
            digest.update(self.images[start : start + 1024].tobytes())
        for part in (self.labels, self.embeddings):
            digest.update(b"" if part is None else part.tobytes())
        return digest.hexdigest()

    def take(self, rows: Sequence[int] | np.ndarray) -> ImageSet:
        """The images of these rows; those of a mapped file stay there."""
        chosen = np.asarray(rows, dtype=np.int64)
        labels, embeddings = (None if part is None else part[chosen] for part in (self.labels, self.embeddings))
        images = self.images
        if isinstance(images, Rows):
            images = Rows(images.source, images.rows[chosen])
        else:
            images = Rows(images, chosen) if isinstance(images, np.memmap) else images[chosen]
        names = tuple(self.names[row] for row in chosen)
        return replace(self, images=images, labels=labels, names=names, embeddings=embeddings)


def spread(total: int, count: int) -> np.ndarray:
    """At most `count` of the rows 0..total-1, evenly spread."""
    return np.linspace(0, total - 1, min(total, count)).round().astype(int)


@dataclass(frozen=True, eq=False)
class Splits:
    """Images to train on, images never trained on, a line for each bad file left out, and all that was understood."""

    train: ImageSet
    test: ImageSet
    skipped: tuple[str, ...] = ()
    reading: Reading = field(default_factory=Reading)


def held_out(names: Sequence[str], share: float, source: str, groups: np.ndarray | None = None) -> np.ndarray:
    """Which of the names are for testing: a function of each name alone, so that new files move no old one.

    Args:
        names: of the images.
        share: about so many are for testing.
        source: for messages.
        groups: for each image one of its group (see `duplicates.groups`), which stays together: where the smallest of
            its names goes. So only a new file that repeats an old one, under a smaller name or as a link between two
            groups, can move that one. A group of more than half of the images is for training. One group of all is
            split by name as if there were none.

    Raises:
        UserError: when there are fewer than two.
    """
    if len(names) < 2:
        raise UserError(
            f"{source}: at least 2 images are needed, one to train on and one to test on; found {len(names)}"
        )
    own = [int.from_bytes(blake2b(os.fsencode(name), digest_size=8).digest(), "big") / 2**64 for name in names]
    group = np.arange(len(names)) if groups is None or (groups == groups[0]).all() else groups
    smallest: dict[int, str] = {}
    for name, key in zip(names, group.tolist(), strict=True):
        smallest[key] = min(name, smallest.get(key, name))
    by_name = dict(zip(names, own, strict=True))
    position = np.array([by_name[smallest[key]] for key in group.tolist()])
    test = position < share
    most = np.bincount(group, minlength=len(names))[group] * 2 > len(names)
    test[most] = False
    if not test.any():
        test = ~most & (position == position[~most].min())
    if test.all():
        test = position < position.max()
    return test


def labelled(
    labels: Sequence[int | None], class_names: tuple[str, ...] | None
) -> tuple[np.ndarray | None, tuple[str, ...], int]:
    """(labels, class names, 0), or (None, (), how many are missing, 0 for all) where not every image has a label.

    Without names, classes are numbers.
    """
    numbers = np.array([-1 if label is None else label for label in labels], dtype=np.int64)
    if missing := int((numbers < 0).sum()):
        return None, (), missing % len(numbers)
    if class_names is None and numbers.max() >= MOST_CLASSES:
        raise UserError(f"the label {numbers.max()} is no class number; count classes from 0")
    return numbers, tuple(map(str, range(int(numbers.max()) + 1))) if class_names is None else class_names, 0


def joined(splits: Splits) -> ImageSet:
    """Both parts of a set as one."""
    train, test = splits.train, splits.test
    if not len(test):
        return train
    labels = None if train.labels is None or test.labels is None else np.concatenate([train.labels, test.labels])
    if isinstance(train.images, Rows) and isinstance(test.images, Rows) and train.images.source is test.images.source:
        images = Rows(train.images.source, np.concatenate([train.images.rows, test.images.rows]))
    else:
        images = np.concatenate([train.images[:], test.images[:]])
    vectors = [one for one in (train.embeddings, test.embeddings) if one is not None]
    embeddings = np.concatenate(vectors) if len(vectors) == 2 else None
    return ImageSet(images, labels, train.class_names, train.names + test.names, embeddings)


def split_off(whole: ImageSet, share: float, source: str) -> Splits:
    """A set without a split of its own, a share of it held out; images that repeat each other stay together.

    Of a share of 0 nothing is held out.

    Raises:
        UserError: when there are fewer than two images, and a share of them is wanted.
    """
    if not share:
        return Splits(whole, whole.take([]), reading=Reading(source, len(whole), len(whole), split="nothing held out"))
    together = groups(whole.images)
    test = held_out(whole.names, share, source, together)
    repeated = int((np.bincount(together)[together] > 1).sum())
    split = f"about {100 * share:.3g}% of all, by their names; data.holdout sets the share"
    if repeated == len(whole) and (together == together[0]).all():
        split += "; all are equal or nearly equal, and are split all the same"
    elif repeated:
        split += f"; {repeated:,} equal or nearly equal images are kept on one side"
    reading = Reading(source, len(whole), len(whole), split=split)
    return Splits(whole.take(np.flatnonzero(~test)), whole.take(np.flatnonzero(test)), reading=reading)


def splits_of(sets: Sequence[ImageSet], share: float, source: str) -> Splits:
    """A source's own split, or a share of its only set held out.

    Raises:
        UserError: when images differ in size between the splits, and as `split_off`.
    """
    if len({one.shape for one in sets}) > 1:
        raise UserError(f"{source}: images differ in size between the splits; set one: --set data.size=32")
    return split_off(sets[0], share, source) if len(sets) == 1 else Splits(sets[0], sets[1])
