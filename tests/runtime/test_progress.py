"""Progress without a terminal: a line each half minute that says how far a command is and what is left."""

import io
import time

from rich.progress import BarColumn, SpinnerColumn

from ancestral.runtime import console


def test_a_line_tells_what_how_far_and_how_long_it_takes_yet(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bar = console.Progress(console=console.Screen(file=io.StringIO(), width=200))
    monkeypatch.setattr(bar, "get_time", lambda: now[0])
    counted, learned = bar.add_task("counting", total=10), bar.add_task("learned", total=1)
    bar.advance(bar.add_task("over", total=1))
    bar.add_task("of unknown length", total=None)
    bar.update(learned, completed=0.5, ends=now[0] + 100.3)
    now[0] += 600
    assert bar.lines()[0] == "counting, 0%, -:-- left"
    bar.advance(counted, 2)  # in ten minutes: the rest takes forty
    assert bar.lines() == ["counting, 20%, 40:00 left", "learned, 50%, 0:00 left", "of unknown length, 0%, -:-- left"]
    bar.update(learned, ends=now[0] + 7325)
    assert bar.lines()[1] == "learned, 50%, 2:02:05 left"


def test_a_spinner_is_no_part_of_a_line():
    columns = (SpinnerColumn(), console.TextColumn("{task.description}"), BarColumn())
    bar = console.Progress(*columns, console=console.Screen(file=io.StringIO()))
    bar.add_task("drawing", total=10)
    assert bar.lines() == ["drawing"]


def test_the_lines_are_printed_while_a_command_lasts(monkeypatch):
    monkeypatch.setattr(console, "LINE_EVERY", 0.01)
    file = io.StringIO()
    with console.Progress(console=console.Screen(file=file, width=200)) as bar:
        bar.add_task("[red]drawing", total=10)
        until = time.monotonic() + 20
        while file.getvalue().count("\n") < 2 and time.monotonic() < until:
            time.sleep(0.01)
    assert file.getvalue().splitlines()[:2] == ["[red]drawing, 0%, -:-- left"] * 2
    time.sleep(0.05)
    said = file.getvalue()
    time.sleep(0.05)
    assert file.getvalue() == said  # they end with the bars


def test_nothing_is_said_of_what_is_done_at_once():
    file = io.StringIO()
    with console.Progress(console=console.Screen(file=file, width=200)) as bar:
        bar.add_task("quick", total=10)
    assert file.getvalue() == ""
