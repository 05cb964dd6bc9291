"""Diagonal Gaussians: the distributions that every chain but the absorbing one is made of.

Every quantity is in nats unless its name says bits. Bytes live on the grid `x = byte / 127.5 - 1`,
so neighbouring byte values are 2/255 apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.processes.types import untyped

HALF_BIN = 1 / 255  # half the distance between two neighbouring byte values on [-1, 1]
RAREST = 24  # bits that any byte costs a coder at most: its frequencies are parts of 2^24
_UNIFORM = 256 * 2.0**-RAREST  # the share of a byte's probability that is spread evenly
_LOG_2PI = math.log(2 * math.pi)
_erfc: Callable[[Tensor], Tensor] = untyped.special.erfc
_erfcx: Callable[[Tensor], Tensor] = untyped.special.erfcx
_HALF_ROOT = math.sqrt(0.5)


def log_ndtr(x: Tensor) -> Tensor:
    """log P(z < x) of a standard normal z, to the last digits in both tails.

    As `torch.special.log_ndtr`, which has no kernel on MPS; `erfc` and `erfcx` have one. Each branch is kept away from
    the other's values, so that its gradient is finite too.
    """
    far = x < -1
    tail, body = torch.where(far, x, -1.0), torch.where(far, 0.0, x)
    log_tail = torch.log(_erfcx(-_HALF_ROOT * tail) / 2) - tail.square() / 2
    return torch.where(far, log_tail, torch.log1p(_erfc(_HALF_ROOT * body) / -2))


def widest(device: torch.device) -> torch.dtype:
    """float64; float32 on MPS, which has none."""
    return torch.float32 if device.type == "mps" else torch.float64


class Normal(NamedTuple):
    """N(mean, var), independent in every element; `var` broadcasts against `mean`."""

    mean: Tensor
    var: Tensor

    def sample(self, eps: Tensor) -> Tensor:
        """mean + sqrt(var) eps, for standard normal `eps` of the shape of `mean`."""
        return self.mean + self.var.sqrt() * eps

    def draw(self, noise: Streams) -> Tensor:
        """`sample` with the next values of the streams, one an image."""
        return self.sample(noise.normal(self.mean.shape[1:]).to(self.mean))

    def kl(self, other: Normal) -> Tensor:
        """KL(self || other) in nats per element (reference name: `normal_kl`).

        A zero variance in `self` against a positive one in `other` gives infinity, as it should.
        """
        ratio = self.var / other.var
        # ratio - 1 - log(ratio) through log1p: the terms cancel when the two variances nearly agree.
        excess = (self.var - other.var) / other.var
        divergence = torch.where(ratio > 0.5, excess - torch.log1p(excess), ratio - 1 - ratio.log())
        return 0.5 * (divergence + (self.mean - other.mean) ** 2 / other.var)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at `x`, in nats per element."""
        return -0.5 * ((x - self.mean) ** 2 / self.var + self.var.log() + _LOG_2PI)

    def log_prob_byte(self, x: Tensor) -> Tensor:
        """Log probability of the byte at `x`, in nats per element (Eq. 13).

        The density is integrated over the byte's bin with exact normal CDFs; the bins of 0 and of 255
        reach to infinity, so that the 256 probabilities sum to one. Evaluated in float64 (float32 on MPS), in whichever
        tail is the thinner, so that a byte 30 standard deviations away still has its true probability.
        Reference name: `discretized_gaussian_log_likelihood` (there with a tanh approximation).
        """
        wide = widest(x.device)
        std = self.var.to(wide).sqrt()
        centred = x.to(wide) - self.mean.to(wide)
        upper = (centred + HALF_BIN) / std
        lower = (centred - HALF_BIN) / std
        upper = torch.where(x > 1 - HALF_BIN, math.inf, upper)
        lower = torch.where(x < -1 + HALF_BIN, -math.inf, lower)
        # Mirror bins above the mean to below it: P(lower < z < upper) = P(-upper < z < -lower).
        mirrored = centred > 0
        high = torch.where(mirrored, -lower, upper)
        low = torch.where(mirrored, -upper, lower)
        log_high = log_ndtr(high)
        log_low = log_ndtr(low)
        # Where the lower edge is -inf the subtracted mass is exactly zero; masked twice so that its gradient is too.
        closed = torch.isfinite(low)
        gap = torch.where(closed, log_low - log_high, -1.0)
        tail = torch.where(closed, torch.log(-torch.expm1(gap)), 0.0)
        return (log_high + tail).to(self.mean.dtype)

    def log_prob_coded(self, x: Tensor) -> Tensor:
        """Log probability of the byte at `x` as a coder has it, in nats per element: (1 - 2^-16) Eq. 13 + 2^-24.

        A mixture with the uniform distribution: the 256 probabilities sum to one, a byte costs 24 bits at most however
        sure the Gaussian is, and 2.2e-5 bits more than by Eq. 13 at most. It is what `compression.bits_back` pays. The
        paper's code takes at least 1e-12 of each probability for its logarithm, after which they sum to more than one.
        """
        gaussian = self.log_prob_byte(x) + math.log1p(-_UNIFORM)
        return torch.logaddexp(gaussian, torch.full_like(gaussian, -RAREST * math.log(2)))


Likelihood = Callable[[Normal, Tensor], Tensor]  # log p(x0 | x_1) per element: for bytes, or a density


def standard_normal_like(x: Tensor) -> Normal:
    """N(0, I) with the shape, type and device of `x`: the end of the forward process."""
    return Normal(torch.zeros_like(x), torch.ones_like(x))
