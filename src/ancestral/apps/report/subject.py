"""What a report is about: a run's model with the user's images, or an exact one. Sections ask it alone."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ancestral.data.dataset import ImageSet, Splits
from ancestral.data.pixels import to_unit
from ancestral.data.source_paths import same_source, typed
from ancestral.diffusion.denoisers.denoiser import Denoiser, Predictor
from ancestral.diffusion.objectives.elbo import Elbo, concatenate, elbo, strata
from ancestral.diffusion.objectives.elbo_derivation import Chains, along_chains
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.streams import OpenStreams, Streams
from ancestral.diffusion.samplers.loop import Step
from ancestral.diffusion.samplers.sample import latents, trajectory
from ancestral.diffusion.samplers.solvers import SOLVERS, default_solver
from ancestral.diffusion.samplers.transitions import Planned, Transition
from ancestral.errors import UserError
from ancestral.evaluation import image_formats
from ancestral.evaluation.elbo_command import TERMS
from ancestral.evaluation.sample_metrics_command import like
from ancestral.runs import build, calibration
from ancestral.runs.checkpoint import Checkpoint
from ancestral.runs.conditions import Conditions, all_of, conditions_of, for_model, in_turn
from ancestral.runs.config import Config
from ancestral.runs.datasets import facts, images_for
from ancestral.runs.facts import Facts
from ancestral.runs.memory_need import need_for_drawing
from ancestral.runs.metrics_log import read_metrics
from ancestral.runs.open import device_of, open_gaussian, state_type
from ancestral.runtime.console import screen
from ancestral.runtime.resumable_job import pieces
from ancestral.runtime.text import quoted

BATCH = 64
# Commands that make random draws, and whether they take the data; their other settings are this report's.
DRAWING = {"evaluate": True, "explain": True, "metrics": True, "sample": False}
CHAINS = 6  # images that have two chains of q each, at most


Drawing = Callable[[Sequence[int], Transition | Planned], Predictor]  # of images by their numbers, in these steps


@dataclass(frozen=True)
class Subject:
    """A model and its images.

    Args:
        title: its name, for people.
        run: the run's folder; None for the exact one.
        saved: the run's checkpoint, with the model's own error measured; None for the exact one.
        config: of the run.
        images: to train on, and held out.
        source: the data, as the commands name them.
        move: the reverse step that the bound measures.
        variance: its name.
        conditioned: the predictor for these images, under their conditions.
        model: the network in its setting; None for the exact one.
        log_prob: log probability (N,) of images as bytes, in nats; None where nobody knows it.
        drawn: the predictor for images to be drawn by these steps, by their numbers: classes in turn, and clipped, as
            `ancestral sample` does.
        alike: the same, conditioned in the proportions of the data, as `ancestral metrics` does.
        num_images: held-out images that the bound is measured on.
        seed: of every draw.
        average_width: of the weights' average, where another than the run's own was asked for.
        device: of the model.
        dtype: of the loop's states.
    """

    title: str
    run: Path | None
    saved: Checkpoint | None
    config: Config
    images: Splits
    source: str
    move: Transition
    variance: str
    conditioned: Callable[[ImageSet], Predictor]
    model: Denoiser | None
    log_prob: Callable[[ImageSet], Tensor] | None
    drawn: Drawing
    alike: Drawing
    num_images: int
    seed: int
    average_width: float | None
    device: torch.device
    dtype: torch.dtype

    @cached_property
    def facts(self) -> Facts:
        """Of the images."""
        return facts(self.images.train)

    @cached_property
    def schedule(self) -> Gaussian:
        """The forward process."""
        return build.gaussian(self.config)

    @cached_property
    def times(self) -> list[int]:
        """The times trained at, T first, 0 last."""
        return build.training_grid(self.config)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        height, width, channels = self.images.test.shape
        return channels, height, width

    @cached_property
    def test(self) -> ImageSet:
        """The held-out images that `ancestral evaluate` measures."""
        return self.images.test.spread(self.num_images)

    @cached_property
    def half(self) -> int:
        """The first time at which half of the signal's variance is gone: alpha_bar_t <= 1/2, so SNR_t <= 1."""
        return int((self.schedule.alpha_bar(torch.arange(self.schedule.T + 1)) <= 0.5).nonzero()[0])

    def moments(self, count: int) -> list[int]:
        """At most so many of the times trained at, falling from T, evenly in the angle: in what the eye sees."""
        angles = self.schedule.angle(torch.tensor(self.times[:-1]))
        targets = angles[0] * torch.arange(count, 0, -1) / count
        return [self.times[index] for index in (angles - targets[:, None]).abs().argmin(1).unique()]

    def some(self, values: int) -> ImageSet:
        """Held-out images that hold about so many values together; two at least, where there are two."""
        return self.test.spread(max(2, values // math.prod(self.shape)))

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The records of the training, oldest first; none for the exact subject and for models from elsewhere."""
        path = None if self.run is None else self.run / "metrics.jsonl"
        if path is None or not os.path.lexists(path):
            return []
        return read_metrics(path, lambda line: screen.print(f"warning: {line}"))

    def at(self, log_snr: float) -> int:
        """The time trained at whose log SNR is nearest to this one, and finite."""
        times = torch.tensor(self.times[:-1])
        away = (self.schedule.log_snr(times) - log_snr).abs()
        return int(times[away.where(away.isfinite(), torch.inf).argmin()])

    def few(self, steps: int) -> int | None:
        """So few steps where the model was trained at more times; None, every time, where it was not."""
        return steps if steps < len(self.times) - 1 else None

    def x0(self, images: ImageSet) -> Tensor:
        """Images on [-1, 1], (B, C, H, W), in the type and on the device of the loop's states."""
        return to_unit(images.images).to(self.device, self.dtype)

    @cached_property
    def elbo(self) -> Elbo:
        """The bound of the held-out images, as `ancestral evaluate` measures it: the same terms, noise and batches."""
        return self.bound(self.test, self.move, self.times, self.terms)

    def bound(self, images: ImageSet, move: Transition, grid: Sequence[int], terms: int | None) -> Elbo:
        """The bound of images on a grid: so many terms of each, or all."""
        parts = []
        for numbers in pieces(len(images), BATCH):
            shown, noise = images.take(numbers), self.streams(self.seed, "evaluate", numbers)
            parts.append(elbo(self.conditioned(shown), self.x0(shown), grid, move, noise, terms=terms))
        return concatenate(parts)

    @cached_property
    def terms(self) -> int:
        """Terms of the bound that `ancestral evaluate` measures an image."""
        return min(TERMS, len(self.times) - 1)

    @cached_property
    def widths(self) -> Tensor:
        """How many steps each of these terms stands for, (terms - 1,); the last step has a term of its own."""
        return strata(self.schedule, self.times, self.terms)[1]

    @cached_property
    def chained(self) -> ImageSet:
        """Those of the held-out images that have chains: the network is called about as often as for the bound."""
        most = self.num_images * self.terms // (2 * (len(self.times) - 1))
        return self.test.spread(min(CHAINS, max(2, most)))

    @cached_property
    def chains(self) -> Chains:
        """Two chains of q for each of these images, over every time trained at: row i + M is image i once more."""
        shown = self.chained.take([*range(len(self.chained))] * 2)
        noise = Streams(self.seed, "explain-chains", range(len(shown)))
        return along_chains(self.conditioned(shown), self.x0(shown), self.times, self.move, noise)

    def method(self, steps: int | None) -> tuple[list[int], Transition | Planned]:
        """(times, step) of `ancestral sample --steps`: the default solver, or every time and the run's own step."""
        grid = build.sampling_grid(self.config, "trailing", steps)
        return grid, self.move if steps is None else SOLVERS[default_solver(steps)]

    @cached_property
    def streams(self) -> OpenStreams:
        """Where random numbers of the run's own commands come from."""
        return build.streams(self.config, self.device)

    def latents(self, numbers: Sequence[int]) -> Tensor:
        """Where the images with these numbers begin, as in `ancestral sample` with the same seed."""
        return latents(self.shape, self.seed, numbers, self.streams).to(self.device, self.dtype)

    def walk(
        self,
        numbers: Sequence[int],
        steps: int | None,
        move: Transition | Planned | None = None,
        under: Drawing | None = None,
    ) -> Iterator[Step]:
        """The reverse process of the images with these numbers: those of `ancestral sample`, with the same seed.

        In the default steps, where no others are named; with `alike` as `under` those of `ancestral metrics`.
        """
        grid, default = self.method(steps)
        move = move or default
        predictor = (under or self.drawn)(numbers, move)
        return trajectory(predictor, self.latents(numbers), grid, move, self.seed, numbers, streams=self.streams)

    def command(self, verb: str, *options: str) -> str:
        """What gives a number again, with this report's data, seed and average; the exact subject has one for all."""
        if self.run is None:
            verb, options = "explain", (*self._count, "--out report.json")
        own = [] if self.run is None else [quoted(str(self.run))]
        elsewhere = not same_source(self.source, self.config.source)
        own += [typed(self.source)] if DRAWING.get(verb) and elsewhere else []
        draws = [] if self.seed == 0 else [f"--seed {self.seed}"]
        # Images are drawn in float32 here; elsewhere than on a CPU the commands have another default.
        draws += ["--precision float32"] if verb in ("metrics", "sample") and self.device.type != "cpu" else []
        draws += [] if self.average_width is None else [f"--average-width {self.average_width:g}"]
        return " ".join(["ancestral", verb, *own, *options, *(draws if verb in DRAWING else [])])

    @cached_property
    def numbers(self) -> str:
        """The command that writes every number of this report."""
        return self.command("explain", *self._count, "--out report.json")

    @property
    def _count(self) -> list[str]:
        return [] if self.num_images == 256 else [f"--num-images {self.num_images}"]

    @cached_property
    def evaluation(self) -> str:
        """The command that prints the bound of this report, digit for digit."""
        return self.command("evaluate", *self._count)

    @cached_property
    def against_formats(self) -> Tensor:
        """Bits/dim by which the bound of each held-out image is above its shorter file of PNG and WebP, (N,)."""
        return self.elbo.bits_per_dim - self.shortest

    @cached_property
    def shortest(self) -> Tensor:
        """Bits/dim of each held-out image in the shorter of PNG and WebP, without container, (N,)."""
        return torch.from_numpy(image_formats.shortest_bits_per_dim(self.test.images[:]))

    @cached_property
    def formats(self) -> dict[str, float]:
        """Bits/dim of the held-out images in PNG and in WebP, as `ancestral evaluate` prints them."""
        return image_formats.lossless_bits_per_dim(self.test.images[:])

    @cached_property
    def own(self) -> bool:
        """Whether these are the images that the model was trained on, wherever they lie, so that it may copy them."""
        if self.saved is None or same_source(self.source, self.config.source):
            return True
        return self.images.train.digest() == self.saved.state["data"]


def of_run(
    folder: Path, source: str | None, num_images: int, seed: int, device: str, average_width: float | None
) -> Subject:
    """A trained model.

    Raises:
        UserError: for a run or data that cannot be used, for chains that hide places, and for those of one step.
    """
    saved, model = open_gaussian(folder, device, average_width)
    finite = build.schedule(saved.config).log_snr(torch.tensor(build.training_grid(saved.config)[:-1])).isfinite()
    if finite.sum() < 2:
        raise UserError(f"{folder}: trained at fewer than two times that show anything; a report needs two")
    source, images = images_for(saved, source)
    if len(images.train) < 2:
        raise UserError(f"{source}: one image to train on; a report needs two, to tell near from nearest")
    on = device_of(model)
    mend = "explain it on a machine with more, or on a GPU (--device cuda)"
    need_for_drawing(saved.config, saved.facts, BATCH, on, option=str(folder), mend=mend)
    saved = calibration.calibrated(saved, model, images.train)

    def under(cond: Conditions, move: Transition | Planned) -> Predictor:
        return build.predictor(build.drawing(model, saved.config, move), saved.calibration, **cond)

    def drawn(numbers: Sequence[int], move: Transition | Planned) -> Predictor:
        cycle = images.train.take([number % len(images.train) for number in numbers])
        cond = conditions_of(cycle, saved.config, on)
        if "labels" in cond:
            cond["labels"] = in_turn(saved.facts, numbers).to(on)
        return under(cond, move)

    def alike(numbers: Sequence[int], move: Transition | Planned) -> Predictor:
        chosen, pools = list(numbers), for_model(all_of(images.train), saved.config)
        cond = {name: like(pool.numpy(), max(chosen) + 1, seed)[chosen].to(on) for name, pool in pools.items()}
        return under(cond, move)

    return Subject(
        title=folder.resolve().name,
        run=folder,
        saved=saved,
        config=saved.config,
        images=images,
        source=source,
        move=build.transition(saved, None),
        variance=saved.config.diffusion.variance,
        conditioned=lambda shown: build.predictor(model, saved.calibration, **conditions_of(shown, saved.config, on)),
        model=model,
        log_prob=None,
        drawn=drawn,
        alike=alike,
        num_images=num_images,
        seed=seed,
        average_width=average_width,
        device=on,
        dtype=state_type(model),
    )
