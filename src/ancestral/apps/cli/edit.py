"""`ancestral edit`: inpaint, interpolate, vary and restore given images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ancestral.apps.cli.options import (
    POSITIVE,
    Number,
    combined,
    device_option,
    need_not_given,
    run_argument,
    sampling_option,
    sampling_options,
)
from ancestral.runs.sampling_options import EDIT_CALLS, JUMP, RESAMPLES

FILE = click.Path(path_type=Path)
AT = "Noise level t of the paper, 1 to T"
images_argument = click.argument("paths", metavar="IMAGE...", type=FILE, nargs=-1, required=True)


WAYS = "dpm++3m, ipndm4, heun, ... (docs/how-to/solvers.md); without a way to step --eta 1"


def edit_options(calls: int, solver: str = f"{WAYS}.") -> Any:
    """What every edit takes: how images are drawn, in so many steps, and how they are read and written."""
    text = f"Steps from T to clean images; {calls} when left out, or T where that is fewer; all with --variance."
    return combined(
        sampling_options(
            steps={"type": POSITIVE, "default": None, "metavar": None, "help": text},
            solver={"help": solver},
            clip={"help": "Of each x0: none, static, dynamic, or own, the run's, which is taken when left out."},
        ),
        click.option("--num-images", type=POSITIVE, default=1, show_default=True, help="Variants of each image."),
        sampling_option("label", help="Class of the images, by name, for a model with labels."),
        click.option("--fit", is_flag=True, help="Cut an image's middle square and scale it to the model's size."),
        click.option("--out", type=FILE, required=True, help="PNG file for the sheet; a folder beside it for images."),
        device_option,
    )


def sources(given: dict[str, Any]) -> Any:
    """What to read and write, taken out of the options given."""
    from dataclasses import fields

    from ancestral.sampling.editor import Sources

    return Sources(**{field.name: given.pop(field.name) for field in fields(Sources)})


@click.group(short_help="Change given images: inpaint, interpolate, vary, restore.")
def edit() -> None:
    """Change given images with the trained model in RUN: inpaint, interpolate, vary, restore."""


@edit.command()
@run_argument
@images_argument
@click.option("--mask", type=FILE, required=True, help="Image of the same size; white is drawn anew, black is kept.")
@click.option("--jump", type=POSITIVE, default=JUMP, show_default=True, help="Steps gone up again at a time.")
@click.option(
    "--resamples",
    type=click.IntRange(1, 1000),
    default=RESAMPLES,
    show_default=True,
    help="Times each stretch is walked; 1: once.",
)
@edit_options(EDIT_CALLS["inpaint"], "euler or euler-ancestral; without a way to step --eta 1.")
def inpaint(run: Path, **given: Any) -> None:
    """Draw the white of a mask anew in each IMAGE (RePaint). Sheet: input, what is kept, results."""
    from ancestral.sampling import edit_command

    edit_command.inpaint(run, sources(given), calls=EDIT_CALLS["inpaint"], **given)


@edit.command()
@run_argument
@click.argument("first", metavar="A", type=FILE)
@click.argument("second", metavar="B", type=FILE)
@click.option("--at", type=POSITIVE, help=f"{AT}; T/2 when left out, T for inversion.")
@click.option(
    "--frames", type=click.IntRange(min=2), default=9, show_default=True, help="Images from A to B, both included."
)
@click.option(
    "--encoder",
    default="noise",
    show_default=True,
    help="noise: each its own noise, as in the paper; shared: one noise for both; inversion: the flow, upwards.",
)
@edit_options(EDIT_CALLS["interpolate"], f"{WAYS}, and unipc3 for --encoder inversion.")
def interpolate(run: Path, first: Path, second: Path, **given: Any) -> None:
    """Go from image A to image B through mixed states at t (the paper's Figure 8); t is T/2, or T for inversion."""
    from ancestral.sampling import edit_command

    given["paths"] = (first, second)
    edit_command.interpolate(run, sources(given), calls=EDIT_CALLS["interpolate"], **given)


@edit.command()
@run_argument
@images_argument
@click.option("--at", type=POSITIVE, help=f"{AT}; T/2 when left out.")
@click.option(
    "--strength",
    type=Number(0, 1, min_open=True),
    help="t as a share of T, 1 keeps nothing; 0.5 when left out, without --at.",
)
@edit_options(EDIT_CALLS["vary"])
def vary(run: Path, **given: Any) -> None:
    """Noise each IMAGE up to t and draw it from there (SDEdit). Sheet: input, results."""
    if None not in (given["at"], given["strength"]):
        raise click.UsageError("--at and --strength exclude each other: each says how far up; leave one out")
    given["strength"] = given["strength"] or 0.5
    from ancestral.sampling import edit_command

    edit_command.vary(run, sources(given), calls=EDIT_CALLS["vary"], **given)


@edit.command()
@run_argument
@images_argument
@click.option("--task", required=True, help="super-resolution, deblur, colour or missing.")
@click.option(
    "--method", default="ddrm", show_default=True, help="ddrm, ddnm, pigdm, mmps or dps (docs/how-to/editing.md)."
)
@click.option(
    "--factor",
    type=click.IntRange(min=2),
    default=2,
    show_default=True,
    help="super-resolution: times that a side is shorter.",
)
@click.option(
    "--blur",
    type=Number(0, 1000, min_open=True),
    default=1.5,
    show_default=True,
    help="deblur: the Gaussian's width (std) in pixels.",
)
@click.option(
    "--missing",
    type=Number(0, 1, max_open=True),
    default=0.5,
    show_default=True,
    help="missing: share of the pixels.",
)
@click.option("--mask", type=FILE, help="missing: the pixels, white in an image; at random when left out.")
@click.option(
    "--noise",
    type=Number(0, 1000),
    default=0.0,
    show_default=True,
    help="Noise of the damage: its std on the scale [-1, 1].",
)
@click.option("--degraded", is_flag=True, help="IMAGE is damaged already; when left out it is damaged first.")
@edit_options(EDIT_CALLS["restore"])
def restore(run: Path, method: str, **given: Any) -> None:
    """Undo a known damage of each IMAGE. Sheet: input, the damaged image, results."""
    from ancestral.runs.registry import choose
    from ancestral.sampling import edit_command

    choose(edit_command.TASKS, given["task"], "--task")
    for name, task in {"factor": "super-resolution", "blur": "deblur", "missing": "missing"}.items():
        if given["task"] != task:
            need_not_given(f"is of --task {task}", name)
    if given["mask"] is not None:
        need_not_given("--mask says which pixels are missing", "missing")
    options, read = given.pop("options"), sources(given)
    edit_command.restore(run, read, options, EDIT_CALLS["restore"], edit_command.Damage(**given), method=method)
