"""One trainer a run folder, whoever else wants it: on one machine, on several, on network file systems.

    RUN/owners/000003.json    who trains here, or who did so last; the highest number counts

A trainer owns a folder by making the next number, whole and only if it is not there yet: a hard link, which network
file systems make at the server; where there are none, a file opened exclusively. It may do so when the number before
says that its owner has left, or that owner is dead. Two trainers that find the same dead owner compete for the next
number; only one can create it, because a stale record is superseded, never deleted. The highest number is never
removed, so that who comes with an old listing finds a higher one and withdraws.

Dead is an owner whose process is gone on this machine, or has another start time, its number used again. Of an owner on
another machine, in another container, or from before this machine was started only the heartbeat is known: the file's
time, which it sets every `BEAT` seconds. It is dead when that has not changed while it was watched for `PATIENCE`
seconds; no two clocks are compared. `fcntl` locks were not taken: on network file systems they depend on a service that
is often absent, and then they are granted to everybody.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ancestral.errors import UserError
from ancestral.runtime import disk

FOLDER = "owners"
BEAT = 5.0  # seconds
PATIENCE = 60.0  # seconds without a heartbeat, of an owner whose process cannot be looked at
KEPT = 8  # numbers, so that a trainer with a listing as old as that many owners finds them


class Owner:
    """Ownership of a run folder, from `own` until `release`: a file, and the record in it."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self._path, self._record, self._left = path, record, threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def check(self) -> None:
        """Make sure that nobody has taken the folder over, as happens to a machine that slept."""
        numbers = _numbers(self._path.parent)
        if numbers and numbers[-1] > int(self._path.stem):
            newer = _record_path(self._path.parent, numbers[-1])
            other, run = _who(_read(newer), newer), self._path.parent.parent
            raise UserError(f"{run}: was taken over by {other} while this one did not answer")

    def release(self) -> None:
        """Leave the folder to the next one."""
        self._left.set()
        with contextlib.suppress(OSError):
            new = self._path.with_name(f"{self._path.stem}.{uuid.uuid4().hex}")
            new.write_text(json.dumps({**self._record, "left": _now()}) + "\n")
            new.replace(self._path)

    def _beat(self) -> None:
        while not self._left.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def own(run: Path, warn: Callable[[str], None] = print) -> Owner:
    """Become the owner of a run folder, which is made if it is not there.

    Args:
        run: the folder.
        warn: called with one line for each thing that is waited for, and what the file system cannot promise.

    Raises:
        UserError: naming the owner, when there is one.
    """
    folder = run / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            number = _last_number(run, warn)
            made = _make(_record_path(folder, number + 1))
            if made is not None and _numbers(folder)[-1] == number + 1:
                break
            if made is not None:
                _record_path(folder, number + 1).unlink()
        for path in folder.iterdir():  # old owners, and what killed ones left half made
            old = not _is_number(path) or int(path.stem) <= number + 1 - KEPT
            if old and (path.is_symlink() or not path.is_dir()):
                path.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(folder, error.errno) from error
    with contextlib.suppress(FileExistsError):
        os.close(os.open(_record_path(folder, number + 1), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        warn(f"{run}: this file system makes a file twice; see to it that nobody else trains there")
    return Owner(_record_path(folder, number + 1), made)


def need_free(run: Path, warn: Callable[[str], None] = print) -> None:
    """Refuse what `own` would, as far as that shows without writing.

    Raises:
        UserError: as `own`.
    """
    folder = run / FOLDER
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise _unwritable(folder, errno.EACCES if there.is_dir() else errno.ENOTDIR)
    _last_number(run, warn)


def _unwritable(folder: Path, number: int | None) -> UserError:
    reason = os.strerror(number or errno.EIO)
    return UserError(f"{folder}: cannot be written ({reason}), and a run needs one owner; choose another --out")


def _last_number(run: Path, warn: Callable[[str], None]) -> int:
    """Of the owners of a run, who have all left or are dead; 0 where there were none.

    Raises:
        UserError: when one lives.
    """
    numbers = _numbers(run / FOLDER)
    if numbers:
        _need_gone(run, _record_path(run / FOLDER, numbers[-1]), warn)
    return numbers[-1] if numbers else 0


def _need_gone(run: Path, path: Path, warn: Callable[[str], None]) -> None:
    """Return when the owner has left or is dead; watch its heartbeat if nothing else can tell.

    Raises:
        UserError: when it lives.
    """
    record = _read(path)
    alive = None if record is None else _alive(record)
    if alive is None:
        warn(f"{run}: watching for up to {PATIENCE:.0f} s whether {_who(record, path)} still lives")
        beat, end = _beat_of(path), time.monotonic() + PATIENCE
        while alive is None and time.monotonic() < end:
            time.sleep(BEAT / 10)
            now = _read(path)
            if now == record:
                alive = True if _beat_of(path) != beat else None
            elif now is not None:  # what cannot be read now may be so again
                record, alive = now, _alive(now) is not False
    if alive:
        raise UserError(f"{run}: is being trained by {_who(record, path)}; stop that one, or choose another --out")


def _alive(record: dict[str, Any]) -> bool | None:
    """Whether an owner lives; None where only its heartbeat can tell."""
    if "left" in record:
        return False
    if record.get("machine") != _machine() or _machine() is None:
        return None
    return _started(int(record["process"])) == record["started"]


def _make(path: Path) -> dict[str, Any] | None:
    """Write the record of this process where no file is yet; None where there is one."""
    record = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": _now(),
        "machine": _machine(),
        "started": _started(os.getpid()),
        "name": uuid.uuid4().hex,
    }
    text = json.dumps(record) + "\n"
    whole = path.with_name(f"{path.stem}.{record['name']}")
    whole.write_text(text)
    try:
        os.link(whole, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links; or one that made it, and lost the answer
        if _read(path) != record:
            try:
                with open(path, "x") as file:
                    file.write(text)
            except FileExistsError:
                return None
    finally:
        whole.unlink(missing_ok=True)
    return record if _read(path) == record else None


def _machine() -> str | None:
    """What two processes must share to see each other's numbers: host, start of the machine, container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(process: int) -> str | None:
    """When a process was started, in the machine's own count; None when it is not there, or is dead and not buried."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _numbers(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("*.json") if _is_number(path))


def _is_number(path: Path) -> bool:
    return path.suffix == ".json" and re.fullmatch("[0-9]{6,18}", path.stem) is not None


def _record_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


def _read(path: Path) -> dict[str, Any] | None:
    """A record; None where it cannot be read, as while it is written."""
    try:
        record = disk.document(path)
    except disk.Damaged:
        return None
    whole = isinstance(record, dict) and type(record.get("process")) is int and "started" in record
    return record if whole else None


def _beat_of(path: Path) -> float | None:
    """The time of the last heartbeat; the file is opened so that a network file system asks its server."""
    try:
        with disk.opened(path) as file:
            return os.fstat(file.fileno()).st_mtime
    except disk.Damaged:
        return None


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _who(record: dict[str, Any] | None, path: Path) -> str:
    if record is None:
        return f"an owner whose record cannot be read ({path})"
    return f"process {record['process']} on {record.get('host')} since {record.get('since')}"
