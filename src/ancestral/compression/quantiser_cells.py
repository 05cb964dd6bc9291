"""Predictions as integers that two machines agree on, and what the integers around say of each.

The two sides of a codec predict with floats, which on another machine differ in their last bits. So a prediction is put
on a grid of cells 1/n grey level wide, and a bit a value, the *helper*, says which of two grids half a cell apart: one
on which the value is at least `guard` away from where a cell ends. A prediction that is off by less lands in the same
cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ancestral.compression.errors import CodecError
from ancestral.diffusion.processes.levels import HALF_RANGE

EIGHTHS = 8  # cells' centres are integers in eighths of a grey level
WIDEST_GUARD = 0.1  # grey levels
WHITE = 255 * EIGHTHS
_ZONES = np.array([1, 4, 11, 31, 102, 306])  # distance from black or white, eighths
_SLOPES = np.array([1, 8, 24, 64, 160, 400, 1000])  # difference of the cells around, eighths
ZONES, SLOPES, FRACTIONS = 2 * len(_ZONES) + 1, len(_SLOPES) + 1, 4
_SETTLED = 1e-9  # grey levels: rounding in the arithmetic on a prediction that is the same to the last bit


@dataclass(frozen=True)
class Grids:
    """Two grids half a cell apart: helper 0 has a cell centred on every 1/n, helper 1 one between each two."""

    guard: float  # grey levels
    n: int  # cells a grey level

    @classmethod
    def of(cls, guard: float) -> Grids:
        """The finest grids whose helpers are worth their bits.

        Raises:
            CodecError: unless 0 <= guard <= WIDEST_GUARD.
        """
        if not 0 <= guard <= WIDEST_GUARD:
            raise CodecError(f"a guard must be between 0 and {WIDEST_GUARD} grey levels, got {guard}")
        return cls(guard, 4 if guard < 4e-4 else 2 if guard < 4.5e-3 else 1)

    def helpers(self, grey: np.ndarray) -> np.ndarray:
        """Which grid each value needs, uint8."""
        scaled = grey * self.n + 0.5
        return (np.abs(scaled - np.rint(scaled)) < (self.guard + _SETTLED) * self.n).astype(np.uint8)

    def cells(self, grey: np.ndarray, helpers: np.ndarray | int) -> np.ndarray:
        """Centres in eighths of a grey level, int64."""
        scaled = grey * self.n
        whole, half = np.rint(scaled), np.floor(scaled) + 0.5
        return (np.where(helpers, half, whole) * (EIGHTHS // self.n)).astype(np.int64)

    def rare(self, leaving: float) -> tuple[float, float]:
        """How often a helper is 1: of any value, and between two flat neighbours, where the share `leaving` is not."""
        share = max(2 * (self.guard + _SETTLED) * self.n, 2.0**-20)
        return share, max(share * leaving, 2.0**-20)


def to_grey(x0_hat: np.ndarray) -> np.ndarray:
    """[-1, 1] to grey levels, float64; what is beyond is clipped."""
    return (np.clip(x0_hat.astype(np.float64), -1, 1) + 1) * HALF_RANGE


def base_of(cells: Any) -> Any:
    """The grey level nearest to a cell's centre; an integer or an array."""
    return cells + EIGHTHS // 2 >> 3


def classes(cells: np.ndarray) -> np.ndarray:
    """The class of each cell of images (..., H, W, C): how far from black or white, how unlike those around it."""
    below = np.searchsorted(_ZONES, cells, side="right")
    above = np.searchsorted(_ZONES, WHITE - cells, side="right")
    zone = np.where(2 * cells < WHITE, below, ZONES - 1 - above)
    around = np.pad(cells, ((0, 0),) * (cells.ndim - 3) + ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = around[..., 1:-1, 2:, :] - around[..., 1:-1, :-2, :]
    down = around[..., 2:, 1:-1, :] - around[..., :-2, 1:-1, :]
    slope = np.searchsorted(_SLOPES, np.abs(across) + np.abs(down), side="right")
    return zone * SLOPES + slope


def fraction_of(cells: Any) -> Any:
    """Where a cell's centre lies about its grey level, 0..FRACTIONS - 1; an integer or an array."""
    return (cells + EIGHTHS // 2) % EIGHTHS * FRACTIONS // EIGHTHS


def inner(cells: np.ndarray) -> np.ndarray:
    """Which cells are so far from black and white that their pixels lie on both sides of them."""
    return (cells >= _ZONES[3]) & (cells <= WHITE - _ZONES[3])


def flat(cells: np.ndarray) -> np.ndarray:
    """Which cells are black or white."""
    return (cells == 0) | (cells == WHITE)


def between_flat(cells: np.ndarray) -> np.ndarray:
    """Whether the left and the upper neighbour are black or white; one beyond the edge counts as if it were."""
    padded = np.pad(flat(cells), ((0, 0),) * (cells.ndim - 3) + ((1, 0), (1, 0), (0, 0)), constant_values=True)
    return padded[..., 1:, :-1, :] & padded[..., :-1, 1:, :]
