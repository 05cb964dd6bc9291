"""A bounded first-in first-out job queue with worker threads, cancellation and retention."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ancestral.apps.server.batched_network import Calls
from ancestral.apps.server.job import Record, Stopped, current
from ancestral.errors import UserError

Work = Callable[[Record], dict[str, Any]]  # what a job does; returns what its ending says


class Full(Exception):
    """The queue has no room.

    Args:
        seconds: after which there may be.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__()
        self.seconds = seconds


@dataclass(frozen=True)
class Limits:
    """How much at once."""

    queue: int = 32  # jobs that wait
    active: int = 8  # that run
    rows: int = 64  # images of those that run
    urgent: int = 8  # short requests, that run beside them
    seconds: float = 300.0  # of one job
    kept: int = 64  # ended jobs that are remembered
    kept_bytes: int = 64_000_000
    kept_seconds: float = 600.0


class JobQueue:
    """The jobs of a server."""

    def __init__(self, calls: Calls, limits: Limits) -> None:
        self.calls, self.limits = calls, limits
        self._lock = threading.RLock()
        self._waiting: deque[tuple[Record, Work, int]] = deque()
        self._running: dict[str, int] = {}  # rows of each
        self._records: dict[str, Record] = {}
        self._ended: deque[Record] = deque()
        self._usual = 2.0  # seconds of a job
        self._closed = False
        self._threads = ThreadPoolExecutor(limits.active, "job")
        self._urgent = ThreadPoolExecutor(2, "urgent")
        self._hurried: list[Record] = []

    def submit(self, work: Work, rows: int) -> Record:
        """Put a job at the end of the queue.

        Raises:
            Full: when as many wait as may.
        """
        record = Record()
        with self._lock:
            self._refuse(len(self._waiting) >= self.limits.queue)
            self._records[record.id] = record
            self._waiting.append((record, work, rows))
            self._start()
            self._report_positions()
        return record

    def at_once(self, work: Work) -> Record:
        """Run a short job beside the others; its record is known to nobody else.

        Raises:
            Full: when too many are under way.
        """
        record = Record(urgent=True)
        with self._lock:
            self._refuse(len(self._hurried) >= self.limits.urgent)
            self._hurried.append(record)
            self._urgent.submit(self._hurry, record, work)
        return record

    def find(self, job: str) -> Record | None:
        """The job of this name, if it is remembered."""
        with self._lock:
            self._forget()
            return self._records.get(job)

    def cancel(self, record: Record) -> None:
        """Stop a job: at once when it waits, else within a call of the network."""
        record.cancelled.set()
        with self._lock:
            kept = [entry for entry in self._waiting if entry[0] is not record]
            waited = len(kept) < len(self._waiting)
            self._waiting = deque(kept)
        if waited:
            self._end(record, "cancelled", {})
            with self._lock:
                self._start()  # it may have stood before smaller ones that there is room for
                self._report_positions()

    def remove(self, record: Record) -> None:
        """Cancel a job and forget it; who looks at it already still sees it end."""
        with self._lock:
            self._records.pop(record.id, None)
            self._ended = deque(one for one in self._ended if one is not record)
        self.cancel(record)

    def close(self) -> None:
        """Cancel everything and wait until every thread has ended."""
        with self._lock:
            self._closed = True
            records = [*self._records.values(), *(record for record, _, _ in self._waiting), *self._hurried]
        for record in records:
            self.cancel(record)
        self._threads.shutdown()
        self._urgent.shutdown()
        self.calls.close()

    def numbers(self) -> dict[str, int]:
        """How many wait, run and are remembered."""
        with self._lock:
            return {"waiting": len(self._waiting), "running": len(self._running), "remembered": len(self._records)}

    def _refuse(self, full: bool) -> None:
        if full or self._closed:
            ahead = len(self._waiting) + len(self._running)
            raise Full(max(1, math.ceil(self._usual * ahead / self.limits.active / 2)))

    def _start(self) -> None:
        """Start the jobs that have waited longest, as far as there is room."""
        while self._waiting and len(self._running) < self.limits.active and not self._closed:
            record, work, rows = self._waiting[0]
            if self._running and sum(self._running.values()) + rows > self.limits.rows:
                return
            self._waiting.popleft()
            self._running[record.id] = rows
            record.state, record.position = "running", 0
            self._threads.submit(self._run, record, work)

    def _report_positions(self) -> None:
        for position, (record, _, _) in enumerate(self._waiting, 1):
            if record.position != position:
                record.position = position
                record.tell("queued", {"place": position})

    def _run(self, record: Record, work: Work) -> None:
        started = time.monotonic()
        self._do(record, work)
        with self._lock:
            del self._running[record.id]
            self._usual += 0.2 * (time.monotonic() - started - self._usual)
            self._start()
            self._report_positions()

    def _hurry(self, record: Record, work: Work) -> None:
        self._do(record, work)
        with self._lock:
            self._hurried = [one for one in self._hurried if one is not record]

    def _do(self, record: Record, work: Work) -> None:
        record.deadline = time.monotonic() + self.limits.seconds
        token = current.set(record)
        self.calls.walks(1)
        try:
            record.check()
            ending, data = "done", work(record)
        except Stopped:
            over = f"stopped after {self.limits.seconds:.0f} s, the most for a job; ask for fewer steps or images"
            ending, data = ("cancelled", {}) if record.cancelled.is_set() else ("error", {"detail": over})
            record.status = 503
        except (UserError, OSError) as error:
            ending, data, record.status = "error", {"detail": " ".join(str(error).split())}, 422
        except Exception as error:  # a bug of ours must not leave a page waiting
            problem = f"this should not have happened: {type(error).__name__}: {error}"
            ending, data, record.status = "error", {"detail": " ".join(problem.split())[:300]}, 500
        finally:
            self.calls.walks(-1)
            current.reset(token)
        self._end(record, ending, data)

    def _end(self, record: Record, ending: str, data: dict[str, Any]) -> None:
        record.size = _size([data, *(event.data for event in record.since(0))])
        with self._lock:
            if record.id in self._records:
                self._ended.append(record)
            self._forget()
        record.tell(ending, data)

    def _forget(self) -> None:
        """Drop the oldest ended jobs, until the rest is few, small and young."""
        young = time.monotonic() - self.limits.kept_seconds
        while self._ended and (
            len(self._ended) > self.limits.kept
            or (len(self._ended) > 1 and sum(record.size for record in self._ended) > self.limits.kept_bytes)
            or 0 < self._ended[0].ended < young
        ):
            self._records.pop(self._ended.popleft().id, None)


def _size(data: Any) -> int:
    if isinstance(data, dict):
        return sum(map(_size, data.values()))
    return sum(map(_size, data)) if isinstance(data, list) else len(data) if isinstance(data, str) else 8
