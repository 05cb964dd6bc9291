"""Few steps, even, tuned and guided, against every ancestral step, on one run of each data set.

Run: .venv-peers/bin/python benchmarks/few_steps.py RUN ... What is measured is kept under benchmarks/measured and not
measured again; without RUN only the table is written into benchmarks/results.md.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from common import MEASURED, SHOWN, Results, cells, judge, of_runs, publish, table

from ancestral.runs import checkpoint

WAYS = {
    "every ancestral step": {"steps": "all", "precision": "auto"},  # its last tenth in float32: in all it takes hours
    "25 steps": {"steps": 25},
    "25 steps of unipc3": {"steps": 25, "solver": "unipc3"},
    "12 steps of unipc3, --guide early --guidance 1.5": {"steps": 12, "guide": "early", "guidance": 1.5},
    "10 tuned steps of dpm++2m-sde": {"steps": 10, "grid": "tuned", "solver": "dpm++2m-sde"},
    "10 tuned steps of unipc3": {"steps": 10, "grid": "tuned", "solver": "unipc3"},
    "10 steps of dpm++2m-sde": {"steps": 10, "solver": "dpm++2m-sde"},
    "10 steps of unipc3": {"steps": 10},
    "10 steps of unipc3, --clip own": {"steps": 10, "clip": "own"},
    "6 steps of unipc3": {"steps": 6},
    "6 tuned steps of dpm++2m-sde": {"steps": 6, "grid": "tuned", "solver": "dpm++2m-sde"},
    "6 tuned steps of unipc3": {"steps": 6, "grid": "tuned"},
    "6 tuned steps of unipc3, --guide early --guidance 1.5": {
        "steps": 6,
        "grid": "tuned",
        "guide": "early",
        "guidance": 1.5,
    },
}


def measure(run: Path, count: int, results: Results) -> None:
    """Every line of a run that is not there yet."""
    model, judged = checkpoint.digest(checkpoint.open_run(run)[0])[:16], judge(run, count)

    def line(name: str) -> dict[str, object]:
        if WAYS[name].get("grid") == "tuned":
            command = ("tune-steps", str(run), "--steps", str(WAYS[name]["steps"]))
            subprocess.run([sys.executable, "-m", "ancestral", *command], check=True)
        return judged(**WAYS[name])

    for name in reversed(WAYS):  # quick ones first
        results.once(lambda name=name: line(name), model=model, way=name, images=count)


def main() -> None:
    """Measure what is missing, then write the table."""
    given = of_runs(__doc__ or "")
    results = Results(MEASURED / "few_steps.jsonl", ("model", "way", "images"))
    for run in given.runs:
        measure(run, given.images, results)
    rows = []
    for every in results.find(way="every ancestral step"):
        for name in WAYS:
            for line in results.find(model=every["model"], way=name, images=every["images"]):
                ratio = line["fd-lite0"][0] / every["fd-lite0"][0]
                rows.append([line["data"], f"{line['seen']:,}", name, line["images"], f"{ratio:.3f}", *cells(line)])
    headings = ["", "images seen", "", "images drawn", "fd-lite0 of every step's", *SHOWN]
    publish("few-steps", table(headings, rows), given.docs, results.lines)


if __name__ == "__main__":
    main()
