"""Names and paths from elsewhere are text wherever they are shown: no markup, no controls, no forged line."""

import ast
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.table import Table

from ancestral.runtime.console import Progress, Screen
from ancestral.runtime.text import shown
from conftest import run_command

NAMES = (
    *("plain.png", "exp[red]1.png", "line\nleft out: nothing.png", "esc\x1b[31m.png", "rtl\u202egnp.png"),
    *(":smile:.png", "c1\x9b31m.png", "marks\u200e\u200f\u2066\u2069.png", "page\u2028\x0c.png", "tab\t\r\x08\x7f.png"),
    *("half\udc80.png", "名前 é.png"),
)
CASES = Path(__file__).parents[3] / "shared" / "cases" / "make.py"
SOURCE = Path(__file__).parents[2] / "src" / "ancestral"


def test_what_is_shown_is_one_printed_line_that_says_every_character():
    every = "".join(map(chr, (*range(0x3100), *range(0xD700, 0x11000), 0x1F600, 0xE0041, sys.maxunicode)))
    assert shown(every).isprintable()
    assert ast.literal_eval('"' + shown(every.replace('"', "").replace("\\", "")) + '"') == every.replace(
        '"', ""
    ).replace("\\", "")
    assert shown("名前 [é] ×.png") == "名前 [é] ×.png"


@pytest.mark.parametrize("name", [*NAMES, "[/x]", "[link=http://x]y"])
def test_the_screen_shows_names_as_text(name):
    file = io.StringIO()
    screen = Screen(file=file, width=200, force_terminal=True)
    screen.print(f"{name}: said")
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    screen.print(table)
    lines = file.getvalue().splitlines()
    assert lines[0] == f"{shown(name)}: said"
    assert sum(shown(name) in line for line in lines) == 4
    assert len(lines) == 7


def hostile(folder):
    """Pictures under hostile names, one of them broken, in a folder that closes a tag."""
    for i, name in enumerate(NAMES):
        place = folder / "a[" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(place)
    (folder / "a[" / "broken].png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    shutil.copytree(folder / "a[", folder / "b]")
    return folder


def only_text(output):
    """Every character is printed, but the ends of lines."""
    assert all(line.isprintable() for line in output.split("\n")), output


def test_a_data_set_of_hostile_names(tmp_path):
    data, run = hostile(tmp_path / "x[/y]\x1b[31m\u202e"), tmp_path / "run[red]\x02\x1b[0m"
    small = ["--preset", "tiny", "--steps", "1", "--set", "model.width=8", "--set", "train.batch_size=2"]
    refused = run_command("train", data, "--out", run, "--dry-run", *small)
    assert (refused.exit_code, len(refused.output.splitlines())) == (2, 1)
    assert "broken].png" in refused.output
    skip = ["--set", "data.bad_images=skip"]
    for more in (["--dry-run"], []):
        result = run_command("train", data, "--out", run, *small, *skip, *more)
        assert result.exit_code == 0, result.output
        assert "a[/broken].png" in result.output
        only_text(refused.output + result.output)
    for arguments in (
        ["sample", run, "--label", "\x1b[31m[/x]\nerror: forged"],
        ["sample", run, "--gr\x1b[31m\nid", "x"],
    ):
        result = run_command(*arguments)
        assert result.exit_code == 2
        assert sum(line.lower().startswith("error") for line in result.output.splitlines()) == 1
        only_text(result.output)


def test_the_case_of_names(tmp_path):
    if not CASES.exists():
        pytest.skip("needs ../shared/cases")
    subprocess.run([sys.executable, CASES, tmp_path / "cases"], check=True, capture_output=True)
    only = ["--preset", "tiny", "--steps", "1", "--dry-run", "--set", "model.width=8", "--out", tmp_path / "run"]
    for more in ([], ["--set", "data.bad_images=skip"]):
        result = run_command("train", tmp_path / "cases" / "names", *only, *more)
        assert result.exit_code in (0, 2)
        assert not result.exception or isinstance(result.exception, SystemExit)
        assert "[" in result.output
        assert not any(line.startswith("left out: nothing") for line in result.output.splitlines())
        only_text(result.output)


def test_there_is_one_way_to_the_terminal():
    for path in SOURCE.rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            assert name not in ("Console", "sys.stdout.write", "sys.stderr.write"), path
            alone = path.name == "draw.py"  # the script that is copied beside an exported model
            assert name != "print" or path.parent.name == "report" or alone, path
            if name == "click.echo":
                said = ast.unparse(call.args[0])
                assert "shown(" in said or said == "examples.FIRST", path  # which is ours, and several lines


@pytest.mark.parametrize("name", [*NAMES, "[/x]", "[red]x", "{task.id}"])
def test_bars_show_names_as_text(name):
    file = io.StringIO()
    with Progress(console=Screen(file=file, width=200, force_terminal=True)) as bar:
        bar.add_task(name, total=1, completed=1)
    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    assert shown(name) in said
    assert only_printed(said)


def only_printed(text):
    return all(c.isprintable() or c in "\r\n" for c in text)


def test_there_is_one_kind_of_bar():
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rich.progress"):
                taken = {one.name for one in node.names}
                assert not taken & {"Progress", "TextColumn", "TaskProgressColumn", "track"}, path
            assert not isinstance(node, ast.Constant) or "[progress." not in str(node.value), path
