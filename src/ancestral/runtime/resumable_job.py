"""Work in pieces, shared by any number of processes; a piece that is done stays done, whoever is killed.

A piece is a sealed folder. Which pieces there are and what is in them depends on the job's settings alone, never on the
number of processes, so that a job may be stopped on four and finished on one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from ancestral.runtime import disk, verified_folder
from ancestral.runtime.distributed import Processes

Files = dict[str, bytes]
PATIENCE = timedelta(days=1)  # of processes that wait for each other's pieces


def place(folder: Path, settings: dict[str, Any]) -> Path:
    """Where among many a job with these settings is kept."""
    return folder / sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


class Job:
    """The pieces of one job in a folder; a folder with a job of other settings is begun anew.

    Args:
        folder: for the pieces.
        settings: everything that the pieces depend on, as JSON.
        processes: those that share the job.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], processes: Processes) -> None:
        self.folder, self.processes = folder, processes
        if processes.first and self._settings() != settings:
            shutil.rmtree(folder, ignore_errors=True)
            verified_folder.write(folder / "settings", {"settings.json": json.dumps(settings).encode()})
        processes.wait()

    def _settings(self) -> Any:
        try:
            return disk.parsed(verified_folder.read(self.folder / "settings")["settings.json"], "settings.json", float)
        except (verified_folder.Damaged, KeyError, ValueError):
            return None

    def run(self, pieces: list[range], do: Callable[[range], Files], seems_done: Callable[[Files], bool]) -> None:
        """Do this process's pieces that are not done, and wait for the others'."""
        for piece in pieces[self.processes.rank :: self.processes.size]:
            kept = self._kept(piece)
            if kept is None or not seems_done(kept):
                verified_folder.write(_place(self.folder, piece), do(piece))
        self.processes.wait()

    def results(self, pieces: list[range]) -> Iterator[Files]:
        """What was kept of each piece, in order."""
        return results(self.folder, pieces)

    def files(self, pieces: list[range]) -> Iterator[Path]:
        """The files of each piece, in order."""
        for piece in pieces:
            yield from sorted(
                path for path in _place(self.folder, piece).iterdir() if path.name != verified_folder.MANIFEST
            )

    def forget(self) -> None:
        """Remove the pieces, once they have been put together."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _kept(self, piece: range) -> Files | None:
        try:
            return verified_folder.read(_place(self.folder, piece))
        except verified_folder.Damaged:
            return None


def results(folder: Path, pieces: list[range]) -> Iterator[Files]:
    """What is kept of each piece of the job in a folder, in order.

    Raises:
        Damaged: when a piece is not there, or not what was written.
    """
    return (verified_folder.read(_place(folder, piece)) for piece in pieces)


def _place(folder: Path, piece: range) -> Path:
    return folder / f"{piece.start:08d}-{piece.stop - 1:08d}"


def pieces(count: int, size: int) -> list[range]:
    """0..count-1 in pieces of `size`."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]
