"""Tune a trained model into one that draws in few network calls: a training that begins with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ancestral.data import load
from ancestral.errors import UserError
from ancestral.runs import checkpoint, config
from ancestral.runs.config import Config
from ancestral.runs.process_kinds import FEW_CALLS, need_gaussian
from ancestral.runs.registry import choose
from ancestral.training.origin import Origin

RATE = 1 / 3  # of the learning rate that the model was trained with: see the log, 2026-11-29
OBJECTIVE = "progressive"  # where none is named
DISTILLED_CALLS = 2  # of the network to draw an image


def settings(
    model: Origin,
    overrides: Mapping[str, Any],
    folder: Path,
    *,
    calls: int | None = None,
    data: str | None,
    fresh: bool,
    further: bool = False,
) -> tuple[Config, set[str]]:
    """The settings of the run, and the keys of those that are not the model's; a run that is there has its own.

    Args:
        model: to begin with; a run that is there does not need it any more.
        overrides: of any setting, by key, as `--set` takes them.
        folder: of the run.
        calls: of the network to draw an image, where the objective is for one number of them; DISTILLED_CALLS when
            left out.
        data: images to tune on; those that the model was trained on when left out.
        fresh: whether a run in the folder counts for nothing.
        further: whether a complete run goes on, with all that it has.

    Raises:
        UserError: for a model that does not predict the mean of x0, images that are not there, a run in the folder that
            was not distilled or is for other calls, and as `config.changed`.
    """
    begun = None if fresh else checkpoint.latest(folder)[0]
    own = model.model.config if begun is None else begun.config
    rate = own.train.learning_rate
    if begun is None:
        need_gaussian(own, f"distill {model.given}")
        rate = float(f"{RATE * rate:.3g}")
    elif own.diffusion.objective not in FEW_CALLS:
        raise UserError(f"{folder}: holds a run that was not distilled; choose another --out")
    if begun is not None and further:
        if calls not in (None, own.diffusion.train_steps):
            kept = own.diffusion.train_steps or "any number of"
            raise UserError(
                f"--calls: {folder} draws in {kept} calls, which a further leg keeps; leave it out, or choose another "
                "--out"
            )
        different = {key: value for key, value in overrides.items() if (key, value) != ("train.seed", 0)}
    else:
        different = {**_tuned(overrides, calls), "train.learning_rate": rate, **overrides}
    source = load.source_of(own.source, data, "name those to tune on with --data")
    return replace(config.changed(own, different), source=source), set(different)


def _tuned(overrides: Mapping[str, Any], calls: int | None) -> dict[str, Any]:
    """What differs from the model's own settings.

    Raises:
        UserError: for an objective of another kind, and a number of calls for one that has none.
    """
    objective = str(overrides.get("diffusion.objective", OBJECTIVE))
    few = choose(FEW_CALLS, objective, "diffusion.objective")
    if calls is not None and not few.counted:
        raise UserError(
            f"--calls: a model of diffusion.objective={objective} draws in any number; leave it out, and give sample "
            f"--steps {calls}"
        )
    return {
        "diffusion.objective": objective,
        "diffusion.chain": few.chain,
        "diffusion.times": few.times,
        "diffusion.variance": "fixedlarge",  # its reverse step has its own, whatever is named
        **({"diffusion.train_steps": DISTILLED_CALLS if calls is None else calls} if few.counted else {}),
    }
