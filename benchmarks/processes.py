"""Several gloo processes on one machine: peak memory of each, what a step sends, and how checkpoints go.

    .venv/bin/python benchmarks/processes.py [1 2 4]

For each number of processes and each way to share gradients, a network of some millions of weights takes two updates
and writes a checkpoint. Memory is the peak of the process (getrusage), imports and images included.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

CHILD = """
import json, os, resource, sys, time
from pathlib import Path
import numpy as np, torch
from torch import distributed
from ancestral.data.load import load
from ancestral.runs import checkpoint, config
from ancestral.runtime.distributed import join, leave
from ancestral.training.run import Run

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

out, data, parallel = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
processes = join(torch.device("cpu"))
settings = config.resolve(data, "cifar10", {
    "model.width": 64, "model.multipliers": [1, 2, 2], "model.blocks": 1, "train.batch_size": 8,
    "train.parallel": parallel})
images = load(data, settings.data)
imported = peak()
run = Run(out, settings, images, torch.device("cpu"), "--images 80", processes, print)
run.resume()
if run.needs_leg:
    run.begin(80)
made = peak()
counted = {}
for name in ("all_gather", "all_reduce"):
    def count(*given, call=getattr(distributed, name), name=name, **options):
        counted[name] = counted.get(name, 0) + 1
        return call(*given, **options)
    setattr(distributed, name, count)
for _ in range(2):
    run.training.step(images.train)
trained, started = peak(), time.perf_counter()
run.save()
held = time.perf_counter() - started
if hasattr(run, "writer"):
    run.writer.finish()
weights = sum(value.numel() for value in run.training.network.parameters()) * 4 / 2**20
print(json.dumps({"rank": processes.rank, "weights": weights, "imported": imported, "made": made, "trained": trained,
                  "saved": peak(), "held": held, "calls": counted, "images": run.training.images}), flush=True)
processes.wait()
leave()
os._exit(0)
"""


def measured(count: int, parallel: str, folder: Path) -> list[dict[str, Any]]:
    """What each process of a training says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(count):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in own.items()}}
        line = [sys.executable, "-W", "ignore", "-c", CHILD, str(folder), str(folder.parent / "x.npy"), parallel]
        started.append(subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True))
    said = [one.communicate(timeout=600)[0] for one in started]
    return [json.loads(line) for text in said for line in text.splitlines() if line.startswith("{")]


def main() -> None:
    """Print the table."""
    counts = [int(word) for word in sys.argv[1:]] or [1, 2, 4]
    print("| processes | engine | peak MiB of each: read, made, 2 updates, saved | weights MiB | step's calls |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.save(folder / "x.npy", np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), np.uint8))
        for count in counts:
            for parallel in ("all-reduce", "ddp", "fsdp") if count > 1 else ("all-reduce",):
                found = measured(count, parallel, folder / f"{count}-{parallel}")
                each = "; ".join(
                    ", ".join(f"{one[name]:.0f}" for name in ("imported", "made", "trained", "saved")) for one in found
                )
                calls = ", ".join(f"{number / 2:.0f} {name}" for name, number in found[0]["calls"].items()) or "none"
                print(f"| {count} | {parallel} | {each} | {found[0]['weights']:.0f} | {calls} |", flush=True)


if __name__ == "__main__":
    main()
