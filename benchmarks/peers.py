"""The others, as their users run them: their own networks, samplers, trainer and defaults."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from common import ROOT, silence
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

STUBS = ROOT / "benchmarks" / "stubs"
ROUND = 50  # images drawn at a time
SIDE = 32  # of the images that the others see


def lucidrains():
    """The package `denoising_diffusion_pytorch`, on the few functions of torchvision that it uses."""
    sys.path.insert(0, str(STUBS))
    try:
        import denoising_diffusion_pytorch
    finally:
        sys.path.remove(str(STUBS))
    return denoising_diffusion_pytorch


def padded(images: np.ndarray) -> np.ndarray:
    """(N, H, W, C) with black borders, to a side that their networks can halve."""
    borders = [((SIDE - side) // 2, (SIDE - side + 1) // 2) for side in images.shape[1:3]]
    return np.pad(images, ((0, 0), *borders, (0, 0)))


def cropped(images: Tensor, shape: tuple[int, int, int]) -> np.ndarray:
    """(N, C', H', W') on [0, 1] to bytes (N, H, W, C): the middle, and grey where the data are."""
    height, width, channels = shape
    top, left = ((have - want) // 2 for have, want in zip(images.shape[2:], (height, width), strict=True))
    images = images[:, :, top : top + height, left : left + width]
    images = images.mean(1, keepdim=True) if channels == 1 else images
    return images.mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def write_pngs(images: np.ndarray, folder: Path) -> Path:
    """A folder that holds each image as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(folder / f"{number:06d}.png")
    return folder


def script_network() -> nn.Module:
    """The UNet2DModel that diffusers' unconditional training script makes when none is named: 114 million weights."""
    from diffusers import UNet2DModel

    plain = ("DownBlock2D", "UpBlock2D")
    kinds = [plain, plain, plain, plain, ("AttnDownBlock2D", "AttnUpBlock2D"), plain]
    return UNet2DModel(
        sample_size=SIDE,
        layers_per_block=2,
        block_out_channels=(128, 128, 256, 256, 512, 512),
        down_block_types=[down for down, _ in kinds],
        up_block_types=[up for _, up in reversed(kinds)],
    )


class Script:
    """diffusers' unconditional training script with its defaults, on images in memory.

    Two may be others: the learning rate, and the updates over which it falls.

    Three channels; AdamW, 1e-4, (0.95, 0.999), decay 1e-6; 500 updates of warm-up, then a cosine over 100 epochs; norms
    of gradients clipped at 1; no average of the weights; DDPMScheduler, linear, epsilon.
    """

    def __init__(
        self,
        network: nn.Module,
        images: np.ndarray,
        batch_size: int = 16,
        learning_rate: float = 1e-4,
        updates: int | None = None,
    ) -> None:
        from diffusers import DDPMScheduler
        from diffusers.optimization import get_scheduler

        self.network, self.scheduler = network, DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
        self.loader = DataLoader(x, batch_size, shuffle=True)  # pyright: ignore[reportArgumentType]
        self.optimizer = torch.optim.AdamW(network.parameters(), learning_rate, (0.95, 0.999), weight_decay=1e-6)
        self.rates = get_scheduler(
            "cosine", self.optimizer, num_warmup_steps=500, num_training_steps=updates or len(self.loader) * 100
        )
        self.images, self.batches = 0, iter(())
        self.weights = sum(value.numel() for value in network.parameters())

    def step(self) -> None:
        """One update."""
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.loader)
            batch = next(self.batches)
        self.network.train()
        clean = batch.float().div(127.5).sub(1).expand(-1, 3, -1, -1)
        noise = torch.randn_like(clean)
        times = torch.randint(0, 1000, (len(clean),))
        output = self.network(self.scheduler.add_noise(clean, noise, times), times).sample
        nn.functional.mse_loss(output, noise).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.rates.step()
        self.optimizer.zero_grad()
        self.images += len(clean)

    def save(self, folder: Path) -> None:
        """A checkpoint as the script's: the network, the optimiser, the learning rate's course."""
        self.network.save_pretrained(folder / "unet")
        torch.save(self.optimizer.state_dict(), folder / "optimizer.bin")
        torch.save(self.rates.state_dict(), folder / "scheduler.bin")

    def save_model(self, folder: Path) -> None:
        """What drawing needs."""
        from diffusers import DDPMPipeline

        DDPMPipeline(self.network, self.scheduler).save_pretrained(folder)

    @staticmethod
    def draw(folder: Path, count: int, steps: int) -> Tensor:
        """Images (count, 3, H, W) on [0, 1] by DDIMPipeline, of what `save_model` kept."""
        from diffusers import DDIMPipeline

        with silence():
            pipeline = DDIMPipeline.from_pretrained(folder)
            drawn = [
                pipeline(batch_size=size, num_inference_steps=steps, output_type="np").images for size in rounds(count)
            ]
        return torch.from_numpy(np.concatenate(drawn)).permute(0, 3, 1, 2)


MULTIPLIERS = (1, 2, 4, 8)  # of width 64: lucidrains' default levels


def lucid_process(channels: int, steps: int | None = None, multipliers: tuple[int, ...] = MULTIPLIERS) -> nn.Module:
    """lucidrains' process and network with their defaults (v, sigmoid; width 64, four levels): 36 million weights."""
    package = lucidrains()
    network = package.Unet(64, dim_mults=multipliers, channels=channels)
    return package.GaussianDiffusion(network, image_size=SIDE, sampling_timesteps=steps)


class Lucid:
    """lucidrains' Trainer with its defaults, but for what would measure or draw while it trains, and mirrored images.

    Adam, 1e-4, (0.9, 0.99), batches of 16, norms of gradients clipped at 1, an average with 0.995 every ten updates.

    Args:
        folder: of its results, with the images as files in `images`.
        channels: of the images.
        multipliers: of the width 64, one a level.
    """

    def __init__(self, folder: Path, channels: int, multipliers: tuple[int, ...] = MULTIPLIERS) -> None:
        with silence():
            self.trainer = lucidrains().Trainer(
                lucid_process(channels, multipliers=multipliers),
                folder / "images",
                results_folder=folder,
                augment_horizontal_flip=False,
                calculate_fid=False,
                save_and_sample_every=10**9,
            )
        self.weights = sum(value.numel() for value in self.trainer.model.parameters())

    @property
    def images(self) -> int:
        """Seen so far."""
        return self.trainer.step * self.trainer.batch_size

    def step(self) -> None:
        """One update by their loop."""
        self.trainer.train_num_steps = self.trainer.step + 1
        with silence():
            self.trainer.train()

    def save(self, folder: Path) -> None:
        """Their checkpoint."""
        self.trainer.results_folder = folder
        self.trainer.save(0)

    def save_model(self, folder: Path) -> None:
        """What drawing needs: the averaged weights, which their trainer draws from."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.clone() for name, value in self.trainer.ema.ema_model.state_dict().items()}
        safetensors.torch.save_file(weights, folder / "model.safetensors")

    @staticmethod
    def draw(folder: Path, count: int, steps: int) -> Tensor:
        """Images (count, C, H, W) on [0, 1] by their DDIM, of what `save_model` kept."""
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        with silence():
            process = lucid_process(weights["model.init_conv.weight"].shape[1], steps).eval()
            process.load_state_dict(weights)
            return torch.cat([process.sample(batch_size=size) for size in rounds(count)])


def rounds(count: int) -> list[int]:
    """Sizes of the batches in which so many images are drawn."""
    return [min(ROUND, count - first) for first in range(0, count, ROUND)]
