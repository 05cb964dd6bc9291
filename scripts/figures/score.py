"""docs/img/score-field.png and score-flow.png, from an exact denoiser: python scripts/figures/score.py"""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ancestral.diffusion.denoisers.analytic import Mixture
from ancestral.diffusion.denoisers.denoiser import score
from ancestral.diffusion.objectives.probability_flow import transport
from ancestral.diffusion.processes import gaussian, schedules
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.langevin import langevin
from ancestral.diffusion.samplers.loop import from_model, walk
from ancestral.diffusion.samplers.sample import latents
from ancestral.diffusion.samplers.transitions import DDIM
from ancestral.runtime.plots import ACCENT, INK, SECOND

IMAGES = Path(__file__).parents[2] / "docs/img"
SIDE = 1.8
LEVELS = (700, 400, 150)


def field(q: gaussian.Gaussian, oracle: Mixture) -> Figure:
    """The density, its score and two chains of Langevin steps at three noise levels."""
    figure = Figure(figsize=(9, 3.3), dpi=110, layout="constrained")
    for axes, t in zip(figure.subplots(1, 3), LEVELS, strict=True):
        _density(axes, oracle, t)
        at = _lattice(17)
        arrow = score(oracle(at, t), q, t) * q.noise(t)
        axes.quiver(*at.T.numpy(), *arrow.T.numpy(), color=INK, alpha=0.55, width=0.004, scale=28)
        x, noise = torch.tensor([[-1.5, 1.4], [1.4, -1.5]], dtype=torch.float64), Streams(2, "figure", range(2))
        path = [x]
        for _ in range(120):
            path.append(langevin(q, path[-1], oracle(path[-1], t), t, 0.1).sample(noise.normal([2])))
        for line, colour in zip(torch.stack(path, 1), (SECOND, ACCENT), strict=True):
            axes.plot(*line.T.numpy(), color=colour, linewidth=0.9)
            axes.plot(*line[0].numpy(), "o", color=colour, markersize=5)
        axes.set_title(f"t = {t}, noise {float(q.noise(t)):.2f}", loc="left", color=INK, fontsize=10)
    return figure


def paths(q: gaussian.Gaussian, oracle: Mixture) -> Figure:
    """The same latents taken down by the flow and by ancestral steps, over time; one-dimensional."""
    figure = Figure(figsize=(9, 3.3), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    x, times = latents([1], 3, range(18)), grids.trailing(q, 100)
    flow, state = [x], x
    for t, s in pairwise(times[:-1]):
        state = transport(oracle, state, t, s).x
        flow.append(state)
    chain = [step.x_s for step in walk(oracle, x, times[:-1], DDIM(1.0), from_model(Streams(3, "r", range(18))))]
    for axes, states, title in (
        (left, flow, "probability flow"),
        (right, [x, *chain], "ancestral steps"),
    ):
        height = torch.linspace(-3.4, 3.4, 240, dtype=torch.float64)[:, None]
        density = torch.stack([oracle.log_prob(height, t).exp() for t in times[:-1]], 1)
        shade = (density / density.amax(0)).sqrt()  # of the highest at that t
        axes.pcolormesh(times[:-1], height[:, 0], shade, cmap="Greys", vmax=2, rasterized=True)
        axes.plot(times[:-1], torch.cat(states, 1).T.numpy(), color=ACCENT, linewidth=0.8)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("t")
        axes.set(xlim=(q.T, 1), ylim=(-3.4, 3.4))
    return figure


def _lattice(count: int) -> torch.Tensor:
    line = torch.linspace(-SIDE, SIDE, count, dtype=torch.float64)
    return torch.cartesian_prod(line, line)


def _density(axes: Axes, oracle: Mixture, t: int) -> None:
    values = oracle.log_prob(_lattice(160), t).reshape(160, 160).T.numpy()
    levels = values.max() + np.array([-6, -4, -2.5, -1.5, -0.8, -0.3, 0])
    side, palest = np.linspace(-SIDE, SIDE, 160), {"vmin": levels[0], "vmax": 6 + levels[-1]}
    axes.contourf(side, side, values, levels, cmap="Greys", **palest)
    axes.set(xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE), xticks=[], yticks=[], aspect="equal")


def main() -> None:
    """Write both."""
    q = schedules.cosine(1000)
    means = torch.tensor([[-0.9, 0.4], [0.7, -0.6], [0.5, 0.9]], dtype=torch.float64)
    plane = Mixture(q, means, torch.tensor([0.02, 0.04, 0.03], dtype=torch.float64))
    line = Mixture(q, torch.tensor([[-0.9], [0.8]]).double(), torch.tensor([0.01, 0.03]).double())
    IMAGES.mkdir(exist_ok=True)
    for name, figure in (("score-field", field(q, plane)), ("score-flow", paths(q, line))):
        whole = io.BytesIO()
        figure.savefig(whole, format="png")
        Image.open(whole).convert("RGB").quantize(128).save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
