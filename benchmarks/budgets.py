"""Six budgets, two of them disturbed: what was asked for, what was taken, and how often the end was moved.

Run: taskset -c 0 .venv/bin/python benchmarks/budgets.py. Each is a process of its own, timed from outside. A disturbed
run shares its core with a busy process in the middle third of its budget. Made for a quiet machine: everything runs on
the first of the cores that this process may use.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from common import MEASURED, Results, options, parsed, publish, table

from ancestral.runs.metrics_log import read_metrics

# (data, seconds, disturbed)
CASES = (
    ("mnist", 60, False),
    ("mnist", 120, False),
    ("mnist", 300, True),
    ("tiles", 120, False),
    ("tiles", 300, True),
    ("mnist", 600, False),
)
BUSY = "while True: pass"
KEYS = ("data", "asked", "disturbed")
HEADINGS = ("data", "asked, s", "disturbed", "taken, s", "ratio", "ends moved")


def taken(source: str, seconds: float, disturbed: bool, folder: Path) -> dict[str, float]:
    """Seconds of the whole command, and how often its end was moved."""
    began = time.monotonic()
    command = [sys.executable, "-m", "ancestral", "train", source, "--out", str(folder), "--budget", f"{seconds:g}s"]
    with open(folder.with_suffix(".txt"), "w") as said, subprocess.Popen(command, stdout=said, stderr=said) as training:
        busy = None
        if disturbed:
            time.sleep(seconds / 3)
            busy = subprocess.Popen([sys.executable, "-c", BUSY])
        try:
            if busy is not None:
                time.sleep(seconds / 3)
        finally:
            if busy is not None:
                busy.kill()
                busy.wait()
        if training.wait() != 0:
            raise SystemExit(folder.with_suffix(".txt").read_text())
    whole = time.monotonic() - began
    log = read_metrics(folder / "metrics.jsonl")
    return {"taken": whole, "moved": sum(len(entry.get("end_moved", [])) for entry in log)}


def main() -> None:
    """Measure what is missing, then write the table."""
    parser = options(__doc__ or "")
    parser.set_defaults(threads=1)
    parser.add_argument("--tiles", type=Path, default=Path("../shared/data/tiles-32/tiles-32.npz"))
    parser.add_argument("--scale", type=float, default=1.0, help="of all budgets")
    parser.add_argument("--cases", type=int, nargs="*", default=range(len(CASES)), help="which of them, from 0")
    given = parsed(parser)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    results = Results(MEASURED / "budgets.jsonl", KEYS)
    with tempfile.TemporaryDirectory() as work:
        for number in given.cases:
            name, seconds, disturbed = CASES[number]
            source, asked = str(given.tiles) if name == "tiles" else name, seconds * given.scale

            measure = partial(taken, source, asked, disturbed, Path(work) / str(number))
            results.once(measure, data=name, asked=asked, disturbed=disturbed)
    rows = [
        (
            line["data"],
            f"{line['asked']:.0f}",
            "middle third" if line["disturbed"] else "",
            f"{line['taken']:.1f}",
            f"{line['taken'] / line['asked']:.3f}",
            line["moved"],
        )
        for line in results.lines
    ]
    publish("budgets", table(HEADINGS, rows), given.docs, results.lines)


if __name__ == "__main__":
    main()
