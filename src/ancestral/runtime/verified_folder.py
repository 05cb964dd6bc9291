"""Folders that are whole or absent, and known to be unchanged.

A folder is written beside its path under a temporary name, each file flushed to the disk, then a manifest with the
SHA-256 of every file, then the folder itself; only then is it renamed, and the parent flushed. Reading checks every
digest, because no tensor format notices a flipped bit. Temporary names are each writer's own, so that commands that
make the same thing at once do not disturb each other: the first one's stays.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from ancestral.errors import UserError
from ancestral.runtime import disk, system
from ancestral.runtime.disk import Damaged

MANIFEST = "manifest.json"


class Unwritable(UserError):
    """The disk refused."""


def clear(parent: Path) -> None:
    """Remove what writers that were killed have left; only while nobody else writes there."""
    for leftover in (*parent.glob(".writing-*"), *parent.glob(".replaced-*")):
        _remove(leftover)


def write(folder: Path, files: Mapping[str, bytes | Iterable[bytes]]) -> None:
    """Write a folder with these files, all or nothing; an existing one of that name is replaced only at the end.

    A file may be given as parts, which are written as they come. An existing folder of the same content is left alone.

    Raises:
        Unwritable: when the disk refuses (full, read-only); nothing that was there before is touched.
    """
    temporary = _own_name(folder, "writing")
    try:
        begin(folder, temporary)
        put(temporary, folder, {name: write_flushed(temporary / name, content) for name, content in files.items()})
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        _remove(temporary)


def unwritable(folder: Path, error: OSError) -> Unwritable:
    """What is said when the disk refuses a folder."""
    return Unwritable(f"{folder}: cannot be written ({error.strerror}); free space or choose another folder")


def begin(folder: Path, temporary: Path) -> None:
    """Make the temporary folder in which one of that name is written, and remove what killed writers of it left."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _restore(folder)
    for state in ("writing", "replaced"):
        _clear_dead(folder, state)
    temporary.mkdir()


def temporary_name(folder: Path) -> Path:
    """A temporary name for a folder that no other writer has, nor this one again."""
    return _own_name(folder, "writing")


def put(temporary: Path, folder: Path, made: dict[str, dict[str, Any]]) -> None:
    """Put a folder whose files are written in the place of its name, with a manifest of them (see `write_flushed`)."""
    replaced = _own_name(folder, "replaced")
    try:
        write_flushed(temporary / MANIFEST, json.dumps(made, indent=1).encode())
        system.flush_folder(temporary)
        while not _is_whole(folder, made):
            with suppress(FileNotFoundError):
                folder.rename(replaced)
            try:
                temporary.rename(folder)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                _remove(replaced)  # another writer was quicker: look at what it has put there
        system.flush_folder(folder.parent)
    finally:
        if replaced.exists() and not folder.exists():  # stopped between the renames
            with suppress(OSError):
                replaced.rename(folder)
        _remove(replaced)


def _is_whole(folder: Path, expected: dict[str, dict[str, Any]]) -> bool:
    """Whether the folder is there, with these files as they should be."""
    try:
        if manifest(folder) != expected:
            return False
        need_unchanged(folder, list(expected))
    except (Damaged, OSError):
        return False
    return True


def need_unchanged(folder: Path, names: Sequence[str]) -> None:
    """Check files of a folder against its manifest without holding them.

    Raises:
        Damaged: naming the file that is missing, changed or unreadable.
    """
    entries = manifest(folder)
    for name in names:
        with disk.opened(folder / name) as file:
            if file_digest(file, "sha256").hexdigest() != entries[name]["sha256"]:
                raise Damaged(f"{folder / name}: damaged (its digest is not the manifest's)")


