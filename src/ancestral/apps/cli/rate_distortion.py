"""`ancestral rd`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ancestral.apps.cli.options import (
    POSITIVE,
    PROFILE,
    held_out,
    measuring_options,
    need_not_given,
    share,
    taken_held_out,
)


@click.command(short_help="Rate and distortion of progressive decoding.")
@held_out(64)
@click.option("--profile", type=PROFILE, help="Measure prefixes of files too: at most 64, as `compress` has them.")
@click.option("--steps", type=POSITIVE, help="Steps of the reverse process; every time step when left out.")
@click.option(
    "--grid",
    default="trailing",
    show_default=True,
    help="Where fewer steps lie: as of ancestral sample, but for tuned.",
)
@click.option("--variance", help="Reverse variance to measure with; the run's own when left out.")
@click.option("--batch-size", type=POSITIVE, default=16, show_default=True, help="Images at a time; changes no number.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results; RUN when left out.")
@measuring_options
def rd(run: Path, processes: int, **options: Any) -> None:
    """Rate and distortion of progressive decoding (Table 4, Figure 5) on held-out images of DATA."""
    if options["steps"] is None:
        need_not_given("says where fewer steps than all lie; give --steps N too", "grid")
    share(processes)
    from ancestral.evaluation import rate_distortion_command

    images = taken_held_out(options)
    rate_distortion_command.rate_distortion(run, images, **options)
