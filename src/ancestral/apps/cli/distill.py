"""`ancestral distill`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ancestral.apps.cli.options import COUNT, DURATION, device_option, processes_option, seed_option, share


@click.command(short_help="Tune a model to draw in few calls.")
@click.argument("model")
@click.option(
    "--out", "run", required=True, type=click.Path(path_type=Path), help="Run folder; the same command resumes."
)
@click.option("--data", help="Images to tune on; those that the model was trained on when left out.")
@click.option("--budget", type=DURATION, help="Wall time to plan for: 90s, 10m, 2h; 10m when no length is given.")
@click.option("--images", type=COUNT, help="Length of the run in images seen, instead of a time.")
@click.option("--steps", type=COUNT, help="Length of the run in updates, instead of a time.")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), help="Peak; the model's / 3 if left out.")
@seed_option
@device_option
@processes_option
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any other setting; --dry-run lists them."
)
@click.option("--dry-run", is_flag=True, help="Show the settings, the cost and what the budget buys; train nothing.")
@click.option("--fresh", is_flag=True, help="Begin anew; an existing run is moved aside, not deleted.")
def distill(model: str, run: Path, assignments: tuple[str, ...], seed: int, **options: Any) -> None:
    """Tune MODEL into one that draws in 1, 2 or 4 network calls: a run, a published or diffusers folder, hf:NAME."""
    from ancestral.runs import config

    overrides = {"train.seed": seed, **config.parse_assignments(assignments)}
    if options["learning_rate"] is not None:
        overrides["train.learning_rate"] = options["learning_rate"]
    share(options["processes"])
    from ancestral.runtime.signals import STOPPED
    from ancestral.training import command, distillation
    from ancestral.training.origin import Origin

    length = command.Length.of(**{name: options[name] for name in ("budget", "images", "steps")})
    begin_with = Origin(model)
    resolved, given = distillation.settings(begin_with, overrides)
    resolved = resolved if options["data"] is None else replace(resolved, source=options["data"])
    chosen = {name: options[name] for name in ("dry_run", "fresh")}
    if not command.train(resolved, run, length, options["device"], given=given, begin_with=begin_with, **chosen):
        sys.exit(STOPPED)
