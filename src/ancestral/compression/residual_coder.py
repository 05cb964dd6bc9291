"""Exact pixels, given what the model predicts of them: range coding with tables that integers choose.

    which set of tables   a helper a value (`quantiser_cells`)   pixel minus cell, a value (`residual_tables`)

The helpers cost H2(2 guard n) bits a value, less where the neighbours are black or white. After them there are only
integers, so that no float decides how the bits are read. Another image would be read, not the same one a little off,
from a prediction that is off by more than the guard: a checksum of the pixels belongs beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ancestral.compression.entropy_coders import stream
from ancestral.compression.errors import CodecError
from ancestral.compression.quantiser_cells import (
    EIGHTHS,
    FRACTIONS,
    WHITE,
    Grids,
    base_of,
    between_flat,
    classes,
    fraction_of,
    inner,
    to_grey,
)
from ancestral.compression.residual_tables import BEFORE, ESCAPE, REACH, TOTAL, ResidualTable, bits_of, rounded

_Model = Any  # constriction has no types
_queue, _models = stream.queue, stream.model


class _Coded:
    """The coder's models of one set of tables, each made when it is first met."""

    def __init__(self, table: ResidualTable, chosen: int) -> None:
        self._frequencies, self._made = table.frequencies[chosen], {}

    def __getitem__(self, row: int) -> _Model:
        if row not in self._made:
            self._made[row] = _models.Categorical(self._frequencies[row] / TOTAL, perfect=False)
        return self._made[row]


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
    coder, symbols, models = _queue.RangeEncoder(), bytearray(), list[_Model]()  # pairs would take ten times as much
    for symbol, model in _sent(pixels, helpers, cells, table, grids.rare(table.leaving / TOTAL)):
        coder.encode(symbol, model)
        symbols.append(symbol)
        models.append(model)
    return _shortest(coder.get_compressed().astype(">u4").tobytes(), symbols, models)


def decode(payload: bytes, x0_hat: np.ndarray, table: ResidualTable, guard: float, shape: Sequence[int]) -> np.ndarray:
    """The pixels, uint8 (H, W, C). Where the payload is not that of `encode` they are some other image.

    Raises:
        CodecError: as `encode`, and for a payload that no encoder writes.
    """
    grey = to_grey(_checked(x0_hat, shape))
    grids, coder = Grids.of(guard), _queue.RangeDecoder(_words(payload))
    try:
        chosen = coder.decode(_one_of(len(table.bits)))
        if chosen >= len(table.bits):
            raise CodecError("the exact pixels are damaged (no such table)")
        cells, tables = _read_cells(coder, grids, grey, grids.rare(table.leaving / TOTAL)), _Coded(table, chosen)
        pixels = _read_pixels(coder, cells, tables, table.weights_of(chosen))
    except AssertionError as error:  # the coder's own words for bits that no encoder writes
        raise CodecError(f"the exact pixels are damaged ({error})") from None
    return pixels


def _checked(x0_hat: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The prediction, if it can be one: the coder itself takes nonsense without a word."""
    if x0_hat.shape != tuple(shape) or x0_hat.ndim != 3 or not np.isfinite(x0_hat).all():
        raise CodecError(f"the prediction must be finite and of the shape {tuple(shape)}, got {x0_hat.shape}")
    return x0_hat


def _placed(x0_hat: np.ndarray, shape: Sequence[int], guard: float) -> tuple[Grids, np.ndarray, np.ndarray]:
    """(grids, helpers, cells)."""
    grids, grey = Grids.of(guard), to_grey(_checked(x0_hat, shape))
    helpers = grids.helpers(grey)
    return grids, helpers, grids.cells(grey, helpers)


def _one_of(size: int) -> _Model:
    return _models.Uniform(max(2, size))  # the coder has no model of a single symbol


def _helper_models(rare: tuple[float, float]) -> list[_Model]:
    return [_models.Categorical(np.array([1 - share, share]), perfect=False) for share in rare]


def _sent(
    pixels: np.ndarray, helpers: np.ndarray, cells: np.ndarray, table: ResidualTable, rare: tuple[float, float]
) -> Iterator[tuple[int, _Model]]:
    """Every symbol in its order, with its model."""
    chosen = int(bits_of(pixels[None], cells[None], table).argmin())
    rows, symbols = table.coded(chosen, pixels, cells)
    yield chosen, _one_of(len(table.bits))
    models, tables, byte = _helper_models(rare), _Coded(table, chosen), _one_of(256)
    for helper, flat in _values(helpers, between_flat(cells)):
        yield helper, models[flat]
    for symbol, row, pixel in _values(symbols, rows, pixels):
        yield symbol, tables[row]
        if symbol == ESCAPE:
            yield pixel, byte


def _values(*arrays: np.ndarray) -> Iterator[tuple[int, ...]]:
    """The values of arrays (H, W, C) side by side, in order; a line of the image at a time is a list."""
    for lines in zip(*arrays, strict=True):
        yield from zip(*(line.ravel().tolist() for line in lines), strict=True)


def _read_cells(coder: Any, grids: Grids, grey: np.ndarray, rare: tuple[float, float]) -> np.ndarray:
    """The cells by their helpers, each of which is coded by the cells to the left and above."""
    height, width, channels = grey.shape
    candidates = [grids.cells(grey, helper).ravel().tolist() for helper in (0, 1)]
    models, stride = _helper_models(rare), width * channels
    cells: list[int] = []
    flat: list[bool] = []
    for index in range(height * stride):
        left = flat[index - channels] if index % stride >= channels else True
        above = flat[index - stride] if index >= stride else True
        cell = candidates[coder.decode(models[left and above])][index]
        cells.append(cell)
        flat.append(cell in (0, WHITE))
    return np.array(cells).reshape(height, width, channels)


def _read_pixels(coder: Any, cells: np.ndarray, tables: _Coded, weights: list[int]) -> np.ndarray:
    """`ResidualTable.coded` the other way, a pixel at a time: each moves those after it."""
    (height, width, channels), byte = cells.shape, _one_of(256)
    strides = (width + 2) * (channels + 2), channels + 2, 1
    used = [(weight, int(np.dot(step, strides))) for weight, step in zip(weights, BEFORE, strict=True) if weight]
    errors = np.zeros((height + 1, width + 2, channels + 2), np.int64)
    indices = np.arange(errors.size).reshape(errors.shape)[1:, 1:-1, 2:]
    earlier, pixels = errors.ravel().tolist(), []
    columns = (indices, cells, classes(cells) * FRACTIONS, inner(cells))
    for index, cell, row, free in zip(*(column.ravel().tolist() for column in columns), strict=True):
        centre = cell
        if free and used:
            centre += rounded(sum(weight * earlier[index + step] for weight, step in used))
        symbol = coder.decode(tables[row + fraction_of(centre)])
        value = base_of(centre) + symbol - REACH if symbol < ESCAPE else coder.decode(byte)
        pixel = min(max(value, 0), 255)
        earlier[index] = EIGHTHS * pixel - cell
        pixels.append(pixel)
    return np.array(pixels, np.uint8).reshape(height, width, channels)


def _words(payload: bytes) -> np.ndarray:
    return np.frombuffer(payload + bytes(-len(payload) % 4), ">u4").astype(np.uint32)


def _shortest(content: bytes, symbols: Iterable[int], models: Iterable[_Model]) -> bytes:
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
                if all(coder.decode(model) == symbol for symbol, model in zip(symbols, models, strict=True)):
                    return short
            except AssertionError:
                continue
    return content
