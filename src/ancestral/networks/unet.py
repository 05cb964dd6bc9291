"""The paper's U-Net (appendix B): pre-activation residual blocks, time added to each, attention at some levels.

The same over one dimension (B, C, L) and over three (B, C, D, H, W), written (B, C, ...).

Down: convolutions of stride 2; up: nearest neighbour and a convolution. Every level keeps a skip from each block and
from its down-sampling, so the way up has one block more. The last convolution of a block, of an attention and of the
network start at zero, so that each begins as the identity and the network as 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ancestral.diffusion.processes.types import over
from ancestral.networks.unet_layers import (
    FUNCTIONS,
    LAYERS,
    PLAIN,
    UNetVariant,
    conv,
    fold,
    initialised,
    time_embedding,
    unfold,
)

# Up to so many positions attention on a CPU is two matrix products: measured twice as fast as torch's fused kernel.
PLAIN_PLACES = 256


class ResidualBlock(nn.Module):
    """norm, SiLU, conv; plus the time; norm, SiLU, dropout, conv; plus the input. (B, C, ...) to (B, C', ...)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_width: int,
        dropout: float,
        variant: UNetVariant = PLAIN,
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        self.norm1, self.conv1 = variant.norm(in_channels), conv(in_channels, out_channels, dimensions)
        self.time = initialised(nn.Linear(time_width, out_channels * (2 if variant.scale_shift else 1)))
        self.activated, self.scale_shift = variant.activated, variant.scale_shift
        self.norm2, self.conv2 = variant.norm(out_channels), conv(out_channels, out_channels, dimensions, scale=0)
        self.dropout = nn.Dropout(dropout)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else conv(in_channels, out_channels, dimensions, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: (B, C, ...); time: (B, time_width), already activated."""
        h = self.conv1(self.activated(self.norm1(x)))
        if self.scale_shift:
            scale, shift = self.time(time).chunk(2, 1)
            h = self.norm2(h) * (1 + over(scale, h)) + over(shift, h)
        else:
            h = self.norm2(h + over(self.time(time), h))
        h = self.conv2(self.dropout(self.activated(h)))
        return self.shortcut(x) + h


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q^T k / sqrt(D)) v over N positions. q, k, v: (B, heads, D, N)."""
    if q.device.type == "cpu" and q.shape[3] <= PLAIN_PLACES:
        weights = torch.softmax(q.transpose(2, 3) @ k * q.shape[2] ** -0.5, -1)
        return v @ weights.transpose(2, 3)
    q, k, v = (one.transpose(2, 3) for one in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(2, 3)


class Attention(nn.Module):
    """Self-attention over all positions. (B, C, ...) to the same."""

    def __init__(
        self, channels: int, variant: UNetVariant = PLAIN, dimensions: int = 2, norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.norm, self.heads = norm or variant.norm(channels), channels // (variant.head_width or channels)
        self.qkv = conv(channels, 3 * channels, dimensions, 1)
        self.out = conv(channels, channels, dimensions, 1, scale=0)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, ...)."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).unbind(1)
        return x + self.out(_attend(q, k, v).reshape(x.shape))


class Stage(nn.Module):
    """A residual block and, where asked, attention after it."""

    def __init__(self, block: ResidualBlock, attention: Attention | None) -> None:
        super().__init__()
        self.block, self.attention = block, attention or nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: (B, C, ...); time: (B, time_width)."""
        return self.attention(self.block(x, time))


class Downsample(nn.Module):
    """A convolution of stride 2. (B, C, 2n, ...) to (B, C, n, ...)."""

    def __init__(self, channels: int, pad_end: bool, dimensions: int = 2) -> None:
        super().__init__()
        layer = initialised(LAYERS[dimensions](channels, channels, 3))
        self.weight, self.bias = layer.weight, layer.bias
        self.dimensions, self.pad_end = dimensions, pad_end

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, 2n, ...)."""
        padding = 0 if self.pad_end else 1
        x = functional.pad(x, (0, 1) * self.dimensions) if self.pad_end else x
        return FUNCTIONS[self.dimensions](x, self.weight, self.bias, 2, padding)


class Upsample(nn.Module):
    """Nearest neighbour to twice the size, then a convolution."""

    def __init__(self, channels: int, dimensions: int = 2) -> None:
        super().__init__()
        self.conv = conv(channels, channels, dimensions)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, n, ...) to (B, C, 2n, ...)."""
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class UNet(nn.Module):
    """The network of the paper.

    Args:
        in_channels: of the data.
        out_channels: the same, or twice as many for a learned variance.
        width: channels of the first level.
        multipliers: channels of each level as multiples of `width`, rounded; each level halves the side.
        blocks: residual blocks a level.
        attention: levels (0 is the finest) with attention after each block; the middle always has it.
        dropout: inside each block.
        classes: number of labels for a class embedding added to the time's; 0 for none.
        patch: side of the blocks of pixels folded into channels before the first convolution; 1 in the paper.
        recompute: keep no activations inside the stages, but compute them again in the backward pass.
        variant: the details in which networks of this family differ.
        embedding: length of the vector added to the time's after a linear layer; 0 for none.
        null: whether there is a learned vector to add in place of the conditions.
        augmentation: length of the vector that says how an image was moved, added to the time's after a linear layer
            without bias, which begins at 0; 0 for none.
        dimensions: 1 for signals (B, C, L), 2 for images (B, C, H, W), 3 for volumes (B, C, D, H, W).

    Raises:
        ValueError: in `forward`, when the sides do not divide by patch * 2^(levels - 1).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int = 128,
        multipliers: Sequence[float] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        dropout: float = 0.0,
        classes: int = 0,
        patch: int = 1,
        recompute: bool = False,
        variant: UNetVariant = PLAIN,
        embedding: int = 0,
        null: bool = False,
        augmentation: int = 0,
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        self.recompute, self.variant = recompute, variant
        self.width, self.patch, self.divisor = width, patch, patch * 2 ** (len(multipliers) - 1)
        time_width = variant.time_width or 4 * width
        self.time = nn.Sequential(
            initialised(nn.Linear(width, time_width)),
            nn.SiLU(),
            initialised(nn.Linear(time_width, time_width)),
        )
        self.label = nn.Embedding(classes, time_width) if classes else None
        self.embed = initialised(nn.Linear(embedding, time_width)) if embedding else None
        self.null = nn.Parameter(torch.zeros(time_width)) if null else None
        self.augmentation = nn.Linear(augmentation, time_width, bias=False) if augmentation else None
        if self.augmentation is not None:
            nn.init.zeros_(self.augmentation.weight)
        self.stem = conv(in_channels * (1 + 2 * len(variant.fourier)) * patch**dimensions, width, dimensions)
        widths = [round(width * multiplier) for multiplier in multipliers]

        def stage(in_width: int, out_width: int, attend: bool) -> Stage:
            block = ResidualBlock(in_width, out_width, time_width, dropout, variant, dimensions)
            return Stage(block, Attention(out_width, variant, dimensions) if attend else None)

        self.down = nn.ModuleList()
        skips, current = [width], width
        for level, level_width in enumerate(widths):
            for _ in range(blocks):
                self.down.append(stage(current, level_width, level in attention))
                current = level_width
                skips.append(current)
            if level < len(widths) - 1:
                self.down.append(Downsample(current, variant.pad_end, dimensions))
                skips.append(current)

        middle = stage(current, current, False)
        if variant.middle_attention:
            middle.attention = Attention(current, variant, dimensions, variant.middle_norm(current))
        self.middle = nn.ModuleList([middle, stage(current, current, False)])

        self.up = nn.ModuleList()
        for level, level_width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(stage(current + skips.pop(), level_width, level in attention))
                current = level_width
            if level > 0:
                self.up.append(Upsample(current, dimensions))
        last = conv(current, out_channels * patch**dimensions, dimensions, scale=0)
        self.head = nn.Sequential(variant.norm(current), nn.SiLU(), last)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        labels: Tensor | None = None,
        embedding: Tensor | None = None,
        dropped: Tensor | None = None,
        augmentation: Tensor | None = None,
    ) -> Tensor:
        """x: (B, C, ...); time: (B,) on the scale 0..1000; labels: int64 (B,); embedding: (B, E).

        `dropped`, bool (B,), says whose conditions give way to the learned null; `augmentation`, (B, A), how images
        were moved, and None that they were not. Returns (B, out_channels, ...).
        """
        if any(side % self.divisor for side in x.shape[2:]):
            raise ValueError(f"image sides must divide by {self.divisor} for this U-Net, got {tuple(x.shape[2:])}")
        temb = self.time(time_embedding(time, self.width, self.variant).to(x.dtype))
        temb = sum(self._condition(labels, embedding, dropped), temb)
        if self.augmentation is not None and augmentation is not None:
            temb = temb + self.augmentation(augmentation)
        temb = self.variant.activated(temb)

        h = self.stem(fold(self.variant.features(x), self.patch))
        skips = [h]
        for layer in self.down:
            h = self._run(layer, h, temb)
            skips.append(h)
        for layer in self.middle:
            h = self._run(layer, h, temb)
        for layer in self.up:
            h = self._run(layer, torch.cat([h, skips.pop()], 1) if isinstance(layer, Stage) else h, temb)
        return unfold(self.head(h), self.patch)

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
            return checkpoint(layer, h, embedding, use_reentrant=False)
        return layer(h, embedding)
