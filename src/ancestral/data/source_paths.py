"""Names of image sources: compared, told from runs, and printed without the home folder."""

from __future__ import annotations

import os
from pathlib import Path

from ancestral.runtime.text import quoted

HUB_PREFIX = "hf:"  # of a name on the Hugging Face hub


def same_source(one: str, other: str) -> bool:
    """Whether two names are of one source: relative, absolute or through links."""
    return one == other or os.path.realpath(one) == os.path.realpath(other)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run, whose checkpoints lie in it."""
    return (folder / "checkpoints").is_dir()


def public(source: str) -> str:
    """A source for others to read: from this folder or from `~` where it lies below, otherwise as it is."""
    path = Path(source)
    for root, before in ((Path.cwd(), ""), (Path.home(), "~/")):
        if path.is_absolute() and path != root and path.is_relative_to(root):
            return f"{before}{path.relative_to(root)}"
    return source


def typed(source: str) -> str:
    """`public`, for a shell."""
    text = public(source)
    below_home = text.startswith("~/") and text != source
    return f"~/{quoted(text[2:])}" if below_home else quoted(text)
