"""A normalizing flow: RealNVP's affine couplings (Dinh et al. 2017) with learned 1x1 mixing between them (Glow, 2018).

Bytes are dequantised by uniform noise, which gives a bound on their probability (Theis et al. 2016):

    -log P(x) <= E_u[-log p(x + u)],    log p(y) = log N(f(y); 0, I) + log |det df/dy|
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from ancestral.diffusion.processes.normal import standard_normal_like
from ancestral.diffusion.processes.streams import Streams
from ancestral.networks.unet_layers import fold, unfold
from baselines.training import Lowered

LEVELS = 256
EDGE = 1e-3  # keeps the logit of 0 finite
BOUND = 2.0  # of a coupling's log scale


class Mix(nn.Module):
    """y = W x + b at every place. (B, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(channels, channels)))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(y, log |det| in nats, (1,))."""
        places = x.shape[2] * x.shape[3]
        return functional.conv2d(x, self.weight[..., None, None], self.bias), places * self.weight.slogdet()[1][None]

    def inverse(self, y: Tensor) -> Tensor:
        """x."""
        weight = self.weight.double().inverse().to(y)
        return functional.conv2d(y - self.bias[:, None, None], weight[..., None, None])


class Coupling(nn.Module):
    """The second half of the channels, scaled and shifted as the first half says; begins as the identity."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.kept = channels // 2
        last = nn.Conv2d(width, 2 * (channels - self.kept), 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = Lowered(
            nn.Conv2d(self.kept, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 1), nn.SiLU(), last
        )

    def _told(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = self.net(kept).chunk(2, 1)
        return shift, BOUND * torch.tanh(scale / BOUND)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(y, log |det| in nats, (B,))."""
        kept, changed = x[:, : self.kept], x[:, self.kept :]
        shift, log_scale = self._told(kept)
        return torch.cat([kept, changed * log_scale.exp() + shift], 1), log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        """x."""
        kept, changed = y[:, : self.kept], y[:, self.kept :]
        shift, log_scale = self._told(kept)
        return torch.cat([kept, (changed - shift) * (-log_scale).exp()], 1)


class Flow(nn.Module):
    """Levels of steps; after each but the last, half of the channels is done and the rest goes on at half the side.

    Args:
        shape: (C, H, W), the sides divisible by 2^levels.
        steps: of each level.
        width: channels within a coupling.
    """

    def __init__(self, shape: tuple[int, int, int], steps: tuple[int, ...] = (4, 8), width: int = 96) -> None:
        super().__init__()
        self.shape, channels = shape, shape[0]
        self.levels = nn.ModuleList()
        for count in steps:
            channels *= 4
            self.levels.append(
                nn.ModuleList(layer for _ in range(count) for layer in (Mix(channels), Coupling(channels, width)))
            )
            channels //= 2

    def encode(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """(f(y) as (B, D), log |det df/dy| in nats, (B,)). y: (B, C, H, W), any real numbers."""
        done, determinant = [], torch.zeros(len(y), dtype=y.dtype)
        for number, level in enumerate(self.levels):
            y = fold(y, 2)
            for layer in level:
                y, part = layer(y)
                determinant = determinant + part
            if number < len(self.levels) - 1:
                y, out = y.chunk(2, 1)
                done.append(out.flatten(1))
        return torch.cat([*done, y.flatten(1)], 1), determinant

    def decode(self, z: Tensor) -> Tensor:
        """The inverse of f, (B, D) to (B, C, H, W)."""
        channels, height, width = self.shape
        shapes = []
        for _ in self.levels:
            channels, height, width = 4 * channels, height // 2, width // 2
            shapes.append((channels, height, width))
            channels //= 2
        halves = [(c // 2, h, w) for c, h, w in shapes[:-1]] + shapes[-1:]
        ends = [0]
        for c, h, w in halves:
            ends.append(ends[-1] + c * h * w)
        parts = [z[:, a:b].unflatten(1, shape) for (a, b), shape in zip(pairwise(ends), halves, strict=True)]
        y = parts.pop()
        for level in reversed(self.levels):
            for layer in reversed(level):
                y = layer.inverse(y)
            y = unfold(y, 2)
            if parts:
                y = torch.cat([y, parts.pop()], 1)
        return y

    def density(self, share: Tensor) -> Tensor:
        """-log p in nats an image, (B,), of values (B, C, H, W) on [0, 1]: a density on that cube."""
        inside = EDGE + (1 - 2 * EDGE) * share
        y = inside.logit()
        slope = math.log(1 - 2 * EDGE) - inside.log() - (-inside).log1p()
        z, determinant = self.encode(y)
        return -(standard_normal_like(z).log_prob(z).sum(1) + determinant + slope.flatten(1).sum(1))

    def nats(self, x: Tensor, noise: Streams) -> Tensor:
        """The bound with one u of each stream, in nats an image, (B,)."""
        levels = ((x + 1) * ((LEVELS - 1) / 2)).round()
        share = (levels + noise.uniform(self.shape).to(x.dtype)) / LEVELS
        return self.density(share) + x[0].numel() * math.log(LEVELS)

    def draw(self, noise: Streams) -> Tensor:
        """The level in whose bin f^-1(z) lies; what leaves [0, 1] is put on its end."""
        z = noise.normal((math.prod(self.shape),)).float()
        share = (self.decode(z).sigmoid() - EDGE) / (1 - 2 * EDGE)
        return (share * LEVELS).floor().clamp(0, LEVELS - 1) / ((LEVELS - 1) / 2) - 1
