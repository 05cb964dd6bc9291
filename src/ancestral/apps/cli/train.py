"""`ancestral train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ancestral.apps.cli.options import (
    POSITIVE,
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


@click.command(short_help="Train on images.")
@click.argument("data")
@out_option
@click.option(
    "--preset", default="images", show_default=True, help="images, likelihood, absorbing, tiny, cifar10 or paper-256."
)
@budget_option
@images_option
@steps_option
@click.option("--batch-size", type=POSITIVE, help="Images an update; the preset's when left out.")
@click.option(
    "--learning-rate",
    type=Number(min=0, min_open=True),
    help="Peak learning rate, no unit; the preset's when left out.",
)
@click.option(
    "--size", type=POSITIVE, help="Side of the images in pixels, after a centre crop; their own when left out."
)
@seed_option
@device_option
@processes_option
@click.option(
    "--restarts",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="With --processes: begin again so many times.",
)
@click.option("--track", multiple=True, metavar="NAME", help="Also tell tensorboard or wandb; may be repeated.")
@set_option
@dry_run_option
@click.option(
    "--from",
    "begin_with",
    metavar="MODEL",
    help="Begin with the weights of a run, RUN/averages/N, a published or diffusers folder, or hf:USER/NAME.",
)
@fresh_option
def train(data: str, run: Path, preset: str, assignments: tuple[str, ...], seed: int, **options: Any) -> None:
    """Train on DATA: a folder of images, a .npz or .npy file, tar shards, hf:NAME, or the built-in mnist or digits."""
    from ancestral.runs import config

    short = {"train.batch_size": "batch_size", "train.learning_rate": "learning_rate", "data.size": "size"}
    named = {key: (name, options[name]) for key, name in short.items()}
    overrides = assigned(assignments, {**named, "train.seed": ("seed", seed or None)})  # every preset's is 0
    resolved = config.resolve(data, preset, overrides)
    share(options["processes"], options["restarts"])
    from ancestral.runtime.launch import stopped
    from ancestral.training import command
    from ancestral.training.origin import Origin

    length = Length.of(**{name: options[name] for name in ("budget", "images", "steps")})
    chosen = {name: options[name] for name in ("dry_run", "fresh", "track")}
    chosen |= {"given": set(overrides)}
    chosen |= {"begin_with": None if options["begin_with"] is None else Origin(options["begin_with"])}
    chosen["began"] = click.get_current_context().find_object(float)
    if not command.train(resolved, run, length, options["device"], **chosen):
        stopped()
