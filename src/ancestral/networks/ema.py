"""Averages of the weights whose length follows the run, and any other length rebuilt from them afterwards.

A power-function average at training time tau weighs the past as (gamma + 1) tau'^gamma / tau^(gamma + 1), tau' <= tau:
its width is a fixed share of the run, whatever its length (Karras et al. 2024, EDM2, section 3). Two of them, kept at
several times, span every profile in between by least squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ancestral.diffusion.processes.types import untyped

Weights = dict[str, Tensor]


@cache
def exponent(width: float) -> float:
    """gamma for a relative width (standard deviation / run length), from width^2 = (gamma+1) / ((gamma+2)^2 (gamma+3)).

    Raises:
        ValueError: outside (0, 0.28), where no gamma >= 0 has that width.
    """
    if not 0 < width < 0.28:
        raise ValueError(f"the relative width of an average must lie in (0, 0.28), got {width}")
    return float(np.roots([1, 7, 16 - width**-2, 12 - width**-2]).real.max())


@dataclass
class PowerAverage:
    """A running power-function average of named weights."""

    width: float
    weights: Weights

    def update(self, current: Mapping[str, Tensor], images: int, step: int) -> None:
        """Take in the weights after `images` images have been seen, the last `step` of them since the last update."""
        keep = (1 - step / images) ** (exponent(self.width) + 1)
        latest = [current[name].detach().to(average.dtype) for name, average in self.weights.items()]
        untyped._foreach_lerp_(list(self.weights.values()), latest, 1 - keep)


@dataclass(frozen=True)
class Snapshot:
    """The average of one width after some number of images."""

    images: int
    width: float
    weights: Weights


def _inner(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Integral of the product of two profiles (time, gamma)."""
    (time_a, gamma_a), (time_b, gamma_b) = a, b
    end = min(time_a, time_b)
    # In logs, since end^gamma alone overflows for narrow averages.
    log = (gamma_a + gamma_b + 1) * np.log(end) - (gamma_a + 1) * np.log(time_a) - (gamma_b + 1) * np.log(time_b)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * float(np.exp(log))


def coefficients(profiles: Sequence[tuple[int, float]], images: int, width: float) -> np.ndarray:
    """How much of each snapshot, (images, width), makes the profile (images, width) asked for. float64 (n,)."""
    snapshots = [(float(time), exponent(one)) for time, one in profiles]
    target = (float(images), exponent(width))
    gram = np.array([[_inner(a, b) for b in snapshots] for a in snapshots])
    solution = np.linalg.lstsq(gram, np.array([_inner(a, target) for a in snapshots]), rcond=1e-12)[0]
    return solution / solution.sum()  # weights of an average sum to one


def rebuild(snapshots: Sequence[Snapshot], width: float) -> Weights:
    """The average of the given width at the last snapshot's time, by least squares from all of them."""
    end = max(snapshot.images for snapshot in snapshots)
    mix = coefficients([(one.images, one.width) for one in snapshots], end, width)
    first = snapshots[0].weights
    return {
        name: torch.stack([one.weights[name].double() * m for one, m in zip(snapshots, mix, strict=True)])
        .sum(0)
        .to(first[name].dtype)
        for name in first
    }
