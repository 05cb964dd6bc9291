"""The others, as their users run them: their own networks, samplers, trainer and defaults."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

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


def imported(package: str):
    """A package, on the few functions of torchvision that it uses."""
    sys.path.insert(0, str(STUBS))
    try:
        return importlib.import_module(package)
    finally:
        sys.path.remove(str(STUBS))


def lucidrains():
    """The package of `lucidrains`."""
    return imported("denoising_diffusion_pytorch")


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

    def state(self) -> dict[str, Any]:
        """All that it goes on from."""
        parts = {"network": self.network, "optimizer": self.optimizer, "rates": self.rates}
        return {"images": self.images, **{name: one.state_dict() for name, one in parts.items()}}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there, with a new order of the images."""
        self.images = state["images"]
        for name in ("network", "optimizer", "rates"):
            getattr(self, name).load_state_dict(state[name])

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
        """Images (count, 3, H, W) on [0, 1] by DDIMPipeline, of what `save_model` kept.

        In bfloat16, as ours: half the time of float32 on an EPYC, and 1 % of its eps away.
        """
        from diffusers import DDIMPipeline

        with silence(), torch.autocast("cpu", torch.bfloat16):
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

    def state(self) -> dict[str, Any]:
        """All that it goes on from."""
        trainer = self.trainer
        parts = {"model": trainer.model, "opt": trainer.opt, "ema": trainer.ema}
        return {"step": trainer.step, **{name: one.state_dict() for name, one in parts.items()}}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there, with a new order of the images."""
        self.trainer.step = state["step"]
        for name in ("model", "opt", "ema"):
            getattr(self.trainer, name).load_state_dict(state[name])

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


def small_network(channels: int, side: int, width: int) -> nn.Module:
    """smalldiffusion's U-Net as in its example of Fashion-MNIST: levels (1, 1, 2), attention at half the side.

    Its input is scaled by (1 + sigma^2)^-1/2.
    """
    package = imported("smalldiffusion")
    return package.Scaled(package.Unet)(
        side, channels, channels, ch=width, ch_mult=(1, 1, 2), attn_resolutions=(side // 2,)
    )


class Small:
    """smalldiffusion's training loop on its U-Net: AdamW at 7e-4, batches of 128, DDPM sigmas, an average with 0.995.

    Its example of this network has width 64, sigmas as of `SmallToTwenty`, an average with 0.999 and mirrored images,
    and takes batches of 1024, of which no minute of a CPU holds many.

    Args:
        images: (N, H, H, C), H a multiple of four.
        width: of the network.
        batch_size: of the loop.
    """

    RATE = 7e-4

    def __init__(self, images: np.ndarray, width: int, batch_size: int = 128) -> None:
        self.width, self.shape, self.batch_size, self.images = width, images.shape[1:], batch_size, 0
        self.network = self.made(images.shape[3], images.shape[1], width)
        self.average = copy.deepcopy(self.network)
        self.weights = sum(value.numel() for value in self.network.parameters())
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        self.loader = DataLoader(x, batch_size, shuffle=True, drop_last=True)  # pyright: ignore[reportArgumentType]
        self.updates = self.loop()
        self.optimizer = self.begun()

    @staticmethod
    def made(channels: int, side: int, width: int) -> nn.Module:
        """The network."""
        return small_network(channels, side, width)

    @staticmethod
    def sigmas() -> Any:
        """Their schedule: to 157."""
        return imported("smalldiffusion").ScheduleDDPM()

    def loop(self) -> Iterator[object]:
        """Their loop, which gives its variables after each loss, before the update."""
        package = imported("smalldiffusion")
        accelerator = imported("accelerate").Accelerator(cpu=True)
        yield from package.training_loop(
            self.loader, self.network, self.sigmas(), accelerator, epochs=10**6, lr=self.RATE
        )

    def begun(self) -> Any:
        """The optimiser, which their loop makes and gives with its first loss."""
        with silence():
            now: Any = next(self.updates)
        return now.optimizer

    def decay(self) -> float:
        """Of the average: less at first, as torch-ema has it, which their example takes."""
        updates = self.images / self.batch_size
        return min(0.995, (1 + updates) / (10 + updates))

    @torch.no_grad()
    def _average(self) -> None:
        for average, value in zip(self.average.parameters(), self.network.parameters(), strict=True):
            average.lerp_(value, 1 - self.decay())

    def step(self) -> None:
        """One update, and in their loop the loss of the next batch."""
        with silence():
            next(self.updates)
        self.images += self.batch_size
        self._average()

    def state(self) -> dict[str, Any]:
        """All that it goes on from."""
        parts = {"network": self.network, "average": self.average, "optimizer": self.optimizer}
        return {"images": self.images, **{name: one.state_dict() for name, one in parts.items()}}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there, with a new order of the images."""
        self.images = state["images"]
        for name in ("network", "average"):
            getattr(self, name).load_state_dict(state[name])
        self.updates = self.loop()  # whose first loss is of these weights
        self.optimizer = self.begun()
        self.optimizer.load_state_dict(state["optimizer"])

    def save_model(self, folder: Path) -> None:
        """What drawing needs: the averaged weights, and what they are of."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.clone().contiguous() for name, value in self.average.state_dict().items()}
        about = {"channels": str(self.shape[2]), "side": str(self.shape[0]), "width": str(self.width)}
        safetensors.torch.save_file(weights, folder / "model.safetensors", about)

    @classmethod
    def opened(cls, folder: Path) -> nn.Module:
        """The network that `save_model` kept."""
        with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
            about = file.metadata()
            network = cls.made(*(int(about[name]) for name in ("channels", "side", "width")))
            network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 # no mapping
        return network.eval()

    @classmethod
    def draw(cls, folder: Path, count: int, steps: int) -> Tensor:
        """Images (count, C, H, W) on [0, 1] by the accelerated sampler with the strength of their example, 1.6."""
        package, network = imported("smalldiffusion"), cls.opened(folder)
        sigmas = cls.sigmas().sample_sigmas(steps)
        accelerator = imported("accelerate").Accelerator(cpu=True)
        drawn = []
        for size in rounds(count):
            *_, x0 = package.samples(network, sigmas, gam=1.6, batchsize=size, accelerator=accelerator)
            drawn.append(x0)
        return torch.cat(drawn).add(1).div(2).clamp(0, 1)


class SmallToTwenty(Small):
    """The same with the sigmas of its example of this network: 0.01 to 20, evenly in the logarithm."""

    @staticmethod
    def sigmas() -> Any:
        """Their schedule."""
        return imported("smalldiffusion").ScheduleLogLinear(N=800, sigma_min=0.01, sigma_max=20)


class Preconditioned(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) of Karras et al. 2022, Table 1, with sigma_data 1/2.

    F is smalldiffusion's U-Net, which embeds sigma by its logarithm, as c_noise does; with their dropout, 0.13.
    """

    DATA = 0.5

    def __init__(self, channels: int, side: int, width: int) -> None:
        super().__init__()
        self.network = imported("smalldiffusion").Unet(
            side, channels, channels, ch=width, ch_mult=(1, 1, 2), attn_resolutions=(side // 2,), dropout=0.13
        )

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x: (B, C, H, W); sigma: (B, 1, 1, 1)."""
        total = sigma.square() + self.DATA**2
        skip, out, scale = self.DATA**2 / total, sigma * self.DATA / total.sqrt(), total.rsqrt()
        return skip * x + out * self.network(scale * x, sigma)


class Edm(Small):
    """EDM's recipe (Karras et al. 2022), written from the paper, on a network of that size.

    ln sigma from N(-1.2, 1.2^2), the loss weighed by (sigma^2 + 1/4) / (sigma / 2)^2, Adam at 1e-3; an average whose
    half-life is half a million images, and at most a twentieth of those seen. Their rate rises over ten million images,
    here over ten thousand.
    """

    RATE = 1e-3

    @staticmethod
    def made(channels: int, side: int, width: int) -> nn.Module:
        """The network."""
        return Preconditioned(channels, side, width)

    def decay(self) -> float:
        """Of the average."""
        return 0.5 ** (self.batch_size / min(500_000, self.images / 20))

    def begun(self) -> Any:
        """The optimiser."""
        return torch.optim.Adam(self.network.parameters(), self.RATE)

    def loop(self) -> Iterator[object]:
        """Loss and update."""
        while True:
            for x0 in self.loader:
                self.network.train()
                sigma = torch.exp(torch.randn(len(x0), 1, 1, 1) * 1.2 - 1.2)
                weight = (sigma.square() + 0.25) / (sigma / 2).square()
                loss = (weight * (self.network(x0 + sigma * torch.randn_like(x0), sigma) - x0).square()).mean()
                for group in self.optimizer.param_groups:
                    group["lr"] = self.RATE * min((self.images + self.batch_size) / 10_000, 1)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                yield self

    @classmethod
    @torch.no_grad()
    def draw(cls, folder: Path, count: int, steps: int) -> Tensor:
        """Images (count, C, H, W) on [0, 1] by Heun's method without noise (their Algorithm 1): 2 steps - 1 calls."""
        network: Any = cls.opened(folder)
        (channels, side), sigmas = (network.network.input_dims[:2]), edm_sigmas(steps)
        drawn = []
        for size in rounds(count):
            x = torch.randn(size, channels, side, side) * sigmas[0]
            for now, after in pairwise(sigmas):
                x = heun_step(lambda x, sigma, size=size: network(x, sigma.expand(size, 1, 1, 1)), x, now, after)
            drawn.append(x)
        return torch.cat(drawn).add(1).div(2).clamp(0, 1)


def edm_sigmas(steps: int) -> Tensor:
    """Equation 5 of Karras et al. 2022, sigma from 80 to 0.002 with rho 7, and 0 at the end: (steps + 1,)."""
    high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
    return torch.cat([torch.linspace(high, low, steps) ** 7, torch.zeros(1)])


def heun_step(denoise: Callable[[Tensor, Tensor], Tensor], x: Tensor, now: Tensor, after: Tensor) -> Tensor:
    """From x at the noise `now` to the noise `after`; Euler's step where that is 0."""
    slope = (x - denoise(x, now)) / now
    euler = x + (after - now) * slope
    if after == 0:
        return euler
    return x + (after - now) * (slope + (euler - denoise(euler, after)) / after) / 2


def rounds(count: int) -> list[int]:
    """Sizes of the batches in which so many images are drawn."""
    return [min(ROUND, count - first) for first in range(0, count, ROUND)]
