"""The command `ancestral`. Nothing heavy is imported before a command's options are known to be right."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ancestral import __version__


class _Group(click.Group):
    """Commands, with every mistake of the user's as one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        from ancestral.errors import UserError

        try:
            return super().invoke(ctx)
        except UserError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{error.filename}: cannot be read or written ({error.strerror})"
        click.echo(f"error: {' '.join(problem.split())}", err=True)
        return ctx.exit(2)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        from difflib import get_close_matches

        near = get_close_matches(args[0], self.list_commands(ctx), 1)
        if args[0] not in self.commands:
            hint = f"did you mean '{near[0]}'?" if near else f"choose from: {', '.join(self.list_commands(ctx))}"
            ctx.fail(f"unknown command '{args[0]}'; {hint}")
        return super().resolve_command(ctx, args)


class _Duration(click.ParamType):
    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            seconds = float(value[:-1]) * {"s": 1, "m": 60, "h": 3600}[value[-1:]]
        except (KeyError, ValueError):
            seconds = 0.0
        if not 0 < seconds < 1e8:
            self.fail(f"'{value}' is not a time; write 90s, 10m or 2h", param, ctx)
        return seconds


_seed = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of every draw."
)
_device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")
_run = click.argument("run", type=click.Path(path_type=Path))
_positive = click.IntRange(min=1)
_processes = click.option(
    "--processes", type=_positive, default=1, show_default=True, help="Processes of this machine that share the work."
)
_average = click.option("--average-width", type=float, help="Rebuild the weights' average with this relative width.")


_HOW = (
    click.option("--steps", type=_positive, help="Network calls an image; every time step when left out."),
    click.option(
        "--grid",
        default="trailing",
        show_default=True,
        help="trailing, uniform, quadratic, log-snr, karras, leading, tuned.",
    ),
    click.option(
        "--solver",
        help="A solver for few steps: dpm++3m, ipndm4, heun, ... (docs/solvers.md); unipc3 when only --steps is given.",
    ),
    click.option("--eta", type=click.FloatRange(min=0, max=1), help="DDIM with this eta; 0 is deterministic."),
    click.option("--variance", help="Ancestral steps with small, large, learned or optimal variance."),
    click.option(
        "--batch-size", type=_positive, default=64, show_default=True, help="Images at a time; changes no image."
    ),
    click.option(
        "--precision",
        type=click.Choice(["float32", "bfloat16", "auto"]),
        default="float32",
        show_default=True,
        help="What the network computes in; auto is bfloat16 where that is faster.",
    ),
    _average,
    _seed,
)


def _drawing(command: Any) -> Any:
    """The options of how images are drawn, in this order in the help."""
    for option in reversed(_HOW):
        command = option(command)
    return command


def _one_way_to_step(options: dict[str, Any]) -> None:
    given = [f"--{name}" for name in ("solver", "eta", "variance") if options[name] is not None]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other: each is a way to step; leave one out")


def _how(options: dict[str, Any]) -> Any:
    """These options as one, taken out of the others."""
    from dataclasses import fields

    from ancestral.drawing import How

    return How(**{field.name: options.pop(field.name) for field in fields(How)})


def _share(processes: int, restarts: int = 0) -> None:
    """Hand this command to several processes, unless this is one of them."""
    from ancestral.launch import is_child, launch

    if processes > 1 and not is_child():
        sys.exit(launch(processes, restarts, sys.argv[1:]))


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="ancestral")
def main() -> None:
    """Train, sample and measure denoising diffusion probabilistic models."""


@main.command()
@click.argument("data")
@click.option(
    "--out", "run", required=True, type=click.Path(path_type=Path), help="Run folder; the same command resumes."
)
@click.option("--preset", default="images", show_default=True, help="images, likelihood, tiny, cifar10 or paper-256.")
@click.option("--budget", type=_Duration(), help="Wall time to plan for: 90s, 10m, 2h.")
@click.option("--images", type=_positive, help="Length of the run in images seen, instead of a time.")
@click.option("--steps", type=_positive, help="Length of the run in updates, instead of a time.")
@click.option("--batch-size", type=_positive, help="Images an update.")
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), help="Peak learning rate.")
@click.option("--size", type=_positive, help="Side of the images after a centre crop.")
@_seed
@_device
@_processes
@click.option("--restarts", type=click.IntRange(min=0), default=0, help="With --processes: begin again so many times.")
@click.option("--track", multiple=True, metavar="NAME", help="Also tell tensorboard or wandb; may be repeated.")
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any other setting; --dry-run lists them."
)
@click.option("--dry-run", is_flag=True, help="Show the settings, the cost and what the budget buys; train nothing.")
@click.option("--fresh", is_flag=True, help="Begin anew; an existing run is moved aside, not deleted.")
def train(data: str, run: Path, preset: str, assignments: tuple[str, ...], seed: int, **options: Any) -> None:
    """Train on DATA: a folder of images, a .npz or .npy file, tar shards, hf:NAME, or the built-in mnist or digits."""
    from ancestral import config

    short = {
        "train.batch_size": options["batch_size"],
        "train.learning_rate": options["learning_rate"],
        "data.size": options["size"],
    }
    overrides = config.parse_assignments(assignments) | {k: v for k, v in short.items() if v is not None}
    resolved = config.resolve(data, preset, {"train.seed": seed, **overrides})
    _share(options["processes"], options["restarts"])
    from ancestral import commands

    length = commands.Length(options["budget"], options["images"], options["steps"])
    chosen = {name: options[name] for name in ("dry_run", "fresh", "track")}
    commands.train(resolved, run, length, options["device"], **chosen)


