"""Options that several commands take. Nothing heavy is imported before a command's options are known to be right."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ancestral.runtime.text import seconds


class Duration(click.ParamType):
    """A wall time, in seconds once it is read: 90s, 10m, 2h."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        if isinstance(value, float):
            return value
        try:
            return seconds(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Steps(click.ParamType):
    """Network calls an image, or `all`."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The number, or "all"."""
        if value == "all":
            return value
        try:
            steps = int(value)
        except ValueError:
            steps = 0
        if steps < 1:
            self.fail(f"'{value}' is neither a number of steps, 1 or more, nor all", param, ctx)
        return steps


seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of every draw."
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")
run_argument = click.argument("run", type=click.Path(path_type=Path))
POSITIVE = click.IntRange(min=1)
PROFILE = click.Choice(["chunks", "quick", "small", "smallest"])  # of the codec
processes_option = click.option(
    "--processes", type=POSITIVE, default=1, show_default=True, help="Processes of this machine that share the work."
)
average_option = click.option(
    "--average-width", type=float, help="Rebuild the weights' average with this relative width."
)


class Interval(click.ParamType):
    """LO:HI, two numbers."""

    name = "LO:HI"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        """(low, high)."""
        if isinstance(value, tuple):
            return value
        try:
            low, high = map(float, value.split(":"))
        except ValueError:
            low, high = 1.0, 0.0
        if not low <= high:
            self.fail(f"'{value}' is not LO:HI, two numbers with LO at most HI", param, ctx)
        return low, high


embeddings_option = click.option(
    "--embeddings", type=click.Path(path_type=Path), help="A .npy file (N, E): the vectors to draw for, in turn."
)


def solver_option(unsaid: str) -> Any:
    """`--solver`; what it is when no way to step is named."""
    return click.option("--solver", help=f"dpm++3m, ipndm4, heun, ... (docs/solvers.md); {unsaid}.")


HOW = (
    click.option(
        "--steps",
        type=Steps(),
        help="Network calls an image, 20 when left out; all: the whole chain, as with --variance.",
    ),
    click.option(
        "--grid",
        default="trailing",
        show_default=True,
        help="trailing, uniform, quadratic, log-snr, karras, leading, tuned.",
    ),
    solver_option("unipc3 when left out, but for --steps all"),
    click.option("--eta", type=click.FloatRange(min=0, max=1), help="DDIM with this eta; 0 is deterministic."),
    click.option("--variance", help="Ancestral steps with fixedsmall, fixedlarge, beta, learned or optimal variance."),
    click.option(
        "--batch-size", type=POSITIVE, default=64, show_default=True, help="Images at a time; changes no image."
    ),
    click.option(
        "--precision",
        type=click.Choice(["float32", "bfloat16", "auto"]),
        default="float32",
        show_default=True,
        help="What the network computes in; auto: as its layers are fastest here.",
    ),
    average_option,
    seed_option,
    click.option(
        "--guidance", type=click.FloatRange(min=0), help="0: unconditional, 1: conditional, above: more so; two calls."
    ),
    click.option("--guidance-rescale", type=click.FloatRange(0, 1), help="Share of the contrast gained to take back."),
    click.option("--guidance-interval", type=Interval(), help="Guide only at log SNRs from LO to HI."),
    click.option("--clip", help="Of each predicted x0: none, static or dynamic; the run's own when left out."),
    click.option("--guide", metavar="RUN", help="Guide by this weaker model, a run or RUN/averages/IMAGES of one."),
)


def drawing_options(command: Any) -> Any:
    """The options of how images are drawn, in this order in the help."""
    for option in reversed(HOW):
        command = option(command)
    return command


def one_way_to_step(options: dict[str, Any]) -> None:
    """Refuse two ways to step at once."""
    given = [f"--{name}" for name in ("solver", "eta", "variance") if options[name] is not None]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other: each is a way to step; leave one out")


def how(options: dict[str, Any]) -> Any:
    """These options as one, taken out of the others."""
    from dataclasses import fields

    from ancestral.sampling.sampler import How

    return How(**{field.name: options.pop(field.name) for field in fields(How)})


def share(processes: int, restarts: int = 0) -> None:
    """Hand this command to several processes, unless this is one of them."""
    from ancestral.runtime.launch import is_child, launch

    if processes > 1 and not is_child():
        sys.exit(launch(processes, restarts, sys.argv[1:]))
