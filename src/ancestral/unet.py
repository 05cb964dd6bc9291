"""The paper's U-Net (appendix B): pre-activation residual blocks, time added to each, attention where told.

Down: convolutions of stride 2; up: nearest neighbour and a convolution. Every level keeps a skip from each block and
from its down-sampling, so the way up has one block more. The last convolution of a block, of an attention and of the
network start at zero, so that each begins as the identity and the network as 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

# Up to so many places attention on a CPU is two matrix products: measured twice as fast as torch's fused kernel.
PLAIN_PLACES = 256
_Layer = TypeVar("_Layer", nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Form:
    """What networks of this family differ in; the defaults are the paper's, but for the padding.

    Args:
        groups: of every group norm; None: 32, but at least `group_width` channels each.
        group_width: 4 as in the paper's 128 in 32. With 16 and channels-last memory a norm reads whole vectors.
        norm_eps: added to the variances of the norms.
        head_width: channels of an attention head; None: one head.
        pad_end: pad only at the end before a convolution of stride 2, as the paper's code does.
        cosine_first: the time's cosines before its sines.
        frequency_shift: the lowest frequency is 10^-4 (1) or one step above it (0).
        fourier: n of sin and cos(2^n pi x), further channels of the input in which the last bits of a byte can be seen
            (Kingma et al. 2021, appendix C; theirs are 7 and 8).
    """

    groups: int | None = None
    group_width: int = 4
    norm_eps: float = 1e-6
    head_width: int | None = None
    pad_end: bool = False
    cosine_first: bool = False
    frequency_shift: int = 1
    fourier: Sequence[int] = ()

    def features(self, x: Tensor) -> Tensor:
        """The image and its Fourier features, (B, C, H, W) to (B, C (1 + 2 len(fourier)), H, W)."""
        waves = [wave(x * (2.0**n * math.pi)) for n in self.fourier for wave in (torch.sin, torch.cos)]
        return torch.cat([x, *waves], 1) if waves else x

    def groups_of(self, channels: int) -> int:
        """How many groups the norm of so many channels has."""
        # Never one channel a group: its norm would take the added time off again.
        return self.groups or math.gcd(min(32, max(channels // self.group_width, 1)), channels)

    def norm(self, channels: int) -> nn.GroupNorm:
        """The group norm of a layer."""
        return nn.GroupNorm(self.groups_of(channels), channels, eps=self.norm_eps)


PLAIN = Form()


def time_embedding(time: Tensor, width: int, form: Form = PLAIN) -> Tensor:
    """Sinusoids of frequencies 1 .. 1e-4, sines first, (B, width), in the type of time (B,) (Vaswani et al. 2017)."""
    half = width // 2
    steps = max(half - form.frequency_shift, 1)
    places = torch.arange(half, dtype=time.dtype, device=time.device)
    angles = time[:, None] * torch.exp(places * (-math.log(10000) / steps))
    waves = [angles.cos(), angles.sin()] if form.cosine_first else [angles.sin(), angles.cos()]
    return functional.pad(torch.cat(waves, 1), (0, width % 2))


def _initialised(layer: _Layer, scale: float = 1.0) -> _Layer:
    """The reference's start: uniform of variance `scale / fan_avg`, biases 0."""
    weight = layer.get_parameter("weight")
    if scale:
        nn.init.xavier_uniform_(weight, gain=scale**0.5)
    else:
        nn.init.zeros_(weight)
    nn.init.zeros_(layer.get_parameter("bias"))
    return layer


