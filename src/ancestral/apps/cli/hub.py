"""`ancestral import`, `ancestral export` and `ancestral push`."""

from __future__ import annotations

from pathlib import Path

import click

from ancestral.apps.cli.options import run_argument, sampling_options
from ancestral.errors import UserError
from ancestral.runs.export_choices import FORMATS, PRECISIONS, SPACINGS
from ancestral.runs.sampling_options import EXPORTED, SamplingOptions
from ancestral.runtime.text import shown


@click.command("import", short_help="Make a run of a diffusers folder or a hub model.")
@click.argument("source")
@click.option("--out", "run", required=True, type=click.Path(path_type=Path), help="Run folder to make.")
@click.option(
    "--scheduler",
    type=click.Path(path_type=Path, exists=True),
    help="Of a diffusers folder without one: scheduler_config.json, or its folder.",
)
@click.option(
    "--null-class",
    type=int,
    help="Of a diffusers network: number of the class that is unconditional (null), from 0; none when left out.",
)
def import_model(source: str, run: Path, scheduler: Path | None, null_class: int | None) -> None:
    """Make a run of the model in SOURCE, to sample and evaluate: hf:USER/NAME on the Hugging Face hub or a folder.

    There lies what `push` has published, or a UNet2DModel of diffusers with its scheduler. hf:USER/NAME@REVISION takes
    an older state. HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are obeyed.
    """
    from ancestral.runs.hub import hub

    for line in hub.import_model(source, run, scheduler, null_class):
        click.echo(shown(line))


@click.command(short_help="Write a model for other software: diffusers, ONNX or torch.export.")
@run_argument
@click.option("--out", "folder", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="diffusers",
    show_default=True,
    help="A diffusers folder; or the network, its sampler and a script.",
)
@click.option(
    "--timestep-spacing",
    "spacing",
    type=click.Choice(SPACINGS),
    help="Of a diffusers folder; as an imported model had it, or as leaves no noise, when left out.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="float32",
    show_default=True,
    help="Of an ONNX network; int8: convolutions in 8 bits, but for the last 2 calls.",
)
@sampling_options(*EXPORTED)
def export(run: Path, folder: Path, form: str, spacing: str | None, precision: str, options: SamplingOptions) -> None:
    """Write the model in RUN as a folder that diffusers' DDPMPipeline opens, or for onnxruntime or torch alone.

    --format onnx (or torch) writes the network, the whole sampler, and draw.py, which draws with it where this package
    is not installed. The options of sampling are those of `sample`, and are of these two formats. --precision int8
    calibrates the 8 bits on images that the run itself draws, and says how far the exported sampler's are from them.
    """
    if form == "diffusers":
        from ancestral.runs.hub import diffusers

        if options.given:
            name = options.given[0].replace("_", "-")
            raise UserError(f"--{name}: a diffusers folder has no solver of ours; use --format onnx or torch")
        if precision != "float32":
            raise UserError(f"--precision {precision}: is of --format onnx; a diffusers folder has float32 weights")
        for line in [f"exported: {folder}", *diffusers.export_run(run, folder, spacing)]:
            click.echo(shown(line))
    elif spacing is not None:
        raise UserError(f"--timestep-spacing: is of a diffusers folder; leave it out with --format {form}")
    else:
        from ancestral.sampling import export

        for line in export.export(run, folder, options, form, precision):
            click.echo(shown(line))


@click.command(short_help="Publish a model on the hub, with its card.")
@run_argument
@click.argument("name", metavar="USER/NAME")
@click.option("--public", is_flag=True, help="For everybody to see; private when left out.")
@click.option(
    "--license", "license_name", default="unknown", show_default=True, help="Of the weights: mit, cc0-1.0, ..."
)
def push(run: Path, name: str, public: bool, license_name: str) -> None:
    """Publish the model in RUN on the Hugging Face hub, with a card of what was measured on it.

    The averaged weights go there, nothing of the training. Needs a token: hf auth login, or HF_TOKEN.
    """
    from ancestral.runs.hub import hub

    click.echo(shown(f"published: {hub.push(run, name, public=public, license_name=license_name)}"))
