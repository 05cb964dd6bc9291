"""Folders that are whole or absent, and known to be unchanged.

A folder is written beside its place under a temporary name, each file flushed to the disk, then a manifest with the
SHA-256 of every file, then the folder itself; only then is it renamed, and the parent flushed. Reading checks every
digest, because no tensor format notices a flipped bit.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from ancestral.errors import UserError

MANIFEST = "manifest.json"


class Damaged(UserError):
    """A sealed folder that is not what was written."""


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder with these files, all or nothing; an existing one of that name is replaced only at the end.

    Raises:
        UserError: when the disk refuses (full, read-only); nothing that was there before is touched.
    """
    temporary, replaced = (folder.parent / f".{state}-{folder.name}" for state in ("writing", "replaced"))
    manifest = {name: {"sha256": sha256(content).hexdigest(), "bytes": len(content)} for name, content in files.items()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in (*folder.parent.glob(".writing-*"), *folder.parent.glob(".replaced-*")):
            shutil.rmtree(leftover)  # of a run that was killed
        temporary.mkdir()
        for name, content in {**files, MANIFEST: json.dumps(manifest, indent=1).encode()}.items():
            with open(temporary / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _flush(temporary)
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
        _flush(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); free space or choose another --out"
        ) from error


def read(folder: Path) -> dict[str, bytes]:
    """The files of a sealed folder, each checked against the manifest.

    Raises:
        Damaged: naming the file that is missing, changed or unreadable.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files = {}
        for name, entry in manifest.items():
            if Path(name).name != name:
                raise Damaged(f"{folder / MANIFEST}: names a file outside its folder")
            content = (folder / name).read_bytes()
            if sha256(content).hexdigest() != entry["sha256"]:
                raise Damaged(f"{folder / name}: damaged (its digest is not the manifest's)")
            files[name] = content
    except OSError as error:
        raise Damaged(f"{error.filename}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Damaged(f"{folder / MANIFEST}: damaged (not a manifest)") from None
    return files


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