def _conv(in_channels: int, out_channels: int, size: int = 3, scale: float = 1.0) -> nn.Conv2d:
    return _initialised(nn.Conv2d(in_channels, out_channels, size, padding=size // 2), scale)


class ResidualBlock(nn.Module):
    """norm, SiLU, conv; plus the time; norm, SiLU, dropout, conv; plus the input. (B, C, H, W) to (B, C', H, W)."""

    def __init__(
        self, in_channels: int, out_channels: int, time_width: int, dropout: float, form: Form = PLAIN
    ) -> None:
        super().__init__()
        self.norm1, self.conv1 = form.norm(in_channels), _conv(in_channels, out_channels)
        self.time = _initialised(nn.Linear(time_width, out_channels))
        self.norm2, self.conv2 = form.norm(out_channels), _conv(out_channels, out_channels, scale=0)
        self.dropout = nn.Dropout(dropout)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else _conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: (B, C, H, W); time: (B, time_width), already activated."""
        h = self.conv1(functional.silu(self.norm1(x))) + self.time(time)[:, :, None, None]
        h = self.conv2(self.dropout(functional.silu(self.norm2(h))))
        return self.shortcut(x) + h


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q^T k / sqrt(D)) v over N places. q, k, v: (B, heads, D, N)."""
    if q.device.type == "cpu" and q.shape[3] <= PLAIN_PLACES:
        weights = torch.softmax(q.transpose(2, 3) @ k * q.shape[2] ** -0.5, -1)
        return v @ weights.transpose(2, 3)
    q, k, v = (one.transpose(2, 3) for one in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(2, 3)


class Attention(nn.Module):
    """Self-attention over all places of the image. (B, C, H, W) to the same."""

    def __init__(self, channels: int, form: Form = PLAIN) -> None:
        super().__init__()
        self.norm, self.heads = form.norm(channels), channels // (form.head_width or channels)
        self.qkv = _conv(channels, 3 * channels, 1)
        self.out = _conv(channels, channels, 1, scale=0)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).unbind(1)
        return x + self.out(_attend(q, k, v).reshape(x.shape))


class Stage(nn.Module):
    """A residual block and, where asked, attention after it."""

    def __init__(self, block: ResidualBlock, attention: Attention | None) -> None:
        super().__init__()
        self.block, self.attention = block, attention or nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: (B, C, H, W); time: (B, time_width)."""
        return self.attention(self.block(x, time))


class Downsample(nn.Conv2d):
    """A convolution of stride 2. (B, C, 2H, 2W) to (B, C, H, W)."""

    def __init__(self, channels: int, pad_end: bool) -> None:
        super().__init__(channels, channels, 3, 2, padding=0 if pad_end else 1)
        _initialised(self)

    def forward(self, input: Tensor) -> Tensor:
        """input: (B, C, 2H, 2W)."""
        return super().forward(input if self.padding[0] else functional.pad(input, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour to twice the size, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W)."""
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class UNet(nn.Module):
    """The network of the paper.

    Args:
        in_channels: of the image.
        out_channels: the same, or twice as many for a learned variance.
        width: channels of the first level.
        multipliers: channels of each level as multiples of `width`; each level halves the side.
        blocks: residual blocks a level.
        attention: levels (0 is the finest) with attention after each block; the middle always has it.
        dropout: inside each block.
        classes: number of labels for a class embedding added to the time's; 0 for none.
        patch: side of the square pixel blocks folded into channels before the first convolution; 1 in the paper.
        recompute: keep no activations inside the stages, but compute them again in the backward pass.
        form: the details in which networks of this family differ.
        embedding: length of the vector added to the time's after a linear layer; 0 for none.
        null: whether there is a learned vector to add in place of the conditions.

    Raises:
        ValueError: in `forward`, when the sides do not divide by patch * 2^(levels - 1).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        dropout: float = 0.0,
        classes: int = 0,
        patch: int = 1,
        recompute: bool = False,
        form: Form = PLAIN,
        embedding: int = 0,
        null: bool = False,
    ) -> None:
        super().__init__()
        self.recompute, self.form = recompute, form
        self.width, self.patch, self.divisor = width, patch, patch * 2 ** (len(multipliers) - 1)
        time_width = 4 * width
        self.time = nn.Sequential(
            _initialised(nn.Linear(width, time_width)),
            nn.SiLU(),
            _initialised(nn.Linear(time_width, time_width)),
        )
        self.label = nn.Embedding(classes, time_width) if classes else None
        self.embed = _initialised(nn.Linear(embedding, time_width)) if embedding else None
        self.null = nn.Parameter(torch.zeros(time_width)) if null else None
        self.stem = _conv(in_channels * (1 + 2 * len(form.fourier)) * patch**2, width)
        widths = [width * multiplier for multiplier in multipliers]

        def stage(in_width: int, out_width: int, attend: bool) -> Stage:
            block = ResidualBlock(in_width, out_width, time_width, dropout, form)
            return Stage(block, Attention(out_width, form) if attend else None)

        self.down = nn.ModuleList()
        skips, current = [width], width
        for level, level_width in enumerate(widths):
            for _ in range(blocks):
                self.down.append(stage(current, level_width, level in attention))
                current = level_width
                skips.append(current)
            if level < len(widths) - 1:
                self.down.append(Downsample(current, form.pad_end))
                skips.append(current)

        self.middle = nn.ModuleList([stage(current, current, True), stage(current, current, False)])

        self.up = nn.ModuleList()
        for level, level_width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(stage(current + skips.pop(), level_width, level in attention))
                current = level_width
            if level > 0:
                self.up.append(Upsample(current))
        self.head = nn.Sequential(form.norm(current), nn.SiLU(), _conv(current, out_channels * patch**2, scale=0))

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        labels: Tensor | None = None,
        embedding: Tensor | None = None,
        dropped: Tensor | None = None,
    ) -> Tensor:
        """x: (B, C, H, W); time: (B,) on the scale 0..1000; labels: int64 (B,); embedding: (B, E).

        `dropped`, bool (B,), says whose conditions give way to the learned null. Returns (B, out_channels, H, W).
        """
        if x.shape[2] % self.divisor or x.shape[3] % self.divisor:
            raise ValueError(f"image sides must divide by {self.divisor} for this U-Net, got {tuple(x.shape[2:])}")
        told = self.time(time_embedding(time, self.width, self.form).to(x.dtype))
        told = functional.silu(sum(self._condition(labels, embedding, dropped), told))

        h = self.stem(functional.pixel_unshuffle(self.form.features(x), self.patch))
        skips = [h]
        for layer in self.down:
            h = self._run(layer, h, told)
            skips.append(h)
        for layer in self.middle:
            h = self._run(layer, h, told)
        for layer in self.up:
            h = self._run(layer, torch.cat([h, skips.pop()], 1) if isinstance(layer, Stage) else h, told)
        return functional.pixel_shuffle(self.head(h), self.patch)

    def _condition(self, labels: Tensor | None, embedding: Tensor | None, dropped: Tensor | None) -> list[Tensor]:
        """What is added to the time, (B, time_width), if anything is: the embedded conditions, or the null."""
        added = []
        for name, layer, value in (("labels", self.label, labels), ("embedding", self.embed, embedding)):
            if layer is not None and value is None:
                raise ValueError(f"this network was trained with {name}; pass {name}=")
            added += [] if layer is None else [layer(value)]
        if dropped is None:
            return added
        if self.null is None:
            raise ValueError("this network was trained without dropping its conditions; it has no null")
        return [torch.where(dropped[:, None], self.null, sum(added[1:], added[0]))]

    def _run(self, layer: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
        if not isinstance(layer, Stage):
            return layer(h)
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(layer, h, embedding, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return layer(h, embedding)
