"""The network: what goes in, how the time enters it, its drawing with shapes and parameter counts, and its features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ancestral.apps.report import plots
from ancestral.apps.report.part import Number, Part, Words
from ancestral.apps.report.subject import Subject
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.processes.torch_generators import forked
from ancestral.networks.unet import Attention, Stage, UNet
from ancestral.networks.unet_layers import time_embedding
from ancestral.runs import build
from ancestral.runs.conditions import conditions_of
from ancestral.runs.facts import Facts

SHOWN = 17  # channels of a layer's features: with x_t three full rows
DRAWN = 128  # times of the embedding's picture
UNETS, TORCH = "ancestral.networks.unet.UNet", "torch.nn.Module.register_forward_hook"


@dataclass
class Level:
    """What a network does at one size of its states, on one way.

    Args:
        shape: (C, H, W) of the last output there.
        blocks: residual blocks.
        attention: blocks with attention after them.
        parameters: of all of these, with the change of size that follows.
    """

    shape: tuple[int, ...]
    blocks: int = 0
    attention: int = 0
    parameters: int = 0


@dataclass
class NetworkTrace:
    """What hooks saw in one call of a U-Net: levels on the way down, the middle, levels on the way up."""

    down: list[Level] = field(default_factory=list)
    middle: Level = field(default_factory=lambda: Level(()))
    up: list[Level] = field(default_factory=list)
    stem: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    features: Tensor = field(default_factory=lambda: torch.empty(0))  # of the first block, (C, H, W)


def part(subject: Subject) -> Part:
    """Of the run's own network; of the exact subject the one that `train` would begin with, untrained."""
    unet = subject.model.network if subject.model is not None else _untrained(subject)
    trained = subject.model is not None
    if not isinstance(unet, UNet):
        return Part(facts={"drawn": False, "trained": trained})
    x_t, time, cond = _asked(subject)
    seen = look(unet, x_t, time, cond)
    variant, T, width = unet.variant, subject.schedule.T, unet.width
    scale = float(subject.model.clock(torch.tensor([T]), T) / T) if subject.model is not None else 1000 / T
    embedded = time_embedding(torch.linspace(1, T, min(T, DRAWN)).double() * scale, width, variant)
    target, again = subject.config.diffusion.target, TORCH
    end = subject.times[0]
    signal, noise = float(subject.schedule.signal(end)), float(subject.schedule.noise(end))
    numbers = {
        "parameters": Number(_count(unet), "", UNETS),
        "values_in": Number(x_t[0].numel(), "", UNETS),
        "waves": Number(width, "", "ancestral.networks.unet_layers.time_embedding"),
        "time_width": Number(len(unet.time[-1].get_parameter("weight")), "", UNETS),
        "time_parameters": Number(_count(unet.time), "", UNETS),
        "first_channels": Number(seen.down[0].shape[0], "", again),
        "outputs": Number(seen.output[0], "", again),
        "channels": Number(subject.shape[0], "", again),
        "t": Number(subject.half, "", "ancestral.diffusion.processes.gaussian.Gaussian.alpha_bar"),
        "eps_in_x0": Number(
            noise / signal if signal else float("inf"), "", "ancestral.diffusion.processes.gaussian.Gaussian"
        ),
        "blocks": Number(sum(one.blocks for one in (*seen.down, seen.middle, *seen.up)), "", again),
    }
    return Part(
        numbers=numbers,
        figures={
            "embedding": lambda words: _embedding(embedded, T, words),
            "unet": lambda words: _drawing(seen, subject.shape, _count(unet.stem), _count(unet.head), words),
            "features": lambda words: _features(x_t[0].cpu(), seen.features, words),
        },
        facts={
            "drawn": True,
            "trained": trained,
            "target": target if target in ("eps", "x0", "v") else "other",
            "name": target,
            "patch": unet.patch,
            "shape": "×".join(map(str, subject.shape)),
            "scale_shift": variant.scale_shift,
            "activation": variant.activation,
            "conditions": trained and subject.config.model.conditional,
            "learned": seen.output[0] == 2 * subject.shape[0],
            "ends_at_noise": signal == 0,
        },
    )


