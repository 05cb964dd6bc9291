"""Exact pixels, given what the model predicts of them: range coding with tables, steered by integers only.

The two sides compute the prediction with floats, which on another machine differ in their last bits. So it is put on a
grid of cells 1/n grey level wide, and a bit a value, the *helper*, says which of two grids half a cell apart, one on
which the value is at least `guard` away from where a cell ends. A prediction that is off by less than that lands in the
same cell, and from there on there are only integers: the cell chooses a table of frequencies for pixel minus cell.

    cost of the helpers = H2(2 guard n) bits a value, less where the neighbours are flat

A table is chosen by the cell's distance from black and from white, by how the cells around differ, and by where the
cell's centre lies between two grey levels. Tables come in sets, one for each noise level at which the model may have
stopped; the encoder takes the cheapest set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import constriction
import numpy as np

from ancestral.codec.errors import CodecError

EIGHTHS = 8  # cells' centres are integers in eighths of a grey level
REACH = 40  # residuals beyond it are sent as a byte
ESCAPE = 2 * REACH + 1
WIDEST_GUARD = 0.1  # grey levels
TOTAL = 2**16  # frequencies of a table sum to it
_WHITE = 255 * EIGHTHS
_ZONES = np.array([1, 4, 11, 31, 102, 306])  # distance from black or white, eighths
_SLOPES = np.array([1, 8, 24, 64, 160, 400, 1000])  # difference of the cells around, eighths
ZONES, SLOPES, FRACTIONS = 2 * len(_ZONES) + 1, len(_SLOPES) + 1, 4
_SETTLED = 1e-9  # grey levels: rounding in the arithmetic on a prediction that is the same to the last bit

_Model = Any  # constriction has no types
_stream: Any = constriction.stream  # pyright: ignore[reportAttributeAccessIssue]
_queue, _models = _stream.queue, _stream.model


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
    _kept: dict[tuple[int, int], _Model] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        table = self.frequencies
        if table.ndim != 3 or table.shape[1:] != (ZONES * SLOPES * FRACTIONS, ESCAPE + 1) or not 1 <= len(table) <= 256:
            raise CodecError(f"the table of residuals has the shape {table.shape}")
        if table.min() < 1 or (table.sum(2, dtype=np.int64) != TOTAL).any() or not 1 <= self.leaving <= TOTAL:
            raise CodecError("the table of residuals has frequencies that are not positive or have another sum")

    def model(self, chosen: int, row: int) -> _Model:
        """The coder's model of one table."""
        key = chosen, row
        if key not in self._kept:
            share = self.frequencies[chosen, row].astype(np.float64) / TOTAL
            self._kept[key] = _models.Categorical(share, perfect=False)
        return self._kept[key]

    @cached_property
    def bits(self) -> np.ndarray:
        """Code lengths, the shape of `frequencies`; beyond REACH the byte's eight included."""
        lengths = np.log2(TOTAL / self.frequencies.astype(np.float64))
        lengths[..., ESCAPE] += 8
        return lengths


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
        place = grey * self.n + 0.5
        return (np.abs(place - np.rint(place)) < (self.guard + _SETTLED) * self.n).astype(np.uint8)

    def cells(self, grey: np.ndarray, helpers: np.ndarray | int) -> np.ndarray:
        """Centres in eighths of a grey level, int64."""
        place = grey * self.n
        whole, half = np.rint(place), np.floor(place) + 0.5
        return (np.where(helpers, half, whole) * (EIGHTHS // self.n)).astype(np.int64)

    def rare(self, leaving: int) -> tuple[float, float]:
        """How often a helper is 1: of any value, and of one between two flat neighbours."""
        share = max(2 * (self.guard + _SETTLED) * self.n, 2.0**-20)
        return share, max(share * leaving / TOTAL, 2.0**-20)


def encode(pixels: np.ndarray, x0_hat: np.ndarray, table: ResidualTable, guard: float) -> bytes:
    """The bytes that give `pixels` to whoever predicts x0_hat to within `guard`.

    Args:
        pixels: uint8 (H, W, C).
        x0_hat: float64 (H, W, C) on [-1, 1]; clipped to it.
        table: frequencies, the same on both sides.
        guard: grey levels by which the other side's prediction may be off.

    Raises:
        CodecError: when x0_hat is not finite or of another shape, or the guard out of range.
    """
    grids, helpers, cells = _placed(x0_hat, pixels.shape, guard)
    sent = list(_sent(pixels, helpers, cells, table, grids.rare(table.leaving)))
    coder = _queue.RangeEncoder()
    for symbol, model in sent:
        coder.encode(symbol, model)
    return _shortest(coder.get_compressed().astype(">u4").tobytes(), sent)


def decode(payload: bytes, x0_hat: np.ndarray, table: ResidualTable, guard: float, shape: Sequence[int]) -> np.ndarray:
    """The pixels, uint8 (H, W, C). Where the payload is not that of `encode` they are some other image.

    Raises:
        CodecError: as `encode`, and for a payload that no encoder writes.
    """
    grey = _grey(_checked(x0_hat, shape))
    grids, coder = Grids.of(guard), _queue.RangeDecoder(_words(payload))
    pixels: list[int] = []
    try:
        chosen, byte = coder.decode(_one_of(len(table.bits))), _one_of(256)
        if chosen >= len(table.bits):
            raise CodecError("the exact pixels are damaged (no such table)")
        cells = _read_cells(coder, grids, grey, grids.rare(table.leaving))
        for row, base in zip(_rows(cells).ravel().tolist(), _base(cells).ravel().tolist(), strict=True):
            symbol = coder.decode(table.model(chosen, row))
            value = base + symbol - REACH if symbol < ESCAPE else coder.decode(byte)
            pixels.append(min(max(value, 0), 255))
    except AssertionError as error:  # the coder's own words for bits that no encoder writes
        raise CodecError(f"the exact pixels are damaged ({error})") from None
    return np.array(pixels, np.uint8).reshape(tuple(shape))


def cost_bits(pixels: np.ndarray, x0_hat: np.ndarray, table: ResidualTable, guard: float) -> float:
    """Bits that an ideal coder would take for what `encode` sends.

    Raises:
        CodecError: as `encode`.
    """
    grids, helpers, cells = _placed(x0_hat, pixels.shape, guard)
    residuals = table.bits[:, _rows(cells), _symbols(pixels, _base(cells))]
    any_value, flat = grids.rare(table.leaving)
    share = np.where(_between_flat(cells), flat, any_value)
    helping = -np.log2(np.where(helpers, share, 1 - share)).sum()
    return float(np.log2(max(2, len(table.bits))) + helping + residuals.reshape(len(residuals), -1).sum(1).min())


def unguarded_bits(pixels: np.ndarray, x0_hat: np.ndarray, table: ResidualTable) -> np.ndarray:
    """Bits of each image under each set, (sets, N), without helpers. Both (N, H, W, C)."""
    cells = Grids.of(0.0).cells(_grey(x0_hat), 0)
    residuals = table.bits[:, _rows(cells), _symbols(pixels, _base(cells))]
    return residuals.reshape(*residuals.shape[:2], -1).sum(2)


def fit(pixels: np.ndarray, x0_hats: Sequence[np.ndarray]) -> ResidualTable:
    """Tables from predictions of real images: counts, leaning on those of coarser classes where there are few.

    Args:
        pixels: uint8 (N, H, W, C).
        x0_hats: for each set the predictions (N, H, W, C) on [-1, 1] at one noise level.
    """
    sets, left, among = [], 1, 1
    for x0_hat in x0_hats:
        cells = Grids.of(0.0).cells(_grey(x0_hat), 0)
        rows, symbols = _rows(cells), _symbols(pixels, _base(cells))
        counts = np.bincount(
            (rows * (ESCAPE + 1) + symbols).ravel(), minlength=ZONES * SLOPES * FRACTIONS * (ESCAPE + 1)
        )
        sets.append(_smoothed(counts.reshape(ZONES, SLOPES, FRACTIONS, ESCAPE + 1).astype(np.float64)))
        between = _between_flat(cells)
        left, among = left + int((between & ~_flat(cells)).sum()), among + int(between.sum())
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


def _checked(x0_hat: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The prediction, if it can be one: the coder itself takes nonsense without a word."""
    if x0_hat.shape != tuple(shape) or x0_hat.ndim != 3 or not np.isfinite(x0_hat).all():
        raise CodecError(f"the prediction must be finite and of the shape {tuple(shape)}, got {x0_hat.shape}")
    return x0_hat


def _placed(x0_hat: np.ndarray, shape: Sequence[int], guard: float) -> tuple[Grids, np.ndarray, np.ndarray]:
    """(grids, helpers, cells)."""
    grids, grey = Grids.of(guard), _grey(_checked(x0_hat, shape))
    helpers = grids.helpers(grey)
    return grids, helpers, grids.cells(grey, helpers)


def _grey(x0_hat: np.ndarray) -> np.ndarray:
    return (np.clip(x0_hat.astype(np.float64), -1, 1) + 1) * 127.5


def _base(cells: np.ndarray) -> np.ndarray:
    """The grey level nearest to a cell's centre."""
    return cells + EIGHTHS // 2 >> 3


def _rows(cells: np.ndarray) -> np.ndarray:
    """The table of each cell of images (..., H, W, C)."""
    below = np.searchsorted(_ZONES, cells, side="right")
    above = np.searchsorted(_ZONES, _WHITE - cells, side="right")
    zone = np.where(2 * cells < _WHITE, below, ZONES - 1 - above)
    around = np.pad(cells, ((0, 0),) * (cells.ndim - 3) + ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = around[..., 1:-1, 2:, :] - around[..., 1:-1, :-2, :]
    down = around[..., 2:, 1:-1, :] - around[..., :-2, 1:-1, :]
    slope = np.searchsorted(_SLOPES, np.abs(across) + np.abs(down), side="right")
    fraction = (cells + EIGHTHS // 2) % EIGHTHS * FRACTIONS // EIGHTHS
    return (zone * SLOPES + slope) * FRACTIONS + fraction


def _symbols(pixels: np.ndarray, base: np.ndarray) -> np.ndarray:
    residual = pixels.astype(np.int64) - base
    return np.where(np.abs(residual) <= REACH, residual + REACH, ESCAPE)


def _flat(cells: np.ndarray) -> np.ndarray:
    return (cells == 0) | (cells == _WHITE)


def _between_flat(cells: np.ndarray) -> np.ndarray:
    """Whether the left and the upper neighbour are black or white; one beyond the edge counts as if it were."""
    flat = np.pad(_flat(cells), ((0, 0),) * (cells.ndim - 3) + ((1, 0), (1, 0), (0, 0)), constant_values=True)
    return flat[..., 1:, :-1, :] & flat[..., :-1, 1:, :]


def _one_of(size: int) -> _Model:
    return _models.Uniform(max(2, size))  # the coder has no model of a single symbol


def _helper_models(rare: tuple[float, float]) -> list[_Model]:
    return [_models.Categorical(np.array([1 - share, share]), perfect=False) for share in rare]


def _sent(
    pixels: np.ndarray, helpers: np.ndarray, cells: np.ndarray, table: ResidualTable, rare: tuple[float, float]
) -> Iterator[tuple[int, _Model]]:
    """Every symbol in its order, with its model."""
    rows, symbols = _rows(cells), _symbols(pixels, _base(cells))
    chosen = int(table.bits[:, rows, symbols].reshape(len(table.bits), -1).sum(1).argmin())
    yield chosen, _one_of(len(table.bits))
    models, byte = _helper_models(rare), _one_of(256)
    for helper, flat in zip(helpers.ravel().tolist(), _between_flat(cells).ravel().tolist(), strict=True):
        yield helper, models[flat]
    for symbol, row, pixel in zip(
        symbols.ravel().tolist(), rows.ravel().tolist(), pixels.ravel().tolist(), strict=True
    ):
        yield symbol, table.model(chosen, row)
        if symbol == ESCAPE:
            yield pixel, byte


def _read_cells(coder: Any, grids: Grids, grey: np.ndarray, rare: tuple[float, float]) -> np.ndarray:
    """The cells by their helpers, each of which is coded by the cells to the left and above."""
    height, width, channels = grey.shape
    candidates = [grids.cells(grey, helper).ravel().tolist() for helper in (0, 1)]
    models, stride = _helper_models(rare), width * channels
    cells: list[int] = []
    flat: list[bool] = []
    for place in range(height * stride):
        left = flat[place - channels] if place % stride >= channels else True
        above = flat[place - stride] if place >= stride else True
        cell = candidates[coder.decode(models[left and above])][place]
        cells.append(cell)
        flat.append(cell in (0, _WHITE))
    return np.array(cells).reshape(height, width, channels)


def _words(payload: bytes) -> np.ndarray:
    return np.frombuffer(payload + bytes(-len(payload) % 4), ">u4").astype(np.uint32)


def _shortest(content: bytes, sent: Sequence[tuple[int, _Model]]) -> bytes:
    """The shortest bytes that decode to the same: the coder ends on a whole word, and its last bits are free."""
    number = int.from_bytes(content, "big")
    for size in range(max(0, len(content) - 8), len(content)):
        drop = 8 * (len(content) - size)
        for head in (number >> drop, (number >> drop) + 1):
            if head >> 8 * size:
                continue
            short = head.to_bytes(size, "big")
            coder = _queue.RangeDecoder(_words(short))
            try:
                if all(coder.decode(model) == symbol for symbol, model in sent):
                    return short.rstrip(b"\0")
            except AssertionError:
                continue
    return content


def _smoothed(counts: np.ndarray) -> np.ndarray:
    """Frequencies from counts (ZONES, SLOPES, FRACTIONS, symbols); as if some counts came from the coarser class."""
    residual = np.arange(-REACH, REACH + 1)[:, None]
    offset = np.arange(FRACTIONS) / FRACTIONS - 0.5  # of the cell's centre, grey levels
    inside = counts[..., :ESCAPE]
    square = np.einsum("zsfk,kf->zs", inside, (residual - offset) ** 2)
    seen = inside.sum((2, 3))
    zone_var = (square.sum(1) + square.sum() / seen.sum()) / (seen.sum(1) + 1)
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
