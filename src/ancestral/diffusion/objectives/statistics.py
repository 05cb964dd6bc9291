"""Means with their standard errors."""

from __future__ import annotations

import math
from typing import NamedTuple

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


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    error: float
