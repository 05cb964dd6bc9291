"""How far each solver on each grid ends from the exact flow, on a trained run: RMSE to a fine solution, same latents.

Run: .venv/bin/python benchmarks/solvers.py RUN [IMAGES]. Prints a table for docs/benchmarks.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from ancestral import build, checkpoint, grids
from ancestral.reverse import begin
from ancestral.sample import finish, latents, trajectory
from ancestral.solvers import SOLVERS

CALLS = (4, 6, 8, 10, 15, 20)
NAMES = ("euler", "dpm++2m", "dpm++3m", "unipc2", "unipc3", "deis3", "ipndm4", "heun")
GRIDS = ("trailing", "log-snr", "karras", "quadratic")


def main(run: str, images: int = 64) -> None:
    """The table, and for each number of calls the best pair."""
    saved, _ = checkpoint.open_run(Path(run))
    model = build.trained(saved, Path(run), torch.device("cpu"))
    schedule, start = model.schedule, latents(saved.facts.shape, 0, range(images))

    def drawn(name: str, grid: list[int]) -> Tensor:
        return finish(trajectory(model, start, grid, SOLVERS[name])).clamp(-1, 1)

    fine = drawn("dpm++2m", grids.full(schedule))
    spread = (fine - drawn("dpm++2m", grids.trailing(schedule, schedule.T // 2))).square().mean((1, 2, 3)).sqrt()
    print(f"{images} images; 500 against 1000 steps: {float(spread.mean()):.4f}\n")
    print("solver, grid | " + " | ".join(f"{calls} calls" for calls in CALLS))
    print("---|" + "---|" * len(CALLS))
    best: dict[int, tuple[float, str]] = {}
    for name in NAMES:
        for place in GRIDS:
            cells = []
            for calls in CALLS:
                steps = (calls + 1) // 2 if name == "heun" else calls
                grid = grids.GRIDS[place](schedule, steps)
                error = (drawn(name, grid) - fine).square().mean((1, 2, 3)).sqrt()
                mean, margin = float(error.mean()), float(error.std() / images**0.5)
                assert len(begin(SOLVERS[name], schedule, grid)[1]) - 1 <= calls
                cells.append(f"{mean:.4f} ± {margin:.4f}")
                best[calls] = min(best.get(calls, (9.0, "")), (mean, f"{name} on {place}"))
            print(f"{name}, {place} | " + " | ".join(cells), flush=True)
    print()
    for calls, (error, pair) in best.items():
        print(f"{calls} calls: {pair}, {error:.4f}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
