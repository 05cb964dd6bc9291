"""A small convolutional network that gives images a score: the critic of a generator, laid out as DCGAN's.

Each layer is divided by its largest singular value (spectral normalisation, Miyato et al. 2018), which bounds how fast
the score changes with the image. That value is found from the weights alone, as the Schatten norm of order 32, at most
a fifth above it for 200 rows: the power iteration of the paper keeps a state, which would depend on how many parts a
batch is divided into.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

WIDTH = 48  # channels at half the images' side
WIDEST = 4  # times as many
SMALLEST = 8  # the side down to which it is halved
SQUARINGS = 4


def largest_singular_value(matrix: Tensor) -> Tensor:
    """(tr (M M^T)^16)^(1/32), between the largest singular value of M and rows^(1/32) times it."""
    power, size = matrix @ matrix.mT, matrix.new_ones(())
    for squaring in range(SQUARINGS + 1):
        trace = power.trace()
        size = size * trace**0.5**squaring
        power = torch.linalg.matrix_power(power / trace, 2)
    return size.sqrt()


class Bounded(nn.Module):
    """A weight divided by the largest singular value of its matrix (outputs, the rest)."""

    def forward(self, weight: Tensor) -> Tensor:
        """To the same shape, float32 under autocast too."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight / largest_singular_value(weight.flatten(1))


def bounded(layer: nn.Module) -> nn.Module:
    """The layer with its weight so divided."""
    parametrize.register_parametrization(layer, "weight", Bounded())
    return layer


class Critic(nn.Module):
    """Images (B, C, H, W) on [-1, 1] and what they are conditioned on, to scores (B,).

    A condition adds the product of its embedding with the last features (Miyato and Koyama 2018).

    Args:
        shape: (C, H, W).
        classes: number of labels; 0 for none.
        embedding: length of the vector of an embedding; 0 for none.
        augmentation: length of the vector that says how an image was moved; 0 for none.
    """

    def __init__(self, shape: Sequence[int], classes: int = 0, embedding: int = 0, augmentation: int = 0) -> None:
        super().__init__()
        channels, *sides = shape
        self.layers = nn.Sequential(bounded(nn.Conv2d(channels, WIDTH, 6, 2, 2)), nn.LeakyReLU(0.2))
        width, sides = WIDTH, [side // 2 for side in sides]
        while max(sides) > SMALLEST and min(sides) > 1:
            wider = min(2 * width, WIDEST * WIDTH)
            self.layers.extend([bounded(nn.Conv2d(width, wider, 4, 2, 1)), nn.LeakyReLU(0.2)])
            width, sides = wider, [side // 2 for side in sides]
        self.layers.extend([bounded(nn.Conv2d(width, WIDEST * WIDTH, 3, 1, 1)), nn.LeakyReLU(0.2), nn.Flatten()])
        features = WIDEST * WIDTH * sides[0] * sides[1]
        self.score = bounded(nn.Linear(features, 1))
        lengths = {"labels": classes, "embedding": embedding, "augmentation": augmentation}
        self.conditions = nn.ModuleDict(
            {
                name: nn.Embedding(length, features) if name == "labels" else nn.Linear(length, features, bias=False)
                for name, length in lengths.items()
                if length
            }
        )

    def forward(self, x: Tensor, dropped: Tensor | None = None, **cond: Tensor) -> Tensor:
        """x: (B, C, H, W); `dropped`, bool (B,), says whose labels and embedding do not count."""
        features = self.layers(x)
        score = self.score(features)[:, 0]
        for name, value in cond.items():
            product = (functional.normalize(self.conditions[name](value), dim=1) * features).sum(1)
            score = score + (product if dropped is None or name == "augmentation" else product * ~dropped)
        return score.to(x.dtype)
