"""Signals that stop a command, in time to save."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

TRAINING = ("train", "distill")  # commands that save when they are told to stop
STOPPED = 75  # exit code of a run that was stopped and saved: run the same command again
BROKEN_PIPE = 141  # exit code of a command whose reader went away, as the shell has it
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGBREAK") if hasattr(signal, name)]


class StopSignal(KeyboardInterrupt):
    """A stop signal as an exception, raised wherever the program is."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def handling(handler: Callable[[int, Any], object], numbers: Iterable[int]) -> Iterator[None]:
    """Context manager: these signals call `handler`; in other threads than the main one nothing changes."""
    here = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, handler) for number in numbers if here}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextmanager
def raise_on_stop() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGUSR1 raise `StopSignal`, unless they are ignored or this is not the main thread."""

    def handle(number: int, frame: object) -> None:
        raise StopSignal(number)

    with handling(handle, [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]):
        yield


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

    with handling(handle, _SIGNALS):
        yield lambda: bool(received)
