"""How often each difference of a pixel from its predicted cell is, in each class of cells: integers, from real images.

Tables come in sets, one for each noise level at which a walk may have ended; an encoder takes the cheapest. The later
pixels of an image are moved by how far off the prediction was at those before, as a regression says, in integers:

    centre = cell + 2 round(sum_k weight_k (8 pixel_k - cell_k) / 512)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ancestral.compression.errors import CodecError
from ancestral.compression.quantiser_cells import (
    EIGHTHS,
    FRACTIONS,
    SLOPES,
    ZONES,
    Grids,
    base_of,
    between_flat,
    classes,
    flat,
    fraction_of,
    inner,
    to_grey,
)

REACH = 40  # residuals beyond it are sent as a byte
ESCAPE = 2 * REACH + 1
TOTAL = 2**16  # frequencies of a table sum to it


# (rows, columns, channels) from a pixel to those before it that say most of its residual.
BEFORE = ((0, -1, 0), (-1, 0, 0), (-1, -1, 0), (-1, 1, 0), (0, 0, -1), (0, 0, -2), (0, -1, -1))
_SHIFT = 9


@dataclass(frozen=True, eq=False)
class ResidualTable:
    """Integer frequencies of pixel minus cell.

    Raises:
        CodecError: when the numbers break these rules.
    """

    # (sets, ZONES * SLOPES * FRACTIONS, ESCAPE + 1), each at least 1, a row sums to TOTAL. Column k is the residual k -
    # REACH; the last stands for those beyond
    frequencies: np.ndarray
    leaving: int  # how many of TOTAL values between two flat neighbours are not flat themselves
    weights: np.ndarray  # (sets, len(BEFORE)) of these neighbours, in 256ths, at most 1 in size

    def __post_init__(self) -> None:
        table = self.frequencies
        if table.ndim != 3 or table.shape[1:] != (ZONES * SLOPES * FRACTIONS, ESCAPE + 1) or not 1 <= len(table) <= 256:
            raise CodecError(f"the table of residuals has the shape {table.shape}")
        if table.min() < 1 or (table.sum(2, dtype=np.int64) != TOTAL).any() or not 1 <= self.leaving <= TOTAL:
            raise CodecError("the table of residuals has frequencies that are not positive or have another sum")
        if self.weights.shape != (len(table), len(BEFORE)) or np.abs(self.weights).max() > 256:
            raise CodecError("the table of residuals has weights of another shape or beyond 256")

    def weights_of(self, chosen: int) -> list[int]:
        """The weights of one set."""
        return self.weights[chosen].tolist()

    def coded(self, chosen: int, pixels: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row of the table, column) of each pixel of images (..., H, W, C) under one set."""
        centres = moved(pixels, cells, self.weights_of(chosen))
        return classes(cells) * FRACTIONS + fraction_of(centres), symbols_of(pixels, base_of(centres))

    @cached_property
    def bits(self) -> np.ndarray:
        """Code lengths, the shape of `frequencies`; beyond REACH the byte's eight included."""
        lengths = np.log2(TOTAL / self.frequencies.astype(np.float64))
        lengths[..., ESCAPE] += 8
        return lengths


def moved(pixels: np.ndarray, cells: np.ndarray, weights: Sequence[int]) -> np.ndarray:
    """The cells' centres (..., H, W, C) with what the pixels before each say added, where the cell is `inner`."""
    total = sum(weight * errors for weight, errors in zip(weights, _before(pixels, cells), strict=True))
    return cells + np.where(inner(cells), rounded(total), 0)


def rounded(total: Any) -> Any:
    """A sum of 256ths of eighths as even eighths, of integers alone or in arrays."""
    return total + (1 << _SHIFT - 1) >> _SHIFT << 1


def bits_of(pixels: np.ndarray, cells: np.ndarray, table: ResidualTable) -> np.ndarray:
    """Bits of each image (N, H, W, C) under each set, (sets, N), without helpers."""
    every = (table.bits[chosen][table.coded(chosen, pixels, cells)] for chosen in range(len(table.frequencies)))
    return np.stack([bits.reshape(len(pixels), -1).sum(1) for bits in every])


def unguarded_bits(pixels: np.ndarray, x0_hat: np.ndarray, table: ResidualTable) -> np.ndarray:
    """`bits_of` predictions (N, H, W, C) on [-1, 1] that are the same on both sides."""
    return bits_of(pixels, Grids.of(0.0).cells(to_grey(x0_hat), 0), table)


