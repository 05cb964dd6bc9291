"""Tune a trained model into one that draws in 1, 2 or 4 network calls: a training that begins with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ancestral.data import load
from ancestral.runs import checkpoint, config
from ancestral.runs.config import Config
from ancestral.runs.process_kinds import need_gaussian
from ancestral.training.origin import Origin

RATE = 1 / 3  # of the learning rate that the model was trained with: see the log, 2026-11-29
TUNED = {  # what differs from the model's own settings
    "diffusion.chain": "consistency",
    "diffusion.objective": "consistency",
    "diffusion.times": "log-normal-wide",
    "diffusion.variance": "fixedlarge",  # its reverse step has the variance of q, whatever is named
}


def settings(
    model: Origin, overrides: Mapping[str, Any], folder: Path, *, data: str | None, fresh: bool
) -> tuple[Config, set[str]]:
    """The settings of the run, and the keys of those that are not the model's; a run that is there has its own.

    Args:
        model: to begin with; a run that is there does not need it any more.
        overrides: of any setting, by key, as `--set` takes them.
        folder: of the run.
        data: images to tune on; those that the model was trained on when left out.
        fresh: whether a run in the folder counts for nothing.

    Raises:
        UserError: for a model that does not predict the mean of x0, images that are not there, and as `config.changed`.
    """
    begun = None if fresh else checkpoint.latest(folder)[0]
    own = model.model.config if begun is None else begun.config
    rate = own.train.learning_rate
    if begun is None:
        need_gaussian(own, f"distill {model.given}")
        rate = float(f"{RATE * rate:.3g}")
    different = {**TUNED, "train.learning_rate": rate, **overrides}
    source = load.source_of(own.source, data, "name those to tune on with --data")
    return replace(config.changed(own, different), source=source), set(different)
