"""Tune a trained model into one that draws in 1, 2 or 4 network calls: a training that begins with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ancestral.runs import config
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


def settings(model: Origin, overrides: Mapping[str, Any]) -> tuple[Config, set[str]]:
    """The settings of the run, and the keys of those that are not the model's.

    Args:
        model: to begin with.
        overrides: of any setting, by key, as `--set` takes them.

    Raises:
        UserError: for a model that does not predict the mean of x0, and as `config.changed`.
    """
    own = model.model.config
    need_gaussian(own, f"distill {model.given}")
    rate = float(f"{RATE * own.train.learning_rate:.3g}")
    different = {**TUNED, "train.learning_rate": rate, **overrides}
    return config.changed(own, different), set(different)
