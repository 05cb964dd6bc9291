"""`ancestral sample` and `ancestral tune-steps`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ancestral.apps.cli.options import (
    POSITIVE,
    average_option,
    device_option,
    embeddings_option,
    machine_options,
    run_argument,
    sampling_option,
    sampling_options,
    seed_option,
    share,
)


@click.command(short_help="Draw images.")
@run_argument
@click.option("--num-images", type=POSITIVE, default=64, show_default=True, help="How many images.")
@sampling_options()
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the images; RUN/samples when left out.")
@sampling_option("label")
@embeddings_option
@click.option("--film", is_flag=True, help="Also write the film of the first images: x_t and the predicted x0.")
@click.option("--array", is_flag=True, help="One file images.npy, uint8 (N, H, W, C), in place of PNGs.")
@machine_options
def sample(run: Path, processes: int, **given: Any) -> None:
    """Draw images from the trained model in RUN."""
    share(processes)
    from ancestral.sampling import command

    command.sample(run, **given)


@click.command("tune-steps", short_help="Find the best times for few steps.")
@run_argument
@click.option("--steps", type=POSITIVE, required=True, help="How few steps to find the best times for.")
@click.option("--num-images", type=POSITIVE, default=32, show_default=True, help="Images drawn to find them.")
@embeddings_option
@average_option
@seed_option
@device_option
def tune_steps(run: Path, **options: Any) -> None:
    """Find the best times for so few steps of the model in RUN; then: sample --steps N --grid tuned."""
    from ancestral.sampling import command

    command.tune_steps(run, **options)
