"""An image of any size as tiles of the size that the model was trained on, a band of them at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST_TILES = 256  # of a band, unless one row has more; in one call of the network, of tiles up to 64x64 pixels


@dataclass(frozen=True)
class Tile:
    """Where a tile is in its image."""

    number: int
    top: int
    left: int


def bands(size: tuple[int, int], tile: tuple[int, int]) -> list[list[Tile]]:
    """The tiles of an image of this (height, width), row by row, in bands that are walked together."""
    rows, columns = (-(-whole // part) for whole, part in zip(size, tile, strict=True))
    height = max(1, MOST_TILES // columns)
    return [
        [
            Tile(row * columns + column, row * tile[0], column * tile[1])
            for row in range(first, min(first + height, rows))
            for column in range(columns)
        ]
        for first in range(0, rows, height)
    ]


def cut(image: np.ndarray, where: Tile, tile: tuple[int, int]) -> np.ndarray:
    """The pixels (h, w, C) of a tile; over the image's edge its last row and column are repeated."""
    part = image[where.top : where.top + tile[0], where.left : where.left + tile[1]]
    return np.pad(part, ((0, tile[0] - part.shape[0]), (0, tile[1] - part.shape[1]), (0, 0)), mode="edge")


def paste(image: np.ndarray, where: Tile, part: np.ndarray) -> None:
    """Put a tile (h, w, C) into an image, without what is over its edge."""
    target = image[where.top : where.top + part.shape[0], where.left : where.left + part.shape[1]]
    target[...] = part[: target.shape[0], : target.shape[1]]
