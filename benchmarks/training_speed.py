"""Training and sampling steps against diffusers' network with the same weights, and lucidrains' at equal operations.

Run: .venv-peers/bin/python benchmarks/training_speed.py. Writes its table into benchmarks/results.md, where each maker
of processors has one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import Computed, interleaved, options, origin, parsed, processor, publish, spread, table
from peers import SIDE, Script, lucidrains
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from ancestral.data.dataset import ImageSet
from ancestral.runs import build, compute_format, config
from ancestral.runs.facts import Facts
from ancestral.runs.hub import diffusers
from ancestral.training.trainer import Training

NETWORKS = {"narrow": (32, 64, 128), "wide": (64, 128, 256)}
Call = Callable[[Tensor, Tensor], Tensor]
Contender = tuple[Callable[[], object], float]  # a step, and its GFLOP


def diffusers_network(widths: tuple[int, ...]) -> nn.Module:
    """Two layers a level, attention at the coarsest."""
    from diffusers import UNet2DModel

    levels = len(widths) - 1
    return UNet2DModel(
        sample_size=SIDE,
        block_out_channels=widths,
        layers_per_block=2,
        norm_num_groups=8,
        down_block_types=["DownBlock2D"] * levels + ["AttnDownBlock2D"],
        up_block_types=["AttnUpBlock2D"] + ["UpBlock2D"] * levels,
    )


def imported(network: nn.Module) -> tuple[config.Config, Facts, dict[str, Tensor]]:
    """The same network as ours: configuration, facts and weights."""
    from diffusers import DDPMPipeline, DDPMScheduler

    with tempfile.TemporaryDirectory() as folder:
        DDPMPipeline(network, DDPMScheduler()).save_pretrained(folder)
        saved = diffusers.read(Path(folder))
        return saved.config, saved.facts, saved.weights


class Sampled(nn.Module):
    """A diffusers network whose output is a tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """As the network."""
        return self.network(x, time).sample


def lowered(network: nn.Module, precision: str) -> nn.Module:
    """As `ancestral` computes it in this precision."""
    return Computed(network, compute_format.candidates(precision, False, torch.device("cpu"))[-1])


def accelerated(network: nn.Module, options: config.TrainOptions) -> nn.Module:
    """As `ancestral` lays it out and compiles it."""
    network = compute_format.laid_out(network, channels_last=options.channels_last is not False)
    if options.compile:
        network.compile()
    return network


