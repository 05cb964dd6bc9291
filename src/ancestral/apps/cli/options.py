"""Options that several commands take. Nothing heavy is imported before a command's options are known to be right."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ancestral.compression.choices import PROFILES
from ancestral.runs.length import amount, count, seconds
from ancestral.runs.sampling_options import OPTIONS, SamplingOptions, one_way_to_step

if TYPE_CHECKING:
    from ancestral.evaluation.measurement import HeldOut


class Parsed(click.ParamType):
    """A value that a function reads from its text.

    Args:
        name: of the value, in help.
        read: raises ValueError for what it cannot read.
    """

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name, self.read = name, read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """What was read; a default is read already."""
        try:
            return self.read(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Number(click.FloatRange):
    """A finite number in a range: neither nan, which is in every range, nor inf."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As of any range."""
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value} is no finite number", param, ctx)


def sampling_option(name: str, **changes: Any) -> Any:
    """An option of `SamplingOptions` by its name; with changes to the attributes that click is given of it."""
    option, kind = OPTIONS[name], None
    if option.choices:
        kind = click.Choice(option.choices)
    elif option.read is not None:
        kind = Parsed(str(option.metavar), option.read)
    elif option.low is not None or option.high is not None:
        kind = (click.IntRange if option.type is int else Number)(option.low, option.high)  # pyright: ignore[reportArgumentType] # whole for int
    elif option.type is not str:
        kind = Number() if option.type is float else option.type
    attributes: dict[str, Any] = {"type": kind, "help": option.help, "metavar": option.metavar}
    attributes |= {"default": option.default, "show_default": option.default is not None}
    return click.option(f"--{name.replace('_', '-')}", **{**attributes, **changes})


def sampling_options(*names: str, **changes: dict[str, Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options of `SamplingOptions`, which the command takes as `options`.

    Args:
        names: of them; when left out all but the label, which has a place of its own.
        changes: by name, to the attributes that click is given of an option.
    """

    taken = names or [name for name in OPTIONS if name != "label"]

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def with_options(*args: Any, **values: Any) -> Any:
            chosen = {name: values.pop(name) for name in (*taken, "label") if name in values}
            try:
                one_way_to_step(chosen, "--")
            except ValueError as error:
                raise click.UsageError(str(error)) from None
            return command(*args, options=SamplingOptions(**chosen), **values)

        for name in reversed(taken):
            with_options = sampling_option(name, **changes.get(name, {}))(with_options)
        return with_options

    return add


def combined(*options: Any) -> Callable[[Any], Any]:
    """Options as one decorator, in their order."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


POSITIVE = click.IntRange(min=1)
A_CORE = 8  # processes, at most
PROFILE = click.Choice([*PROFILES])  # of the codec
DURATION = Parsed("[+]TIME", lambda text: amount(text, seconds))  # in seconds once it is read: 90s, 10m, 2h
COUNT = Parsed("[+]N", lambda text: amount(text, count))
seed_option, average_option = sampling_option("seed"), sampling_option("average_width")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")
run_argument = click.argument("run", type=click.Path(path_type=Path))
processes_option = click.option(
    "--processes", type=POSITIVE, default=1, show_default=True, help="Processes of this machine that share the work."
)
machine_options = combined(device_option, processes_option)
measuring_options = combined(average_option, seed_option, machine_options)
embeddings_option = click.option(
    "--embeddings", type=click.Path(path_type=Path), help="A .npy file (N, E): the vectors to draw for, in turn."
)

budget_option = click.option(
    "--budget",
    type=DURATION,
    help="Wall time to plan for: 90s, 10m, 2h; 10m when no length is given. +1h goes on with a finished run.",
)
images_option = click.option(
    "--images", type=COUNT, help="Length of the run in images seen, instead of --budget; also +N."
)
steps_option = click.option("--steps", type=COUNT, help="Length of the run in updates, instead of --budget; also +N.")
out_option = click.option(
    "--out", "run", required=True, type=click.Path(path_type=Path), help="Run folder; the same command resumes."
)
set_option = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any other setting; --dry-run lists them."
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Show the settings, the cost and what the budget buys; train nothing."
)
fresh_option = click.option("--fresh", is_flag=True, help="Begin anew; an existing run is moved aside, not deleted.")


def held_out(num_images: int) -> Any:
    """The run, the data whose held-out part is measured, and how many of its images."""
    count = click.option(
        "--num-images",
        type=POSITIVE,
        default=num_images,
        show_default=True,
        help="How many held-out images, at most.",
    )
    return combined(run_argument, click.argument("data_source", metavar="[DATA]", required=False), count)


def taken_held_out(options: dict[str, Any]) -> HeldOut:
    """Which held-out images are measured and how, taken out of the options of a command."""
    from ancestral.evaluation.measurement import HeldOut

    return HeldOut(**{field.name: options.pop(field.name) for field in fields(HeldOut)})


def need_not_given(reason: str, *names: str) -> None:
    """Refuse options of this command that were given and would do nothing."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')}: {reason}; leave it out")


def assigned(assignments: Iterable[str], short: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """The settings of --set, and those of options that stand for one: {key: (name of the option, its value)}.

    Of the options those count that were given; one of a default, such as --seed, where --set does not name its key.

    Raises:
        UsageError: for a key that is given in both ways.
    """
    from ancestral.runs import config

    found = config.parse_assignments(assignments)
    context = click.get_current_context()
    for key, (name, value) in short.items():
        if key in found:
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--set {key}: is given by --{name.replace('_', '-')} too; leave one out")
        elif value is not None:
            found[key] = value
    return found


def share(processes: int, restarts: int = 0) -> None:
    """Hand this command to several processes, unless this is one of them; they take turns on a core, to a limit."""
    from ancestral.runtime.launch import is_child, launch, need_new_attempt

    most = A_CORE * (os.cpu_count() or 1)
    if processes > most:
        raise click.UsageError(f"--processes: {processes} are too many here; {most} at most, {A_CORE} a core")
    if processes == 1 and restarts:
        need_not_given("is of --processes 2 and more", "restarts")
    if processes > 1 and not is_child():
        sys.exit(launch(processes, restarts, sys.argv[1:]))
    need_new_attempt()
