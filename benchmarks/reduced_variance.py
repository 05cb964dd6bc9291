"""What the KL form saves: the spread of single terms of the bound, KL against plain Monte Carlo, on a trained run.

Run: .venv/bin/python benchmarks/reduced_variance.py RUN. Writes its table into benchmarks/results.md.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from common import options, parsed, publish, table

from ancestral.data import load
from ancestral.data.pixels import to_unit
from ancestral.diffusion.objectives.elbo import elbo
from ancestral.diffusion.objectives.elbo_derivation import along_chains
from ancestral.diffusion.processes.streams import Streams
from ancestral.runs import build, checkpoint


def main() -> None:
    """Both estimates of the same bound on the same held-out images, on a grid of few steps."""
    parser = options(__doc__ or "")
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100)
    given = parsed(parser)
    run, images, steps = given.run, given.images, given.steps
    saved, _ = checkpoint.open_run(run)
    model = build.trained(saved, run, torch.device("cpu"))
    predictor = build.predictor(model, saved.calibration)
    move, grid = build.transition(saved, None), build.sampling_grid(saved.config, "trailing", steps)
    x0 = to_unit(load.load(saved.config.source, saved.config.data).test.images[:images]).double()
    kl = elbo(predictor, x0, grid, move, Streams(0, "kl", range(images)))
    plain = along_chains(predictor, x0, grid, move, Streams(0, "plain", range(images))).monte_carlo
    unit = kl.dimensions * math.log(2)
    rows = []
    for name, pick in (("the bound, mean", "mean"), ("the bound, spread over images", "std")):
        a, b = (float(getattr(one.bits_per_dim, pick)()) for one in (kl, plain))
        rows.append([name, f"{a:.4f}", f"{b:.4f}", f"{b / a:.2f}"])
    for t in (grid[0], grid[steps // 2], grid[-3], grid[-2]):
        a, b = (float(one.terms[one.t == t].std()) / unit for one in (kl, plain))
        rows.append([f"one term at t = {t}, spread", f"{a:.6f}", f"{b:.6f}", f"{b / a:.1f}"])
    a, b = (float(one.terms.var(0).mean().sqrt()) / unit for one in (kl, plain))
    rows.append(["one term, root mean square over t", f"{a:.6f}", f"{b:.6f}", f"{b / a:.1f}"])
    text = table(["bits/dim", "KL form", "Monte Carlo (Eq. 3)", "ratio"], rows)
    publish("reduced-variance", f"`{run.name}`, {images} images, {steps} steps.\n\n{text}", given.docs)


if __name__ == "__main__":
    main()
