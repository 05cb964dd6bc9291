"""The terminal: lines that are safe to print, and progress bars."""

from __future__ import annotations

import os
import sys
from typing import Any

from rich import progress
from rich.console import Console
from rich.text import Text

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
