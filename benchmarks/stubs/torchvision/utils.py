"""Images of (B, C, H, W) on [0, 1] as one picture."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional


def make_grid(images: Tensor, nrow: int = 8, padding: int = 2) -> Tensor:
    """Rows of `nrow`, black between and around them; (C, H', W')."""
    images = functional.pad(images, (padding, 0, padding, 0))
    images = functional.pad(images, (0, 0) * 3 + (0, -len(images) % nrow))
    rows = [row.permute(1, 2, 0, 3).flatten(2) for row in images.split(nrow)]
    return functional.pad(torch.cat(rows, 1), (0, padding, 0, padding))


def save_image(images: Tensor, path: str | Path, nrow: int = 8) -> None:
    """`make_grid`, as a file."""
    pixels = make_grid(images.detach().cpu(), nrow).mul(255).add(0.5).clamp(0, 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(path)
