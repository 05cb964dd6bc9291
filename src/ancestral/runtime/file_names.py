"""Names of files that come from elsewhere: whether all of them can be written, and none over another."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ancestral.errors import UserError
from ancestral.runtime.text import shown

RESERVED = {"con", "prn", "aux", "nul", *(f"{kind}{digit}" for kind in ("com", "lpt") for digit in "0123456789¹²³")}
SPECIAL = set('\\:*?"<>|')  # to other systems: a separator, a drive, a pattern, a pipe
LONGEST_PATH = 4095


def as_png(name: str) -> str:
    """The name of a PNG file for the image of this name."""
    return name if name.lower().endswith(".png") else f"{name}.png"


def need_other(out: Path, read: Path) -> None:
    """Refuse to write over what is read.

    Raises:
        UserError: naming it.
    """
    if out.resolve() == read.resolve():
        raise UserError(f"--out: {out} is one of the files to be read; choose another name")


def need_writable_names(names: Sequence[str], out: Path, source: Path, mend: str) -> None:
    """Refuse names whose files cannot be written below `out`, on any system and each to a path of its own.

    Raises:
        UserError: naming the name, and what is wrong with it.
    """
    longest, folder = _longest(out), os.fsencode(out.absolute())
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name in names:
        problem = _problem(name, longest)
        if problem is None and len(folder) + 1 + len(os.fsencode(name)) > LONGEST_PATH:
            problem = f"makes a path of more than {LONGEST_PATH} bytes"
        folded = _folded(name)
        if problem is None and folded in seen:
            problem = f"would be written over {_quoted(seen[folded])}"
        seen[folded] = name
        for parent in PurePosixPath(folded).parents[:-1]:
            folders.setdefault(str(parent), name)
        if problem is not None:
            raise UserError(f"{source}: an image's name, {_quoted(name)}, {problem}; {mend}")
    for folded in folders.keys() & seen.keys():
        raise UserError(
            f"{source}: an image's name, {_quoted(seen[folded])}, is that of the folder of "
            f"{_quoted(folders[folded])}; {mend}"
        )


def _quoted(name: str) -> str:
    """The name as it is shown, not too long."""
    return f"'{shown(name if len(name) <= 60 else f'{name[:28]}...{name[-28:]}')}'"


def _problem(name: str, longest: int) -> str | None:
    parts = name.split("/")
    if not name:
        return "is empty"
    if name.startswith("/"):
        return "is absolute"
    if ".." in parts:
        return "leads outside its folder"
    if "" in parts or "." in parts:
        return "has an empty part"
    if any(unicodedata.category(one) in ("Cc", "Cf", "Zl", "Zp") for one in name):
        return "has control characters"
    if SPECIAL & set(name):
        return "has one of " + " ".join(sorted(SPECIAL))
    if any(part.split(".")[0].rstrip(" ").lower() in RESERVED for part in parts):
        return "is reserved on Windows"
    if any(part.endswith((".", " ")) for part in parts):
        return "ends with a dot or a space, which Windows drops"
    if any(len(os.fsencode(part)) > longest for part in parts):
        return f"has more than the {longest} bytes that the file system takes"
    return None


def _longest(out: Path) -> int:
    """The bytes of a name on the file system where `out` is or will be."""
    there = next(one for one in (out.absolute(), *out.absolute().parents) if one.is_dir())
    try:
        return min(255, os.pathconf(there, "PC_NAME_MAX"))
    except OSError:
        return 255


def _folded(name: str) -> str:
    """Equal for names that a file system may take for one: without case, composed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
