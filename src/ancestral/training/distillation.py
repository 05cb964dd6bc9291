"""Tune a trained model into one that draws in 1, 2 or 4 network calls: a training that begins with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ancestral.data import load
from ancestral.errors import UserError
from ancestral.runs import checkpoint, config
from ancestral.runs.config import Config
from ancestral.runs.process_kinds import OF_CONSISTENCY, need_gaussian
from ancestral.training.origin import Origin

RATE = 1 / 3  # of the learning rate that the model was trained with: see the log, 2026-11-29
TUNED = {  # what differs from the model's own settings
    "diffusion.chain": "consistency",
    "diffusion.variance": "fixedlarge",  # its reverse step has the variance of q, whatever is named
}


def settings(
    model: Origin, overrides: Mapping[str, Any], folder: Path, *, data: str | None, fresh: bool, further: bool = False
) -> tuple[Config, set[str]]:
    """The settings of the run, and the keys of those that are not the model's; a run that is there has its own.

    Args:
        model: to begin with; a run that is there does not need it any more.
        overrides: of any setting, by key, as `--set` takes them.
        folder: of the run.
        data: images to tune on; those that the model was trained on when left out.
        fresh: whether a run in the folder counts for nothing.
        further: whether a complete run goes on, with all that it has.

    Raises:
        UserError: for a model that does not predict the mean of x0, images that are not there, a run in the folder that
            was not distilled, and as `config.changed`.
    """
    begun = None if fresh else checkpoint.latest(folder)[0]
    own = model.model.config if begun is None else begun.config
    rate = own.train.learning_rate
    if begun is None:
        need_gaussian(own, f"distill {model.given}")
        rate = float(f"{RATE * rate:.3g}")
    elif own.diffusion.chain != TUNED["diffusion.chain"]:
        raise UserError(f"{folder}: holds a run that was not distilled; choose another --out")
    if begun is not None and further:
        different = {key: value for key, value in overrides.items() if (key, value) != ("train.seed", 0)}
    else:
        objective = str(overrides.get("diffusion.objective", "consistency"))
        times = OF_CONSISTENCY.get(objective, OF_CONSISTENCY["consistency"]).times
        tuned = {"diffusion.objective": objective, "diffusion.times": times, "train.learning_rate": rate}
        different = {**TUNED, **tuned, **overrides}
    source = load.source_of(own.source, data, "name those to tune on with --data")
    return replace(config.changed(own, different), source=source), set(different)
