"""Augmentation that does not leak: images are moved, and the network conditioned on how, so that it draws unmoved ones.

The transformations and their vector are those of Karras et al. 2022 (EDM), section 5 and appendix F.2: each is taken
with the same small probability, and the network's vector is zero where none is, as it always is in sampling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ancestral.diffusion.processes.levels import HALF_RANGE
from ancestral.diffusion.processes.streams import OpenStreams, Streams

LENGTH = 9  # of the vector that describes how an image was moved
KINDS = 6  # flips along both axes, scaling, rotation, stretching, translation
SCALE = 0.2 * math.log(2)  # one standard deviation of the logarithm of a scale or a stretch
SHIFT = 0.125  # one standard deviation of a translation, in sides of the image


class Moves(NamedTuple):
    """How each image is moved; float64 (B,) each, 0 for not at all."""

    flip_x: Tensor  # 0 or 1
    flip_y: Tensor
    scale: Tensor  # the logarithm of the factor, in units of SCALE
    angle: Tensor  # in radians
    stretch: Tensor  # of one axis, and a shrinking of the other: the logarithm, in units of SCALE
    direction: Tensor  # of the stretched axis, in radians
    shift_x: Tensor  # in units of SHIFT
    shift_y: Tensor

    @property
    def any(self) -> Tensor:
        """Which images are moved, bool (B,)."""
        return self.vector().ne(0).any(1)

    def vector(self) -> Tensor:
        """What the network gets to know, float32 (B, LENGTH)."""
        rotation = (self.angle.cos() - 1, self.angle.sin())
        stretch = (self.stretch * self.direction.cos(), self.stretch * self.direction.sin())
        parts = (self.flip_x, self.flip_y, self.scale, *rotation, *stretch, self.shift_x, self.shift_y)
        return torch.stack(parts, 1).float()


def draw(seed: int, numbers: Sequence[int], probability: float, open_streams: OpenStreams = Streams) -> Moves:
    """How the images of these numbers are moved, a function of (seed, number) alone."""
    streams = open_streams(seed, "augment", numbers)
    taken = (streams.uniform((KINDS,)) < probability).double().T
    flip_x, flip_y, turn, direction = streams.uniform((4,)).T
    scale, stretch, shift_x, shift_y = streams.normal((4,)).T
    return Moves(
        taken[0] * (flip_x < 0.5),
        taken[1] * (flip_y < 0.5),
        taken[2] * scale,
        taken[3] * (2 * turn - 1) * math.pi,
        taken[4] * stretch,
        (2 * direction - 1) * math.pi,
        taken[5] * shift_x,
        taken[5] * shift_y,
    )


def moved(x0: Tensor, moves: Moves) -> Tensor:
    """Images (B, C, H, W) on [-1, 1] after these moves, of whole bytes again; mirrored at the edges, bicubic."""
    rows = moves.any
    if not rows.any():
        return x0
    x, back = x0[rows], torch.linalg.inv(_matrices(Moves(*(one[rows] for one in moves)), x0.shape[-2:]))
    half = torch.tensor([x.shape[-1] / 2, x.shape[-2] / 2, 1], dtype=torch.float64)
    # From the units of pixels to those of torch, in which an image reaches from -1 to 1.
    grid = functional.affine_grid((back * half / half[:, None])[:, :2].to(x), list(x.shape), align_corners=False)
    resampled = functional.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    result = x0.clone()
    result[rows] = resampled.clamp(-1, 1).add(1).mul(HALF_RANGE).round().div(HALF_RANGE).sub(1)
    return result


def _matrices(moves: Moves, sides: Sequence[int]) -> Tensor:
    """Where each pixel of an image goes, from its middle, in pixels: affine maps (B, 3, 3), float64."""
    height, width = sides
    one, zero = torch.ones_like(moves.scale), torch.zeros_like(moves.scale)

    def linear(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return torch.stack([a, b, zero, c, d, zero, zero, zero, one], 1).reshape(-1, 3, 3)

    def rotation(angle: Tensor) -> Tensor:
        return linear(angle.cos(), -angle.sin(), angle.sin(), angle.cos())

    flip = linear(1 - 2 * moves.flip_x, zero, zero, 1 - 2 * moves.flip_y)
    scale = (moves.scale * SCALE).exp()
    stretch = (moves.stretch * SCALE).exp()
    shift = linear(one, zero, zero, one)
    shift[:, 0, 2], shift[:, 1, 2] = moves.shift_x * SHIFT * width, moves.shift_y * SHIFT * height
    stretched = rotation(moves.direction) @ linear(stretch, zero, zero, 1 / stretch) @ rotation(-moves.direction)
    return shift @ stretched @ rotation(moves.angle) @ linear(scale, zero, zero, scale) @ flip
