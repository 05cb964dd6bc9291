"""Being told to stop, in time to save."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOPPED = 75  # exit code of a run that was told to stop and saved: run the same command again
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


@contextmanager
def until_told() -> Iterator[Callable[[], bool]]:
    """A question that answers yes once SIGINT, SIGTERM or SIGUSR1 has come; only a second SIGINT stops at once.

    Not a second SIGTERM: a scheduler tells every process, and a launcher passes it on besides.
    """
    told: list[int] = []

    def hear(number: int, frame: object) -> None:
        told.append(number)
        if number == signal.SIGINT and told.count(number) > 1:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, hear) for number in _SIGNALS}
    try:
        yield lambda: bool(told)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
