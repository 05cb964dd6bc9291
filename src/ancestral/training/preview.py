"""Previews of a model in training: a few samples, and the bound on held-out images with its parts by tenths of t."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ancestral.data.dataset import ImageSet
from ancestral.data.pixels import to_bytes, to_unit
from ancestral.diffusion.denoisers.denoiser import Denoiser
from ancestral.diffusion.objectives.elbo import elbo
from ancestral.diffusion.objectives.statistics import mean_and_error
from ancestral.diffusion.samplers.sample import beginning, latents, sample
from ancestral.runs import build
from ancestral.runs.conditions import blank, conditions_of, in_turn
from ancestral.runs.config import Config
from ancestral.runs.facts import Facts
from ancestral.runs.open import state_type
from ancestral.runs.process_kinds import chain

SAMPLES, MEASURED, TERMS = 16, 32, 10


class Preview(NamedTuple):
    """Samples (N, H, W, C) uint8, the bound on held-out images, and its part in each tenth of t, least noise first.

    The bound is None where there is none.
    """

    images: np.ndarray
    bits_per_dim: float | None
    bits_by_tenth: list[float | None]


def calls(config: Config) -> int:
    """How many predictions of an image `preview` makes, about: a small set has fewer held out."""
    kind, most = chain(config), build.most_steps(config)
    return SAMPLES * min(kind.calls, most) + (0 if kind.bound_step is None else MEASURED * min(TERMS, most))


def preview(config: Config, facts: Facts, model: Denoiser, held_out: ImageSet, device: torch.device) -> Preview:
    """16 samples in as many steps as `sample` takes, and the bound on 32 held-out images with a few terms an image."""
    times, streams = build.training_grid(config), build.streams(config, device)
    kind, cond = chain(config), conditions_of(held_out.take(np.arange(SAMPLES) % len(held_out)), config, device)
    if config.model.labels:
        cond["labels"] = in_turn(facts, range(SAMPLES)).to(device)
    grid = build.sampling_grid(config, kind.grid(config), kind.calls if len(times) > kind.calls + 1 else None)
    move = kind.default_step(len(grid) - 1)
    predictor = build.predictor(build.drawing(model, config, move), None, **cond)
    samples = sample(predictor, facts.shape, SAMPLES, grid, move, device=device, draw=kind.draw, streams=streams)
    if kind.bound_step is None:
        return Preview(to_bytes(samples), None, [None] * 10)
    test = held_out.spread(MEASURED)
    measured = elbo(
        build.predictor(model, None, **conditions_of(test, config, device)),
        to_unit(test.images).to(device),
        times,
        kind.bound_step,
        streams(0, "preview", range(len(test))),
        terms=min(TERMS, len(times) - 1),
    )
    sums = measured.by_tenth(measured.bits(measured.terms * measured.weight), times[0]).mean(0)
    counts = measured.by_tenth(torch.ones_like(measured.terms), times[0]).sum(0)
    by_tenth = [float(value) if count else None for value, count in zip(sums, counts, strict=True)]
    return Preview(to_bytes(samples), mean_and_error(measured.bits_per_dim)[0], by_tenth)


def predict_once(config: Config, facts: Facts, model: Denoiser, count: int, device: torch.device) -> None:
    """One call of the network with so many images, from noise."""
    noise = latents(facts.shape, 0, range(count), build.streams(config, device)).to(device, state_type(model))
    cond = {name: value.to(device) for name, value in blank(config, facts, count).items()}
    with torch.inference_mode():
        build.predictor(model, None, **cond)(beginning(model.schedule, noise), model.schedule.T).x0.cpu()  # is done


def by_tenth_of_t(index: Tensor, losses: Tensor, steps: int) -> list[float | None]:
    """Mean loss of each tenth of the time grid, least noise first; None for a tenth without images."""
    tenth = (steps - 1 - index) * 10 // steps
    return [float(losses[tenth == k].mean()) if (tenth == k).any() else None for k in range(10)]
