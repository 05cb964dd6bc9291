"""What the KL form saves: the spread of single terms of the bound, KL against plain Monte Carlo, on a trained run.

Run: .venv/bin/python benchmarks/reduced_variance.py RUN [IMAGES] [STEPS]. Prints a table for docs/benchmarks.md.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch

from ancestral import build, checkpoint, data
from ancestral.bound import bound, naive_bound
from ancestral.feed import to_unit
from ancestral.rng import Streams


def main(run: str, images: int = 32, steps: int = 100) -> None:
    """Both estimates of the same bound on the same held-out images, on a grid of `steps` steps."""
    saved, _ = checkpoint.open_run(Path(run))
    model = build.trained(saved, Path(run), torch.device("cpu"))
    predictor = build.predictor(model, saved.calibration)
    move, grid = build.transition(saved, None), build.sampling_grid(saved.config, "trailing", steps)
    x0 = to_unit(data.load(saved.config.source, saved.config.data).test.images[:images]).double()
    kl = bound(predictor, x0, grid, move, Streams(0, "kl", range(images)))
    plain = naive_bound(predictor, x0, grid, move, Streams(0, "plain", range(images)))
    unit = kl.dimensions * math.log(2)
    print(f"{images} images, {steps} steps, bits/dim | KL form | Monte Carlo (Eq. 3) | ratio")
    print("---|---|---|---")
    for name, pick in (("the bound, mean", "mean"), ("the bound, spread over images", "std")):
        a, b = (float(getattr(one.bits_per_dim, pick)()) for one in (kl, plain))
        print(f"{name} | {a:.4f} | {b:.4f} | {b / a:.2f}")
    for t in (grid[0], grid[steps // 2], grid[-3], grid[-2]):
        a, b = (float(one.terms[one.t == t].std()) / unit for one in (kl, plain))
        print(f"one term at t = {t}, spread | {a:.6f} | {b:.6f} | {b / a:.1f}")
    a, b = (float(one.terms.var(0).mean().sqrt()) / unit for one in (kl, plain))
    print(f"one term, root mean square over t | {a:.6f} | {b:.6f} | {b / a:.1f}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
