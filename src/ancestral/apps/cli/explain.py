"""`ancestral explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ancestral.apps.cli.options import average_option, device_option, need_not_given, seed_option
from ancestral.apps.report import LANGUAGES


@click.command(short_help="Explain a model by its own numbers, in one file.")
@click.argument("run", type=click.Path(path_type=Path), required=False)
@click.argument("data_source", metavar="[DATA]", required=False)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="The file to write: .html for the report, .json for its numbers alone.",
)
@click.option(
    "--lang",
    "language",
    type=click.Choice(LANGUAGES),
    default="en",
    show_default=True,
    help="English or Traditional Chinese.",
)
@click.option(
    "--num-images", type=click.IntRange(min=2), default=256, show_default=True, help="Held-out images of the bound."
)
@average_option
@seed_option
@device_option
def explain(run: Path | None, **options: Any) -> None:
    """Explain the model in RUN by its own numbers, in one HTML file that needs nothing else.

    It is measured on the held-out part of DATA, the run's own data when left out, which takes a minute or two. Without
    RUN the report is about drawn shapes whose denoiser is known exactly.
    """
    if run is None:
        need_not_given("is of a run, and RUN is left out", "device", "average_width")
    from ancestral.apps.report import main

    main.explain(run, **options)
