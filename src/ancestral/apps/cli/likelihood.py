"""`ancestral likelihood`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ancestral.apps.cli.options import (
    POSITIVE,
    Number,
    held_out,
    measuring_options,
    need_not_given,
    share,
    taken_held_out,
)

TOLERANCE = Number(min=1e-12, max=1)


@click.command(short_help="Measure bits/dim by the probability flow.")
@held_out(64)
@click.option("--probes", type=POSITIVE, default=1, show_default=True, help="Random probes of the trace an image.")
@click.option("--dequantisation", default="noise", show_default=True, help="From bytes to a density: noise or uniform.")
@click.option(
    "--solver",
    type=click.Choice(["RK45", "RK23", "DOP853"]),
    default="RK45",
    show_default=True,
    help="Runge-Kutta method; DOP853 pays where nothing is clipped.",
)
@click.option("--rtol", type=TOLERANCE, default=1e-4, show_default=True, help="Error of a step, as a share of x_t.")
@click.option("--atol", type=TOLERANCE, default=1e-4, show_default=True, help="Error of a step, in units of x_t.")
@click.option(
    "--variance", help="Reverse variance of the last step of --dequantisation noise; the run's own when left out."
)
@click.option(
    "--batch-size", type=POSITIVE, default=32, show_default=True, help="Images at a time, whose steps are as long."
)
@measuring_options
def likelihood(run: Path, processes: int, **options: Any) -> None:
    """Measure the held-out part of DATA by the probability flow of the model in RUN, in bits per dimension."""
    if options["dequantisation"] == "uniform":
        need_not_given("is of the last step of --dequantisation noise", "variance")
    share(processes)
    from ancestral.evaluation import flow_command

    images = taken_held_out(options)
    flow_command.likelihood(run, images, **options)
