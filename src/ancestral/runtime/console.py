"""What every command needs: the screen, a run opened with its warnings, files written with one-line errors."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich import progress
from rich.console import Console
from rich.text import Text

from ancestral.errors import UserError
from ancestral.runtime import distributed, verified_folder
from ancestral.runtime.text import shown


class Screen(Console):
    """A console on which every string, also a table's, is text of one line: no markup, nothing that is not printed.

    That whoever reads it went away ends no program, as it does in rich: it is an error like another, once.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True, **settings)

    def render_str(self, text: str, **how: Any) -> Text:  # the one way from a string to the screen
        """As it is shown."""
        return super().render_str(shown(text), **how)

    def on_broken_pipe(self) -> None:
        """Say nothing more."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise BrokenPipeError


screen = Screen()


class TextColumn(progress.TextColumn):
    """A column of a bar whose words are text of one line, as everything on a `Screen`."""

    def render(self, task: progress.Task) -> Text:
        """The column's format, filled in."""
        return Text(shown(self.text_format.format(task=task)), style=self.style, justify=self.justify)


class Progress(progress.Progress):
    """The bars of a command, on a terminal only: what is done, how far, and how long it takes yet.

    Args:
        columns: others than these.
        console: another than the screen.
    """

    def __init__(self, *columns: progress.ProgressColumn, console: Console = screen) -> None:
        usual = (
            TextColumn("{task.description}"),
            progress.BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            progress.TimeRemainingColumn(),
        )
        super().__init__(*(columns or usual), console=console, disable=not console.is_terminal)


@contextmanager
def together(device: torch.device, patience: timedelta = distributed.PATIENCE) -> Iterator[distributed.Processes]:
    """The processes that share a command, of which only the first speaks; they part in order however it ends."""
    try:
        processes = distributed.join(device, patience)
        screen.quiet = not processes.first
        yield processes
    finally:
        distributed.leave()


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, whole or not at all, or say in one line why not."""
    verified_folder.write_file(path, text.encode("utf-8"))


def json_of(document: dict[str, Any]) -> bytes:
    """A JSON file in UTF-8."""
    return (json.dumps(document, indent=1) + "\n").encode()


def table_of(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> bytes:
    """A CSV file in UTF-8; names of files keep their bytes."""
    file = io.StringIO()
    csv.writer(file).writerows([heads, *rows])
    return file.getvalue().encode("utf-8", "surrogateescape")


def need_writable(path: Path) -> None:
    """Say in one line that a file cannot be written, before the work whose result it is to hold."""
    with _told_in_one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        path.open("a").close()
        if new:
            path.unlink()


@contextmanager
def _told_in_one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
