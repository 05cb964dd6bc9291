"""What a page can have done with the model, each as a job: checked before it waits, then run in a thread of its own."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ancestral.sample import finish
from ancestral.sampling import conditions
from ancestral.web import bodies
from ancestral.web.record import Record
from ancestral.web.studio import Studio, finished, how_to_draw, shown
from ancestral.web.work import Work


@dataclass(frozen=True)
class Task:
    """A job that may wait.

    Args:
        work: what it does.
        rows: images that it draws at once.
    """

    work: Work
    rows: int


Action = Callable[[Studio, Any], Task]  # of a body


def command(studio: Studio, *words: object, **options: object) -> str:
    """A line for the shell; options that are None are left out."""
    named = [
        f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in options.items() if value is not None
    ]
    return " ".join(["ancestral", *(shlex.quote(str(word)) for word in words), *named])


def draw(studio: Studio, body: bodies.Draw) -> Task:
    """Images of a seed, as `ancestral sample` writes them.

    Raises:
        UserError: when the model cannot draw so.
    """
    options = {"solver": body.solver, "eta": body.eta, "guidance": body.guidance}
    drawing = studio.drawing(how_to_draw(body.steps, body.seed, **options))
    cond = conditions(studio.saved, body.label, None, body.images)
    told = {"seed": body.seed, "num_images": body.images, "steps": body.steps, **options, "label": body.label}
    again = command(studio, "sample", studio.run, **told)

    def work(record: Record) -> dict[str, Any]:
        steps = drawing.walk(range(body.images), cond, lambda count: None)
        return finished(finish(shown(record, steps, drawing.steps)), again)

    return Task(work, body.images)
