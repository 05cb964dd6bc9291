"""Which images of a set repeat each other: equal, or nearly so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

NEAR = 2.0  # root of the mean squared difference, in bytes: far below what tells two photos or two digits apart
_SIDE, _AXES, _CHUNK = 8, 16, 1024


def groups(images: Any) -> np.ndarray:
    """For each image (N, H, W, C) the first row of its group, int64 (N,): images without a twin are their own.

    Two images are near-equal when their root mean squared difference is at most `NEAR`; a group is whatever such pairs
    connect. No such pair is missed and none is added: the search goes over means of blocks, projected on their main
    directions, which are never further apart than the images are, and every candidate is compared by its pixels.
    Shifted, cropped, turned or recoloured copies are other images. Images are read in pieces; 64 numbers of each stay.
    """
    first = _equal(images)
    unique = np.unique(first)
    group = np.arange(len(unique))
    for index, others in _near(images, unique, lambda index, others: group[others] != group[index]):
        group[np.isin(group, group[others])] = group[index]
    lowest = np.full(len(unique), len(first))
    np.minimum.at(lowest, group, unique)
    return lowest[group[np.searchsorted(unique, first)]]


def across(train: Any, test: Any) -> np.ndarray:
    """The rows of `test` that are equal or near-equal to an image of `train`, both (N, H, W, C); see `groups`."""
    both, count = _Joined(train, test), len(train)
    first = _equal(both)
    unique = np.unique(first)
    trained = unique < count  # an equal image of `train` comes first
    repeated = trained.copy()
    for index, others in _near(both, unique, lambda index, others: trained[others] != trained[index]):
        repeated[[index, *others]] = True
    return np.flatnonzero(repeated[np.searchsorted(unique, first[count:])])


class _Joined:
    """Two sets as one, read in pieces."""

    def __init__(self, one: Any, other: Any) -> None:
        self.parts, self.split = (one, other), len(one)
        self.shape = (len(one) + len(other), *one.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for part, chosen, start in zip(
            self.parts, (rows < self.split, rows >= self.split), (0, self.split), strict=True
        ):
            if chosen.any():
                found[chosen] = part[rows[chosen] - start]
        return found


def _pieces(images: Any, rows: Sequence[int] | np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _CHUNK):
        yield np.asarray(images[np.asarray(rows[start : start + _CHUNK])])


def _equal(images: Any) -> np.ndarray:
    """For each image the first row with the same bytes."""
    seen: dict[bytes, int] = {}
    digests = (
        blake2b(one.tobytes(), digest_size=16).digest()
        for piece in _pieces(images, np.arange(len(images)))
        for one in piece
    )
    return np.array([seen.setdefault(digest, row) for row, digest in enumerate(digests)], dtype=np.int64)


def _near(
    images: Any, rows: np.ndarray, candidates: Callable[[int, np.ndarray], np.ndarray]
) -> Iterator[tuple[int, np.ndarray]]:
    """(index in `rows`, the later candidates whose images are near-equal), where there are any."""
    from scipy.spatial import KDTree  # a sixth of the time that torch takes: not before it is needed

    points = np.concatenate([_means(piece) for piece in _pieces(images, rows)]).astype(np.float64)
    points -= points.mean(0)
    _, directions = np.linalg.eigh(points.T @ points)
    points = points @ directions[:, -_AXES:]
    tree = KDTree(points)
    for index in range(len(rows)):
        others = np.array(tree.query_ball_point(points[index], NEAR + 1e-3), dtype=np.int64)
        others = others[others > index]
        others = others[candidates(index, others)]
        if len(others):
            own = np.asarray(images[rows[index : index + 1]]).astype(np.float32)
            near = [np.square(piece - own).mean((1, 2, 3)) <= NEAR**2 for piece in _pieces(images, rows[others])]
            if len(others := others[np.concatenate(near)]):
                yield index, others


def _means(images: np.ndarray) -> np.ndarray:
    """Means of blocks (N, 64) float32, weighted so that they are never further apart than the images (RMS) are."""
    _, height, width, _ = images.shape
    grey = images.mean(3, dtype=np.float32)
    for axis, length in ((1, height), (2, width)):
        edges = np.linspace(0, length, min(_SIDE, length) + 1).astype(int)
        sizes = np.diff(edges)
        shape = [-1 if at == axis else 1 for at in range(3)]
        grey = np.add.reduceat(grey, edges[:-1], axis) / np.sqrt(sizes * length).reshape(shape).astype(np.float32)
    return grey.reshape(len(images), -1)
