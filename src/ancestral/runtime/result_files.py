"""Files that belong together, replaced as one: made beside, then moved into place; all of the old or all of the new.

The new set is staged whole in `.results`, then a plan is written, then files are renamed. Killed before the plan is
written: the old set is untouched. Killed after: the next command completes the swap. Cover files (sheets, films), which
show others, are removed first and written last, so that none is ever beside files of another set.

The lock is the file system's, not that of a run (`ancestral.runs.lock`): it leaves nothing behind in a folder that may
be the user's, and is free as soon as its owner dies. On a network file system it may hold for one machine only, or for
nobody: see docs/reference/reliability.md.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import file_digest
from pathlib import Path, PurePosixPath

import msgspec

from ancestral.errors import UserError
from ancestral.runtime import disk, system, verified_folder
from ancestral.runtime.distributed import Processes

Contents = Iterable[tuple[str, bytes | Path]]  # by name; a path is a file that may be linked
FOLDER = ".results"


@dataclass(frozen=True)
class _Set:
    """Files by name with their SHA-256, those that show others, and those of the set before that are to go."""

    files: dict[str, str] = field(default_factory=dict)
    covers: tuple[str, ...] = ()
    gone: dict[str, str] = field(default_factory=dict)


class Results:
    """The files that one command keeps in a folder, and what it remembers of them; see `held`.

    Args:
        root: what names are relative to.
        state: the folder for what is remembered and staged.
    """

    def __init__(self, root: Path, state: Path) -> None:
        self.root, self.state = root, state

    @property
    def ours(self) -> dict[str, str]:
        """The SHA-256 of each file of the last set, by name."""
        return _set(self.state / "set.json").files

    def need_free(self, names: Iterable[str]) -> None:
        """Refuse to overwrite what is not ours, or was changed since."""
        ours, memory = self.ours, self.state / "set.json"
        forgotten = "" if ours or not os.path.lexists(memory) else f" ({memory}, which knew whose, is damaged)"
        for name in names:
            path = self.root / name
            if os.path.lexists(path) and not (name in ours and verified_folder.is_file(path, ours[name])):
                why = "was changed since it was written" if name in ours else f"is there already{forgotten}"
                raise UserError(f"{path}: {why}; move it away or choose another --out")
            if any(
                one.exists() and not one.is_dir()
                for one in (self.root / above for above in PurePosixPath(name).parents)
            ):
                raise UserError(f"{path}: its folder is a file; move that away or choose another --out")

    def replace(self, files: Contents, covers: Collection[str] = ()) -> list[Path]:
        """Put this set in the place of the last one, whose other files go; returns those kept, as they were changed."""
        return self._put(files, covers, self.ours)

    def add(self, files: Contents) -> None:
        """Put these files beside what is there, and remember nothing."""
        self._put(files, (), {})
        shutil.rmtree(self.state, ignore_errors=True)

    def finish(self) -> None:
        """Finish a swap that was interrupted."""
        if _set(self.state / "plan.json").files:
            self._swap()
        (self.state / "plan.json").unlink(missing_ok=True)
        shutil.rmtree(self.state / "new", ignore_errors=True)
        verified_folder.clear(self.state)

    def _put(self, files: Contents, covers: Collection[str], old: dict[str, str]) -> list[Path]:
        staged = self.state / "new"
        try:
            staged.mkdir(parents=True)
            digests = {name: _stage(staged / str(number), content) for number, (name, content) in enumerate(files)}
            system.flush_folder(staged)
            gone = {name: digest for name, digest in old.items() if name not in digests}
            _write(self.state / "plan.json", _Set(digests, tuple(covers), gone))
            return self._swap()
        except OSError as error:
            raise verified_folder.Unwritable(
                f"{error.filename2 or self.root}: cannot be written ({error.strerror}); choose another --out"
            ) from error
        finally:
            if not (self.state / "plan.json").exists():
                shutil.rmtree(staged, ignore_errors=True)

    def _swap(self) -> list[Path]:
        """Move what is staged to its place; begun again, it goes on."""
        plan, covered = _set(self.state / "plan.json"), _set(self.state / "set.json").covers
        staged = {name: self.state / "new" / str(number) for number, name in enumerate(plan.files)}
        for name in covered:
            if name in staged and staged[name].exists():
                (self.root / name).unlink(missing_ok=True)
        kept = []
        for name, digest in sorted(plan.gone.items(), key=lambda one: one[0] not in covered):
            if verified_folder.is_file(self.root / name, digest):
                (self.root / name).unlink()
            elif (self.root / name).exists():
                kept.append(self.root / name)
        for name in sorted(staged, key=lambda name: name in plan.covers):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            if staged[name].exists():
                staged[name].replace(self.root / name)
                staged[name].unlink(missing_ok=True)  # two links to one file are left alone by a rename
        for folder in {(self.root / name).parent for name in staged}:
            system.flush_folder(folder)
        _write(self.state / "set.json", _Set(plan.files, plan.covers))
        (self.state / "plan.json").unlink()
        shutil.rmtree(self.state / "new", ignore_errors=True)
        return kept


@contextmanager
def held(root: Path, name: str, processes: Processes | None = None, beside: Path | None = None) -> Iterator[Results]:
    """A set of files of which this command is the only writer while it is held.

    Args:
        root: what the names of files are relative to.
        name: of the set, as one folder may have several.
        processes: those that share the command; the first one holds.
        beside: the folder in which the set is remembered; `root` when left out.

    Raises:
        UserError: when another command holds it, or the folder cannot be written.
    """
    processes = processes or Processes()
    state = (beside or root) / FOLDER
    made = [one for one in (state, *state.parents) if not one.exists()]
    lock, problem = None, None
    if processes.first:
        try:
            state.mkdir(parents=True, exist_ok=True)
            lock, holder = _locked(state / f"{name}.lock")
            if lock is None:
                problem = UserError(
                    f"{root}: another command is writing there ({holder}); wait for it or choose another --out"
                )
        except OSError as error:
            problem = UserError(f"{state.parent}: cannot be read or written ({error.strerror}); choose another --out")
    if processes.any(problem is not None):
        raise problem or UserError(f"{root}: another command is writing there")
    found = Results(root, state / name)
    try:
        if processes.first:
            found.finish()
        processes.wait()
        yield found
    finally:
        if lock is not None:
            with suppress(PermissionError):  # Windows removes no open file; the next command takes it as it is
                (state / f"{name}.lock").unlink(missing_ok=True)
            os.close(lock)
            with suppress(OSError):
                state.rmdir()  # where nothing is remembered
                for folder in made[1:]:  # nor written
                    folder.rmdir()


def _locked(path: Path) -> tuple[int | None, str]:
    """(a descriptor that holds the lock, ""), or (None, who holds it). The system lets go of it when its owner ends."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not system.try_lock(descriptor):
                holder = os.read(descriptor, 200).decode("utf-8", "replace")
                os.close(descriptor)
                return None, holder if holder.isprintable() else "?"
        except OSError:
            os.close(descriptor)
            raise
        with suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor, ""
        os.close(descriptor)  # the one before has just removed it


def _stage(path: Path, content: bytes | Path) -> str:
    """Put a file there; returns its SHA-256."""
    if isinstance(content, bytes):
        return verified_folder.write_flushed(path, content)["sha256"]
    try:
        os.link(content, path)
    except OSError:  # a file system without links
        return verified_folder.write_flushed(path, content.read_bytes())["sha256"]
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: _Set) -> None:
    verified_folder.write_file(path, msgspec.json.encode(content))


def _set(path: Path) -> _Set:
    """What is remembered there; nothing where that is damaged, or speaks of files outside the folder."""
    try:
        found = msgspec.convert(disk.document(path), _Set)
    except (disk.Damaged, msgspec.ValidationError):
        return _Set()
    inside = all(
        not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts and PurePosixPath(name).name
        for name in (*found.files, *found.covers, *found.gone)
    )
    return found if inside else _Set()
