"""How often composed models draw what was composed, judged by the classifier of benchmarks/guidance.py.

Run: benchmarks/composition.py RUN. RUN is a class-conditional model of the built-in digits with dropped labels:

    ancestral train digits --preset tiny --images 40000 --out RUN
    --set model.labels=true --set model.condition_dropout=0.15

Of RUN's classes each is negated in turn. For the product two small energy networks (perceptrons: training
differentiates twice, which convolutions make slow on a CPU) are trained here, one on the even digits and one on those
above 4: their product is 6 and 8, which each of them draws two times in five. What is measured is kept under
benchmarks/measured and not measured again. The table is written into benchmarks/results.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import MEASURED, WORK, Results, options, parsed, publish, table
from guidance import classifier, rate
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from ancestral.data import load, pictures
from ancestral.data.dataset import ImageSet
from ancestral.data.pixels import to_bytes, to_unit
from ancestral.diffusion.denoisers.composition import Product, negation
from ancestral.diffusion.denoisers.denoiser import Conditioned, Denoiser, Predictor, clip_static
from ancestral.diffusion.denoisers.energy import EnergyNetwork, Learned
from ancestral.diffusion.denoisers.targets import EPS
from ancestral.diffusion.objectives.losses import Weighted
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.langevin import PredictorCorrector
from ancestral.diffusion.samplers.loop import from_model
from ancestral.diffusion.samplers.mcmc import acceptance, adjusted
from ancestral.diffusion.samplers.sample import latents, trajectory
from ancestral.diffusion.samplers.transitions import DDIM
from ancestral.networks.unet import time_embedding
from ancestral.runs import build, checkpoint

UPDATES, BATCH, PEAK, WIDTH = 6_000, 64, 1e-3, 512
LEVELS, ROUND = 30, 100
PARTS = {"even": {0, 2, 4, 6, 8}, "above 4": {5, 6, 7, 8, 9}}
BOTH = {6, 8}
Q = schedules.cosine(1000)


class Perceptron(nn.Module):
    """Images of 8x8 to the same, with the time added in every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])
        self.times = nn.ModuleList([nn.Linear(64, WIDTH) for _ in self.layers])
        self.head = nn.Linear(WIDTH, 64)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: (B, 1, 8, 8); time: (B,)."""
        h, told = x.flatten(1), time_embedding(time, 64)
        for layer, when in zip(self.layers, self.times, strict=True):
            h = functional.silu(layer(h) + when(told))
        return self.head(h).reshape(x.shape)


def energy_model(name: str, images: ImageSet, seed: int = 0) -> Learned:
    """Trained by L_simple on these images, or as it was."""
    file = WORK / f"composition-{name.replace(' ', '-')}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = EnergyNetwork(Perceptron())
        model, x0 = Denoiser(network, Q, EPS), to_unit(images.images)
        if not file.exists():
            optimizer = torch.optim.AdamW(model.parameters(), PEAK, betas=(0.9, 0.99), weight_decay=0.0)
            falling = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, UPDATES, pct_start=0.1)
            for _ in range(UPDATES):
                chosen, t = x0[torch.randint(len(x0), (BATCH,))], torch.randint(1, Q.T + 1, (BATCH,))
                optimizer.zero_grad()
                Weighted()(model, chosen, t, t - 1, torch.randn_like(chosen)).mean().backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                falling.step()
            WORK.mkdir(parents=True, exist_ok=True)
            save_file(model.state_dict(), file)
    model.load_state_dict(load_file(file))
    return Learned(model.eval().requires_grad_(False))


def drawn(make: Callable[[list[int]], Predictor], images: int, method, draw, grid: list[int]) -> tuple[Tensor, float]:
    """Images (N, 1, 8, 8), and the mean acceptance of moves."""
    parts, accepted = [], []
    for first in range(0, images, ROUND):
        numbers = list(range(first, min(first + ROUND, images)))
        predictor = make(numbers)
        steps = list(trajectory(predictor, latents([1, 8, 8], 0, numbers), grid, method, 0, numbers, draw(predictor)))
        parts.append(steps[-1].x_s)
        accepted.append(float(acceptance(steps).mean()) if isinstance(method, PredictorCorrector) else 1.0)
    return torch.cat(parts), float(np.mean(accepted))


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=500)
    given = parsed(parser)
    saved, _ = checkpoint.open_run(given.run)
    model = build.trained(saved, given.run, torch.device("cpu")).requires_grad_(False)
    splits = load.load("digits", saved.config.data)
    judge = classifier(splits.train)
    labels = np.asarray(splits.train.labels)
    digest = checkpoint.digest(saved)
    plain, moves = DDIM(1.0), PredictorCorrector(steps=2, snr=0.25)
    grid = grids.trailing(Q, LEVELS)
    repeated = [Q.T] * 6 + grid[1:]  # where a product begins, the chain's N(0, I) is not its law
    parts = {
        name: energy_model(name, splits.train.take(np.flatnonzero(np.isin(labels, list(digits)))))
        for name, digits in PARTS.items()
    }

    def seen(x: Tensor, name: str) -> Tensor:
        """The classes found, and a sheet."""
        pictures.save_sheet(WORK / f"composition-{name}.png", to_bytes(x[:40]), 20)
        with torch.no_grad():
            return judge(to_unit(to_bytes(x))).argmax(1)

    def negated(strength: float) -> dict[str, object]:
        """How many are of the class that was to be avoided."""

        def make(numbers: list[int]) -> Predictor:
            avoided = torch.tensor(numbers) % 10
            everything = Conditioned(
                model.unclipped, labels=avoided, dropped=torch.ones(len(numbers), dtype=torch.bool)
            )
            return negation(everything, Conditioned(model.unclipped, labels=avoided), strength, model.clip)

        x, _ = drawn(make, given.images, plain, lambda _: from_model, grids.trailing(model.schedule, LEVELS))
        found = seen(x, f"not-{strength:g}")
        return {"found": [int((found == torch.arange(len(x)) % 10).sum()), len(x)], "accepted": 1.0}

    def multiplied(name: str, sampler: str) -> dict[str, object]:
        """How many are 6 or 8."""
        chosen = list(parts.values()) if name == "product" else [parts[name]]
        made = Product(chosen, clip=clip_static)
        method, visits = (plain, grid) if sampler == "steps" else (moves, repeated)
        draw = adjusted(made, 3) if sampler == "HMC" else from_model
        x, accepted = drawn(lambda _: made, given.images, method, lambda _: draw, visits)
        found = seen(x, f"{name.replace(' ', '-')}-{sampler}")
        return {"found": [sum(int((found == digit).sum()) for digit in BOTH), len(x)], "accepted": accepted}

    results = Results(MEASURED / "composition.jsonl", ("what", "sampler", "strength", "model", "images"))
    rows, lines = [], []
    for strength in (0.0, 0.25, 0.5, 1.0):
        key = {"what": "negation", "sampler": "steps", "strength": strength, "model": digest, "images": given.images}
        line = results.once(lambda strength=strength: negated(strength), **key)
        rows.append([f"any digit but one, strength {strength:g}", "steps", "the one", rate(*line["found"]), ""])
        lines.append(line)
    for name, sampler in (
        ("even", "steps"),
        ("above 4", "steps"),
        ("product", "steps"),
        ("product", "ULA"),
        ("product", "HMC"),
    ):
        key = {"what": name, "sampler": sampler, "strength": 1.0, "model": UPDATES, "images": given.images}
        line = results.once(lambda name=name, sampler=sampler: multiplied(name, sampler), **key)
        kept = f"{line['accepted']:.2f}" if sampler == "HMC" else ""
        shown = "even x above 4" if name == "product" else name
        rows.append([shown, sampler, "6 or 8", rate(*line["found"]), kept])
        lines.append(line)
    text = (
        f"`digits`, {given.images} images a row, {LEVELS} levels. Energies: {UPDATES * BATCH:,} images seen "
        f"in training by each; two moves a level.\n\n"
    )
    publish(
        "composition", text + table(("drawn", "by", "share of", "classified so", "accepted"), rows), given.docs, lines
    )
