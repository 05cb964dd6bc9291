"""Distributions over the grey levels of a value: K levels, level k at 2 k / (K - 1) - 1 on [-1, 1].

Each has a log probability and a quantile, so that one uniform number draws a value. Everything is in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from ancestral.diffusion.processes.normal import widest

HALF_RANGE = 127.5  # of bytes, K = 256: x = byte / HALF_RANGE - 1


def level_of(x: Tensor, levels: int) -> Tensor:
    """The nearest level of each value on [-1, 1], int64."""
    return ((x + 1) * ((levels - 1) / 2)).round().long().clamp(0, levels - 1)


def value_of(level: Tensor, levels: int, like: Tensor) -> Tensor:
    """The value of each level on [-1, 1], in the type of `like`; for 256 levels as bytes are scaled."""
    return level.to(like.dtype) / ((levels - 1) / 2) - 1


def snap(x: Tensor, levels: int) -> Tensor:
    """The nearest value that is a level's."""
    return value_of(level_of(x, levels), levels, x)


class Values(Protocol):
    """A distribution of each value of an image, independent between values."""

    @property
    def mean(self) -> Tensor:
        """Its mean, (B, C, H, W)."""
        ...

    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability in nats of the level nearest to x, elementwise."""
        ...

    def quantile(self, u: Tensor) -> Tensor:
        """The value of the first level whose cumulative probability exceeds u in [0, 1)."""
        ...

    def at(self, where: Tensor) -> Values:
        """Of the values where this is true, (N,)."""
        ...


@dataclass(frozen=True)
class Point:
    """No choice: x itself."""

    x: Tensor

    @property
    def mean(self) -> Tensor:
        """x."""
        return self.x

    def log_prob(self, x: Tensor) -> Tensor:
        """0 at x, -inf elsewhere."""
        return torch.where(x == self.x, 0.0, -math.inf).to(x.dtype)

    def quantile(self, u: Tensor) -> Tensor:
        """x for every u."""
        return self.x

    def at(self, where: Tensor) -> Point:
        """Of the values where this is true."""
        return Point(self.x[where])


@dataclass(frozen=True)
class Softmax:
    """A probability for each level. log_p: (..., K), normalised."""

    log_p: Tensor

    @classmethod
    def outputs(cls, levels: int) -> int:
        """Channels of a network's output a value."""
        return levels

    @classmethod
    def of(cls, output: Tensor, levels: int) -> Self:
        """From a network's output (B, C, H, W, K)."""
        return cls(output.log_softmax(-1))

    @property
    def levels(self) -> int:
        """K."""
        return self.log_p.shape[-1]

    @property
    def mean(self) -> Tensor:
        """E[x]."""
        values = value_of(torch.arange(self.levels, device=self.log_p.device), self.levels, self.log_p)
        return (self.log_p.exp() * values).sum(-1)  # no product of matrices, which autocast would round

    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability in nats, elementwise."""
        return self.log_p.gather(-1, level_of(x, self.levels)[..., None])[..., 0]

    def quantile(self, u: Tensor) -> Tensor:
        """The value at cumulative probability u."""
        wide = widest(u.device)
        cumulative = self.log_p.to(wide).exp().cumsum(-1)
        # Scaled by the sum as it was rounded, so that no u < 1 lies beyond the last level that can occur.
        below = (cumulative <= u.to(wide)[..., None] * cumulative[..., -1:]).sum(-1)
        return value_of(below.clamp(max=self.levels - 1), self.levels, u)

    def at(self, where: Tensor) -> Softmax:
        """Of the values where this is true."""
        return Softmax(self.log_p[where])


@dataclass(frozen=True)
class Logistic:
    """A mixture of logistics integrated over each level's bin, the end bins open (Salimans et al. 2017, Eq. 2).

    Args:
        log_weight, mean_of, scale: (..., M), of the M components; the weights sum to one, means and scales on [-1, 1].
        levels: K.
    """

    log_weight: Tensor
    mean_of: Tensor
    scale: Tensor
    levels: int

    components: ClassVar[int] = 6

    @classmethod
    def outputs(cls, levels: int) -> int:
        """Channels of a network's output a value."""
        return 3 * cls.components

    @classmethod
    def of(cls, output: Tensor, levels: int) -> Self:
        """From a network's output (B, C, H, W, 3 M); an output of 0 spreads the components evenly over [-1, 1]."""
        weight, mean, scale = output.chunk(3, -1)
        # Components that began alike would stay alike.
        centre = torch.linspace(-1, 1, cls.components, dtype=output.dtype, device=output.device)
        return cls(weight.log_softmax(-1), centre + mean, (scale - 2).clamp(-7, 3).exp(), levels)

    @property
    def mean(self) -> Tensor:
        """E of the mixture clipped to [-1, 1], in closed form; within half a level of the mean of the levels."""
        low, high = (softplus((self.mean_of - edge) / self.scale) for edge in (-1.0, 1.0))
        return (self.log_weight.exp() * (self.scale * (low - high))).sum(-1) - 1

    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability in nats: sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - e^(a - b)), where nothing cancels."""
        level = level_of(x, self.levels)[..., None]
        half = 1 / (self.levels - 1)
        centred = value_of(level, self.levels, self.mean_of) - self.mean_of
        b, a = (centred + half) / self.scale, (centred - half) / self.scale
        first, last = level == 0, level == self.levels - 1
        inner = (-torch.expm1(-2 * half / self.scale)).log()
        bins = torch.where(last, 0.0, logsigmoid(b)) + torch.where(first, 0.0, logsigmoid(-a))
        bins = bins + torch.where(first | last, 0.0, inner)
        return (self.log_weight + bins).logsumexp(-1)

    def quantile(self, u: Tensor) -> Tensor:
        """The value at cumulative probability u, by bisection: log2 K values of the cumulative."""
        low, high = torch.zeros_like(u).long(), torch.full_like(u, self.levels - 1).long()
        for _ in range(math.ceil(math.log2(self.levels))):
            middle = (low + high) // 2
            edge = (2 * middle.to(u.dtype) + 1) / (self.levels - 1) - 1
            reached = (self.log_weight.exp() * ((edge[..., None] - self.mean_of) / self.scale).sigmoid()).sum(-1) > u
            low, high = torch.where(reached, low, torch.minimum(middle + 1, high)), torch.where(reached, middle, high)
        return value_of(low, self.levels, u)

    def at(self, where: Tensor) -> Logistic:
        """Of the values where this is true."""
        return Logistic(self.log_weight[where], self.mean_of[where], self.scale[where], self.levels)


VALUES: dict[str, type[Softmax] | type[Logistic]] = {"logistic": Logistic, "softmax": Softmax}