def look(unet: UNet, x_t: Tensor, time: Tensor, cond: dict[str, Tensor]) -> NetworkTrace:
    """Call it once, with hooks on its layers."""
    seen, outputs = NetworkTrace(), dict[str, Tensor]()
    layers = {
        f"{way}{number}": layer for way in ("down", "middle", "up") for number, layer in enumerate(getattr(unet, way))
    }
    layers |= {"stem": unet.stem, "head": unet.head}
    with torch.no_grad(), _hooked(layers, outputs):
        result = unet(x_t, time, **cond)
    for way, levels in (("down", seen.down), ("up", seen.up)):
        begun = True
        for number, layer in enumerate(getattr(unet, way)):
            shape = tuple(outputs[f"{way}{number}"].shape[1:])
            if begun:
                levels.append(Level(shape))
            begun = not isinstance(layer, Stage)
            _add(levels[-1], layer, levels[-1].shape if begun else shape)
    for number, layer in enumerate(unet.middle):
        _add(seen.middle, layer, tuple(outputs[f"middle{number}"].shape[1:]))
    return replace(
        seen,
        stem=tuple(outputs["stem"].shape[1:]),
        output=tuple(result.shape[1:]),
        features=outputs["down0"][0].float().cpu(),
    )


def _add(level: Level, layer: nn.Module, shape: tuple[int, ...]) -> None:
    level.shape = shape
    level.blocks += isinstance(layer, Stage)
    level.attention += isinstance(layer, Stage) and isinstance(layer.attention, Attention)
    level.parameters += _count(layer)


@contextmanager
def _hooked(layers: dict[str, nn.Module], outputs: dict[str, Tensor]) -> Iterator[None]:
    """While it lasts each layer leaves its output under its name."""

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda layer, given, output: outputs.update({name: output})

    hooks = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _untrained(subject: Subject) -> UNet:
    with forked(torch.device("cpu"), subject.seed):
        height, width, channels = subject.images.test.shape
        return build.network(subject.config, Facts((channels, height, width), ()))


def _asked(subject: Subject) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(x_t, time, conditions) of the first held-out image where half of its signal is gone."""
    shown, t = subject.test.take([0]), subject.half
    x0 = subject.x0(shown)
    eps = Streams(subject.seed, "explain-forward", [0]).normal(subject.shape).to(x0)
    x_t = subject.schedule.marginal(x0, t).sample(eps).float()
    if subject.model is None:
        return x_t, torch.tensor([1000.0 * t / subject.schedule.T]), {}
    weights = next(subject.model.network.parameters())
    time = subject.model.clock(torch.tensor([t]), subject.schedule.T).float()
    return x_t.to(weights), time.to(weights.device), conditions_of(shown, subject.config, subject.device)


def _count(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())


def short(count: int) -> str:
    """A count as it fits into a box: 950, 55.3 k, 1.2 M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return str(count)


def _embedding(waves: Tensor, T: int, words: Words) -> str:
    figure, (axes,) = plots.axes(words["axes"]["t"], words["axes"]["entry"], 1, 2.2)
    axes.imshow(waves.T.numpy(), cmap="gray", vmin=-1, vmax=1, aspect="auto", extent=(1, T, len(waves.T), 0))
    axes.grid(visible=False)
    return plots.svg(figure)


def _features(x_t: Tensor, features: Tensor, words: Words) -> str:
    """x_t, then channels of the first block, each with its own mean grey and its own contrast."""
    chosen = features[torch.linspace(0, len(features) - 1, min(SHOWN, len(features))).round().long()]
    chosen = (chosen - chosen.mean((1, 2), keepdim=True)) / (2.5 * chosen.std((1, 2), keepdim=True)).clamp(min=1e-9)
    side = torch.nn.functional.interpolate(x_t[None], size=chosen.shape[1:], mode="area")[0].mean(0)
    sheet = np.stack([side.numpy(), *chosen.numpy()]).clip(-1, 1)[:, None]
    columns = 6
    padded = np.concatenate([sheet, np.full((-len(sheet) % columns, *sheet.shape[1:]), np.nan)])
    pixels = plots.pixels(torch.from_numpy(np.nan_to_num(padded)).reshape(-1, columns, *sheet.shape[1:]))
    return plots.sheet(pixels, [words["axes"]["x_t_itself"], *[""] * (columns - 1)])


