"""Server-sent events: what a job tells, to every page that looks at it, until its end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from ancestral.apps.server.job import ENDINGS, Event, Record
from ancestral.apps.server.job_queue import JobQueue

GRACE = 10.0  # seconds that a job goes on after the last page that looked at it went away
HEARTBEAT = 10.0  # seconds between comments when there is nothing to tell
MOST = 8  # streams of a job


def as_text(event: Event) -> str:
    """An event as it is sent."""
    return f"id: {event.number}\nevent: {event.name}\ndata: {json.dumps(event.data, allow_nan=False)}\n\n"


async def events(record: Record, jobs: JobQueue, after: int) -> AsyncIterator[str]:
    """The events after that number, as they come, until the ending; comments in between."""
    loop, woken = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        loop.call_soon_threadsafe(woken.set)

    record.watchers.append(wake)
    try:
        yield "retry: 1000\n\n"
        while True:
            woken.clear()
            for event in record.since(after):
                yield as_text(event)
                after = event.number
                if event.name in ENDINGS:
                    return
            if record.finished.is_set() and not record.since(after):
                return
            try:
                await asyncio.wait_for(woken.wait(), HEARTBEAT)
            except TimeoutError:
                yield ": still here\n\n"
    finally:
        record.watchers.remove(wake)
        if not record.watched() and not record.finished.is_set():
            record.left += 1
            loop.call_later(GRACE, _unless_watched, record, jobs, record.left)


def _unless_watched(record: Record, jobs: JobQueue, left: int) -> None:
    if not record.watched() and record.left == left and not record.finished.is_set():
        jobs.cancel(record)
