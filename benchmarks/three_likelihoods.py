"""The same held-out images, in bits per dimension by the bound, by the probability flow, and in every order.

Run: benchmarks/three_likelihoods.py GAUSSIAN ABSORBING, two runs on the same images:

    ancestral train mnist --preset images --images 160000 --out GAUSSIAN
    ancestral train mnist --preset absorbing --set diffusion.T=784 --images 28800 --out ABSORBING

What is measured are images that neither run was trained on, each by the command of its row. What is measured is kept
under benchmarks/measured and not measured again. The table is written into benchmarks/results.md.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from common import MEASURED, WORK, Results, options, parsed, publish, shown, table

from ancestral.apps.cli.main import main
from ancestral.data import load
from ancestral.runs import checkpoint


def unseen(runs: list[Path]) -> np.ndarray:
    """Images (N, H, W, C) that every run holds out, and none trains on."""
    every = []
    for run in runs:
        saved, _ = checkpoint.open_run(run)
        every.append(load.load(saved.config.source, saved.config.data))
    held_out = [{image.tobytes() for image in splits.test.images[:]} for splits in every]
    trained = [{image.tobytes() for image in splits.train.images[:]} for splits in every]
    wanted = set.intersection(*held_out) - set.union(*trained)
    return np.stack([image for image in every[0].test.images[:] if image.tobytes() in wanted])


def measured(verb: str, run: Path, images: Path, count: int, *arguments: str) -> dict:
    """What the command writes."""
    folder = WORK / f"{verb}-{run.name}"
    out = ["--out", str(folder)] if verb == "evaluate" else []
    command = [verb, str(run), str(images), "--num-images", str(count), "--device", "cpu", *arguments, *out]
    if code := main.main(command, standalone_mode=False):
        raise SystemExit(code)
    file = folder / "evaluation.json" if verb == "evaluate" else run / "likelihood.json"
    return json.loads(file.read_text())


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("gaussian", type=Path)
    parser.add_argument("absorbing", type=Path)
    parser.add_argument("--images", type=int, default=256)
    given = parsed(parser)
    runs = [given.gaussian, given.absorbing]
    images = unseen(runs)[: given.images]
    WORK.mkdir(parents=True, exist_ok=True)
    file = WORK / "three_likelihoods.npz"
    # Training images are asked for, and read only where a run does not know its own error.
    np.savez(file, train_images=images, test_images=images)
    digest = hashlib.sha256(images.tobytes()).hexdigest()[:16]

    results = Results(MEASURED / "three_likelihoods.jsonl", ("command", "model", "images"))
    facts, lines = [], []
    for verb, run in (("evaluate", given.gaussian), ("likelihood", given.gaussian), ("evaluate", given.absorbing)):
        saved, _ = checkpoint.open_run(run)
        if saved.calibration is None and saved.config.diffusion.variance == "optimal":
            raise SystemExit(f"{run}: does not know its own error, which --variance optimal needs")
        lines.append(
            results.once(
                lambda verb=verb, run=run: {"found": measured(verb, run, file, len(images))},
                command=verb,
                model=checkpoint.digest(saved),
                images=digest,
            )
        )
        facts.append(saved)

    bound, flow, orders = (line["found"] for line in lines)
    chain, reverse = "Gaussian", f"{bound['variance']} variance"

    def bits(found: dict, name: str) -> str:
        """With its standard error over images."""
        value = found["bits_per_dim"][name]
        return shown((value["mean"], value["standard_error"]), 3)

    def seen(place: int) -> str:
        """By the model of that row."""
        return f"{facts[place].images:,}"

    calls = f"{min(flow['network_calls'])} to {max(flow['network_calls'])}, each with a backward pass"
    rows = [
        [f"the bound, {reverse}", "`evaluate`", chain, seen(0), bits(bound, "bound, bits/dim"), bound["terms"]],
        ["the probability flow", "`likelihood`", chain, seen(1), bits(flow, "flow"), calls],
        [
            "autoregression, the mean over orders",
            "`evaluate`",
            "absorbing",
            seen(2),
            bits(orders, "bound, bits/dim"),
            orders["terms"],
        ],
    ]
    for name in ("png", "webp"):
        value = bound["bits_per_dim"][f"{name} without container"]["mean"]
        rows.append([f"{name.upper()} without container".replace("WEBP", "WebP"), "", "", "", f"{value:.3f}", ""])
    headings = ("measured by", "command", "chain", "images seen in training", "bits/dim", "network calls an image")
    sources = " and ".join(dict.fromkeys(f"`{Path(saved.config.source).stem}`" for saved in facts))
    text = f"{len(images)} images of {sources} that neither run was trained on.\n\n"
    publish("three-likelihoods", text + table(headings, rows), given.docs, lines)
