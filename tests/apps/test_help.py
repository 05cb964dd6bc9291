"""What the command says of itself: an example under each help that is right, the first things to do, completion."""

import os
import shlex
import subprocess
import sys

import click
import pytest

from ancestral.apps.cli.examples import EXAMPLES, FIRST
from ancestral.apps.cli.main import main


def leaves(group=main, path=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


LEAVES = dict(leaves())


def understood(line):
    """The command that a line calls, having read its arguments as the shell would hand them over."""
    first, *words = shlex.split(line)
    assert first == "ancestral"
    path, command = [], main
    while isinstance(command, click.Group):
        path.append(words.pop(0))
        command = command.commands[path[-1]]
    command.make_context(path[-1], words)  # an option or argument that is missing or wrong is an error
    return tuple(path)


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_help_ends_with_an_example_that_the_command_understands(path, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photo.png", "photo.anc"):
        (tmp_path / name).touch()  # these have to be there
    example = EXAMPLES[path[-1]]
    assert understood(example) == path
    assert command(*path, "--help").output.endswith(f"Example:\n    {example}\n")


def test_every_example_is_of_a_command():
    assert set(EXAMPLES) == {path[-1] for path in LEAVES}


def test_alone_it_shows_the_three_things_to_do_first(command):
    result = command()
    assert (result.exit_code, result.output) == (0, FIRST)
    lines = [line.partition("   ")[0].strip() for line in FIRST.splitlines() if line.startswith("  ")]
    verbs = [understood(line) for line in lines]
    assert verbs == [("train",), ("sample",), ("serve",)]


@pytest.mark.parametrize(("words", "offered"), [("ancestral unarch", "unarchive"), ("ancestral edit inp", "inpaint")])
def test_a_shell_completes_commands(words, offered):
    complete = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_ANCESTRAL_COMPLETE": "bash_complete"}
    probe = "from ancestral.apps.cli.main import main; main(prog_name='ancestral')"
    result = subprocess.run(
        [sys.executable, "-c", probe], env={**os.environ, **complete}, capture_output=True, text=True, timeout=60
    )
    assert result.stdout == f"plain,{offered}\n"
