"""Work in pieces, shared by any number of processes; a piece that is done stays done, whoever is killed.

A piece is a verified folder. Which pieces there are and what is in them depends on the job's settings alone, never on
the number of processes, so that a job may be stopped on four and finished on one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ancestral.errors import UserError
from ancestral.runtime import disk, verified_folder
from ancestral.runtime.distributed import Processes

Files = dict[str, bytes]
TENSORS = "tensors.safetensors"
MOST = 10**8  # images of a job


def cache_folder(folder: Path, settings: Any) -> Path:
    """The cache folder of a job: FOLDER / the first 32 hex digits of the SHA-256 of its settings."""
    return folder / sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


class Job:
    """The pieces of one job in a folder; a folder with a job of other settings is begun anew.

    A folder of `cache_folder` is of these settings by its name: nothing in it is begun anew, and commands that fill it
    at once keep each other's pieces.

    Args:
        folder: for the pieces.
        settings: everything that the pieces depend on, as JSON.
        processes: those that share the job.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], processes: Processes) -> None:
        self.folder, self.processes = folder, processes
        if processes.first and self._settings() != settings:
            if folder != cache_folder(folder.parent, settings):
                shutil.rmtree(folder, ignore_errors=True)
            verified_folder.write(folder / "settings", {"settings.json": json.dumps(settings).encode()})
        processes.wait()

    def _settings(self) -> Any:
        try:
            return disk.parsed(verified_folder.read(self.folder / "settings")["settings.json"], "settings.json", float)
        except (verified_folder.Damaged, KeyError, ValueError):
            return None

    def run(
        self, pieces: list[range], do: Callable[[range], Files], seems_done: Callable[[range, Files], bool]
    ) -> None:
        """Do this process's pieces that are not done, and wait for the others'."""
        for piece in pieces[self.processes.rank :: self.processes.size]:
            if not self._is_done(piece, seems_done):
                files = do(piece)
                if not self._is_done(piece, seems_done):  # by another command, meanwhile
                    verified_folder.write(_piece_folder(self.folder, piece), files)
        self.processes.wait()

    def tensors(self, pieces: list[range], compute: Callable[[range], dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """The tensors of each piece, in order, those that are not there yet computed now; the same in every process."""
        self.run(
            pieces, lambda piece: {TENSORS: safetensors.torch.save(compute(piece))}, lambda _, done: TENSORS in done
        )
        found = kept_tensors(self.folder, pieces)
        self.processes.wait()  # so that none removes what another still reads
        return found

    def results(self, pieces: list[range]) -> Iterator[Files]:
        """The files of each piece, in order, as {name: content}."""
        return (verified_folder.read(_piece_folder(self.folder, piece)) for piece in pieces)

    def files(self, pieces: list[range]) -> Iterator[Path]:
        """The paths of the files of each piece, in order."""
        for piece in pieces:
            yield from sorted(
                path for path in _piece_folder(self.folder, piece).iterdir() if path.name != verified_folder.MANIFEST
            )

    def forget(self) -> None:
        """Remove the pieces, once they have been put together."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_done(self, piece: range, seems_done: Callable[[range, Files], bool]) -> bool:
        try:
            return seems_done(piece, verified_folder.read(_piece_folder(self.folder, piece)))
        except verified_folder.Damaged:
            return False


def kept_tensors(folder: Path, pieces: list[range]) -> list[dict[str, Tensor]]:
    """What `Job.tensors` has kept of each piece in a folder, in order.

    Raises:
        Damaged: when a piece is not there, or not what was written.
    """
    kept = (verified_folder.read(_piece_folder(folder, piece), [TENSORS]) for piece in pieces)
    return [safetensors.torch.load(files[TENSORS]) for files in kept]


def is_kept(folder: Path, piece: range) -> bool:
    """Whether a piece is in a folder, whole or damaged."""
    return (_piece_folder(folder, piece) / verified_folder.MANIFEST).exists()


def _piece_folder(folder: Path, piece: range) -> Path:
    return folder / f"{piece.start:08d}-{piece.stop - 1:08d}"


def pieces(count: int, size: int) -> list[range]:
    """0..count-1 in pieces of `size`.

    Raises:
        UserError: for more than any disk would keep.
    """
    if count > MOST:
        raise UserError(f"{count:,} images are more than could be kept; ask for {MOST:,} at most")
    return [range(first, min(first + size, count)) for first in range(0, count, size)]
