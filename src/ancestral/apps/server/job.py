"""What is known of a job while it waits, runs and is remembered: its state, and the newest event of each name."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDINGS: dict[str, State] = {"done": "done", "error": "failed", "cancelled": "cancelled"}  # event: the state it leaves


class Stopped(Exception):
    """The job was cancelled, or has had its time."""


class Event(NamedTuple):
    """What happened to a job; `number` rises within the job."""

    number: int
    name: str
    data: dict[str, Any]


class Record:
    """One job. Written by the thread that works on it, read by any.

    Only the newest event of each name is kept: a page that comes back gets the newest frame and the end, and a job
    holds as much as its result, however long it runs.

    Args:
        urgent: whether its calls of the network go first.
    """

    def __init__(self, urgent: bool = False) -> None:
        self.urgent = urgent
        self.id = secrets.token_urlsafe(12)
        self.state: State = "queued"
        self.position, self.step, self.of = 0, 0, 0
        self.begun, self.ended = time.monotonic(), 0.0
        self.deadline = float("inf")
        self.size = 0  # of what is kept, about, in bytes
        self.status = 200  # of an HTTP answer that says how it ended
        self.cancelled, self.finished = threading.Event(), threading.Event()
        self.watchers: list[Callable[[], object]] = []  # called from any thread when something happened
        self.left = 0  # how often the last watcher has gone
        self._lock, self._number = threading.Lock(), 0
        self._events: dict[str, Event] = {}

    def tell(self, name: str, data: dict[str, Any]) -> None:
        """Keep an event in the place of the last one of that name; nothing follows an ending."""
        with self._lock:
            if self.state in ENDINGS.values():
                return
            self._number += 1
            self._events[name] = Event(self._number, name, data)
            if name in ENDINGS:
                self.state, self.ended = ENDINGS[name], time.monotonic()
                self.finished.set()
            watchers = list(self.watchers)
        for wake in watchers:
            wake()

    def since(self, number: int) -> list[Event]:
        """The events after that one, in order."""
        with self._lock:
            return sorted(event for event in self._events.values() if event.number > number)

    def result(self) -> dict[str, Any] | None:
        """What the ending said, once there is one."""
        ending = next((self._events[name] for name in ENDINGS if name in self._events), None)
        return None if ending is None else ending.data

    def watched(self) -> bool:
        """Whether anybody looks."""
        return bool(self.watchers)

    def check(self) -> None:
        """Go on, or not.

        Raises:
            Stopped: when the job was cancelled or its time is over.
        """
        if self.cancelled.is_set() or time.monotonic() > self.deadline:
            raise Stopped


current: ContextVar[Record | None] = ContextVar("current", default=None)  # the job that this thread works on


def going_on() -> None:
    """`Record.check` of the job that this thread works on, if it works on one."""
    if (record := current.get()) is not None:
        record.check()
