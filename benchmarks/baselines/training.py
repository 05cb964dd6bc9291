"""One way to train them all: by images seen, with the package's learning rate, optimiser and average of the weights."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ancestral.data.dataset import ImageSet
from ancestral.diffusion.processes.streams import Streams, key
from ancestral.networks.ema import PowerAverage
from ancestral.networks.muon import Muon
from ancestral.runs.compute_format import has_bfloat16
from ancestral.training.prefetch import batch as training_batch
from ancestral.training.trainer import learning_rate

WARMUP = 0.05  # share of the run with a rising learning rate, as `ancestral train` has it
WIDTH = 0.05  # of the average, relative to the run: that of the preset `images`
PROBE = 6.0  # seconds of measuring the speed
STEPS = 10  # at a time
CLIP = 1.0  # the largest norm of a gradient


class Network(Protocol):
    """What is kept of a training: it draws."""

    def draw(self, noise: Streams) -> Tensor:
        """Images (B, C, H, W) on [-1, 1], one of each stream."""
        ...


class Explicit(Network, Protocol):
    """One with a likelihood."""

    def nats(self, x: Tensor, noise: Streams) -> Tensor:
        """An estimate of an upper bound on -log P(bytes) in nats an image, (B,). x: (B, C, H, W) on [-1, 1]."""
        ...


class Learning(Protocol):
    """A network and how it learns."""

    network: nn.Module  # the one that draws, of whose weights the average is kept
    parts: nn.ModuleList  # every network that learns

    def update(self, x: Tensor, noise: Streams, rate: float) -> None:
        """One update from images (B, C, H, W) on [-1, 1] at this learning rate."""
        ...


@dataclass(frozen=True)
class Method:
    """How a baseline is trained.

    Args:
        make: from the images' shape (C, H, W).
        peak: the highest learning rate.
        decay: share of the run, its end, with one falling to zero.
        batch: images an update.
    """

    make: Callable[[tuple[int, int, int]], Learning]
    peak: float
    decay: float
    batch: int


class Lowered(nn.Sequential):
    """Layers that train in bfloat16 where the processor is fast at it, and measure and draw in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, ...), to the type of x."""
        lower = has_bfloat16(x.device)
        with torch.autocast(x.device.type, torch.bfloat16, self.training and lower):
            return super().forward(x).to(x.dtype)


class Likelihood:
    """Learning by the bound itself: its mean in nats a dimension falls by Muon.

    Args:
        network: with `nats`.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, self.parts = network, nn.ModuleList([network])
        self.optimizer = Muon(network.parameters(), betas=(0.9, 0.99), weight_decay=0.0, fused=True)

    def update(self, x: Tensor, noise: Streams, rate: float) -> None:
        """One step down."""
        self.optimizer.zero_grad()
        (self.network.nats(x, noise).mean() / x[0].numel()).backward()  # pyright: ignore[reportCallIssue]
        step(self.optimizer, rate)


def step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """An update with a clipped gradient."""
    for group in optimizer.param_groups:
        group["lr"] = rate
        nn.utils.clip_grad_norm_(group["params"], CLIP)
    optimizer.step()


def _begun(method: Method, images: ImageSet, seed: int) -> Learning:
    height, width, channels = images.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "weights"))
        learning = method.make((channels, height, width))
    learning.parts.to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    return learning


def _steps(learning: Learning, method: Method, images: ImageSet, total: int, seed: int) -> Iterator[int]:
    """Updates until `total` images are seen; after each, how many were."""
    for first in range(0, total, method.batch):
        numbers = range(first, first + method.batch)
        x = training_batch(images, seed, numbers, flip=False).x0().contiguous(memory_format=torch.channels_last)
        noise = Streams(seed, "baseline", numbers)
        learning.update(x, noise, learning_rate(first / total, method.peak, WARMUP, method.decay))
        yield first + method.batch


def planned(method: Method, images: ImageSet, seconds: float) -> int:
    """How many images can be trained on in so many seconds, from a throw-away training: a whole number of batches."""
    steps = _steps(_begun(method, images, 0), method, images, 10**9, 0)
    return fitting(lambda: next(steps), method.batch, seconds)


def fitting(step: Callable[[], object], batch: int, seconds: float) -> int:
    """How many images fit into so many seconds of the processor, by the fastest of some probes.

    What else the machine does makes a step slower, even in its own time, and never faster.
    """
    for _ in range(3):  # allocations are not speed
        step()
    fastest, spent = 0.0, 0.0
    while spent < PROBE:
        began = time.process_time()
        for _ in range(STEPS):
            step()
        taken = time.process_time() - began
        spent, fastest = spent + taken, max(fastest, STEPS * batch / taken)
    return max(1, round(fastest * seconds / batch)) * batch


def train(method: Method, images: ImageSet, total: int, seed: int = 0) -> nn.Module:
    """The network after `total` images, its weights averaged: a function of (method, images, total, seed)."""
    learning = _begun(method, images, seed)
    start = {name: one.detach().clone() for name, one in learning.network.state_dict().items()}
    average = PowerAverage(WIDTH, {name: one for name, one in start.items() if one.is_floating_point()})
    for seen in _steps(learning, method, images, total, seed):
        average.update(learning.network.state_dict(), seen, method.batch)
    learning.network.load_state_dict(average.weights, strict=False)
    return learning.network.eval().requires_grad_(False)


def drawing_part(network: nn.Module) -> nn.Module:
    """What of a network is needed to draw: of an autoencoder, the decoder."""
    return getattr(network, "decoder", network)


def save(network: nn.Module, folder: Path, facts: dict[str, object]) -> None:
    """Weights and what is known of their training."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: one.contiguous() for name, one in network.state_dict().items()}, folder / "weights.safetensors")
    (folder / "facts.json").write_text(json.dumps(facts))


def load(method: Method, shape: Sequence[int], folder: Path) -> nn.Module:
    """The network as it was saved."""
    channels, height, width = shape
    network = method.make((channels, height, width)).network
    network.load_state_dict(load_file(folder / "weights.safetensors"))
    return network.eval().requires_grad_(False)
