"""Run the commands of a tutorial in order, and store what they say in it: scripts/tutorial.py PAGE [FOLDER].

Of each block of commands that a block of text follows, the lines that begin with `ancestral` are run, in FOLDER, here
when left out. Long lines are cut, and of many lines of progress three are kept.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 111  # characters of a line
PROGRESS = re.compile(r"\d+%, [\d,]+ of [\d,]+ images|[\d,]+ of [\d,]+ images:")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def shown(said: str) -> str:
    """What a page shows of what a command said."""
    lines = said.rstrip("\n").splitlines()
    progress = [number for number, line in enumerate(lines) if PROGRESS.match(line)]
    kept = {progress[len(progress) * share // 4] for share in (1, 2, 3)} if len(progress) > 3 else set(progress)
    left = [line for number, line in enumerate(lines) if number in kept or number not in progress]
    # Of lines that say what is done at the end and the time left, the first of each.
    doing = [line.split(", ")[1] if re.match(r"\d+%, ", line) and " images" not in line else None for line in left]
    left = [line for n, line in enumerate(left) if doing[n] is None or doing[n] not in doing[:n]]
    return "".join(f"{line if len(line) <= WIDTH else line[: WIDTH - 3] + '...'}\n" for line in left)


def filled(page: str, run: Callable[[str], str]) -> str:
    """The page with what its commands say now."""
    blocks, end, parts = list(BLOCK.finditer(page)), 0, []
    for asked, answer in pairwise(blocks):
        commands = [line for line in asked[2].splitlines() if line.split(" ")[0] == "ancestral"]
        if (asked[1], answer[1]) == ("sh", "text") and commands:
            parts += [page[end : answer.start(2)], "\n".join(shown(run(command)) for command in commands)]
            end = answer.end(2)
    return "".join((*parts, page[end:]))


def main(page: Path, folder: Path) -> None:
    """Fill a page."""

    def run(command: str) -> str:
        print(command, file=sys.stderr)
        program = f"{ROOT / '.venv/bin/ancestral'}{command.removeprefix('ancestral')}"
        return subprocess.run(program, shell=True, cwd=folder, text=True, check=True, stdout=subprocess.PIPE).stdout

    page.write_text(filled(page.read_text(), run))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "."))