def gflop(step: Callable[[], object]) -> float:
    """Of matrix products and convolutions, backward pass included."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e9


def training(network: nn.Module, call: Call, batch: int) -> Callable[[], object]:
    """Forward, mean square, backward, AdamW."""
    x, target, time = *torch.randn(2, batch, 3, SIDE, SIDE), torch.randint(0, 1000, (batch,)).float()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4)

    def step() -> None:
        network.train()
        optimizer.zero_grad()
        functional.mse_loss(call(x, time), target).backward()
        optimizer.step()

    return step


def sampling(network: nn.Module, call: Call, batch: int) -> Callable[[], object]:
    """Forward, without gradients."""
    x, time = torch.randn(batch, 3, SIDE, SIDE), torch.full((batch,), 500.0)

    def step() -> None:
        network.eval()
        with torch.inference_mode():
            call(x, time)

    return step


STEPS = {"training": training, "sampling": sampling}


def machine(widths: tuple[int, ...], batch: int) -> dict[str, Contender]:
    """What this machine does at best: a product of 1024x1024 matrices, and 3x3 convolutions at these shapes."""
    a = torch.randn(2, 1024, 1024)
    layers = []
    for level, width in enumerate(widths):
        x = torch.randn(batch, width, SIDE >> level, SIDE >> level).to(memory_format=torch.channels_last)
        layers.append((nn.Conv2d(width, width, 3, padding=1).to(memory_format=torch.channels_last), x))

    def convolve() -> None:
        with torch.inference_mode():
            for layer, x in layers:
                layer(x)

    return {"matmul": (lambda: a[0] @ a[1], gflop(lambda: a[0] @ a[1])), "convolution": (convolve, gflop(convolve))}


def rows(title: str, contenders: dict[str, Contender], limits: dict[str, Contender], base: str, repeats: int):
    """A line of the table for each contender; the ratio is of useful operations a second, `base` being 1."""
    seconds = interleaved({name: step for name, (step, _) in {**contenders, **limits}.items()}, repeats)
    rates = {name: work / seconds[name] for name, (_, work) in {**contenders, **limits}.items()}
    for name in contenders:
        rate = float(np.median(rates[name]))
        shares = [f"{100 * rate / float(np.median(rates[limit])):.0f}%" for limit in limits]
        ratio = spread(rates[name] / rates[base])
        yield [title, name, f"{1e3 * np.median(seconds[name]):.1f}", f"{rate:.1f}", *shares, ratio]


def same_architecture(widths: tuple[int, ...], batch: int, how: dict[str, object], repeats: int):
    """Lines for one network and batch."""
    eager = diffusers_network(widths)
    settings, facts, weights = imported(eager)
    settings = replace(settings, train=replace(settings.train, batch_size=batch, **how))
    compiled = diffusers_network(widths)
    compiled.load_state_dict(eager.state_dict())
    compiled.compile()
    own = build.network(settings, facts)
    own.load_state_dict(weights)
    x, time = torch.randn(2, 3, SIDE, SIDE), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        difference = float((own(x, time) - eager(x, time).sample).abs().max())
    assert difference < 1e-4, f"not the same network: outputs differ by {difference}"
    ours = accelerated(own, settings.train)
    calls: dict[str, tuple[nn.Module, Call]] = {
        "diffusers": (eager, lambda x, t: eager(x, t).sample),
        "diffusers, compiled": (compiled, lambda x, t: compiled(x, t).sample),
        "diffusers, bfloat16": (eager, lowered(Sampled(eager), "bfloat16")),
        "ancestral, float32": (ours, ours),
        f"ancestral, {settings.train.precision}": (ours, lowered(ours, settings.train.precision)),
    }
    limits = machine(widths, batch)
    for phase, make in STEPS.items():
        work = gflop(make(eager, lambda x, t: eager(x, t).sample, batch))
        contenders = {name: (make(network, call, batch), work) for name, (network, call) in calls.items()}
        yield from rows(f"{widths}, {batch} images, {phase} step", contenders, limits, "diffusers", repeats)
        if phase == "training":  # from bytes to averaged weights, as `ancestral train` and their script do
            pictures = np.random.default_rng(0).integers(0, 256, (64 * batch, SIDE, SIDE, 3), np.uint8)
            run = Training(settings, facts, torch.device("cpu"))
            data = ImageSet(pictures, None, (), ("",) * len(pictures))
            whole = {
                "diffusers": (Script(eager, pictures, batch).step, work),
                "ancestral": (lambda run=run, data=data: run.step(data), work),
            }
            yield from rows(f"{widths}, {batch} images, whole update", whole, limits, "diffusers", repeats)


def equal_operations(batch: int, how: dict[str, object], repeats: int):
    """Lines for lucidrains' U-Net of width 32 and ours of the width that comes nearest to its operations."""
    theirs = lucidrains().Unet(32, dim_mults=(1, 2, 4))

    def settings(width: int) -> config.Config:
        model = config.ModelOptions(width, (1, 2, 4), attention=(2,), dropout=0.0)
        return config.Config("", model, train=replace(config.TrainOptions(), **how))

    def ours(width: int) -> nn.Module:
        return build.network(settings(width), Facts((3, SIDE, SIDE)))

    def forward(network: nn.Module) -> float:
        return gflop(sampling(network, network, 1))

    wanted = forward(theirs)
    width = min(range(16, 97, 4), key=lambda width: abs(forward(ours(width)) - wanted))
    own = accelerated(ours(width), settings(width).train)
    fast = lowered(own, settings(width).train.precision)
    plain = ours(width)
    limits = machine((width, 2 * width, 4 * width), batch)
    for phase, make in STEPS.items():
        contenders = {
            "lucidrains, width 32": (make(theirs, theirs, batch), gflop(make(theirs, theirs, batch))),
            f"ancestral, width {width}, float32": (make(own, own, batch), gflop(make(plain, plain, batch))),
            f"ancestral, width {width}, {settings(width).train.precision}": (
                make(own, fast, batch),
                gflop(make(plain, plain, batch)),
            ),
        }
        title = f"(1, 2, 4), {batch} images, {phase} step"
        yield from rows(title, contenders, limits, "lucidrains, width 32", repeats)


def main() -> None:
    """Both tables."""
    parser = options(__doc__ or "")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--set", nargs="*", default=["precision=auto"], help="of ours: fields of TrainOptions")
    given = parsed(parser)
    how = config.parse_assignments(given.set)
    torch._dynamo.config.automatic_dynamic_shapes = False
    lines = []
    for batch in given.batches:
        for name in given.networks:
            torch.compiler.reset()
            lines += same_architecture(NETWORKS[name], batch, how, given.repeats)
        torch.compiler.reset()
        lines += equal_operations(batch, how, given.repeats)
    headings = ["step", "", "ms", "useful GFLOP/s", "of the matmul rate", "of the 3x3 convolution rate", "speed ratio"]
    text = table(headings, lines)
    note = (
        f"{given.repeats} repeats in turns; ratio: median [quartiles]; ours with {', '.join(given.set) or 'defaults'}."
    )
    maker = processor(origin()).partition(" ")[0].partition("(")[0].lower()  # what is fast differs between them
    publish(f"training-speed-{maker}", f"{note}\n\n{text}", given.docs)


if __name__ == "__main__":
    main()
