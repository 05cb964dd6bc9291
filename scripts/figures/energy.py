"""docs/img/energy-compositions.png, from exact energies: python scripts/figures/energy.py"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from ancestral.diffusion.denoisers.analytic import Mixture
from ancestral.diffusion.denoisers.composition import OneOf, Product, negation
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.langevin import PredictorCorrector
from ancestral.diffusion.samplers.mcmc import adjusted
from ancestral.diffusion.samplers.sample import sample
from ancestral.diffusion.samplers.transitions import DDIM, Ancestral, optimal
from ancestral.runtime.plots import ACCENT, INK, SECOND

IMAGES = Path(__file__).parents[2] / "docs/img"
SIDE, COUNT, POINTS = 1.5, 500, 140


def main() -> None:
    """Write it."""
    q = schedules.cosine(200)
    turns = torch.arange(10, dtype=torch.float64) * math.pi / 5
    ring = Mixture(q, 0.9 * torch.stack([turns.cos(), turns.sin()], 1), torch.full((10,), 0.02).double())
    heights = torch.linspace(-1.2, 1.2, 7, dtype=torch.float64)
    bar = Mixture(q, torch.stack([torch.full_like(heights, 0.3), heights], 1), torch.full((7,), 0.02).double())
    product, union = Product([ring, bar]), OneOf([ring, bar])
    without = negation(ring, union, 1.0)  # of the bar alone the tails are so thin that dividing by it is best far away
    grid = grids.uniform(q, 60)
    again = [q.T] * 6 + grid[1:]
    moves = PredictorCorrector(steps=2, snr=0.4)
    panels = (
        ("product, summed scores alone", product, sample(product, [2], COUNT, grid, DDIM(1.0), 0, COUNT)),
        ("product, HMC", product, sample(product, [2], COUNT, again, moves, 0, COUNT, draw=adjusted(product, 5))),
        ("mixture", union, sample(union, [2], COUNT, grid, Ancestral(optimal), 0, COUNT)),
        ("negation, HMC", without, sample(without, [2], COUNT, again, moves, 0, COUNT, draw=adjusted(without, 5))),
    )
    line = torch.linspace(-SIDE, SIDE, POINTS, dtype=torch.float64)
    places = torch.cartesian_prod(line, line)
    figure = Figure(figsize=(10, 2.9), dpi=110, layout="constrained")
    for axes, (title, energy, drawn) in zip(figure.subplots(1, 4), panels, strict=True):
        for part, colour in ((ring, SECOND), (bar, ACCENT)):
            outline = part.log_prob(places, 1).reshape(POINTS, POINTS).T.numpy()
            axes.contour(line, line, outline, [outline.max() - 1.5], colors=[colour], linewidths=0.8)
        values = energy.log_prob(places, 1).reshape(POINTS, POINTS).T.numpy()
        levels = values.max() + np.array([-6, -4, -2.5, -1.5, -0.8, -0.3, 0])
        axes.contourf(line, line, values, levels, cmap="Greys", alpha=0.6)
        axes.plot(*drawn.T.numpy(), ".", color=INK, markersize=1.6)
        axes.set_title(title, loc="left", color=INK, fontsize=10)
        axes.set(xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE), xticks=[], yticks=[], aspect="equal")
    whole = io.BytesIO()
    figure.savefig(whole, format="png")
    IMAGES.mkdir(exist_ok=True)
    Image.open(whole).convert("RGB").quantize(48).save(IMAGES / "energy-compositions.png", optimize=True)


if __name__ == "__main__":
    main()
