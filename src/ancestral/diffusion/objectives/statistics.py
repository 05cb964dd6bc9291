"""Means with their standard errors; squared errors in dB."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of (B,) and its standard error; the error of a single value is nan."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.nan


def largest_share(values: Tensor) -> float:
    """How much of the sum of (B,) sizes a single one is: where it is much, an error from their spread says little."""
    sizes = values.abs()
    return float(sizes.max() / sizes.sum())


def in_json(values: Tensor) -> dict[str, float | None]:
    """The mean of (B,), its standard error or none of a single value, and the largest share, for a document."""
    mean, error = mean_and_error(values)
    share = largest_share(values)
    return {
        "mean": mean,
        "standard_error": None if math.isnan(error) else error,
        "largest_share": None if math.isnan(share) else share,
    }


def psnr(mse: ArrayLike, peak: float = 255.0) -> np.ndarray:
    """Peak signal-to-noise ratio, 10 log10(peak^2 / mse) in dB, of mean squared errors; infinite at 0."""
    with np.errstate(divide="ignore"):
        return 10 * np.log10(peak**2 / np.asarray(mse, dtype=np.float64))


def image_psnr(images: np.ndarray, shown: np.ndarray) -> float:
    """In dB over all values of both, uint8 of one shape."""
    return float(psnr(np.square(images.astype(np.float64) - shown).mean()))


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    error: float
