"""How often each difference of a pixel from its predicted cell is, in each class of cells: integers, from real images.

Tables come in sets, one for each noise level at which a walk may have ended; an encoder takes the cheapest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ancestral.codec.cells import FRACTIONS, SLOPES, ZONES, Grids, base_of, between_flat, classes, flat, to_grey
from ancestral.codec.errors import CodecError

REACH = 40  # residuals beyond it are sent as a byte
ESCAPE = 2 * REACH + 1
TOTAL = 2**16  # frequencies of a table sum to it


@dataclass(frozen=True, eq=False)
class ResidualTable:
    """Integer frequencies of pixel minus cell.

    Args:
        frequencies: (sets, ZONES * SLOPES * FRACTIONS, ESCAPE + 1), each at least 1, a row sums to TOTAL. Column k is
            the residual k - REACH; the last stands for those beyond.
        leaving: how many of TOTAL values between two flat neighbours are not flat themselves.

    Raises:
        CodecError: when the numbers break these rules.
    """

    frequencies: np.ndarray
    leaving: int

    def __post_init__(self) -> None:
        table = self.frequencies
        if table.ndim != 3 or table.shape[1:] != (ZONES * SLOPES * FRACTIONS, ESCAPE + 1) or not 1 <= len(table) <= 256:
            raise CodecError(f"the table of residuals has the shape {table.shape}")
        if table.min() < 1 or (table.sum(2, dtype=np.int64) != TOTAL).any() or not 1 <= self.leaving <= TOTAL:
            raise CodecError("the table of residuals has frequencies that are not positive or have another sum")

    @cached_property
    def bits(self) -> np.ndarray:
        """Code lengths, the shape of `frequencies`; beyond REACH the byte's eight included."""
        lengths = np.log2(TOTAL / self.frequencies.astype(np.float64))
        lengths[..., ESCAPE] += 8
        return lengths


def unguarded_bits(pixels: np.ndarray, x0_hat: np.ndarray, table: ResidualTable) -> np.ndarray:
    """Bits of each image under each set, (sets, N), without helpers. Both (N, H, W, C)."""
    cells = Grids.of(0.0).cells(to_grey(x0_hat), 0)
    residuals = table.bits[:, classes(cells), symbols_of(pixels, base_of(cells))]
    return residuals.reshape(*residuals.shape[:2], -1).sum(2)


def fit(pixels: np.ndarray, x0_hats: Sequence[np.ndarray]) -> ResidualTable:
    """Tables from predictions of real images: counts, leaning on those of coarser classes where there are few.

    Args:
        pixels: uint8 (N, H, W, C).
        x0_hats: for each set the predictions (N, H, W, C) on [-1, 1] at one noise level.
    """
    sets, left, among = [], 1, 1
    for x0_hat in x0_hats:
        cells = Grids.of(0.0).cells(to_grey(x0_hat), 0)
        rows, symbols = classes(cells), symbols_of(pixels, base_of(cells))
        counts = np.bincount(
            (rows * (ESCAPE + 1) + symbols).ravel(), minlength=ZONES * SLOPES * FRACTIONS * (ESCAPE + 1)
        )
        sets.append(_smoothed(counts.reshape(ZONES, SLOPES, FRACTIONS, ESCAPE + 1).astype(np.float64)))
        between = between_flat(cells)
        left, among = left + int((between & ~flat(cells)).sum()), among + int(between.sum())
    return ResidualTable(np.stack(sets), max(1, round(TOTAL * left / among)))


def to_tensors(table: ResidualTable) -> Mapping[str, np.ndarray]:
    """The table as arrays, to be kept."""
    return {"frequencies": table.frequencies.astype(np.int32), "leaving": np.array([table.leaving], np.int32)}


def of_tensors(tensors: Mapping[str, np.ndarray]) -> ResidualTable:
    """The inverse of `to_tensors`.

    Raises:
        CodecError: when they break the rules of a table.
    """
    return ResidualTable(tensors["frequencies"], int(tensors["leaving"][0]))


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