def fit(pixels: np.ndarray, x0_hats: Sequence[np.ndarray]) -> ResidualTable:
    """Tables from predictions of real images: counts, leaning on those of coarser classes where there are few.

    Args:
        pixels: uint8 (N, H, W, C).
        x0_hats: for each set the predictions (N, H, W, C) on [-1, 1] at one noise level.
    """
    sets, weights, left, among = [], [], 1, 1
    for x0_hat in x0_hats:
        cells = Grids.of(0.0).cells(to_grey(x0_hat), 0)
        weights.append(_regression(pixels, cells))
        centres = moved(pixels, cells, weights[-1].tolist())
        rows = classes(cells) * FRACTIONS + fraction_of(centres)
        entries = (rows * (ESCAPE + 1) + symbols_of(pixels, base_of(centres))).ravel()
        counts = np.bincount(entries, minlength=ZONES * SLOPES * FRACTIONS * (ESCAPE + 1))
        sets.append(_smoothed(counts.reshape(ZONES, SLOPES, FRACTIONS, ESCAPE + 1).astype(np.float64)))
        between = between_flat(cells)
        left, among = left + int((between & ~flat(cells)).sum()), among + int(between.sum())
    return ResidualTable(np.stack(sets), max(1, round(TOTAL * left / among)), np.stack(weights))


def to_tensors(table: ResidualTable) -> Mapping[str, np.ndarray]:
    """The table as arrays, to be kept."""
    frequencies, weights = table.frequencies.astype(np.int32), table.weights.astype(np.int32)
    return {"frequencies": frequencies, "leaving": np.array([table.leaving], np.int32), "weights": weights}


def of_tensors(tensors: Mapping[str, np.ndarray]) -> ResidualTable:
    """The inverse of `to_tensors`.

    Raises:
        CodecError: when they break the rules of a table.
    """
    if tensors["leaving"].shape != (1,):
        raise CodecError(f"the table of residuals has {tensors['leaving'].shape} numbers of values that leave")
    return ResidualTable(tensors["frequencies"], int(tensors["leaving"][0]), tensors["weights"])


def _before(pixels: np.ndarray, cells: np.ndarray) -> Iterator[np.ndarray]:
    """For each of BEFORE the errors 8 pixel - cell there, of every pixel; 0 beyond the edge."""
    height, width, channels = cells.shape[-3:]
    errors = pixels.astype(np.int64) * EIGHTHS - cells
    padded = np.pad(errors, ((0, 0),) * (cells.ndim - 3) + ((1, 0), (1, 1), (2, 0)))
    for y, x, c in BEFORE:
        yield padded[..., 1 + y : 1 + y + height, 1 + x : 1 + x + width, 2 + c : 2 + c + channels]


def _regression(pixels: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """The weights that leave the least squared error where cells are `inner`, 256ths."""
    chosen = inner(cells)
    before = np.stack([errors[chosen] for errors in _before(pixels, cells)]).astype(np.float64)
    errors = (pixels.astype(np.int64) * EIGHTHS - cells)[chosen].astype(np.float64)
    # As if each error had been seen with some of its own: no neighbour counts where there is nothing to learn from.
    square = before @ before.T + 1e4 * np.eye(len(BEFORE))
    return np.rint(256 * np.linalg.solve(square, before @ errors)).clip(-256, 256).astype(np.int64)


def symbols_of(pixels: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Which column of a table each pixel is, given its cell's grey level."""
    residual = pixels.astype(np.int64) - base
    return np.where(np.abs(residual) <= REACH, residual + REACH, ESCAPE)


def _smoothed(counts: np.ndarray) -> np.ndarray:
    """Frequencies from counts (ZONES, SLOPES, FRACTIONS, symbols); as if some counts came from the coarser class."""
    residual = np.arange(-REACH, REACH + 1)[:, None]
    offset = np.arange(FRACTIONS) / FRACTIONS - 0.5  # of the cell's centre, grey levels
    inside = counts[..., :ESCAPE]
    square = np.einsum("zsfk,kf->zs", inside, (residual - offset) ** 2)
    seen = inside.sum((2, 3))
    zone_var = (square.sum(1) + square.sum() / max(seen.sum(), 1)) / (seen.sum(1) + 1)
    std = np.sqrt((square + 20 * zone_var[:, None]) / (seen + 20)).clip(0.1)[..., None, None]
    centred = (residual - offset).T[None, None]
    shape = 0.95 * np.exp(-0.5 * (centred / std) ** 2) + 0.05 * np.exp(-np.abs(centred) / (2 * std))
    guess = np.concatenate([shape, shape[..., :1] + 1e-4 * shape.max(-1, keepdims=True)], -1)
    zone = _leaning(counts.sum(1, keepdims=True), guess / guess.sum(-1, keepdims=True), 50)
    share = _leaning(counts, zone, 100).reshape(-1, ESCAPE + 1)
    frequencies = 1 + np.floor(share * (TOTAL - ESCAPE - 1)).astype(np.int64)
    frequencies[np.arange(len(share)), share.argmax(1)] += TOTAL - frequencies.sum(1)
    return frequencies


def _leaning(counts: np.ndarray, guess: np.ndarray, weight: float) -> np.ndarray:
    return (counts + weight * guess) / (counts.sum(-1, keepdims=True) + weight)
