"""Write a checkpoint that several processes hold together: each its own part, in the background.

Each process copies its part to the CPU and goes on; a thread writes it, beside a note of its digest. The first
process's thread waits for the notes, writes the manifest and gives the folder its name: until then there is the
checkpoint before. Nothing is said over the network meanwhile.
"""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ancestral.runs import checkpoint
from ancestral.runs.background_save import BackgroundWriter
from ancestral.runtime import disk, tensor_shards, verified_folder
from ancestral.runtime.distributed import Processes
from ancestral.runtime.tensor_shards import Parts
from ancestral.runtime.verified_folder import Unwritable

_LOOK = 0.02  # seconds between looks for the others' notes


class DividedWriter(BackgroundWriter):
    """Writes checkpoints of one run; all processes must call each method."""

    daemon = True  # it may wait for a process that is gone

    def __init__(self, run: Path, processes: Processes) -> None:
        super().__init__()
        self.run, self.processes, self._folder = run, processes, run

    def save(
        self, images: int, document: dict[str, Any], parts: Parts, state: dict[str, Any], calibration: Tensor | None
    ) -> None:
        """Begin to write; `parts` must be copies of this process's own, on the CPU.

        Raises:
            Unwritable: in all, where the disk refuses one of them now, or refused the save before.
        """
        before = self._ended()
        self._folder = self.run / "checkpoints" / f"{images:09d}"
        temporary, refused = verified_folder.temporary_name(self._folder), ""
        if self.processes.first:
            try:
                verified_folder.clear(self._folder.parent)
                verified_folder.begin(self._folder, temporary)
            except OSError as error:
                refused = str(verified_folder.unwritable(self._folder, error))
        if refused := self._of_any(refused):
            raise Unwritable(refused)
        temporary = self._folder.parent / self.processes.text_of(0, temporary.name)
        files = checkpoint.shared_files(document, state, calibration) if self.processes.first else {}
        self._start(partial(self._write, temporary, parts, files))
        if before:
            raise Unwritable(before)

    def _ended(self) -> str:
        """What went wrong in any process."""
        if self._thread is None:
            return ""
        problem = super()._ended()
        self.processes.wait_long()
        return self._of_any(problem)

    def _of_any(self, problem: str) -> str:
        return next((one for one in self.processes.texts(problem[:1000]) if one), "")

    def _write(self, temporary: Path, parts: Parts, files: dict[str, bytes]) -> None:
        rank, problem = self.processes.rank, None
        try:
            part = tensor_shards.packed(parts)
            note: dict[str, Any] = verified_folder.write_flushed(temporary / tensor_shards.file_name(rank), part)
            del part
        except OSError as error:
            problem, note = verified_folder.unwritable(self._folder, error), {"refused": True}
        try:
            verified_folder.write_file(temporary / _note(rank), json.dumps(note).encode())
            if self.processes.first:
                self._make_whole(temporary, files)
        except OSError as error:
            problem = problem or verified_folder.unwritable(self._folder, error)
        if problem is not None:
            raise problem

    def _make_whole(self, temporary: Path, files: dict[str, bytes]) -> None:
        made = {name: verified_folder.write_flushed(temporary / name, content) for name, content in files.items()}
        end = time.monotonic() + self.processes.patience.total_seconds()
        for rank in range(self.processes.size):
            note = None
            while note is None:
                try:
                    note = disk.document(temporary / _note(rank))
                except disk.Missing:
                    if time.monotonic() > end:
                        missing = f"process {rank} (counted from 0) has not written its part"
                        raise Unwritable(f"{self._folder}: is not whole; {missing}") from None
                    time.sleep(_LOOK)
            if "refused" in note:
                return
            made[tensor_shards.file_name(rank)] = note
        for rank in range(self.processes.size):
            (temporary / _note(rank)).unlink()
        verified_folder.put(temporary, self._folder, made)
        checkpoint.drop_old(self.run, int(self._folder.name))


def _note(rank: int) -> str:
    return f"part-{rank}.json"
