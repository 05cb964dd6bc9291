"""Many clients of one server: drawing, cancelling, uploading, leaving, all at once.

Run: python tests/serve_load_harness.py RUN [CLIENTS] [SECONDS] [SEED]. Starts `ancestral serve RUN` as a process
of its own. Every request must be answered, every job must end, and a draw must have one digest whoever draws it. Prints
percentiles of the latencies, the memory of the server and one JSON line; exits with 1 if a promise is broken.
"""

import asyncio
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

ANSWERS = {200, 202, 204, 404, 413, 422, 429}  # what a request may be answered with here
PATIENCE = 120.0  # seconds, after which a request counts as not answered
SEEDS = 5  # of draws, so that the same are drawn again and again


def uri_of(pixels):
    """A PNG file as a data URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"


class Load:
    """What was asked and what came back."""

    def __init__(self, url, shape):
        self.url, self.shape = url, shape
        self.seconds, self.codes, self.endings = defaultdict(list), Counter(), Counter()
        self.unanswered, self.digests, self.frames, self.again = [], defaultdict(set), 0, 0

    def image(self, draw):
        """A picture of some size, often not the model's."""
        side = draw.choice([self.shape[1], 100, 400])
        generator = np.random.default_rng(draw.randrange(1000))
        return uri_of(generator.integers(0, 256, (side, side), dtype=np.uint8))

    async def ask(self, client, what, method, path, **more):
        """One request, timed; None when it was not answered."""
        started = time.monotonic()
        try:
            answer = await client.request(method, path, timeout=PATIENCE, **more)
        except httpx.HTTPError as error:
            self.unanswered.append(f"{what}: {type(error).__name__} {error}")
            return None
        self.seconds[what].append(time.monotonic() - started)
        self.codes[answer.status_code] += 1
        if answer.status_code not in ANSWERS:
            self.unanswered.append(f"{what}: {answer.status_code} {answer.text[:200]}")
        return answer

    async def follow(self, client, job, leave_after=None):
        """The events of a job to its end, coming back once if the stream breaks; the ending's data, or None."""
        last = None
        while True:
            headers = {} if last is None else {"Last-Event-ID": last}
            try:
                async with client.stream("GET", f"/api/jobs/{job}/events", headers=headers, timeout=PATIENCE) as answer:
                    if answer.status_code == 404:  # cancelled and forgotten in between
                        self.endings["forgotten"] += 1
                        return None
                    name, seen = "", 0
                    async for line in answer.aiter_lines():
                        field, _, value = line.partition(": ")
                        if field == "id":
                            last = value
                        elif field == "event":
                            name = value
                            self.frames += name == "step"
                            seen += 1
                        elif field == "data" and name in ("done", "error", "cancelled"):
                            self.endings[name] += 1
                            return json.loads(value) if name == "done" else None
                        if leave_after is not None and seen >= leave_after:
                            break
                    else:
                        self.unanswered.append("a stream ended before its job")
                        return None
            except httpx.HTTPError as error:
                self.unanswered.append(f"events: {type(error).__name__} {error}")
                return None
            self.again += 1
            leave_after = None

    async def client(self, number, until, seed):
        """A person: draws, changes their mind, uploads, comes back."""
        draw = random.Random(f"{seed}/{number}")
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as client:
            while time.monotonic() < until:
                await self.one(client, draw)
                await asyncio.sleep(draw.random() * 0.5)

    async def one(self, client, draw):
        """One thing that a person does."""
        what = draw.choices(["draw", "cancel", "leave", "inpaint", "noise", "wrong", "large"], [8, 3, 1, 2, 4, 2, 0.3])[
            0
        ]
        if what == "noise":
            body = {"image": self.image(draw), "t": draw.randint(1, 1000), "seed": draw.randrange(9)}
            await self.ask(client, what, "POST", "/api/noise", json=body)
        elif what == "wrong":
            body = {"image": draw.choice(["x", "data:image/png;base64,AAAA"]), "t": 5, "seed": 0}
            await self.ask(client, what, "POST", "/api/noise", json=body)
        elif what == "large":
            body = {"image": "data:image/png;base64," + "A" * 6_000_000, "t": 5, "seed": 0}
            await self.ask(client, what, "POST", "/api/noise", json=body)
        else:
            await self.job(client, draw, what)

    async def job(self, client, draw, what):
        """A job, followed, cancelled or left."""
        path, seed, images = "draw", draw.randrange(SEEDS), draw.choice([1, 4, 4, 8, 16])
        body = {"seed": seed, "images": images, "steps": draw.choice([5, 10, 20])}
        if what == "inpaint":
            mask = np.zeros(self.shape[1:], np.uint8)
            mask[: self.shape[1] // 2] = 255
            path, body = "inpaint", {**body, "image": self.image(draw), "mask": uri_of(mask), "images": 1, "steps": 6}
        started = time.monotonic()
        answer = await self.ask(client, "submit", "POST", f"/api/{path}", json=body)
        if answer is None or answer.status_code != 202:
            return
        job = answer.json()["job"]
        if what == "cancel":
            looking = asyncio.create_task(self.follow(client, job))
            await asyncio.sleep(draw.random() * 0.3)
            started = time.monotonic()
            await self.ask(client, "cancel", "DELETE", f"/api/jobs/{job}")
            if await looking is None:
                self.seconds["from cancelling to the end"].append(time.monotonic() - started)
            return
        reply = await self.follow(client, job, leave_after=1 if what == "leave" else None)
        if reply is not None:
            self.seconds[f"{path}, to the end"].append(time.monotonic() - started)
        if reply is not None and path == "draw":
            self.digests[tuple(sorted(body.items()))].add(reply["sha256"])


def memory(process):
    """Megabytes of the process that are in memory."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


async def watch(process, until, every, found):
    """The server's memory over time."""
    started = time.monotonic()
    while time.monotonic() < until:
        found.append((round(time.monotonic() - started), round(memory(process), 1)))
        await asyncio.sleep(every)


async def loaded(process, url, clients, seconds, seed):
    """All clients for so long; what they saw, and the memory meanwhile."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=PATIENCE) as client:
        shape = (await client.get("/api/model")).json()["shape"]
        load, sizes, until = Load(url, shape), [], time.monotonic() + seconds
        people = [load.client(number, until, seed) for number in range(clients)]
        await asyncio.gather(watch(process, until, max(1, seconds / 20), sizes), *people)
        await asyncio.sleep(0.5)
        sizes.append((round(seconds), round(memory(process), 1)))
        assert (await client.get("/api/model")).status_code == 200
    return load, sizes


def percentiles(values):
    """(50, 90, 99, 100) in seconds."""
    return [round(float(np.percentile(values, share)), 4) for share in (50, 90, 99, 100)]


@contextmanager
def serving(folder):
    """`ancestral serve` of a run as a process of its own, and its address; it does not outlive this."""
    command = [sys.executable, "-m", "ancestral", "serve", str(folder), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        line = process.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert url, line
        yield process, url[0]
    finally:
        process.kill()
        process.wait()


def run(folder, clients, seconds, seed=0):
    """Start the server, load it, stop it. The record of what was seen."""
    with serving(folder) as (process, url):
        load, sizes = asyncio.run(loaded(process, url, clients, seconds, seed))
        started = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        said, code = process.communicate(timeout=60)[0], process.returncode
    return {
        "clients": clients,
        "seconds": seconds,
        "requests": sum(load.codes.values()),
        "unanswered": len(load.unanswered),
        "problems": load.unanswered[:5],
        "codes": dict(sorted(load.codes.items())),
        "endings": dict(load.endings),
        "frames": load.frames,
        "came_back": load.again,
        "draws": len(load.digests),
        "draws_with_two_digests": sum(len(found) > 1 for found in load.digests.values()),
        "latency": {what: percentiles(values) for what, values in sorted(load.seconds.items())},
        "megabytes": sizes,
        "exit_code": code,
        "seconds_to_stop": round(time.monotonic() - started, 2),
        "said": said.strip().splitlines()[-3:],
    }


def kept(record):
    """Whether every promise was kept."""
    return not record["unanswered"] and not record["draws_with_two_digests"] and record["exit_code"] == 0


def main(folder, clients=50, seconds=60, seed=0):
    """Print what was seen."""
    record = run(Path(folder), int(clients), float(seconds), int(seed))
    print(f"{'':40} 50 %, 90 %, 99 %, 100 % in seconds")
    for what, values in record["latency"].items():
        print(f"{what:40} {values}")
    print("memory, MB:", ", ".join(f"{size} at {at} s" for at, size in record["megabytes"]))
    print(json.dumps(record))
    return 0 if kept(record) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
