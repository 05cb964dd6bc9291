"""The command `ancestral`. Nothing heavy is imported before a command's options are known to be right."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from ancestral import __version__
from ancestral.text import shown
from ancestral.verbs import archive, codec, drawing, edit, explain, measuring, models, rate, score, serve, training

VERBS = (
    *(training.train, drawing.sample, edit.edit, drawing.tune_steps),
    *(measuring.evaluate, measuring.metrics, rate.rd, score.likelihood, archive.agree, explain.explain),
    *(codec.compress, codec.decompress, archive.archive, archive.unarchive),
    *(models.import_model, models.export, models.push, serve.serve),
)


@contextmanager
def _plain() -> Iterator[None]:
    """Complaints about options quote what was typed: shown as text."""
    try:
        yield
    except click.ClickException as error:
        error.message = shown(error.message)  # pyright: ignore[reportAttributeAccessIssue]
        raise


class _Group(click.Group):
    """Commands, with every mistake of the user's as one line and exit code 2."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _plain():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        from ancestral.errors import UserError

        try:
            with _plain():
                return super().invoke(ctx)
        except UserError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{error.filename}: cannot be read or written ({error.strerror})"
        click.echo(f"error: {shown(problem)}", err=True)
        return ctx.exit(2)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        from difflib import get_close_matches

        near = get_close_matches(args[0], self.list_commands(ctx), 1)
        if args[0] not in self.commands:
            hint = f"did you mean '{near[0]}'?" if near else f"choose from: {', '.join(self.list_commands(ctx))}"
            ctx.fail(f"unknown command '{args[0]}'; {hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="ancestral")
def main() -> None:
    """Train, sample, measure, explain, edit and compress with denoising diffusion probabilistic models."""


for verb in VERBS:
    main.add_command(verb)

if __name__ == "__main__":
    sys.exit(main())
