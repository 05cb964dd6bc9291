"""`ancestral compress` and `ancestral decompress`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ancestral.apps.cli.options import POSITIVE, PROFILE, device_option, run_argument
from ancestral.compression.choices import FINISHES


def files_argument(folders: bool) -> Any:
    """The files to read, or folders of them."""
    path = click.Path(path_type=Path, exists=True, dir_okay=folders)
    return click.argument("files", type=path, nargs=-1, required=True)


out_option = click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="File to write, or a folder for several."
)


@click.command(short_help="Write files of which every prefix is a picture.")
@run_argument
@files_argument(folders=False)
@out_option
@click.option(
    "--profile",
    type=PROFILE,
    default="small",
    show_default=True,
    help="From quick to smallest more network calls, mostly for fewer bytes; chunks: by single chunks.",
)
@click.option(
    "--bytes",
    "size",
    type=POSITIVE,
    help="Keep so many bytes of each file: a picture, not the exact pixels; all when left out.",
)
@device_option
def compress(run: Path, files: tuple[Path, ...], **options: Any) -> None:
    """Compress images with the model in RUN, to files that give back the exact pixels; any prefix is a picture.

    The first time, the model is measured on its training images. Whoever decompresses needs the run.
    """
    from ancestral.compression import compress_command

    compress_command.compress(run, files, **options)


@click.command(short_help="Give back the images of compressed files.")
@run_argument
@files_argument(folders=True)
@out_option
@click.option(
    "--finish",
    type=click.Choice(FINISHES),
    default="mean",
    show_default=True,
    help="How a picture without its last steps is completed: least error, sharp, or a sample.",
)
@click.option("--upto", type=POSITIVE, help="Use only so many bytes of each file; all when left out.")
@click.option("--lossy", is_flag=True, help="Only the picture: for files whose exact pixels do not come out here.")
@device_option
def decompress(run: Path, files: tuple[Path, ...], **options: Any) -> None:
    """Give back the images of files (or folders of them) that `compress` has written with the same RUN, or pictures of
    parts of files."""
    from ancestral.compression import compress_command

    compress_command.decompress(run, files, **options)
