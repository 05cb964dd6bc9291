"""`ancestral explain`: every section measured, and the page written."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import BarColumn, SpinnerColumn, TimeElapsedColumn

from ancestral import __version__
from ancestral.apps.report import (
    connections,
    elbo,
    forward,
    network,
    one_step,
    other_models,
    quality,
    reverse,
    story,
    variance,
)
from ancestral.apps.report.exact_subject import exact
from ancestral.apps.report.html import render, words
from ancestral.apps.report.part import Number, Part
from ancestral.apps.report.subject import Subject, of_run
from ancestral.data.source_paths import public
from ancestral.errors import UserError
from ancestral.runtime.console import Progress, TextColumn, TimeLeft, screen
from ancestral.runtime.text import shown
from ancestral.runtime.verified_folder import need_writable, write_file


class Section(NamedTuple):
    """A section of the page: how it is measured, and its share of the time in percent, on a model of 28x28 pixels."""

    measure: Callable[[Subject], Part]
    share: int


SECTIONS = {
    "story": Section(story.part, 1),
    "forward": Section(forward.part, 1),
    "reverse": Section(reverse.part, 22),
    "network": Section(network.part, 1),
    "bound": Section(elbo.part, 42),
    "spread": Section(variance.part, 3),
    "onestep": Section(one_step.part, 1),
    "connections": Section(connections.part, 10),
    "quality": Section(quality.part, 20),
    "models": Section(other_models.part, 1),
}


def explain(
    run: Path | None,
    *,
    data_source: str | None,
    out: Path,
    language: str,
    num_images: int,
    average_width: float | None,
    seed: int,
    device: str,
) -> None:
    """Measure a run's model, or the exact one, and write the report."""
    write = WRITERS.get(out.suffix.lower())
    if write is None:
        raise UserError(f"--out: {out} ends with neither .html, for the report, nor .json, for its numbers alone")
    need_writable(out)
    began = time.monotonic()
    subject = (
        exact(num_images, seed) if run is None else of_run(run, data_source, num_images, seed, device, average_width)
    )
    parts = measured(subject)
    seconds = time.monotonic() - began
    write_file(out, write(subject, parts, language, seconds).encode())
    screen.print(f"{seconds:.0f} s: {out}")


def measured(subject: Subject) -> dict[str, Part]:
    """What each section has measured, in order; the screen shows which one is at work."""
    parts: dict[str, Part] = {}
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeLeft(),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("", total=sum(section.share for section in SECTIONS.values()))
        for number, (name, section) in enumerate(SECTIONS.items(), 1):
            title = f"{number} of {len(SECTIONS)}: {words('en')['sections'][name]}"
            bar.update(task, description=title)
            if not screen.is_terminal:
                screen.print(title)
            parts[name] = section.measure(subject)
            bar.advance(task, section.share)
    return parts


def written(subject: Subject, parts: Mapping[str, Part], language: str, seconds: float) -> str:
    """The page in a language, of what was measured in so many seconds."""
    return render(parts, language, _about(subject, language, seconds))


def numbers(subject: Subject, parts: Mapping[str, Part], language: str, seconds: float) -> str:
    """Every number by section and name, and the rows of every table, as JSON; not of any language."""

    def record(cell: Number | str) -> dict[str, Any] | str:
        if isinstance(cell, str):
            return cell
        error = None if cell.error is None else _known(cell.error)
        return {"value": _known(cell.value), "standard_error": error, "unit": cell.unit, "again": cell.again}

    found = {
        name: {
            "numbers": {key: record(one) for key, one in part.numbers.items()},
            "tables": {key: [[record(cell) for cell in row] for row in rows] for key, rows in part.tables.items()},
        }
        for name, part in parts.items()
    }
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


def _known(value: float) -> float | str:
    """JSON has neither infinity nor nan, which is the error of a single image."""
    return value if math.isfinite(value) else str(value)


WRITERS = {".html": written, ".htm": written, ".json": numbers}


def _about(subject: Subject, language: str, seconds: float) -> Mapping[str, str]:
    vocabulary, diffusion = words(language)["page"], subject.config.diffusion
    facts = {
        "T": diffusion.T,
        "schedule": diffusion.schedule if diffusion.shift == 1 else f"{diffusion.schedule}, shift {diffusion.shift:g}",
        "target": diffusion.target,
        "variance": subject.variance,
        "source": public(subject.source),
        "test": f"{len(subject.test):,}",
    }
    if subject.saved is not None:
        facts["parameters"] = f"{sum(tensor.numel() for tensor in subject.saved.weights.values()):,}"
        facts["seen"] = f"{subject.saved.images:,}"
    made = {"version": __version__, "date": date.today().isoformat(), "seconds": f"{seconds:.0f}", "seed": subject.seed}
    return {
        "title": shown(subject.title),
        "numbers": subject.numbers,
        "facts": shown(vocabulary["exact" if subject.saved is None else "run"].format(**facts)),
        "made": vocabulary["made"].format(**made),
    }
