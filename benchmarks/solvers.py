"""How far each solver on each grid ends from the exact flow, on a trained run: RMSE to a fine solution, same latents.

Run: .venv/bin/python benchmarks/solvers.py RUN. Writes its table into benchmarks/results.md.
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import options, parsed, publish, steps_of, table
from torch import Tensor

from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.sample import finish, latents, trajectory
from ancestral.diffusion.samplers.solvers import SOLVERS
from ancestral.diffusion.samplers.transitions import begin
from ancestral.runs import build, checkpoint

CALLS = (4, 6, 8, 10, 15, 20)
NAMES = ("euler", "dpm++2m", "dpm++3m", "unipc2", "unipc3", "deis3", "ipndm4", "heun")
GRIDS = ("trailing", "log-snr", "karras", "quadratic")


def main() -> None:
    """The table, and for each number of calls the best pair."""
    parser = options(__doc__ or "")
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=64)
    given = parsed(parser)
    run, images = given.run, given.images
    saved, _ = checkpoint.open_run(run)
    model = build.trained(saved, run, torch.device("cpu"))
    schedule, start = model.schedule, latents(saved.facts.shape, 0, range(images))

    def drawn(name: str, grid: list[int]) -> Tensor:
        return finish(trajectory(model, start, grid, SOLVERS[name])).clamp(-1, 1)

    fine = drawn("dpm++2m", grids.full(schedule))
    spread = (fine - drawn("dpm++2m", grids.trailing(schedule, schedule.T // 2))).square().mean((1, 2, 3)).sqrt()
    best: dict[int, tuple[float, str]] = {}
    rows = []
    for name in NAMES:
        for place in GRIDS:
            cells = []
            for calls in CALLS:
                grid = grids.GRIDS[place](schedule, steps_of(name, calls))
                error = (drawn(name, grid) - fine).square().mean((1, 2, 3)).sqrt()
                mean, margin = float(error.mean()), float(error.std() / images**0.5)
                assert len(begin(SOLVERS[name], schedule, grid)[1]) - 1 <= calls
                cells.append(f"{mean:.4f} ± {margin:.4f}")
                best[calls] = min(best.get(calls, (9.0, "")), (mean, f"{name} on {place}"))
            rows.append([f"{name}, {place}", *cells])
            print(*rows[-1], sep=" | ", flush=True)
    rows.append(["**the best**", *(f"{pair}, {error:.4f}" for error, pair in best.values())])
    note = f"`{run.name}`, {images} images; 500 against 1000 steps: {float(spread.mean()):.4f}."
    text = table(["solver, grid", *(f"{calls} calls" for calls in CALLS)], rows)
    publish("solvers", f"{note}\n\n{text}", given.docs)


if __name__ == "__main__":
    main()
