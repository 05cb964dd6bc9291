"""A diffusers folder as diffusers' unconditional training script leaves one, of a network small enough for minutes.

Run: .venv/bin/python benchmarks/diffusers_model.py DATA FOLDER [--images 40000]. Three levels of 32, 64 and 64
channels, one layer each, attention at the coarsest: 1.1 million weights. Such a one sees 80 images of 32x32 a second
on one core; a rate of 1e-3 instead of the script's 1e-4, for networks a hundred times as large.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from common import options, parsed
from peers import Script
from torch import nn

BATCH, RATE = 16, 1e-3
WIDTHS = (32, 64, 64)


def network(side: int) -> nn.Module:
    """For square images in colour."""
    from diffusers import UNet2DModel

    plain = ("DownBlock2D", "UpBlock2D")
    kinds = [plain, plain, ("AttnDownBlock2D", "AttnUpBlock2D")]
    return UNet2DModel(
        sample_size=side,
        layers_per_block=1,
        block_out_channels=WIDTHS,
        down_block_types=[down for down, _ in kinds],
        up_block_types=[up for _, up in reversed(kinds)],
    )


def main() -> None:
    """Train, with a line each thousand updates, and write the pipeline."""
    parser = options(__doc__ or "")
    parser.add_argument("data", type=Path, help="an .npz with images in colour")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=40_000)
    given = parsed(parser)
    torch.manual_seed(0)
    images = np.load(given.data)["train_images"]
    updates = given.images // BATCH
    script = Script(network(images.shape[1]), images, BATCH, learning_rate=RATE, updates=updates)
    for update in range(1, updates + 1):
        script.step()
        if update % 1000 == 0:
            print(f"{script.images} of {given.images} images", flush=True)
    script.save_model(given.folder)
    print(f"{given.folder}: {script.weights:,} weights, {script.images:,} images of {given.data.stem}")


if __name__ == "__main__":
    main()
