"""The folder of what was computed and may be asked for again: of bounded size, shared by commands that run at once.

An entry is a folder KIND/DIGEST, named by everything that it depends on (`resumable_job.cache_folder`).
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

LIMIT = 4 * 10**9  # bytes
IN_USE = 3600.0  # seconds after its last use in which a command may still read an entry
KINDS = ("features", "samples", "classifiers")


def default() -> Path:
    """Where it is when no other place is named; it may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ancestral"


def used(entry: Path) -> None:
    """Note that an entry is used now, if it is there."""
    with suppress(OSError):
        os.utime(entry)


def trim(cache: Path, limit: int = LIMIT) -> int:
    """Remove the entries used longest ago until the others take `limit` bytes, which are counted and returned.

    Those used within the last hour stay. An entry goes as a whole, so that no other command finds half of it.
    """
    for kind in KINDS:
        for leftover in (cache / kind).glob(".removed-*"):
            shutil.rmtree(leftover, ignore_errors=True)
    entries = sorted(
        (stat.st_mtime, _bytes(entry), entry)
        for kind in KINDS
        for entry in (cache / kind).glob("*")
        if re.fullmatch("[0-9a-f]{32}", entry.name) and (stat := _stat(entry))
    )
    total = sum(size for _, size, _ in entries)
    for last, size, entry in entries:
        if total <= limit or time.time() - last < IN_USE:
            break
        removed = entry.with_name(f".removed-{uuid.uuid4().hex}")
        with suppress(OSError):  # another command was quicker
            entry.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)
        total -= size
    return total


def _bytes(entry: Path) -> int:
    with suppress(OSError):  # another command removes it
        found = (_stat(file) for file in entry.rglob("*"))
        return sum(one.st_size for one in found if one and S_ISREG(one.st_mode))
    return 0


def _stat(path: Path) -> os.stat_result | None:
    with suppress(OSError):
        return path.stat()
    return None
