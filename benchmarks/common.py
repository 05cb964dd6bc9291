"""What the benchmarks share: interleaved timing, results that last, and where a table stands in results.md."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results.md"
WORK = ROOT / "runs" / "benchmarks"
MEASURED = ROOT / "benchmarks" / "measured"  # committed: a table grows over days and machines


def options(description: str) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--docs", type=Path, default=RESULTS, help="the page to write the table into")
    made.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    return made


def of_runs(description: str) -> argparse.Namespace:
    """The command line of a benchmark that draws so many images of each of some runs."""
    parser = options(description)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--images", type=int, default=1000)
    return parsed(parser)


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, heeded where it concerns all."""
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return given


def commit() -> str:
    """Of this tree, and whether its code differs from it."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    looked_at = ("src", "benchmarks", ":!benchmarks/measured", ":!benchmarks/*.md")  # results are no code
    changes = subprocess.run(["git", "status", "--porcelain", *looked_at], cwd=ROOT, capture_output=True).stdout
    return (head.strip() or "unknown") + (" with changes" if changes else "")


def origin() -> dict[str, str]:
    """Where and when a number was measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    machine = f"{next(named, platform.processor())}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    date = datetime.now(UTC).date().isoformat()
    return {"commit": commit(), "date": date, "machine": f"{machine}, torch {torch.__version__}"}


def processor(line: Mapping[str, str]) -> str:
    """That a number was measured on, by its origin."""
    return line["machine"].partition(",")[0]


def origins_of(lines: Sequence[Mapping[str, str]], *keys: str) -> str:
    """All that these lines have under each key, each once."""
    return "; ".join(", ".join(dict.fromkeys(one[key] for one in lines)) for key in keys)


def publish(name: str, text: str, page: Path, origins: Iterable[Mapping[str, str]] = ()) -> None:
    """Print a text, and put it between `<!-- name -->` and `<!-- end name -->` of the page, with its origin."""
    known = list(origins) or [origin()]
    stamp = origins_of(known, "commit", "date", "machine")
    block = f"<!-- {name} -->\nCommit {stamp}.\n\n{text.strip()}\n<!-- end {name} -->"
    print(block)
    before, start, rest = page.read_text().partition(f"<!-- {name} -->")
    _, end, after = rest.partition(f"<!-- end {name} -->")
    if not start or not end:
        raise SystemExit(
            f"{page}: has no lines <!-- {name} --> and <!-- end {name} -->, between which the table belongs"
        )
    page.write_text(before + block + after)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """In Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def interleaved(
    steps: Mapping[str, Callable[[], object]],
    repeats: int,
    warmups: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Seconds of each step, (repeats,), taken in turns, so that a slow moment of the machine meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(warmups + repeats):
        for name, step in steps.items():
            started = clock()
            step()
            if turn >= warmups:
                seconds[name].append(clock() - started)
    return {name: np.array(taken) for name, taken in seconds.items()}


def spread(values: np.ndarray, digits: int = 2) -> str:
    """Median and quartiles."""
    low, middle, high = (f"{value:.{digits}f}" for value in np.quantile(values, (0.25, 0.5, 0.75)))
    return f"{middle} [{low}, {high}]"


class Results:
    """A file of JSON lines; what is in it is not measured again."""

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        self.path, self.keys = path, keys
        self.lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def find(self, **wanted: object) -> list[dict]:
        """The lines that have these values."""
        return [line for line in self.lines if all(line.get(key) == value for key, value in wanted.items())]

    def once(self, measure: Callable[[], Mapping[str, object]], **key: object) -> dict:
        """The line of this key, measured now unless it is there."""
        assert set(key) == set(self.keys)
        if known := self.find(**key):
            return known[0]
        line = {**key, **measure(), **origin()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)
        print(json.dumps(line), flush=True)
        return line


JUDGED = (
    "fd-lite0",
    "kid-lite0",
    "precision-lite0",
    "recall-lite0",
    "fd-classifier",
    "kid-classifier",
    "tv-classifier",
)


def quality(images: np.ndarray, reference, training=None) -> dict[str, list[float]]:
    """Value and standard error of the distances by lite0: uint8 (N, H, W, C) against as many images of an ImageSet.

    With training images that have labels, those of the judge that is trained on their classes too.
    """
    from ancestral.evaluation import features

    judges = [features.network("lite0")]
    if training is not None and training.labels is not None:
        judges.append(features.network("classifier", training=features.TrainedOn(training)))
    found = {name: one for by in judges for name, one in features.measure(images, reference, by).items()}
    return {name: list(found[name]) for name in JUDGED if name in found}


def judge(run: Path, count: int) -> Callable[..., dict[str, object]]:
    """What draws so many images of a run, with options of `ancestral sample`, and measures them by its training images.

    Its lines name the data and the images seen.
    """
    import ancestral
    from ancestral.data import load
    from ancestral.runs import checkpoint

    saved, _ = checkpoint.open_run(run)
    train, model = load.load(saved.config.source, saved.config.data).train, ancestral.load(run)

    def judged(**how) -> dict[str, object]:
        drawn = model.sample(count, **how).array
        return {"data": Path(saved.config.source).stem, "seen": saved.images, **quality(drawn, train, train)}

    return judged


def steps_of(solver: str, calls: int) -> int:
    """The most steps that need no more network calls: Heun's take two each, but for the last."""
    return (calls + 1) // 2 if solver.lower().startswith("heun") else calls


def shown(value: Sequence[float] | None, digits: int) -> str:
    """A value with its standard error."""
    return "" if value is None else f"{value[0]:.{digits}f} ± {value[1]:.{digits}f}"


SHOWN = {"fd-lite0": 1, "kid-lite0": 4, "precision-lite0": 3, "recall-lite0": 3, "fd-classifier": 3}


def cells(found: Mapping[str, Sequence[float]], digits: Mapping[str, int] = SHOWN) -> list[str]:
    """Of a table: what these judges found, each with so many digits."""
    return [shown(found.get(name), number) for name, number in digits.items()]


class Computed(torch.nn.Module):
    """A network in a format of ours; its output is float32."""

    def __init__(self, network, chosen) -> None:
        super().__init__()
        self.network, self.chosen = network, chosen

    def forward(self, x: torch.Tensor, time: torch.Tensor, **cond: torch.Tensor) -> torch.Tensor:
        """As the network."""
        with self.chosen.autocast(x.device):
            return self.network(x, time, **cond).float()


@contextlib.contextmanager
def silence():
    """Without the bars and lines that the others print."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield
