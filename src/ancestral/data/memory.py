"""Images that are in memory already: an array, a torch data set, a list of PIL images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ancestral.data.dataset import DataOptions, ImageSet, Rows, labelled
from ancestral.data.decode import adapt_all, from_pil
from ancestral.errors import UserError

NAME = "images in memory"  # what they are called where a folder has its path
KINDS = (
    "give the path of a folder, a uint8 array (N, H, W) or (N, H, W, C), a torch data set of images or of images "
    "with labels, or a list of PIL images"
)


def image_set(data: object, options: DataOptions) -> ImageSet:
    """All the images, at the size and with the channels of `options`.

    Raises:
        UserError: naming the first thing that is no image.
    """
    if isinstance(data, np.ndarray):
        images, labels, classes, missing = _of_array(data, options), None, (), 0
    else:
        images, labels, classes, missing = _of_items(data, options)
    names = tuple(f"images[{row}]" for row in range(len(images)))
    return ImageSet(images, labels, classes, names, unlabelled=missing)


def _of_array(array: np.ndarray, options: DataOptions) -> np.ndarray | Rows:
    """uint8 (N, H, W, C)."""
    array = array[..., None] if array.ndim == 3 else array
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3, 4) or 0 in array.shape:
        raise UserError(f"an array of {array.dtype} {array.shape} is not understood; {KINDS}")
    return adapt_all(array, options)


def _of_items(data: Any, options: DataOptions) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...], int]:
    """(uint8 (N, H, W, C), labels or None, class names, labels that are missing) of what has a length and items."""
    if isinstance(data, (str, bytes, dict)) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise UserError(f"{type(data).__name__} is not understood as images; {KINDS}")
    if not len(data):
        raise UserError(f"{NAME}: there are none; {KINDS}")
    grey, images, labels = True, [], []
    for row in range(len(data)):
        item = data[row]
        image, label = (item[0], item[1]) if isinstance(item, (tuple, list)) and len(item) > 1 else (item, None)
        opened = picture(image, f"images[{row}]")
        grey = grey and opened.mode in ("1", "L", "LA")
        images.append(from_pil(opened, options.channels or 3, options.size, options.background))
        labels.append(_label(label))
    if grey and options.channels is None:  # of grey in three channels each is what one would be
        images = [image[..., :1] for image in images]
    for row, image in enumerate(images):
        if image.shape != images[0].shape:
            (height, width), (other, wide) = images[0].shape[:2], image.shape[:2]
            raise UserError(f"images[{row}]: {other}x{wide} pixels, the first has {height}x{width}; give a size")
    names = getattr(data, "classes", None)
    named = isinstance(names, Sequence) and all(isinstance(name, str) for name in names)
    numbers, classes, missing = labelled(labels, tuple(names) if named and names else None)
    if numbers is not None and numbers.max() >= len(classes):
        raise UserError(f"{NAME}: the label {numbers.max()} is none of the {len(classes)} classes of the data set")
    return np.stack(images), numbers, classes, missing


def _label(label: Any) -> int | None:
    if isinstance(label, torch.Tensor) and label.ndim == 0 and not label.is_floating_point():
        label = label.item()
    return int(label) if isinstance(label, (int, np.integer)) and label >= 0 else None


def picture(image: object, name: str) -> Image.Image:
    """One image for Pillow; `name` is for messages.

    Raises:
        UserError: for what is no image of 8 bits a value.
    """
    if isinstance(image, torch.Tensor):
        image = _bytes_of(image, name)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        image = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
        if image.size and (image.ndim == 2 or image.shape[2] in (3, 4)):
            return Image.fromarray(image)
    if not isinstance(image, Image.Image):
        what = f"{type(image).__name__} {getattr(image, 'dtype', '')} {getattr(image, 'shape', '')}".strip()
        raise UserError(f"{name}: {what} is no image; {KINDS}")
    if image.mode == "F" or image.mode.startswith("I"):
        raise UserError(f"{name}: more than 8 bits a value; scale it to 0..255 and convert it to 8 bits first")
    return image


def _bytes_of(tensor: torch.Tensor, name: str) -> np.ndarray:
    """(H, W, C) of a tensor (C, H, W): bytes, or bytes divided by 255 as torchvision gives them."""
    scaled = tensor * 255 if tensor.is_floating_point() else tensor
    whole = scaled.round().clamp(0, 255).to(torch.uint8)
    exact = tensor.dtype == torch.uint8 or (tensor.is_floating_point() and bool((scaled - whole).abs().max() < 0.02))
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4) or not tensor.numel() or not exact:
        raise UserError(
            f"{name}: a tensor of {tensor.dtype} {tuple(tensor.shape)} is not understood; give (C, H, W) of "
            "bytes, or of bytes divided by 255, without other transforms"
        )
    return whole.permute(1, 2, 0).cpu().numpy()
