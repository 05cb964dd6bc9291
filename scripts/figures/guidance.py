"""The figures of docs/how-to/guidance.md: a mixture at three scales, always; digits by class and scale, with a RUN.

Run: scripts/figures/guidance.py [RUN]. RUN: ancestral train mnist --preset images --images 110000 --out RUN
--set model.labels=true --set model.condition_dropout=0.15
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sheets import labelled

from ancestral.data import pictures
from ancestral.data.pixels import to_bytes
from ancestral.diffusion.denoisers.analytic import Mixture
from ancestral.diffusion.denoisers.guidance import Guided, beside, conditional
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.sample import sample
from ancestral.diffusion.samplers.solvers import SOLVERS
from ancestral.diffusion.samplers.transitions import Ancestral, optimal
from ancestral.runs import build, checkpoint
from ancestral.runtime import plots

OUT = Path(__file__).resolve().parents[2] / "docs" / "img"
SCALES = (0.0, 1.0, 3.0)
SHOWN = (0.0, 1.0, 2.0, 3.0, 5.0)


def mixture() -> None:
    """Two classes of three Gaussians each, side by side; the right one asked for."""
    q = schedules.cosine(300)
    left = torch.tensor([[-0.55, 0.5], [-0.15, 0.0], [-0.55, -0.5]]).double()
    right = torch.tensor([[0.55, 0.5], [0.15, 0.0], [0.55, -0.5]]).double()
    one = Mixture(q, right, torch.full((3,), 0.02).double())
    both = Mixture(q, torch.cat([left, right]), torch.full((6,), 0.02).double())
    drawn = [
        sample(Guided(beside(one, both), both, scale), [2], 1000, grids.full(q), Ancestral(optimal), 0, 1000)
        for scale in SCALES
    ]
    figure = Figure(figsize=(9, 3.1), dpi=100, layout="constrained")
    for scale, x, axes in zip(SCALES, drawn, figure.subplots(1, 3, sharex=True, sharey=True), strict=True):
        axes.plot(*x.T, ".", markersize=2, color=plots.ACCENT)
        for centres, colour in ((left, "0.6"), (right, plots.SECOND)):
            axes.plot(*centres.T, "o", markersize=34, markerfacecolor="none", markeredgecolor=colour)
        axes.set_title(f"scale {scale:g}", loc="left", color=plots.INK, fontsize=10)
        axes.set_aspect("equal")
        axes.set_xlim(-1.2, 1.4)
        axes.set_ylim(-1.1, 1.1)
    figure.savefig(OUT / "guidance-mixture.png")


def digits(run: Path) -> None:
    """A row for each scale, a column for each class; a column begins at one x_T."""
    saved, _ = checkpoint.open_run(run)
    model = build.trained(saved, run, torch.device("cpu"))
    labels = torch.arange(len(saved.facts.class_names))
    grid = build.sampling_grid(saved.config, "trailing", 20)
    rows = []
    for scale in SHOWN:
        guided = Guided(conditional(model, labels=labels), model, scale, clip=model.clip)
        rows.append(sample(guided, saved.facts.shape, len(labels), grid, SOLVERS["unipc3"], 0))
    sheet = pictures.contact_sheet(to_bytes(torch.cat(rows)), columns=len(labels))
    words = [f"scale {scale:g}" for scale in SHOWN]
    labelled(sheet, saved.facts.class_names, words).save(OUT / "guidance-digits.png", optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    given = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    mixture()
    if given.run is not None:
        digits(given.run)
