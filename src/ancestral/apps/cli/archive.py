"""`ancestral archive`, `ancestral unarchive` and `ancestral agree`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ancestral.apps.cli.options import POSITIVE, Parsed, held_out, run_argument, seed_option


def rows_of(text: str) -> tuple[int, int]:
    """(N, M) of N:M, which is images N to M - 1 of a file."""
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise ValueError(f"'{text}' is not N:M with N < M, such as 0:100")
    return int(first), int(last)


steps_option = click.option(
    "--steps", type=POSITIVE, help="Network calls an image; 20 when left out, or T where that is fewer."
)
grid_option = click.option("--grid", default="quadratic", show_default=True, help="How these are spread over time.")
block_option = click.option(
    "--block", type=POSITIVE, default=256, show_default=True, help="Images that are decoded together."
)


@click.command(short_help="Pack many images without loss at the model's bound.")
@run_argument
@click.argument("images", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write.")
@steps_option
@grid_option
@block_option
def archive(run: Path, images: Path, **options: Any) -> None:
    """Compress IMAGES, a folder, .npz or .npy file, without loss, with the model in RUN.

    The file is for the same RUN on the same kind of processor with the same version of torch: elsewhere the network
    computes other bits, and `unarchive` refuses. Keep no only copy in it. The same command resumes.
    """
    from ancestral.compression import archive_command

    archive_command.archive(run, images, **options)


@click.command(short_help="Give the images of an archive back.")
@run_argument
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for PNGs, or a .npz file.")
@click.option("--only", type=Parsed("N:M", rows_of), help="Images N to M - 1; all when left out.")
def unarchive(run: Path, file: Path, **options: Any) -> None:
    """Write the images in FILE, made by `archive` with the model in RUN, where it was made."""
    from ancestral.compression import archive_command

    archive_command.unarchive(run, file, **options)


@click.command(short_help="Measure the bound in several ways, side by side.")
@held_out(256)
@steps_option
@grid_option
@block_option
@seed_option
def agree(run: Path, **options: Any) -> None:
    """Measure the bound of the model in RUN in several ways, one of them a file, on the same images and times."""
    from ancestral.evaluation import agree_command

    agree_command.agree(run, **options)
