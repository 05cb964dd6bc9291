"""Signals that stop a command, in time to save."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOPPED = 75  # exit code of a run that was stopped and saved: run the same command again
BROKEN_PIPE = 141  # exit code of a command whose reader went away, as the shell has it
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class StopSignal(KeyboardInterrupt):
    """A stop signal as an exception, raised wherever the program is."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def raise_on_stop() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGUSR1 raise `StopSignal`, unless they are ignored or this is not the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: object) -> None:
        raise StopSignal(number)

    handled = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in handled}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def catch_stop() -> Iterator[Callable[[], bool]]:
    """Context manager: returns `stop_requested()`, True after SIGINT, SIGTERM or SIGUSR1. A second SIGINT raises.

    A second SIGTERM does not: a scheduler sends one to every process, and a launcher passes it on besides.
    """
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        received.append(number)
        if number == signal.SIGINT and received.count(number) > 1:
            raise StopSignal(number)

    if threading.current_thread() is not threading.main_thread():  # which alone receives signals
        yield lambda: False
        return
    previous = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
