"""docs/img/absorbing-*.png: the film of revealing and what several places a step cost, from a run of that chain.

.venv/bin/python scripts/figures/absorbing.py RUN [docs/img]
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from ancestral import build, checkpoint, data, figures
from ancestral.bound import bound
from ancestral.chains import CHAINS
from ancestral.denoiser import Denoiser
from ancestral.feed import to_bytes, to_unit
from ancestral.grids import full, trailing
from ancestral.imageset import Rows
from ancestral.orders import costs, monotone
from ancestral.rng import Streams
from ancestral.sample import beginning, film, latents, trajectory
from ancestral.tuning import shortest

IMAGES, FRAMES, CALLS, MEASURED = 6, 9, 98, 64


def film_of(model: Denoiser, shape: tuple[int, ...], path: Path) -> None:
    """Rows of images, seen places on grey, time to the right."""
    grid = trailing(model.schedule, min(CALLS, model.schedule.T))
    keep = [grid[round(place)] for place in np.linspace(0, len(grid) - 2, FRAMES)]
    start = beginning(model.schedule, latents(shape, 7, range(IMAGES)))
    chain = CHAINS["absorbing"]
    frames = film(trajectory(model, start, grid, chain.reverse, 7, draw=chain.draw), keep)
    rows = [
        x
        for image in range(IMAGES)
        for x in (*(model.schedule.shown(x_t)[image] for x_t in frames.x_t), frames.final[image])
    ]
    sheet = figures.contact_sheet(to_bytes(torch.stack(rows)), columns=FRAMES + 1, side=56)
    sheet.quantize(64).save(path / "absorbing-film.png", optimize=True)


def cost_of(model: Denoiser, images: np.ndarray | Rows, path: Path) -> None:
    """Bits/dim against network calls: evenly spaced times, and the best ones."""
    x0 = to_unit(images).double()
    times = full(model.schedule)
    measured = bound(model, x0, times, CHAINS["absorbing"].reverse, Streams(0, "figure", range(len(x0))), terms=60)
    seen, nats = measured.per_t(measured.terms)
    # Between the measured times the loss of a place is taken from its neighbours.
    every = np.interp(times[:-1], seen.numpy(), nats.numpy())
    counts = [int(model.schedule.count(t, x0[0].numel())) for t in times]
    cost = costs(monotone(torch.from_numpy(every), counts), counts)
    bits = 1 / (x0[0].numel() * np.log(2))
    calls = [n for n in (4, 8, 16, 32, 64, 128, 256) if n < model.schedule.T]
    places = {t: place for place, t in enumerate(times)}

    def total(walked: Sequence[int]) -> float:
        return sum(cost[i, j] for i, j in itertools.pairwise(walked)) * bits

    even = [total([places[t] for t in trailing(model.schedule, n)]) for n in calls]
    best = [total(shortest(cost, n, growth=1)) for n in calls]
    whole = total(range(len(times)))
    figure = Figure(figsize=(6, 3.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.plot(calls, even, "o-", color=figures.SECOND, label="evenly spaced")
    axes.plot(calls, best, "o-", color=figures.ACCENT, label="shortest path")
    axes.axhline(whole, color=figures.INK, linewidth=1, linestyle=":", label=f"one place a step: {whole:.3f}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(calls, [str(n) for n in calls])
    axes.set_xlabel("network calls an image")
    axes.set_ylabel("bits/dim")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path / "absorbing-steps.png")
    for n, one, other in zip(calls, even, best, strict=True):
        print(f"{n} calls: evenly {one:.4f}, best {other:.4f}, one a step {whole:.4f} bits/dim")


def main(run: Path, path: Path) -> None:
    """Write both figures."""
    saved, _ = checkpoint.open_run(run)
    model = build.trained(saved, run, torch.device("cpu"))
    path.mkdir(parents=True, exist_ok=True)
    film_of(model, saved.facts.shape, path)
    cost_of(model, data.load(saved.config.source, saved.config.data).test.spread(MEASURED).images, path)
    for name in ("film", "steps"):
        file = path / f"absorbing-{name}.png"
        print(file, file.stat().st_size, Image.open(file).size)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "docs/img"))
