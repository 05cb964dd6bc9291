"""docs/img/absorbing-*.png: the film of revealing and what several places a step cost, of a run that was evaluated.

.venv/bin/python scripts/figures/absorbing.py RUN [docs/img]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from sheets import labelled

from ancestral.data import load, pictures
from ancestral.data.dataset import Rows
from ancestral.data.pixels import to_bytes, to_unit
from ancestral.diffusion.denoisers.denoiser import Denoiser
from ancestral.diffusion.objectives.autoregressive import costs, monotone
from ancestral.diffusion.objectives.elbo import elbo
from ancestral.diffusion.objectives.statistics import mean_and_error
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.grid_search import shortest
from ancestral.diffusion.samplers.grids import full, trailing
from ancestral.diffusion.samplers.sample import beginning, film, latents, trajectory
from ancestral.runs import build, checkpoint
from ancestral.runs.process_kinds import CHAINS
from ancestral.runtime import plots

IMAGES, FRAMES, FILMED, MEASURED = 6, 9, 98, 64
CALLS = (4, 8, 16, 32)


def film_of(model: Denoiser, shape: tuple[int, ...], path: Path) -> None:
    """Rows of images, seen places on grey, time to the right, with the number of hidden places above."""
    grid = trailing(model.schedule, min(FILMED, model.schedule.T))
    keep = [grid[round(place)] for place in np.linspace(0, len(grid) - 2, FRAMES)]
    start = beginning(model.schedule, latents(shape, 7, range(IMAGES)))
    chain = CHAINS["absorbing"]
    frames = film(trajectory(model, start, grid, chain.only_step, 7, draw=chain.draw), keep)
    rows = [
        x
        for image in range(IMAGES)
        for x in (*(model.schedule.shown(x_t)[image] for x_t in frames.x_t), frames.final[image])
    ]
    sheet = pictures.contact_sheet(to_bytes(torch.stack(rows)), columns=FRAMES + 1, side=56)
    hidden = [str(int(model.schedule.count(t, start[0].numel()))) for t in keep]
    labelled(sheet, [*hidden, "0"]).save(path / "absorbing-film.png", optimize=True)


def cost_of(model: Denoiser, run: Path, images: np.ndarray | Rows, path: Path) -> None:
    """Bits/dim against network calls, measured on evenly spaced times and on those that `evaluate`'s losses choose."""
    rows = np.loadtxt(run / "bound.csv", delimiter=",", skiprows=1)
    x0, times = to_unit(images).double(), full(model.schedule)
    counts = [int(model.schedule.count(t, x0[0].numel())) for t in times]
    # Between the times that were measured the loss is taken from its neighbours.
    every = torch.from_numpy(np.interp(times[:-1], rows[:, 0], rows[:, 1]))
    cost = costs(monotone(every, counts), counts)
    reveal = CHAINS["absorbing"].only_step

    def measured(grid: Sequence[int], terms: int | None = None) -> float:
        noise = Streams(1, "figure", range(len(x0)))
        return mean_and_error(elbo(model, x0, grid, reveal, noise, terms=terms).bits_per_dim)[0]

    whole = measured(times, terms=60)

    even, best = [], []
    for calls in CALLS:
        even.append(measured(trailing(model.schedule, calls)))
        best.append(measured([times[place] for place in shortest(cost, calls)]))
        print(f"{calls} calls: evenly {even[-1]:.4f}, chosen {best[-1]:.4f} bits/dim on {len(x0)} images", flush=True)
    print(f"one place a step: {whole:.4f} bits/dim")
    figure = Figure(figsize=(6, 3.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.plot(CALLS, even, "o-", color=plots.SECOND, label="evenly spaced")
    axes.plot(CALLS, best, "o-", color=plots.ACCENT, label="shortest path")
    axes.axhline(whole, color=plots.INK, linewidth=1, linestyle=":", label=f"one place a step: {whole:.3f}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(CALLS, [str(n) for n in CALLS])
    axes.set_xlabel("network calls an image")
    axes.set_ylabel("bits/dim")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path / "absorbing-steps.png")


def main(run: Path, path: Path) -> None:
    """Write both figures."""
    saved, _ = checkpoint.open_run(run)
    model = build.trained(saved, run, torch.device("cpu"))
    path.mkdir(parents=True, exist_ok=True)
    film_of(model, saved.facts.shape, path)
    cost_of(model, run, load.load(saved.config.source, saved.config.data).test.spread(MEASURED).images, path)
    for name in ("film", "steps"):
        file = path / f"absorbing-{name}.png"
        print(file, file.stat().st_size, Image.open(file).size)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "docs/img"))