def _drawing(seen: NetworkTrace, shape: tuple[int, ...], stem: int, head: int, words: Words) -> str:
    """The U: down on the left, up on the right, a row for each size; skips go across, the time into every block."""
    vocabulary, wide, tall, gap, top = words["unet"], 154, 46, 16, 62
    left, right, full = 2, 204, 360
    rows = len(seen.down)
    bottom = top + rows * (tall + gap)
    high = bottom + tall + gap + 8
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" class="unet" viewBox="0 0 {full} {high}" data-wide="{full}">']

    def text(x: float, y: float, words: str, size: int = 10, kind: str = "") -> None:
        named = f' class="{kind}"' if kind else ""
        parts.append(f'<text{named} x="{x:g}" y="{y:g}" text-anchor="middle" font-size="{size}">{words}</text>')

    def box(x: float, y: float, level: Level) -> None:
        size = f'width="{wide}" height="{tall}" rx="5"'
        parts.append(f'<rect x="{x:g}" y="{y:g}" {size} fill="var(--tint)" stroke="var(--faint)"/>')
        text(x + wide / 2, y + 16, "×".join(map(str, level.shape)), 12)
        attention = f", {vocabulary['attention']}: {level.attention}" if level.attention else ""
        text(x + wide / 2, y + 29, f"{vocabulary['blocks']}: {level.blocks}{attention}", 9)
        text(x + wide / 2, y + 41, f"{short(level.parameters)} {vocabulary['parameters']}", 9)

    def arrow(path: str, dashed: bool = False) -> None:
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        parts.append(
            f'<path d="{path}" fill="none" stroke="var(--soft)" stroke-width="1.3"{dash} marker-end="url(#unet-head)"/>'
        )

    parts.append(
        '<defs><marker id="unet-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" '
        'orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="var(--soft)"/></marker></defs>'
    )
    size = "×".join(map(str, shape))
    text(left + wide / 2, 12, f"xₜ: {size}", 12)
    text(left + wide / 2, 26, f"{vocabulary['stem']}: {short(stem)}", 9)
    arrow(f"M{left + wide / 2} 32V{top - 2}")
    text(right + wide / 2, 12, f"{vocabulary['output']}: {'×'.join(map(str, seen.output))}", 12)
    text(right + wide / 2, 26, f"{vocabulary['head']}: {short(head)}", 9)
    arrow(f"M{right + wide / 2} {top - 2}V34")
    text(full / 2, 12, "t", 12, "second")
    for row, (down, up) in enumerate(zip(seen.down, reversed(seen.up), strict=True)):
        y = top + row * (tall + gap)
        box(left, y, down)
        box(right, y, up)
        arrow(f"M{left + wide} {y + tall / 2}H{right - 2}", dashed=True)
        if row < rows - 1:
            arrow(f"M{left + wide / 2} {y + tall}v{gap - 2}")
            arrow(f"M{right + wide / 2} {y + tall + gap}v{2 - gap}")
    middle = (full - wide) / 2
    box(middle, bottom, seen.middle)
    arrow(f"M{left + wide / 2} {bottom - gap}V{bottom + tall / 2}H{middle - 2}")
    arrow(f"M{middle + wide} {bottom + tall / 2}H{right + wide / 2}V{bottom - gap + 2}")
    # The time, from above into every row of blocks.
    parts.append(
        f'<path d="M{full / 2} 18V{bottom - 3}" fill="none" stroke="var(--second)" stroke-width="1.5"/>'
        + "".join(
            f'<path d="M{full / 2} {top + row * (tall + gap) + 10}H{x}" fill="none" stroke="var(--second)" '
            f'stroke-width="1.2"/><circle cx="{x}" cy="{top + row * (tall + gap) + 10}" r="2.5" fill="var(--second)"/>'
            for row in range(rows)
            for x in (left + wide, right)
        )
        + f'<circle cx="{full / 2}" cy="{bottom}" r="2.5" fill="var(--second)"/>'
    )
    return "".join([*parts, "</svg>"])
