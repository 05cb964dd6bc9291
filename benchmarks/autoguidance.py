"""Autoguidance by an early average of the same run, at as many network calls as without it.

Run: .venv-peers/bin/python benchmarks/autoguidance.py RUN ... What is measured is kept under benchmarks/measured and
not measured again; without RUN only the table is written into benchmarks/results.md.
"""

from __future__ import annotations

from pathlib import Path

from common import MEASURED, SHOWN, Results, cells, judge, of_runs, publish, table

from ancestral.runs import checkpoint

CALLS = 24
PLAIN = {"solver": "unipc3", "clip": "own"}
WAYS = (  # the guide's share of the run, the scale
    (None, None),
    (0.25, 1.25),
    (0.25, 1.5),
    (0.25, 2.0),
    (0.125, 1.5),
    (0.5, 1.5),
)
JUDGED = SHOWN | {"kid-classifier": 4, "tv-classifier": 3}


def measure(run: Path, count: int, results: Results) -> None:
    """Every line of a run that is not there yet."""
    saved, _ = checkpoint.open_run(run)
    judged = judge(run, count)

    def line(share: float | None, scale: float | None) -> dict[str, object]:
        if share is None:
            return judged(steps=CALLS, **PLAIN)
        return judged(steps=CALLS // 2, **PLAIN, guide=str(checkpoint.early_average(saved, share)), guidance=scale)

    key = {"model": checkpoint.digest(saved)[:16], "calls": CALLS, "images": count}
    for share, scale in WAYS:
        results.once(lambda way=(share, scale): line(*way), guide=share, scale=scale, **key)


def main() -> None:
    """Measure what is missing, then write the table."""
    given = of_runs(__doc__ or "")
    results = Results(MEASURED / "autoguidance.jsonl", ("model", "guide", "scale", "calls", "images"))
    for run in given.runs:
        measure(run, given.images, results)
    rows = [
        [
            line["data"],
            f"{line['seen']:,}",
            "alone" if line["guide"] is None else f"at {line['guide']:g} of the run, {line['scale']:g}",
            *cells(line, JUDGED),
        ]
        for line in results.lines
    ]
    text = f"{CALLS} network calls of UniPC-3 an image, each x0 clipped, the same latents.\n\n"
    headings = ["", "images seen", f"guided by the average, scale; {results.lines[0]['images']} images", *JUDGED]
    publish("autoguidance", text + table(headings, rows), given.docs, results.lines)


if __name__ == "__main__":
    main()
