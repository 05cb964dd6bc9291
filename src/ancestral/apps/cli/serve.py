"""`ancestral serve`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from ancestral.apps.cli.options import POSITIVE, average_option, device_option, run_argument, sampling_option
from ancestral.errors import UserError, missing


@click.command(short_help="A local page to draw, edit, compress and look.")
@run_argument
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at; any but this machine's own needs a token.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port number; 0 is any free one."
)
@click.option("--token", help="What a browser must show, in the address printed; made up when --host needs one.")
@click.option("--open", "open_page", is_flag=True, help="Open the page in the browser.")
@click.option("--queue", type=POSITIVE, default=32, show_default=True, help="Jobs that may wait.")
@average_option
@device_option
@sampling_option("precision")
def serve(run: Path, token: str | None, **options: Any) -> None:
    """Draw, edit and compress with the model in RUN on a page in the browser, from this machine alone."""
    absent = [name for name in ("constriction", "fastapi", "uvicorn") if find_spec(name) is None]
    if absent:
        raise missing("ancestral serve", " and ".join(absent), "serve")
    if token is not None and not (
        token.isascii() and token.replace("-", "").replace("_", "").isalnum() and len(token) >= 8
    ):
        raise UserError(
            "--token: at least 8 letters, digits, - and _, as it stands in an address; leave it out for a good one"
        )
    from ancestral.apps.server import main

    main.serve(run, token=token, **options)