def read(folder: Path, names: Sequence[str] | None = None) -> dict[str, bytes]:
    """The files of a folder, or those named, each checked against the manifest.

    Raises:
        Damaged: naming the file that is missing, changed or unreadable.
    """
    files = {}
    for name, entry in manifest(folder).items():
        if names is None or name in names:
            content = disk.read(folder / name, entry["bytes"])
            if len(content) < entry["bytes"]:
                raise Damaged(f"{folder / name}: damaged (ends too early)")
            if sha256(content).hexdigest() != entry["sha256"]:
                raise Damaged(f"{folder / name}: damaged (its digest is not the manifest's)")
            files[name] = content
    for name in names or ():
        if name not in files:
            raise Damaged(f"{folder / MANIFEST}: names no {name}")
    return files


def manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """{name: {"sha256": hexadecimal, "bytes": size}} of a folder.

    Raises:
        Damaged: when it is missing or not a manifest.
    """
    path = folder / MANIFEST
    found = disk.document(path)
    if not isinstance(found, dict):
        raise Damaged(f"{path}: damaged (not a manifest)")
    for name, entry in found.items():
        if Path(name).name != name or name in ("", MANIFEST):
            raise Damaged(f"{path}: names a file outside its folder")
        if not (isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and type(entry.get("bytes")) is int):
            raise Damaged(f"{path}: damaged (not a manifest)")
    return found


def digest(folder: Path) -> str:
    """SHA-256 of a folder's manifest, which names the digest of every file.

    Raises:
        Damaged: when it cannot be read.
    """
    return sha256(disk.read(folder / MANIFEST, disk.LARGEST_JSON)).hexdigest()


def write_file(path: Path, content: bytes) -> None:
    """Write one file whole or not at all; its folder is made.

    Raises:
        Unwritable: when the disk refuses.
    """
    temporary = _own_name(path, "writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_dead(path, "writing")
        write_flushed(temporary, content)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise Unwritable(f"{path}: cannot be written ({error.strerror}); free space or choose another --out") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def need_writable(path: Path) -> None:
    """Refuse a path that cannot be written, before the work whose result it is to hold."""
    absent = [folder for folder in path.absolute().parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        path.open("a").close()
        if new:
            path.unlink()
        for folder in absent:
            folder.rmdir()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error


def _begun(path: Path, state: str) -> str:
    """How temporary names for a path begin on this machine: as short for every name."""
    return f".{state}-{_short(os.fsencode(path.name))}-{_short(socket.gethostname().encode())}-"


def _short(name: bytes) -> str:
    return sha256(name).hexdigest()[:16]


def _own_name(path: Path, state: str) -> Path:
    """A temporary name for a path that no other writer has."""
    return path.with_name(f"{_begun(path, state)}{os.getpid()}-{uuid.uuid4().hex[:8]}")


def _left_by_dead(path: Path, state: str) -> list[Path]:
    """What writers of a path that were killed on this machine have left."""
    begun = _begun(path, state)
    found = path.parent.glob(f"{begun}*")
    return [one for one in found if not _runs(one.name.removeprefix(begun).partition("-")[0])]


def _runs(process: str) -> bool:
    return process.isdecimal() and system.runs(int(process))


def _clear_dead(path: Path, state: str) -> None:
    for leftover in _left_by_dead(path, state):
        _remove(leftover)


def _restore(folder: Path) -> None:
    """Put back what a writer that was killed between its two renames had moved away."""
    for earlier in _left_by_dead(folder, "replaced") if not folder.exists() else ():
        with suppress(OSError):
            earlier.rename(folder)
            return


def _remove(leftover: Path) -> None:
    if leftover.is_dir() and not leftover.is_symlink():
        shutil.rmtree(leftover, ignore_errors=True)
    else:
        with suppress(OSError):
            leftover.unlink(missing_ok=True)


def is_file(path: Path, digest: str) -> bool:
    """Whether the file is there with this SHA-256."""
    try:
        return sha256(disk.read(path)).hexdigest() == digest
    except Damaged:
        return False


def write_flushed(path: Path, content: bytes | Iterable[bytes]) -> dict[str, Any]:
    """Write one file directly and have the disk take it; returns its size and SHA-256."""
    digest, size = sha256(), 0
    with open(path, "wb") as file:
        for part in [content] if isinstance(content, bytes) else content:
            file.write(part)
            digest.update(part)
            size += len(part)
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": digest.hexdigest(), "bytes": size}
