"""What the command says of itself: an example under each help that is right, the first things to do, completion."""

import os
import re
import shlex
import shutil
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


def test_commands_that_are_printed_can_be_pasted_whatever_the_run_is_called(any_run, tmp_path, command):
    """They are cut out of what is printed and handed over as a shell does: those of results run, of refusals parse."""
    run = tmp_path / "a run's $HOME"
    shutil.copytree(any_run, run)
    average = sorted((run / "averages").iterdir())[0]
    for words in (
        ("tune-steps", run, "--steps", 2, "--num-images", 2),
        ("import", average, "--out", tmp_path / "an import; ls"),
    ):
        said = command(*words)
        assert said.exit_code == 0, said.output
        line = said.output.partition("now: ")[2].splitlines()[0]
        assert understood(line) == ("sample",)
        drawn = command(*shlex.split(line)[1:], "--num-images", 1)
        assert drawn.exit_code == 0, drawn.output
    for words in (
        ("sample", tmp_path / "no run"),
        ("train", "digits", "--out", tmp_path / "an import; ls", "--steps", "+2"),
        ("train", "digits", "--out", run, "--from", run),
        ("metrics", tmp_path),
    ):
        refused = command(*words)
        assert refused.exit_code == 2, refused.output
        line = re.search(r"ancestral [a-z]+ .*", refused.output)
        assert line is not None, refused.output
        assert understood(line[0]), refused.output


UNIT = (  # of what a number counts or is a share of; "no unit" where it has none
    r"\b(images?|steps?|calls|pixels|bytes|terms|probes|variants|processes|jobs|updates|times|share|scale|SNRs|level|units"
    r"|whole number|number of the class|port number|wall time|no unit)\b"
)


TEXTS = (click.Choice, click.Path, click.types.StringParamType)


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_numbers_have_a_unit_and_a_value_when_left_out(path):
    options = [one for one in LEAVES[path].params if isinstance(one, click.Option) and not one.is_flag]
    for option in (one for one in options if not isinstance(one.type, TEXTS)):
        assert re.search(UNIT, option.help, re.IGNORECASE), option.opts
        stated = option.required or (option.show_default and option.default is not None)
        assert stated or re.search("left out|no length is given|instead of --budget", option.help), option.opts


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
