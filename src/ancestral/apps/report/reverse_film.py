"""The reverse process at work: its film, few steps against many, and what the noise along the way decides."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ancestral.apps.report import plots
from ancestral.apps.report.part import Number, Part, Words
from ancestral.apps.report.subject import Subject
from ancestral.diffusion.objectives.statistics import mean_and_error
from ancestral.diffusion.processes.levels import HALF_RANGE
from ancestral.diffusion.samplers.sample import Film, film, finish, trajectory
from ancestral.diffusion.samplers.solvers import FLOW_SOLVER, SOLVERS, default_solver
from ancestral.diffusion.samplers.transitions import Planned, Transition

SHOWN = 6  # trajectories, by the numbers of the images
COLUMNS = 12  # times of the film
PATIENCE, FEWER = 30.0, 100  # seconds that a walk through every time may take; otherwise so many steps
STEPS, MANY = (5, 10, 20, 50), 100  # compared; those of the images that they are compared with
BRANCHES, SHARED, SHORT = 6, 3, 50  # draws from one state; every so many columns of the film; steps of each at most


def part(subject: Subject) -> Part:
    """The film, the same latents in few and in many steps, and several ends of one beginning."""
    steps = _affordable(subject)
    grid = subject.method(steps)[0]
    times = [min(grid[:-1], key=lambda t, moment=moment: abs(t - moment)) for moment in subject.moments(COLUMNS)]
    seen = film(subject.walk(range(SHOWN), steps), set(times))
    options = [f"--num-images {SHOWN}", "--film", f"--steps {steps or 'all'}"]
    again = subject.command("sample", *options)
    return (
        Part(
            numbers={"film_steps": Number(len(grid) - 1, "", again), "film_images": Number(SHOWN, "", again)},
            figures={"film": lambda words: _film(seen, words)},
            facts={"film_all": steps is None, "few_steps": default_solver(len(grid) - 1), "flow": FLOW_SOLVER},
        )
        | _few(subject, seen, all_steps=len(grid) - 1)
        | _branches(subject, seen, grid)
    )


def _affordable(subject: Subject) -> int | None:
    """None, every time, where the model is fast enough for it; otherwise how many steps of the default solver."""
    calls = len(subject.times) - 1
    predictor = subject.drawn(range(SHOWN), subject.move)
    x_t = subject.latents(range(SHOWN))
    # A processor's time, not the clock's: what else the machine does must not change the report.
    on_cpu = x_t.device.type == "cpu"
    clock, threads = (time.process_time, torch.get_num_threads()) if on_cpu else (time.monotonic, 1)
    seconds = []
    with torch.no_grad():
        for _ in range(4):  # the first call is slower than the others
            began = clock()
            predictor(x_t, subject.times[0]).x0.cpu()
            seconds.append((clock() - began) / threads)
    return None if calls <= FEWER or calls * min(seconds) <= PATIENCE else FEWER


def drawn(subject: Subject, steps: int, move: Transition | Planned) -> Tensor:
    """The images of the first latents in so many steps, (SHOWN, C, H, W): those of `ancestral sample --steps`."""
    return finish(subject.walk(range(SHOWN), subject.few(steps), move)).cpu()


def rmse(a: Tensor, b: Tensor) -> Tensor:
    """Root of the mean squared difference of each pair of images, in grey levels, (B,)."""
    return HALF_RANGE * (a.clamp(-1, 1) - b.clamp(-1, 1)).square().flatten(1).mean(1).sqrt()


def mean_apart(images: Tensor) -> tuple[float, float]:
    """The mean distance of two of at least three images, in grey levels, and its standard error by the jackknife.

    Every image is in many pairs, so that the pairs' own spread would say too little.
    """
    pairs, count = torch.stack([rmse(images, one.expand_as(images)) for one in images]), len(images)
    without = (pairs.sum() - 2 * pairs.sum(1)) / ((count - 1) * (count - 2))  # the mean with one image left out
    error = ((count - 1) / count * (without - without.mean()).square().sum()).sqrt()
    return float(pairs.sum() / (count * (count - 1))), float(error)


def _few(subject: Subject, seen: Film, all_steps: int) -> Part:
    most = len(subject.times) - 1
    compared = [steps for steps in STEPS if steps < min(MANY, most)]
    certain = {steps: drawn(subject, steps, SOLVERS[FLOW_SOLVER]) for steps in (*compared, min(MANY, most))}
    noisy = {steps: drawn(subject, steps, subject.move) for steps in compared}
    many = certain[min(MANY, most)]
    ancestral = noisy | ({all_steps: seen.final} if all_steps == most else {})
    variance = f"--variance {subject.variance}"
    rows = []
    for steps in sorted(ancestral | certain):
        row: list[Number | str] = [str(steps)]
        for images, how in ((certain, f"--solver {FLOW_SOLVER}"), (ancestral, variance)):
            if steps not in images or images[steps] is many:
                row.append("reference" if steps in images else "")
                continue
            again = subject.command("sample", f"--num-images {SHOWN}", f"--steps {steps}", how)
            value, error = mean_and_error(rmse(images[steps], many))
            row.append(Number(value, "grey levels", again, error))
        rows.append(row)
    unrelated, error = mean_apart(many)
    return Part(
        numbers={
            "many": Number(min(MANY, most), "", "ancestral.apps.report.reverse_film.MANY"),
            "unrelated": Number(unrelated, "grey levels", "ancestral.apps.report.reverse_film.mean_apart", error),
        },
        figures={
            "few_certain": lambda words: _rows(certain),
            "few_noisy": lambda words: _rows(ancestral),
        },
        tables={"few": rows},
        facts={"all_steps": all_steps},
    )


def _branches(subject: Subject, seen: Film, grid: Sequence[int]) -> Part:
    """From one state of the first trajectory, several reverse processes with noise of their own."""
    rows, table, labels = [], [], []
    predictor = subject.drawn([0] * BRANCHES, subject.move)
    for index in range(0, len(seen.t), SHARED):
        t, start = seen.t[index], seen.x_t[index][:1]
        rest = grid[grid.index(t) :]
        visits = [rest[round(where)] for where in np.linspace(0, len(rest) - 1, min(SHORT, len(rest) - 1) + 1)]
        states = start.to(subject.device, subject.dtype).expand(BRANCHES, -1, -1, -1)
        # Noise of numbers that no image of this section has.
        ends = finish(trajectory(predictor, states, visits, subject.move, subject.seed, range(1000, 1000 + BRANCHES)))
        rows.append(torch.cat([start, ends.cpu()]))
        labels.append(t)
        distance, error = mean_apart(ends.cpu())
        table.append([str(t), Number(distance, "grey levels", "ancestral.apps.report.reverse_film.mean_apart", error)])
    return Part(
        figures={"branches": lambda words: _branched(torch.stack(rows), labels, words)},
        tables={"branches": table},
        numbers={"branches": Number(BRANCHES, "", "ancestral.diffusion.samplers.sample.trajectory")},
    )


def _film(seen: Film, words: Words) -> str:
    rows = []
    for image in range(SHOWN):
        rows += [[x[image] for x in (*states, seen.final)] for states in (seen.x_t, seen.x0)]
    states = torch.stack([torch.stack(row) for row in rows])
    columns = [f"t = {seen.t[0]}", *map(str, seen.t[1:]), "0"]
    return plots.sheet(plots.pixels(states), columns, list(words["rows"]["film"]) * SHOWN)


def _rows(images: dict[int, Tensor]) -> str:
    return plots.sheet(plots.pixels(torch.stack(list(images.values()))), (), list(map(str, images)))


def _branched(states: Tensor, times: list[int], words: Words) -> str:
    columns = [words["axes"]["shared"], *[""] * (states.shape[1] - 1)]
    return plots.sheet(plots.pixels(states), columns, [f"t = {t}" for t in times])
