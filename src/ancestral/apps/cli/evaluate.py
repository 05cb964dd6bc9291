"""`ancestral evaluate` and `ancestral metrics`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ancestral.apps.cli.options import (
    POSITIVE,
    held_out,
    machine_options,
    measuring_options,
    need_not_given,
    sampling_options,
    share,
    taken_held_out,
)


@click.command(short_help="Measure the variational bound, in bits/dim.")
@held_out(256)
@click.option(
    "--terms",
    type=POSITIVE,
    help="Terms of the bound measured an image, 2 to T; 50 when left out, and the error of fewer than 5 says little.",
)
@click.option("--exact", is_flag=True, help="Every term for every image, instead of an unbiased part.")
@click.option("--variance", help="Reverse variance to measure with; the run's own when left out.")
@click.option("--batch-size", type=POSITIVE, default=64, show_default=True, help="Images at a time; changes no number.")
@click.option("--per-image", is_flag=True, help="A line for each image with anomaly scores; each is measured 4 times.")
@click.option("--reference", metavar="DATA", help="Whose training images are usual; the run's own when left out.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results; RUN when left out.")
@measuring_options
def evaluate(run: Path, processes: int, **options: Any) -> None:
    """Measure the variational bound of the model in RUN on the held-out part of DATA, in bits per dimension."""
    if options["exact"]:
        need_not_given("--exact measures every term", "terms")
    share(processes)
    from ancestral.evaluation import elbo_command

    images = taken_held_out(options)
    elbo_command.evaluate(run, images, **options)


@click.command(short_help="Compare samples with real images: distances, copies.")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("data_source", metavar="[DATA]", required=False)
@click.option("--num-images", type=POSITIVE, default=2000, show_default=True, help="Images on each side, at most.")
@click.option(
    "--network",
    "networks",
    multiple=True,
    default=["lite0"],
    show_default=True,
    help="lite0, pixels, classifier (trained on DATA's classes), FILE.pt (the FID Inception); given again: each.",
)
@click.option("--train-images", type=POSITIVE, help="Search so many training images for copies; all when left out.")
@sampling_options()
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for the results; SOURCE when left out, if it is a run."
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Of features and samples, at most 4 GB; ~/.cache/ancestral when left out.",
)
@click.option("--no-cache", is_flag=True, help="Compute everything anew, and keep no features and samples.")
@machine_options
def metrics(source: Path, processes: int, **given: Any) -> None:
    """Compare samples with the real images of DATA: Fréchet and kernel distance, precision, recall, copies.

    SOURCE is a run, from which samples are drawn and whose own data are DATA when left out; or images, as a folder,
    .npz or .npy file, that are compared as they are.
    """
    if given["no_cache"]:
        need_not_given("--no-cache keeps nothing", "cache")
    share(processes)
    from ancestral.evaluation import sample_metrics_command

    sample_metrics_command.metrics(source, **given)
