"""The precision and memory format that a network is computed in: as they are named, or the fastest here, measured."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ancestral.diffusion.denoisers.denoiser import Prediction, Predictor, Wrapped
from ancestral.diffusion.processes.torch_generators import forked
from ancestral.diffusion.processes.types import Time
from ancestral.networks.unet import Attention, Downsample, ResidualBlock, Stage
from ancestral.runs import build
from ancestral.runs.checkpoint import Checkpoint
from ancestral.runs.config import Config, ModelOptions
from ancestral.runs.facts import Facts
from ancestral.runtime.launch import world_size

SECONDS = 0.2  # of measuring, after one repeat of each format
LEAST = 2  # repeats of each that are timed, in turn; the quickest counts
WORK = 4e9  # floating-point operations of a repeat, about: less is mostly what no format changes
IMAGES = 4  # of a repeat, at least: weights are converted and reordered once for all of a batch
SIDE = 32  # of an image that is measured with, about, at most: attention asks for its square
MARGIN = 1.03  # a plainer format that takes less than so many times the least is as fast


class ComputeFormat(NamedTuple):
    """How a network is computed; each changes rounding and nothing else."""

    precision: Literal["float32", "bfloat16", "float16"]
    channels_last: bool  # in memory, where images lie contiguous otherwise

    @property
    def dtype(self) -> torch.dtype:
        """The type of its products."""
        return getattr(torch, self.precision)

    def __str__(self) -> str:
        return f"{self.precision} {'channels-last' if self.channels_last else 'contiguous'}"

    def autocast(self, device: torch.device, cache_enabled: bool = True) -> torch.autocast:
        """Where networks compute in this precision what torch finds safe, from weights of float32."""
        return torch.autocast(device.type, self.dtype, self.precision != "float32", cache_enabled)


FORMATS = [ComputeFormat(kind, last) for kind in ("float32", "bfloat16", "float16") for last in (False, True)]
Timed = Callable[[ComputeFormat], float]  # seconds of one repeat


def candidates(
    precision: str, channels_last: bool | Literal["auto"], device: torch.device, divided: bool = False
) -> list[ComputeFormat]:
    """What two settings leave open, plainest first; 'auto' is bfloat16 only where a device multiplies it itself.

    CUDA multiplies float16 where it does not.

    Args:
        precision: by name, or auto.
        channels_last: or auto.
        device: that computes.
        divided: whether weights are divided among processes, which takes contiguous ones.
    """
    half = "bfloat16" if has_bfloat16(device) else "float16" if device.type == "cuda" else "float32"
    kinds = {precision} if precision != "auto" else {"float32", half}
    layouts = [channels_last] if channels_last != "auto" else [False] if divided else [False, True]
    return [one for one in FORMATS if one.precision in kinds and one.channels_last in layouts]


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself; elsewhere it is emulated, many times slower."""
    if device.type == "cpu":
        can = getattr(torch.cpu, "get_capabilities", dict)()  # absent from older versions of torch
        return torch.backends.mkldnn.is_available() and bool(can.get("avx512_bf16") or can.get("amx_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@functools.cache
def processor() -> str:
    """This machine's kind of processor: its name and what torch uses of it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    bfloat16 = ", bfloat16" if has_bfloat16(torch.device("cpu")) else ""
    return f"{next(named, platform.processor())} ({torch.backends.cpu.get_cpu_capability()}{bfloat16})"


def time_formats(formats: Sequence[ComputeFormat], timed: Timed) -> dict[ComputeFormat, float]:
    """Seconds of each, the quickest of repeats in turn."""
    for one in formats:
        timed(one)  # allocations and kernel choices are not speed
    found: dict[ComputeFormat, list[float]] = {one: [] for one in formats}
    rounds = 0
    while rounds < LEAST or sum(map(sum, found.values())) < SECONDS:
        for one, seconds in found.items():
            seconds.append(timed(one))
        rounds += 1
    return {one: min(seconds) for one, seconds in found.items()}


def fastest(seconds: Mapping[ComputeFormat, float]) -> ComputeFormat:
    """The plainest of those that nothing is clearly faster than."""
    least = min(seconds.values())
    return next(one for one in FORMATS if seconds.get(one, float("inf")) <= MARGIN * least)


def describe(seconds: Mapping[ComputeFormat, float]) -> str:
    """A line with the measured times."""
    times = ", ".join(f"{one} {1e3 * taken:.1f}" for one, taken in seconds.items())
    return f"milliseconds for layers of its kinds on {processor()}: {times}"


class _Layers(nn.Module):
    """The kinds of layers of a run's network: of its first two levels, with attention at the last."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__()
        variant = build.variant(options)
        fine, coarse = (options.widths[level] for level in (0, min(1, len(options.widths) - 1)))
        self.time_width = options.time_width or 4 * options.width
        self.first = ResidualBlock(fine, fine, self.time_width, 0.0, variant)
        self.down = Downsample(fine, variant.pad_end) if len(options.multipliers) > 1 else nn.Identity()
        self.last = Stage(ResidualBlock(fine, coarse, self.time_width, 0.0, variant), Attention(coarse, variant))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: (B, C, H, W); time: (B, time_width)."""
        return self.last(self.down(self.first(x, time)), time)


def layers_of(config: Config, facts: Facts, device: torch.device, training: bool = True) -> Timed:
    """Forward, and backward where it trains, through layers of a run's kinds, widths and sides, as WORK allows.

    Torch's own generator is left as it was, and no weight of the run is touched.
    """
    options, (_, *sides) = config.model, facts.shape
    with forked(device):
        layers = _Layers(options).to(device)
        channels = options.widths[0]
        fine, coarse = (sum(one.numel() for one in part.parameters()) for part in (layers.first, layers.last))
        products = fine + coarse / (4 if len(options.multipliers) > 1 else 1)  # a pixel
        pixels = WORK / (2 * products * (3 if training else 1))  # of all images together
        height, width = (max(2, side // options.patch) for side in sides)
        shrunk = min(1.0, (min(pixels / IMAGES, SIDE**2) / (height * width)) ** 0.5)
        height, width = (max(2, int(side * shrunk)) for side in (height, width))
        images = max(1, min(config.train.micro_batch or config.train.batch_size, int(pixels / (height * width))))
        x = torch.randn(images, channels, height, width, device=device)
        embedded_time = torch.randn(images, layers.time_width, device=device)

    def timed(one: ComputeFormat) -> float:
        laid_out(layers, one.channels_last).zero_grad()
        layout = torch.channels_last if one.channels_last else torch.contiguous_format
        shown = x.detach().contiguous(memory_format=layout).requires_grad_(training)
        started = time.perf_counter()
        with torch.set_grad_enabled(training), one.autocast(device):
            total = layers(shown, embedded_time).float().square().mean()
        if training:
            total.backward()
        return time.perf_counter() - started

    return timed


@functools.cache
def _measured_for_drawing(config: Config, facts: Facts, device: torch.device) -> ComputeFormat:
    timed = layers_of(config, facts, device, training=False)
    return fastest(time_formats(candidates("auto", "auto", device), timed))


def for_drawing(name: str, saved: Checkpoint, device: torch.device) -> ComputeFormat:
    """What a run's network draws in; auto: what its training found the fastest on such a processor, or measured now.

    `device` is float32 on a CPU and auto elsewhere.
    Nothing is measured on other devices than the CPU, nor by several processes, which must choose alike.
    """
    if name == "device":
        name = "float32" if device.type == "cpu" else "auto"
    if name != "auto":
        return next(one for one in FORMATS if one == (name, False))
    if device.type != "cpu":
        return candidates("auto", "auto", device)[-1]
    if saved.state.get("fastest_on") == processor():
        return ComputeFormat(saved.state["precision"], saved.state["channels_last"])
    if world_size() > 1:
        return candidates("auto", "auto", device)[-1]
    return _measured_for_drawing(saved.config, saved.facts, device)


def laid_out(network: nn.Module, channels_last: bool) -> nn.Module:
    """The same network, its weights in this memory format, which images follow."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return network.to(memory_format=layout)  # pyright: ignore[reportCallIssue] # torch declares `to` without it


class Lowered(Wrapped):
    """A predictor whose networks compute in this format, but in float32 in the last calls of a walk.

    No later call corrects rounding there: low precision in the last calls raised the Fréchet distance on digits by a
    quarter (`benchmarks/log.md`).

    Args:
        predictor: of networks in float32.
        chosen: the format.
        last: time from which on all is float32.
    """

    def __init__(self, predictor: Predictor, chosen: ComputeFormat, last: float) -> None:
        super().__init__(predictor)
        self.chosen, self.last = chosen, last

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        """As the predictor."""
        if self.chosen.precision == "float32" or float(torch.as_tensor(t).min()) <= self.last:
            return self.predictor(x_t, t)
        with self.chosen.autocast(x_t.device):
            return self.predictor(x_t, t)


def last_calls(calls: int) -> int:
    """How many calls of a walk stay in float32: fd is about 2 % worse so at most, in 4, 10 and 20 unguided calls."""
    return calls // 10 + 1
