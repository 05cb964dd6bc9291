"""Server-sent events: what a job tells, to every page that looks at it, until its end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse

from ancestral.apps.server.job import ENDINGS, Event, Record
from ancestral.apps.server.job_queue import JobQueue

GRACE = 10.0  # seconds that a job goes on after the last page that looked at it went away
HEARTBEAT = 10.0  # seconds between comments when there is nothing to tell
MOST = 8  # streams of a job


def as_text(event: Event) -> str:
    """An event as it is sent."""
    return f"id: {event.number}\nevent: {event.name}\ndata: {json.dumps(event.data, allow_nan=False)}\n\n"


class EventStream(StreamingResponse):
    """The events of a job after a number, as they come, until the ending; comments in between.

    It counts among those who look at the job from when it is made, so that many that are asked for at once are
    counted before the first is sent.
    """

    def __init__(self, record: Record, jobs: JobQueue, after: int) -> None:
        self.record, self.jobs = record, jobs
        self.loop, self.woken = asyncio.get_running_loop(), asyncio.Event()
        record.watchers.append(self.wake)
        super().__init__(self._events(after), media_type="text/event-stream")

    def wake(self) -> None:
        """Something happened, in any thread."""
        self.loop.call_soon_threadsafe(self.woken.set)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it; then nobody looks here any more, however it ended."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            record = self.record
            record.watchers.remove(self.wake)
            if not record.watched() and not record.finished.is_set():
                record.left += 1
                self.loop.call_later(GRACE, _unless_watched, record, self.jobs, record.left)

    async def _events(self, after: int) -> AsyncIterator[str]:
        yield "retry: 1000\n\n"
        while True:
            self.woken.clear()
            for event in self.record.since(after):
                yield as_text(event)
                after = event.number
                if event.name in ENDINGS:
                    return
            if self.record.finished.is_set() and not self.record.since(after):
                return
            try:
                await asyncio.wait_for(self.woken.wait(), HEARTBEAT)
            except TimeoutError:
                yield ": still here\n\n"


def _unless_watched(record: Record, jobs: JobQueue, left: int) -> None:
    if not record.watched() and record.left == left and not record.finished.is_set():
        jobs.cancel(record)
