"""Steps from a PIL image to a tensor."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


class Compose:
    """One step after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        """Take all the steps."""
        for transform in self.transforms:
            image = transform(image)
        return image


class Lambda:
    """Any function."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, image: Any) -> Any:
        """The function's value."""
        return self.function(image)


class Resize:
    """To (height, width), bilinear."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image itself where it has that size."""
        size = self.size[::-1]
        return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


class CenterCrop:
    """The middle (height, width)."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        """For images at least as large."""
        height, width = self.size
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))


class RandomHorizontalFlip:
    """Mirror one image in two."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """Drawn from torch's global generator."""
        return ImageOps.mirror(image) if torch.rand(()) < 0.5 else image


class ToTensor:
    """8-bit images to float32 (C, H, W) on [0, 1]."""

    def __call__(self, image: Image.Image) -> Tensor:
        """Grey images have one channel."""
        return torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1).float() / 255
