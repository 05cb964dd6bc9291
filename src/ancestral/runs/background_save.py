"""Write checkpoints beside the training, one at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ancestral.errors import UserError
from ancestral.runtime.verified_folder import Unwritable


class BackgroundWriter:
    """Runs one write at a time in a thread; what went wrong in it is raised by whoever asks next."""

    daemon = False  # whether the end of the process ends a write too

    def __init__(self) -> None:
        self.seconds = 0.0  # of the last write
        self._thread: threading.Thread | None = None
        self._problem = ""

    def begin(self, write: Callable[[], object]) -> None:
        """Run `write` in a thread, once the one before is done.

        Raises:
            Unwritable: where the disk refused the one before; this one is begun all the same.
        """
        problem = self._ended()
        self._start(write)
        if problem:
            raise Unwritable(problem)

    def finish(self) -> None:
        """Wait until the last write is done.

        Raises:
            Unwritable: where the disk refused it.
        """
        if problem := self._ended():
            raise Unwritable(problem)

    def close(self) -> None:
        """Wait for a write that would outlast the process, before another may write."""
        if self._thread is not None and not self.daemon:
            self._thread.join()

    def _start(self, write: Callable[[], object]) -> None:
        self._thread = threading.Thread(target=self._run, args=(write,), daemon=self.daemon)
        self._thread.start()

    def _ended(self) -> str:
        """Wait for the thread; what went wrong in it, said once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        problem, self._problem = self._problem, ""
        return problem

    def _run(self, write: Callable[[], object]) -> None:
        started = time.monotonic()
        try:
            write()
        except Exception as error:
            self._problem = str(error) if isinstance(error, UserError | OSError) else repr(error)
        self.seconds = time.monotonic() - started
