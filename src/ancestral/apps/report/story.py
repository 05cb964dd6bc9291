"""The story that the report begins with: an image of the user's goes to noise, and another comes back from there."""

from __future__ import annotations

from html import escape

import numpy as np

from ancestral.apps.report import plots
from ancestral.apps.report.part import Number, Part
from ancestral.apps.report.subject import Subject
from ancestral.data import pictures
from ancestral.runtime.encode import data_uri
from ancestral.sampling.round_trip import FRAMES, played, round_trip, small

NODES = 5  # of the diagram
CELL, NODE = 168, 56  # sides of an image, in CSS pixels


def part(subject: Subject) -> Part:
    """The film and the diagram: a held-out image by Eq. 4 with the noise that image 0 of `sample` starts from."""
    steps = subject.few(FRAMES)
    x0 = subject.x0(subject.test.take([0]))
    made = round_trip(subject.schedule, x0, subject.latents([0]), subject.walk([0], steps))
    there, back, times = small(made.there), small(made.back), made.times[1:]
    again = subject.command("sample", "--num-images 1", "--film", f"--steps {steps or 'all'}")
    nodes = _nodes(subject, times)
    serve = "ancestral serve RUN" if subject.run is None else subject.command("serve")
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
        facts={
            "exact": subject.run is None,
            "own": subject.own,
            "few_steps": steps is not None,
            "serve": serve,
            "served": not subject.config.model.embedding,
            "compressible": not subject.config.model.conditional,
        },
    )


def _nodes(subject: Subject, times: list[int]) -> list[int]:
    """Which of the frames stand in the diagram: the ends, and between them evenly in what the eye sees."""
    moments = subject.moments(NODES - 1)[::-1]
    nearest = {min(range(len(times)), key=lambda index: abs(times[index] - t)) + 1 for t in moments}
    return sorted({0, *nearest, len(times)})


def _film(there: np.ndarray, back: np.ndarray, times: list[int]) -> str:
    """All frames side by side, for a window that steps along them: there, then back."""
    frames, shown = played(list(there), list(back), times)
    names = [f"{'q →' if way == 'q' else '← p'}   t = {t}" for way, t in shown]
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
    for index, t in enumerate(times):
        x = 1 + index * pitch
        parts += [_picture(there[index], x, top, tall), _picture(back[index], x, below, tall)]
        name = "0" if index == 0 else "T" if index == count - 1 else "t" if index == count // 2 else ""
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
    source = escape(data_uri(pictures.png(pixels)))
    size = f'x="{x:g}" y="{y:g}" width="{NODE}" height="{tall:g}"'
    return f'<image {size} preserveAspectRatio="none" style="image-rendering:pixelated" href="{source}"/>'
