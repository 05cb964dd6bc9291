"""The command `ancestral`. Nothing heavy is imported before a command's options are known to be right."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from ancestral import BEGAN, __version__
from ancestral.apps.cli import (
    archive,
    compress,
    distill,
    edit,
    evaluate,
    examples,
    explain,
    hub,
    likelihood,
    rate_distortion,
    sample,
    serve,
    train,
)
from ancestral.runtime.signals import BROKEN_PIPE, STOPPED, TRAINING, StopSignal, raise_on_stop
from ancestral.runtime.text import shown

VERBS = (
    *(train.train, distill.distill, sample.sample, edit.edit, sample.tune_steps),
    *(evaluate.evaluate, evaluate.metrics, rate_distortion.rd, likelihood.likelihood, archive.agree, explain.explain),
    *(compress.compress, compress.decompress, archive.archive, archive.unarchive),
    *(hub.import_model, hub.export, hub.push, serve.serve),
)


IN_PIECES = "the pieces that are done are kept; the same command does what is missing"
KEPT = {  # what is said when a command is stopped
    **dict.fromkeys(TRAINING, "the last checkpoint, where there is one, is kept; the same command goes on from it"),
    **dict.fromkeys(("sample", "evaluate", "metrics", "rd", "likelihood", "archive"), IN_PIECES),
    "agree": "the archive's blocks that are done are kept; the same command measures the rest anew",
}
SETTING = re.compile(r"--set [\w.=,-]+")
FEWER = "take fewer images at a time (--batch-size, --num-images), or another --device"
ANEW = "what was there is as it was; the same command begins anew"
EXIT_CODES = """\b
Exit codes:
  0    done
  1    a fault of the program
  2    refused: one line names the option, file or value, and the mend
  75   train or distill was told to stop and saved: the same command goes on
  130  stopped by Ctrl-C (143: by SIGTERM, 138: by SIGUSR1)
  141  whoever read the output went away
"""


@contextmanager
def _plain() -> Iterator[None]:
    """Complaints about options quote what was typed: shown as text."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:  # whose message is the help
        raise
    except click.ClickException as error:
        error.message = shown(error.message)  # pyright: ignore[reportAttributeAccessIssue] # Final, to its subclasses
        raise


class _Group(click.Group):
    """Commands, with every mistake of the user's and every stop as one line and an exit code of its own."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Any:
        """Run a command; that of the process itself began before its imports."""
        return super().main(args, *rest, obj=BEGAN if args is None else time.monotonic(), **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _plain():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        from ancestral.errors import UserError
        from ancestral.runtime.launch import reported_exit

        try:
            with raise_on_stop(), _plain():
                return super().invoke(ctx)
        except UserError as error:
            settable = any("--set" in one.opts for one in self.commands[str(ctx.invoked_subcommand)].params)
            line = str(error) if settable else SETTING.sub(_of_train, str(error))
            return _end(ctx, 2, f"error: {line}", refused=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still to be flushed at the end goes nowhere
            return ctx.exit(BROKEN_PIPE)
        except OSError as error:
            named = "" if error.filename is None else f"{error.filename}: "  # a full disk names no file
            return _end(ctx, 2, f"error: {named}cannot be read or written ({error.strerror or error})")
        except KeyboardInterrupt as stop:
            number = stop.number if isinstance(stop, StopSignal) else signal.SIGINT
            verb = str(ctx.invoked_subcommand)
            code = STOPPED if verb in TRAINING and number != signal.SIGINT else 128 + number
            return _end(ctx, code, f"stopped: {KEPT.get(verb, ANEW)}")
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            from ancestral.runtime.system import out_of_memory

            if out_of_memory(error):
                said = str(error).strip().partition("\n")[0] or type(error).__name__
                return _end(ctx, 2, f"error: memory has run out ({said}); {FEWER}")
            if (code := reported_exit()) is None:  # or another process has said why this one cannot go on
                raise
            return ctx.exit(code)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[0] not in self.commands:
            from ancestral.runs.registry import suggest

            ctx.fail(f"unknown command '{args[0]}'; {suggest(args[0], self.list_commands(ctx), 0.6)}")
        return super().resolve_command(ctx, args)


def _of_train(setting: re.Match[str]) -> str:
    """A setting and, where the clause does not say so, whose option it is."""
    clause = setting.string[: setting.start()].rpartition(";")[2]
    return setting[0] if "train" in clause else f"{setting[0]} (of ancestral train)"


def _end(ctx: click.Context, code: int, line: str, *, refused: bool = False) -> None:
    """Say why, once however many processes there are, and end."""
    from ancestral.runtime.launch import reports_exit

    if reports_exit(code, refused=refused):
        click.echo(shown(line), err=True)
    ctx.exit(code)


@click.group(
    cls=_Group,
    invoke_without_command=True,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="ancestral")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Train, sample, measure, explain, edit and compress with denoising diffusion probabilistic models."""
    if ctx.invoked_subcommand is None:
        click.echo(examples.FIRST, nl=False)


for verb in VERBS:
    main.add_command(examples.with_example(verb))

if __name__ == "__main__":
    sys.exit(main())
