"""Several gloo processes on one machine: memory of each, what a step sends, and what their checkpoints survive.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/processes.py   # writes its table into results.md

For each number of processes and each way to share gradients: a network of some millions of weights reads a folder of
PNGs through `data.cache`, takes two updates and saves; another number of processes goes on; the last process is killed
while it saves (all-reduce and ddp: the first, which alone writes); and a smaller network is trained compiled and not.
Memory is the peak of a process (getrusage), imports and images included. Nothing is timed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import MEASURED, Results, options, parsed, publish, table
from peers import write_pngs

CHILD = """
import hashlib, json, os, resource, sys
from pathlib import Path
import torch
from torch import distributed
from ancestral.data import image_folder
from ancestral.data.load import load
from ancestral.data.shared import load_once
from ancestral.runs import checkpoint, config
from ancestral.runtime import tensor_shards
from ancestral.runtime.distributed import join, leave
from ancestral.training.run import Run

job = json.loads(sys.argv[1])
torch.set_num_threads(1)
processes = join(torch.device("cpu"))
peaks, counted, decoded = {}, {}, []

def peak(name):
    peaks[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def watched(*given, read=image_folder.decoded, **named):
    decoded.append(given[0])
    return read(*given, **named)

image_folder.decoded = watched
settings = config.resolve(job["data"], "cifar10", job["settings"])
images = load_once(processes, lambda: load(job["data"], settings.data), settings.data.cache)
peak("read")
run = Run(Path(job["out"]), settings, images, torch.device("cpu"), "--images 80", processes, print)
run.resume()
if run.needs_leg:
    run.begin(80)
peak("made")

def digest():
    content = hashlib.sha256()
    for name, value in sorted(run.training.tensors().items()):
        content.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    return content.hexdigest()

began_at, resumed = run.training.images, digest()
for name in ("all_gather", "all_reduce"):
    def count(*given, call=getattr(distributed, name), name=name, **more):
        counted[name] = counted.get(name, 0) + 1
        return call(*given, **more)
    setattr(distributed, name, count)
losses = [run.training.step(images.train).loss for _ in range(job["updates"])]
calls = dict(counted)
peak("trained")
run.save()
run.writer.finish()
peak("saved")
if processes.rank == job["killed"]:
    def end(*given, **named):
        os.kill(os.getpid(), 9)
    tensor_shards.packed = checkpoint._pack = end
if job["killed"] is not None:
    run.training.step(images.train)
    run.save()
    run.writer.finish()
weights = sum(value.numel() for value in run.training.network.parameters()) * 4 / 2**20
found = {"rank": processes.rank, "weights": weights, "peaks": peaks, "calls": calls, "decoded": len(decoded),
         "losses": losses, "began_at": began_at, "resumed": resumed, "saved": digest()}
processes.wait()
os.write(1, (json.dumps(found) + "\\n").encode())
leave()
os._exit(0)
"""
SETTINGS = {"model.width": 64, "model.multipliers": [1, 2, 2], "model.blocks": 1, "train.batch_size": 8}
SMALL = {**SETTINGS, "model.width": 16, "model.multipliers": [1], "model.attention": [], "model.dropout": 0.0}
ENGINES = ("all-reduce", "ddp", "fsdp")
OTHERS = {1: 2, 2: 1, 4: 2}  # how many processes go on with what so many have saved


def run(count: int, out: Path, settings: dict[str, Any], killed: int | None = None, updates: int = 2) -> dict[int, Any]:
    """What each process of a training says, by its rank; those that were killed say nothing."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"out": str(out), "data": str(out.parent / "images"), "settings": settings, "killed": killed}
    started = []
    for rank in range(count):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in own.items()}}
        line = [sys.executable, "-W", "ignore", "-c", CHILD, json.dumps({**job, "updates": updates})]
        started.append(subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
    end = time.monotonic() + 900
    while any(one.poll() is None for one in started):
        if time.monotonic() > end or any(one.poll() for one in started):  # the others wait for one that is gone
            time.sleep(2)
            for one in started:
                one.kill()
        time.sleep(0.1)
    if killed is not None:
        assert started[killed].returncode == -signal.SIGKILL
    else:
        assert not any(one.returncode for one in started), (count, settings)
    texts = [one.communicate()[0].decode() for one in started]
    found = [json.loads(line) for text in texts for line in text.splitlines() if line.startswith("{")]
    return {one["rank"]: one for one in found}


def survived(folder: Path) -> str:
    """The checkpoint that is used after a kill, and whether it is the one before it."""
    from ancestral.runs import checkpoint

    saved, problems = checkpoint.latest(folder)
    assert saved is not None
    return f"goes on at image {saved.images}" + (f" ({len(problems)} damaged)" if problems else "")


def compiled(count: int, engine: str, folder: Path) -> str:
    """How far the first moments of the gradients are from those without compiling, relative to these."""
    from ancestral.runs import checkpoint

    moments = []
    for compile_it in (False, True):
        out = folder / f"{count}-{engine}-{compile_it}"
        run(count, out, {**SMALL, "train.parallel": engine, "train.compile": compile_it})
        tensors = checkpoint.open_run(out)[0].tensors
        names = sorted(name for name in tensors if name.endswith("/exp_avg"))
        moments.append(np.concatenate([tensors[name].numpy().ravel() for name in names]))
    plain, other = moments
    return f"{np.linalg.norm(other - plain) / np.linalg.norm(plain):.1g}"


def row(count: int, other: int, engine: str, folder: Path) -> list[object]:
    """A line of the table."""
    out, cache = folder / f"{count}-{engine}", folder / f"cache-{count}-{engine}"
    settings = {**SETTINGS, "train.parallel": engine, "data.cache": str(cache)}
    found = run(count, out, settings)
    again = shutil.copytree(out, folder / f"{count}-{engine}-by-{other}")
    resumed = run(other, again, settings, updates=1)[0]
    same = resumed["began_at"] == 16 and resumed["resumed"] == found[0]["saved"]
    run(count, folder / f"{count}-{engine}-killed", settings, killed=count - 1 if engine == "fsdp" else 0)
    peaks = [f"{np.mean([one['peaks'][name] for one in found.values()]):.0f}" for name in found[0]["peaks"]]
    largest = max(one["peaks"]["saved"] for one in found.values())
    calls = ", ".join(f"{number / 2:.0f} {name}" for name, number in found[0]["calls"].items()) or "none"
    decoded = "/".join(str(one["decoded"]) for _, one in sorted(found.items()))
    files = sorted(path.name for path in (out / "checkpoints" / "000000016").iterdir())
    parts = sum(name.startswith("shard-") for name in files) or "whole"
    goes_on = f"{other}: {'to the bit' if same else 'DIFFERS'}"
    kill = survived(folder / f"{count}-{engine}-killed")
    return [count, engine, ", ".join(peaks), f"{largest:.0f}", decoded, calls, parts, goes_on, kill]


def main() -> None:
    """Measure what is not there yet, and write the table."""
    parser = options(__doc__ or "")
    parser.add_argument("--counts", type=int, nargs="+", default=list(OTHERS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    given = parsed(parser)
    results = Results(MEASURED / "processes.jsonl", ("processes", "engine", "what"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_pngs(np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), np.uint8), folder / "images")
        for count in given.counts:
            for engine in given.engines if count > 1 else ENGINES[:1]:
                for what, measure in (
                    ("run", partial(row, count, OTHERS[count])),
                    ("compile", partial(compiled, count)),
                ):
                    key = {"processes": count, "engine": engine, "what": what}
                    results.once(lambda measure=measure, engine=engine: {"found": measure(engine, folder)}, **key)
    headings = [
        *("processes", "engine", "mean peak MiB: read, made, 2 updates, saved", "largest", "decoded by each"),
        *("a step's calls", "parts of a checkpoint", "resumed by", "killed while saving image 24"),
        "compiled: first moments differ by",
    ]
    lines = []
    for one in sorted(results.find(what="run"), key=lambda line: (line["processes"], line["engine"])):
        key = {name: one[name] for name in ("processes", "engine")}
        lines.append(one["found"] + [found["found"] for found in results.find(what="compile", **key)])
    publish("processes", table(headings, lines), given.docs, results.lines)


if __name__ == "__main__":
    main()
