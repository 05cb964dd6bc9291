"""The terminal: lines that are safe to print, and progress bars."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from rich import progress
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ancestral.runtime.launch import is_first
from ancestral.runtime.text import minutes, shown

LINE_EVERY = 30.0  # seconds, where the screen is no terminal


class Screen(Console):
    """A console on which every string, also a table's, is text of one line: no markup, nothing that is not printed.

    That whoever reads it went away ends no program, as it does in rich: it is an error like another, once. Of several
    processes the first speaks.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True, **settings)

    @property
    def quiet(self) -> bool:
        """Whether nothing is shown."""
        return self._quiet or not is_first()

    @quiet.setter
    def quiet(self, quiet: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride] # rich has an attribute
        self._quiet = quiet

    def render_str(self, text: str, **how: Any) -> Text:  # the one way from a string to the screen
        """As it is shown."""
        return super().render_str(shown(text), **how)

    def on_broken_pipe(self) -> None:
        """Say nothing more."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise BrokenPipeError


screen = Screen()


def table(title: str, *headings: str) -> Table:
    """A table to be filled, of names in the first column and numbers in the others."""
    made = Table(title=title, title_justify="left")
    for heading in headings:
        made.add_column(heading, justify="right" if made.columns else "left")
    return made


class TextColumn(progress.TextColumn):
    """A column of a bar whose words are text of one line, as everything on a `Screen`."""

    def render(self, task: progress.Task) -> Text:
        """The column's format, filled in."""
        return Text(shown(self.text_format.format(task=task)), style=self.style, justify=self.justify)


class TimeLeft(progress.ProgressColumn):
    """How long a task takes yet: to the time `ends` (as of `time.monotonic`) that it names, or at its pace so far."""

    max_refresh = 0.5

    def render(self, task: progress.Task) -> Text:
        """Minutes and seconds."""
        ends = task.fields.get("ends")
        left = task.time_remaining if ends is None else ends - time.monotonic()
        if left is None and task.completed and task.elapsed and task.remaining is not None:  # rich: of half a minute
            left = task.elapsed * task.remaining / task.completed
        return Text("" if task.finished else "-:-- left" if left is None else f"{minutes(left)} left")


class Progress(progress.Progress):
    """The bars of a command: what is done, how far, and how long it takes yet; off a terminal, as lines."""

    def __init__(self, *columns: progress.ProgressColumn, console: Console = screen) -> None:
        usual = (
            TextColumn("{task.description}"),
            progress.BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TimeLeft(),
        )
        super().__init__(*(columns or usual), console=console, disable=not console.is_terminal)
        self._ended = threading.Event()

    def start(self) -> None:
        """Show the bars, or begin with the lines."""
        super().start()
        if self.disable:
            threading.Thread(target=self._say_lines, daemon=True).start()

    def stop(self) -> None:
        """End either."""
        self._ended.set()
        super().stop()

    def lines(self) -> list[str]:
        """What the bars show, in words: a line for each task that is under way."""
        still = (str, progress.SpinnerColumn)  # say nothing of a task
        columns = [column for column in self.columns if not isinstance(column, still)]
        rows = [[column(task) for column in columns] for task in self.tasks if task.visible and not task.finished]
        return [", ".join(str(cell).strip() for cell in row if isinstance(cell, Text) and cell) for row in rows]

    def _say_lines(self) -> None:
        while not self._ended.wait(LINE_EVERY):
            for line in self.lines():
                with suppress(OSError):  # a reader that went away ends a command where it prints its results
                    self.console.print(line)


@contextmanager
def advancing(description: str, total: float) -> Iterator[Callable[[int], None]]:
    """Context manager: a bar, and what says of how many more things it is done."""
    with Progress() as bar:
        yield partial(bar.advance, bar.add_task(description, total=total))
