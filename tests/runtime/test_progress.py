"""Progress without a terminal: a line each half minute that says how far a command is and what is left."""

import io
import re
import time

from ancestral.runtime import console


def test_a_line_tells_what_how_far_and_how_long_it_takes_yet(monkeypatch):
    monkeypatch.setattr(console, "LINE_EVERY", 0.05)
    file = io.StringIO()
    with console.Progress(console=console.Screen(file=file, width=200)) as bar:
        counted, told = bar.add_task("counting", total=10), bar.add_task("told", total=1)
        bar.add_task("over", total=1, completed=1)
        began = time.monotonic()
        bar.update(told, completed=0.5, ends=began + 100.3)
        for _ in range(5):
            time.sleep(0.03)
            bar.advance(counted)
        time.sleep(0.06)
    lines = file.getvalue().splitlines()
    assert re.fullmatch(r"counting, 50%, 0:0\d left", lines[-2])
    assert lines[-1] == "told, 50%, 1:40 left"
    assert not any(line.startswith("over") for line in lines)
    said = len(file.getvalue())
    time.sleep(0.1)
    assert len(file.getvalue()) == said  # the lines end with the bars


def test_nothing_is_said_of_what_is_done_at_once(capsys):
    file = io.StringIO()
    with console.Progress(console=console.Screen(file=file, width=200)) as bar:
        bar.add_task("quick", total=10)
    assert file.getvalue() == ""
