"""Images drawn from a run: everything that they depend on, in one place for whatever draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ancestral.diffusion.denoisers.denoiser import CLIPS, Denoiser, Predictor, unclipped, within
from ancestral.diffusion.processes.types import Advance
from ancestral.diffusion.samplers.loop import Step
from ancestral.diffusion.samplers.sample import beginning, latents, trajectory
from ancestral.diffusion.samplers.solvers import TUNED, default_solver
from ancestral.diffusion.samplers.transitions import Planned, Transition, begin
from ancestral.errors import UserError
from ancestral.runs import build, checkpoint, tuned_times
from ancestral.runs.compute_format import Lowered, for_drawing, laid_out, last_calls
from ancestral.runs.conditions import Conditions
from ancestral.runs.config import Config
from ancestral.runs.guidance import Guidance
from ancestral.runs.memory_need import need_for_drawing
from ancestral.runs.open import Opener, device_of, open_model, state_type
from ancestral.runs.process_kinds import chain, need_gaussian
from ancestral.runs.registry import choose
from ancestral.runs.sampling_options import OWN, SamplingOptions
from ancestral.runtime.resumable_job import pieces


class Sampler:
    """Draws images from a run's model.

    Args:
        folder: the run.
        options: of drawing.
        device: by name.
        opener: of the run; `open_gaussian` refuses another chain before the options are looked at.
        calls: steps where the options name none, as far as there are so many; as many as the chain's own when left out.

    Raises:
        UserError: when the run cannot be opened, or an option has no meaning for it.
    """

    def __init__(
        self,
        folder: Path,
        options: SamplingOptions,
        device: str,
        opener: Opener = open_model,
        calls: int | None = None,
    ) -> None:
        self.saved, self.model = opener(folder, device, options.average_width)
        self.open_streams = build.streams(self.saved.config, device_of(self.model))
        self.format = for_drawing(options.precision, self.saved, device_of(self.model))
        laid_out(self.model.network, self.format.channels_last)
        solver = options.solver
        kind = chain(self.saved.config)
        self.draw = kind.draw
        self.every = build.most_steps(self.saved.config)
        steps = _steps(options, min(calls or kind.calls, self.every))
        if options.eta is options.variance is solver is kind.only_step is None and steps is not None:
            solver = default_solver(steps * (TUNED if options.grid == "tuned" else 1))
        self.move = build.method(self.saved, solver, options.variance, options.eta)
        self.model = _clipping(self.saved.config, self.model, options.clip, self.move)
        self.guidance = Guidance(options, self.saved, self.model, self.format.channels_last)
        if options.grid == "tuned":
            self.times = tuned_times.load(folder, self.saved, options.average_width, self.model.schedule, steps)
        elif steps is None and options.grid is not None:
            raise UserError("--grid: says where fewer steps than all lie; leave it out, or give --steps N")
        else:
            self.times = build.sampling_grid(self.saved.config, options.grid or kind.grid(self.saved.config), steps)
        self.visits = begin(self.move, self.model.schedule, self.times)[1]
        self.steps = len(self.visits) - 1
        self.last = max(self.visits[-1 - last_calls(self.steps) :])  # time from which on all is computed in float32
        exact = sum(t <= self.last for t in self.visits[:-1])
        if exact == self.steps:
            self.format = self.format._replace(precision="float32")
        self.calls = self.steps * self.guidance.calls  # of a network, an image
        self.solver, self.options = solver, options
        self.notes = [self.guidance.note] if self.guidance.note else []  # to be said before it draws
        if options.steps == "all" and kind.whole:
            self.notes.append(kind.whole.format(every=self.every))
        if options.precision == "auto" or self.format.precision != "float32":
            late = "" if self.format.precision == "float32" else f", the last {exact} of {self.steps} steps in float32"
            self.notes.append(f"--precision {options.precision}: {self.format}{late}")

    @property
    def settings(self) -> dict[str, Any]:
        """All that the images depend on, as JSON."""
        config = self.saved.config
        plain = {name: value for name, value in asdict(self.options).items() if name not in ("steps", "grid", "label")}
        own = chain(config).only_step is None
        return {
            **plain,
            **self.guidance.settings,
            "model": checkpoint.digest(self.saved),
            "clip": "none" if own and self.model.clip is unclipped else self.options.clip,
            "times": self.times,
            "solver": self.solver,
            "variance": self.options.variance or config.diffusion.variance if own else None,
            "precision": self.format.precision,  # what auto stands for here
            **({"channels_last": True} if self.format.channels_last else {}),
            **({} if self.format.precision == "float32" else {"float32_from": self.last}),
        }

    def pieces(self, count: int) -> list[range]:
        """Numbers 0..count-1 as they are drawn together.

        Raises:
            UserError: where so many at a time do not fit into memory.
        """
        saved, size = self.saved, self.options.batch_size
        need_for_drawing(saved.config, saved.facts, min(size, count), device_of(self.model))
        return pieces(count, size)

    def predictor(self, cond: Conditions) -> Predictor:
        """The model under these conditions, guided as asked, computed in the precision asked for."""
        return Lowered(self.guidance.predictor(cond), self.format, self.last)

    def walk(self, numbers: range, cond: Conditions, advance: Advance) -> Iterator[Step]:
        """Draw images of these numbers, under their rows of `cond`; `advance` gets their count at each step."""
        device = device_of(self.model)
        own = {name: value[numbers.start : numbers.stop].to(device) for name, value in cond.items()}
        predictor = self.predictor(own)
        seed, streams = self.options.seed, self.open_streams
        noise = latents(self.saved.facts.shape, seed, numbers, streams).to(device, state_type(self.model))
        start = beginning(self.model.schedule, noise)
        for step in trajectory(predictor, start, self.times, self.move, seed, numbers, self.draw, streams):
            advance(len(numbers))
            yield step


def _clipping(config: Config, model: Denoiser, clip: str | None, move: Transition | Planned) -> Denoiser:
    """The model with the clip of this name, OWN for the run's; with that of these steps where none is named."""
    if clip is None:
        return build.drawing(model, config, move)
    need_gaussian(config, "--clip")
    if clip != OWN:
        model.clip = within(choose({**CLIPS, OWN: unclipped}, clip, "--clip"), config.diffusion.clip_range)
    return model


def _steps(options: SamplingOptions, calls: int) -> int | None:
    """So many steps; None is every one: where that is asked for, and where a variance of the paper's chain is named."""
    if options.steps == "all" or (options.steps is None and options.variance is not None):
        return None
    return calls if options.steps is None else int(options.steps)
