"""The story that the report begins with: an image of the user's goes to noise, and another comes back from there."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ancestral.apps.report import plots
from ancestral.apps.report.part import Number, Part
from ancestral.apps.report.subject import Subject
from ancestral.data.pixels import to_bytes
from ancestral.diffusion.samplers.sample import film, latents

FRAMES = 20  # each way
HOLD = (3, 3, 6)  # how many frames the clean image, the noise and the drawn image stay
NODES = 5  # of the diagram
CELL, NODE = 168, 56  # sides of an image, in CSS pixels
MOST = 64  # of an image's own side; larger ones are halved until they are no larger


def part(subject: Subject) -> Part:
    """The film and the diagram: a held-out image by Eq. 4 with the noise that image 0 of `sample` starts from."""
    steps = subject.few(FRAMES)
    seen = film(subject.walk([0], steps))
    times = seen.t[::-1]
    x0 = subject.x0(subject.test.take([0]))
    eps = latents(subject.shape, subject.seed, [0]).to(x0)
    forward = [x0, *(subject.schedule.marginal(x0, t).sample(eps) for t in times)]
    there = small(torch.cat(forward).cpu())
    back = small(torch.cat([*seen.x_t, seen.final]))
    again = subject.command("sample", "--num-images 1", "--film", *([f"--steps {steps}"] if steps else []))
    nodes = _nodes(subject, times)
    return Part(
        numbers={
            "T": Number(subject.schedule.T, "", "ancestral.diffusion.processes.gaussian.Gaussian.T"),
            "frames": Number(len(times), "", again),
            "values": Number(there[0].size, "", "ancestral.data.load.load"),
        },
        figures={
            "film": lambda words: _film(there, back, [0, *times]),
            "chain": lambda words: _diagram(there[nodes], back[::-1][nodes], [[0, *times][node] for node in nodes]),
        },
        facts={"exact": subject.run is None, "own": subject.own, "few_steps": steps is not None},
    )


def small(states: Tensor) -> np.ndarray:
    """Images (N, C, H, W) on [-1, 1] as bytes (N, H, W, C), halved until no side is above MOST."""
    while max(states.shape[2:]) > MOST and not any(side % 2 for side in states.shape[2:]):
        states = torch.nn.functional.avg_pool2d(states, 2)
    return to_bytes(states)


def _nodes(subject: Subject, times: list[int]) -> list[int]:
    """Which of the frames stand in the diagram: the ends, and between them evenly in what the eye sees."""
    moments = subject.moments(NODES - 1)[::-1]
    nearest = {min(range(len(times)), key=lambda place: abs(times[place] - t)) + 1 for t in moments}
    return sorted({0, *nearest, len(times)})


def _film(there: np.ndarray, back: np.ndarray, times: list[int]) -> str:
    """All frames side by side, for a window that steps along them: there, then back; the ends stay a while."""
    first, turn, last = HOLD
    frames = [*[there[0]] * first, *there[1:], *[there[-1]] * turn, *back[1:], *[back[-1]] * last]
    shown = [*[0] * first, *times[1:], *[times[-1]] * turn, *times[-2::-1], *[0] * last]
    names = [f"{'q →' if place < first + len(times) - 1 else '← p'}   t = {t}" for place, t in enumerate(shown)]
    return plots.sheet(np.stack(frames)[None], names, cell=CELL)


def _diagram(there: np.ndarray, back: np.ndarray, times: list[int]) -> str:
    """The chain: q to the right above, p to the left below, and the images at its times."""
    gap, count = 14, len(times)
    side, tall = NODE, NODE * there.shape[1] / there.shape[2]
    pitch, top, label = side + gap, 30, 26
    wide, below = count * pitch - gap + 2, top + tall + label + 12
    high = below + tall + 32
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chain" viewBox="0 0 {wide:g} {high:g}" data-wide="{wide:g}">'
    ]
    for place, t in enumerate(times):
        x = 1 + place * pitch
        parts += [_picture(there[place], x, top, tall), _picture(back[place], x, below, tall)]
        name = "0" if place == 0 else "T" if place == count - 1 else "t" if place == count // 2 else ""
        state = f'<tspan font-style="italic">x</tspan><tspan dy="3" font-size="9">{name}</tspan>' if name else "⋯"
        middle, y = x + side / 2, top + tall + 14
        parts.append(f'<text x="{middle:g}" y="{y:g}" text-anchor="middle" font-size="14">{state}</text>')
        parts.append(f'<text x="{middle:g}" y="{y + 14:g}" text-anchor="middle" font-size="9">t = {t}</text>')
    left, right = 4.0, wide - 4
    q = 'q(x<tspan dy="3" font-size="8">t</tspan><tspan dy="-3"> | x</tspan><tspan dy="3" font-size="8">t−1</tspan>'
    p = (
        'p<tspan dy="3" font-size="8">θ</tspan><tspan dy="-3">(x</tspan><tspan dy="3" font-size="8">t−1</tspan>'
        '<tspan dy="-3"> | x</tspan><tspan dy="3" font-size="8">t</tspan>'
    )
    parts += _arrow(left, right, 20, f'{q}<tspan dy="-3">)</tspan>', "accent", 12)
    parts += _arrow(right, left, below + tall + 10, f'{p}<tspan dy="-3">)</tspan>', "second", below + tall + 25)
    return "".join([*parts, "</svg>"])


def _arrow(start: float, end: float, y: float, name: str, colour: str, above: float) -> list[str]:
    head = 6 if end > start else -6
    return [
        f'<path d="M{start:g} {y:g}H{end:g}m{-head} -4l{head} 4l{-head} 4" fill="none" stroke="var(--{colour})" '
        'stroke-width="1.5"/>',
        f'<text class="{colour}" x="{(start + end) / 2:g}" y="{above:g}" text-anchor="middle" font-size="12" '
        f'font-style="italic">{name}</text>',
    ]


def _picture(pixels: np.ndarray, x: float, y: float, tall: float) -> str:
    file = BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, "png")
    source = escape("data:image/png;base64," + b64encode(file.getvalue()).decode())
    size = f'x="{x:g}" y="{y:g}" width="{NODE}" height="{tall:g}"'
    return f'<image {size} preserveAspectRatio="none" style="image-rendering:pixelated" href="{source}"/>'
