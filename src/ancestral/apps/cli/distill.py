"""`ancestral distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ancestral.apps.cli.options import (
    Number,
    assigned,
    budget_option,
    device_option,
    dry_run_option,
    fresh_option,
    images_option,
    out_option,
    processes_option,
    seed_option,
    set_option,
    share,
    steps_option,
)
from ancestral.runs.length import Length


@click.command(short_help="Tune a model to draw in few calls.")
@click.argument("model")
@out_option
@click.option(
    "--calls",
    type=click.IntRange(min=1),
    help="Network calls to draw an image that it is tuned for, such as 1, 2 or 4; 2 when left out.",
)
@click.option("--data", help="Images to tune on; those that the model was trained on when left out.")
@budget_option
@images_option
@steps_option
@click.option(
    "--learning-rate",
    type=Number(min=0, min_open=True),
    help="Peak, no unit; a third of the model's when left out.",
)
@seed_option
@device_option
@processes_option
@set_option
@dry_run_option
@fresh_option
def distill(model: str, run: Path, assignments: tuple[str, ...], seed: int, **options: Any) -> None:
    """Tune MODEL into one that draws in few network calls: a run, a published or diffusers folder, hf:NAME."""
    short = {"train.seed": ("seed", seed), "train.learning_rate": ("learning_rate", options["learning_rate"])}
    overrides = assigned(assignments, short)
    share(options["processes"])
    from ancestral.runtime.launch import stopped
    from ancestral.training import command, distillation
    from ancestral.training.origin import Origin

    length = Length.of(**{name: options[name] for name in ("budget", "images", "steps")})
    begin_with = Origin(model)
    how = {"calls": options["calls"], "data": options["data"], "fresh": options["fresh"], "further": length.further}
    resolved, given = distillation.settings(begin_with, overrides, run, **how)
    chosen = {name: options[name] for name in ("dry_run", "fresh")} | {"given": given, "begin_with": begin_with}
    chosen["began"] = click.get_current_context().find_object(float)
    if not command.train(resolved, run, length, options["device"], **chosen):
        stopped()
