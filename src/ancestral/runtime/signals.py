"""Being told to stop, in time to save."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOPPED = 75  # exit code of a run that was told to stop and saved: run the same command again
BROKEN_PIPE = 141  # exit code of a command whose reader went away, as the shell has it
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Told(KeyboardInterrupt):
    """A signal that says stop, as an exception wherever the program is."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def raised() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGUSR1 raise `Told`, unless they are ignored or this is not the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hear(number: int, frame: object) -> None:
        raise Told(number)

    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, hear) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def until_told() -> Iterator[Callable[[], bool]]:
    """A question that answers yes once SIGINT, SIGTERM or SIGUSR1 has come; only a second SIGINT stops at once.

    Not a second SIGTERM: a scheduler tells every process, and a launcher passes it on besides.
    """
    told: list[int] = []

    def hear(number: int, frame: object) -> None:
        told.append(number)
        if number == signal.SIGINT and told.count(number) > 1:
            raise Told(number)

    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield lambda: False
        return
    previous = {number: signal.signal(number, hear) for number in _SIGNALS}
    try:
        yield lambda: bool(told)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
