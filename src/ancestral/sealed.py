"""Folders that are whole or absent, and known to be unchanged.

A folder is written beside its place under a temporary name, each file flushed to the disk, then a manifest with the
SHA-256 of every file, then the folder itself; only then is it renamed, and the parent flushed. Reading checks every
digest, because no tensor format notices a flipped bit.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from ancestral.errors import UserError

MANIFEST = "manifest.json"


class Damaged(UserError):
    """A sealed folder that is not what was written."""


class Unwritable(UserError):
    """The disk refused."""


def clear(parent: Path) -> None:
    """Remove what writers that were killed have left; only while nobody else writes there."""
    for leftover in (*parent.glob(".writing-*"), *parent.glob(".replaced-*")):
        shutil.rmtree(leftover, ignore_errors=True)


def write(folder: Path, files: Mapping[str, bytes | Iterable[bytes]]) -> None:
    """Write a folder with these files, all or nothing; an existing one of that name is replaced only at the end.

    A file may be given as parts, which are written as they come.

    Raises:
        Unwritable: when the disk refuses (full, read-only); nothing that was there before is touched.
    """
    temporary, replaced = (folder.parent / f".{state}-{folder.name}" for state in ("writing", "replaced"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in (temporary, replaced):  # of a writer that was killed
            if leftover.exists():
                shutil.rmtree(leftover)
        temporary.mkdir()
        manifest = {name: _write(temporary / name, content) for name, content in files.items()}
        _write(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())
        _flush(temporary)
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
        _flush(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise Unwritable(
            f"{folder}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from error
    except UserError:  # from the parts
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read(folder: Path, names: Sequence[str] | None = None) -> dict[str, bytes]:
    """The files of a sealed folder, or those named, each checked against the manifest.

    Raises:
        Damaged: naming the file that is missing, changed or unreadable.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files = {}
        for name, entry in manifest.items():
            if Path(name).name != name:
                raise Damaged(f"{folder / MANIFEST}: names a file outside its folder")
            if names is not None and name not in names:
                continue
            content = (folder / name).read_bytes()
            if sha256(content).hexdigest() != entry["sha256"]:
                raise Damaged(f"{folder / name}: damaged (its digest is not the manifest's)")
            files[name] = content
    except OSError as error:
        raise Damaged(f"{error.filename}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Damaged(f"{folder / MANIFEST}: damaged (not a manifest)") from None
    return files


def write_file(path: Path, content: bytes) -> None:
    """Write one file whole or not at all.

    Raises:
        Unwritable: when the disk refuses.
    """
    temporary = path.with_name(f".writing-{path.name}")
    try:
        _write(temporary, content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise Unwritable(f"{path}: cannot be written ({error.strerror}); free space or choose another --out") from error


def is_file(path: Path, digest: str) -> bool:
    """Whether the file is there with this SHA-256."""
    try:
        return sha256(path.read_bytes()).hexdigest() == digest
    except OSError:
        return False


def _write(path: Path, content: bytes | Iterable[bytes]) -> dict[str, Any]:
    """Write and flush one file; returns its entry in the manifest."""
    digest, size = sha256(), 0
    with open(path, "wb") as file:
        for part in [content] if isinstance(content, bytes) else content:
            file.write(part)
            digest.update(part)
            size += len(part)
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": digest.hexdigest(), "bytes": size}


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
