"""A small convolutional network that tells the classes of one set of images, to look at others with."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from ancestral.diffusion.processes.levels import HALF_RANGE

GRID = 16  # patches a side, at most
WIDTH, FEATURES = 32, 128


class Classifier(nn.Module):
    """Images in patches to a grid, three 3x3 convolutions with batch norm, of which the second halves it, and a mean.

    Args:
        shape: of the images, (C, H, W).
        classes: how many there are.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, *sides = shape
        self.patch = max(1, -(-max(sides) // GRID))
        widths = (channels * self.patch**2, WIDTH, 2 * WIDTH, FEATURES)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, 2 if layer == 1 else 1, 1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(inplace=True),
                )
                for layer, (before, after) in enumerate(pairwise(widths))
            )
        )
        self.last = nn.Linear(FEATURES, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Bytes (B, C, H, W) to features (B, 128), of which `last` makes the logits of the classes."""
        height, width = (-side % self.patch for side in images.shape[2:])
        x = functional.pad(images.to(self.last.weight.dtype) / HALF_RANGE - 1, (0, width, 0, height))
        x = functional.pixel_unshuffle(x, self.patch)
        return self.layers(x.contiguous(memory_format=torch.channels_last)).mean((2, 3))
