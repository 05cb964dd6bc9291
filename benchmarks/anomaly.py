"""Own images against foreign ones of the same shape: AUROC of every anomaly score, and where plain likelihood fails.

Run: .venv/bin/python benchmarks/anomaly.py --pair RUN OWN FOREIGN [--pair ...]. Writes its table into
results.md. RUN was trained on OWN, whose training images are the norm; the held-out images of both are scored.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from common import WORK, Results, options, parsed, publish, shown, table

from ancestral.data import load
from ancestral.data.dataset import DataOptions, ImageSet
from ancestral.diffusion.denoisers.denoiser import Denoiser
from ancestral.diffusion.objectives.anomaly import SCORES, auroc
from ancestral.diffusion.objectives.statistics import mean_and_error
from ancestral.evaluation.anomaly_scores import traced, with_files
from ancestral.evaluation.measurement import Measurement
from ancestral.runs import build, checkpoint
from ancestral.runs.checkpoint import Checkpoint
from ancestral.runtime.distributed import Processes

COLUMNS = ("own_bits", "foreign_bits", "own_shortest", "foreign_shortest")


def main() -> None:
    """One line of results for each pair, then the table of all."""
    parser = options(__doc__ or "")
    parser.add_argument("--pair", nargs=3, action="append", required=True, metavar=("RUN", "OWN", "FOREIGN"))
    parser.add_argument("--images", type=int, default=256, help="held-out ones of each side")
    parser.add_argument("--norm", type=int, default=256, help="training images that are the norm")
    parser.add_argument("--results", type=Path, default=WORK / "anomaly", help="folder of results and pieces of work")
    given = parsed(parser)
    results = Results(given.results / "anomaly.jsonl", ("model", "own", "foreign", "images", "norm"))
    lines = []
    for run, own, foreign in given.pair:
        saved, _ = checkpoint.open_run(Path(run))
        model = build.trained(saved, Path(run), torch.device("cpu"))
        lines.append(
            results.once(
                partial(measured, saved, model, own, foreign, given),
                model=checkpoint.digest(saved),
                own=Path(own).stem,
                foreign=Path(foreign).stem,
                images=given.images,
                norm=given.norm,
            )
        )
    publish("anomaly", text(lines), given.docs, lines)


def print_dot(count: int) -> None:
    """Show progress."""
    print(".", end="", flush=True)


def measured(saved: Checkpoint, model: Denoiser, own: str, foreign: str, given: Namespace) -> Mapping[str, object]:
    """AUROC of every score with its standard error, and the mean bits/dim of both sides."""
    home, away = (load.load(source, DataOptions()) for source in (own, foreign))
    sets: list[ImageSet] = [home.train.spread(given.norm), *(side.test.spread(given.images) for side in (home, away))]
    traces = (
        traced(Measurement(saved, model, None, one, 32, 0), given.results / "traces", Processes(), print_dot)
        for one in sets
    )
    norm, own_images, others = map(with_files, traces, sets)
    found = {name: list(auroc(score(own_images, norm), score(others, norm))) for name, score in SCORES.items()}
    values = (own_images.trace.bits, others.trace.bits, own_images.shortest, others.shortest)
    return {
        "seen": saved.images,
        "auroc": found,
        **{name: list(mean_and_error(one)) for name, one in zip(COLUMNS, values, strict=True)},
    }


def text(lines: list[dict]) -> str:
    """Pairs as columns; above what was measured, below the scores."""
    heads = [f"{line['own']}, then {line['foreign']}" for line in lines]
    rows: list[list[str]] = [["images seen in training", *(f"{line['seen']:,}" for line in lines)]]
    for name, label in zip(
        COLUMNS,
        ("bound of 25 steps, own", "bound of 25 steps, foreign", "PNG or WebP, own", "PNG or WebP, foreign"),
        strict=True,
    ):
        rows.append([f"{label}, bits/dim", *(shown(line[name], 3) for line in lines)])
    rows += [[f"AUROC of `{name}`", *(shown(line["auroc"][name], 3) for line in lines)] for name in SCORES]
    note = f"{lines[0]['images']} held-out images of each side, {lines[0]['norm']} training images as the norm."
    return f"{note}\n\n{table(['the model of own images, then foreign ones', *heads], rows)}"


if __name__ == "__main__":
    main()