@main.command()
@_run
@click.option("--num-images", type=_positive, default=64, show_default=True, help="How many images.")
@_drawing
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the images; RUN/samples when left out.")
@click.option("--label", help="Class to draw, by name, for a model with labels.")
@click.option("--film", is_flag=True, help="Also write the film of the first images: x_t and the predicted x0.")
@_device
@_processes
def sample(run: Path, processes: int, **options: Any) -> None:
    """Draw images from the trained model in RUN."""
    _one_way_to_step(options)
    _share(processes)
    from ancestral import sampling

    sampling.sample(run, _how(options), **options)


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("data_source", metavar="[DATA]", required=False)
@click.option("--num-images", type=_positive, default=2000, show_default=True, help="How many on each side, at most.")
@click.option(
    "--network", default="lite0", show_default=True, help="lite0, pixels, or FILE.pt: the FID Inception as TorchScript."
)
@click.option("--train-images", type=_positive, help="Search so many training images for copies; all when left out.")
@_drawing
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for the results; SOURCE when left out, if it is a run."
)
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Of features and samples; ~/.cache/ancestral when left out."
)
@_device
@_processes
def metrics(source: Path, processes: int, **options: Any) -> None:
    """Compare samples with the real images of DATA: Fréchet and kernel distance, precision, recall, copies.

    SOURCE is a run, from which samples are drawn and whose own data are DATA when left out; or images, as a folder,
    .npz or .npy file, that are compared as they are.
    """
    _one_way_to_step(options)
    _share(processes)
    from ancestral import measuring

    measuring.metrics(source, _how(options), **options)


@main.command()
@_run
@click.argument("data_source", metavar="[DATA]", required=False)
@click.option("--num-images", type=_positive, default=256, show_default=True, help="How many held-out images, at most.")
@click.option("--terms", type=_positive, help="Terms of the bound measured an image, 2 to T; 50 when left out.")
@click.option("--exact", is_flag=True, help="Every term for every image, instead of an unbiased part.")
@click.option("--variance", help="Reverse variance to measure with; the run's own when left out.")
@click.option(
    "--batch-size", type=_positive, default=64, show_default=True, help="Images at a time; changes no number."
)
@_average
@_seed
@_device
@_processes
def evaluate(run: Path, processes: int, **options: Any) -> None:
    """Measure the variational bound of the model in RUN on the held-out part of DATA, in bits per dimension."""
    _share(processes)
    from ancestral import evaluation

    evaluation.evaluate(run, **options)


@main.command("tune-steps")
@_run
@click.option("--steps", type=_positive, required=True, help="How few steps to find the best times for.")
@click.option("--num-images", type=_positive, default=32, show_default=True, help="Images of the fine walk.")
@_average
@_seed
@_device
def tune_steps(run: Path, **options: Any) -> None:
    """Find the best times for so few steps of the model in RUN; then: sample --steps N --grid tuned."""
    from ancestral import sampling

    sampling.tune_steps(run, **options)


@main.command("import")
@click.argument("source")
@click.option("--out", "run", required=True, type=click.Path(path_type=Path), help="Run folder to make.")
def import_model(source: str, run: Path) -> None:
    """Make a run of the model in SOURCE, to sample and evaluate: hf:USER/NAME on the Hugging Face hub or a folder.

    There lies what `push` has published, or a UNet2DModel of diffusers with its scheduler. hf:USER/NAME@REVISION takes
    an older state. HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are obeyed.
    """
    from ancestral import hub

    click.echo(f"imported: {hub.import_model(source, run)}; now: ancestral sample {run} --steps 50")


@main.command()
@_run
@click.option("--out", "folder", required=True, type=click.Path(path_type=Path), help="Folder to write.")
def export(run: Path, folder: Path) -> None:
    """Write the model in RUN as a folder that diffusers' DDPMPipeline opens."""
    from ancestral import interop

    interop.export_run(run, folder)
    click.echo(f"exported: {folder}")


@main.command()
@_run
@click.argument("name", metavar="USER/NAME")
@click.option("--public", is_flag=True, help="For everybody to see; private when left out.")
@click.option(
    "--license", "license_name", default="unknown", show_default=True, help="Of the weights: mit, cc0-1.0, ..."
)
def push(run: Path, name: str, public: bool, license_name: str) -> None:
    """Publish the model in RUN on the Hugging Face hub, with a card of what was measured on it.

    The averaged weights go there, nothing of the training. Needs a token: hf auth login, or HF_TOKEN.
    """
    from ancestral import hub

    click.echo(f"published: {hub.push(run, name, public=public, license_name=license_name)}")


if __name__ == "__main__":
    sys.exit(main())
