"""What the U-Net is laid out of, over one, two or three dimensions: its details, convolutions, blocks of positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

LAYERS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
FUNCTIONS: dict[int, Callable[..., Tensor]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "mish": functional.mish,
    "relu": functional.relu,
}
_Layer = TypeVar("_Layer", bound=nn.Module)


class GroupNorm(nn.GroupNorm):
    """In float32 on float32 input, also where its weights are gathered in half precision: autocast does so on CUDA."""

    def forward(self, input: Tensor) -> Tensor:
        """As torch's."""
        if input.dtype == torch.float32 and self.weight.dtype != torch.float32:
            weight, bias = self.weight.float(), self.bias.float()
            return functional.group_norm(input, self.num_groups, weight, bias, self.eps)
        return super().forward(input)


@dataclass(frozen=True)
class UNetVariant:
    """What networks of this family differ in; the defaults are the paper's, but for the padding."""

    groups: int | None = None  # of every group norm; None: 32, but at least `group_width` channels each
    group_width: int = 4  # 4 as in the paper's 128 in 32. With 16 and channels-last memory a norm reads whole vectors
    norm_eps: float = 1e-6  # added to the variances of the norms
    head_width: int | None = None  # channels of an attention head; None: one head
    pad_end: bool = False  # pad only at the end before a convolution of stride 2, as the paper's code does
    cosine_first: bool = False  # the time's cosines before its sines
    frequency_shift: int = 1  # the lowest frequency is 10^-4 (1) or one step above it (0)
    time_width: int | None = None  # of the embedded time; None: 4 times the first level's
    activation: str = "silu"  # inside the residual blocks
    # the time scales and shifts the second norm's output; otherwise it is added before that norm
    scale_shift: bool = False
    middle_attention: bool = True  # whether the middle has it
    middle_groups: int | None = None  # of its norm; 0: no norm; None: as everywhere
    # n of sin and cos(2^n pi x), further channels of the input in which the last bits of a byte can be seen (Kingma et
    # al. 2021, appendix C; theirs are 7 and 8)
    fourier: Sequence[int] = ()

    def features(self, x: Tensor) -> Tensor:
        """The data and their Fourier features, (B, C, ...) to (B, C (1 + 2 len(fourier)), ...)."""
        waves = [wave(x * (2.0**n * math.pi)) for n in self.fourier for wave in (torch.sin, torch.cos)]
        return torch.cat([x, *waves], 1) if waves else x

    def groups_of(self, channels: int) -> int:
        """How many groups the norm of so many channels has."""
        # Never one channel a group: its norm would take the added time off again.
        return self.groups or math.gcd(min(32, max(channels // self.group_width, 1)), channels)

    def norm(self, channels: int) -> nn.GroupNorm:
        """The group norm of a layer."""
        return GroupNorm(self.groups_of(channels), channels, eps=self.norm_eps)

    def middle_norm(self, channels: int) -> nn.Module:
        """What stands before the attention in the middle."""
        if self.middle_groups is None:
            return self.norm(channels)
        groups = self.middle_groups
        return GroupNorm(groups, channels, eps=self.norm_eps) if groups else nn.Identity()

    @property
    def activated(self) -> Callable[[Tensor], Tensor]:
        """The nonlinearity of the residual blocks."""
        return ACTIVATIONS[self.activation]


PLAIN = UNetVariant()


def time_embedding(time: Tensor, width: int, variant: UNetVariant = PLAIN) -> Tensor:
    """Sinusoids of frequencies 1 .. 1e-4, sines first, (B, width), in the type of time (B,) (Vaswani et al. 2017)."""
    half = width // 2
    steps = max(half - variant.frequency_shift, 1)
    indices = torch.arange(half, dtype=time.dtype, device=time.device)
    angles = time[:, None] * torch.exp(indices * (-math.log(10000) / steps))
    waves = [angles.cos(), angles.sin()] if variant.cosine_first else [angles.sin(), angles.cos()]
    return functional.pad(torch.cat(waves, 1), (0, width % 2))


def initialised(layer: _Layer, scale: float = 1.0) -> _Layer:
    """The reference's start: uniform of variance `scale / fan_avg`, biases 0."""
    weight = layer.get_parameter("weight")
    if scale:
        nn.init.xavier_uniform_(weight, gain=scale**0.5)
    else:
        nn.init.zeros_(weight)
    nn.init.zeros_(layer.get_parameter("bias"))
    return layer


def conv(in_channels: int, out_channels: int, dimensions: int, size: int = 3, scale: float = 1.0) -> nn.Module:
    """A convolution that keeps the sides. (B, in_channels, ...) to (B, out_channels, ...)."""
    return initialised(LAYERS[dimensions](in_channels, out_channels, size, padding=size // 2), scale)


def fold(x: Tensor, side: int) -> Tensor:
    """Blocks of `side` indices along each of d axes as channels, (B, C, n side, ...) to (B, C side^d, n, ...).

    Of images it is torch's `pixel_unshuffle`.
    """
    d = x.ndim - 2
    for axis in range(2, 2 + 2 * d, 2):
        x = x.unflatten(axis, (-1, side))
    inside = range(3, 3 + 2 * d, 2)
    return x.permute(0, 1, *inside, *(axis - 1 for axis in inside)).flatten(1, 1 + d)


def unfold(x: Tensor, side: int) -> Tensor:
    """The inverse of `fold`, (B, C side^d, n, ...) to (B, C, n side, ...)."""
    d = x.ndim - 2
    pairs = [axis for n in range(2, 2 + d) for axis in (n + d, n)]
    x = x.unflatten(1, (-1, *[side] * d)).permute(0, 1, *pairs)
    for axis in range(2, 2 + d):
        x = x.flatten(axis, axis + 1)
    return x
