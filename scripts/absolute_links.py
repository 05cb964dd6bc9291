"""Make the links of README.md absolute, for a package index: scripts/absolute_links.py REPOSITORY TAG."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def absolute(text: str, repository: str, tag: str) -> str:
    """The text with links to files as links to the repository's pages, and pictures as the files themselves."""

    def link(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        return f"{picture}[{words}]({repository}/{'raw' if picture else 'blob'}/{tag}/{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", link, text)


if __name__ == "__main__":
    page = Path("README.md")
    page.write_text(absolute(page.read_text(), *sys.argv[1:]))
