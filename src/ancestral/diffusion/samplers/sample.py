"""Images from a model: thin uses of the loop. Image i is a function of (seed, i), not of the batch it is drawn in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Predictor
from ancestral.diffusion.processes.normal import widest
from ancestral.diffusion.processes.process import Process
from ancestral.diffusion.processes.streams import OpenStreams, Streams
from ancestral.diffusion.samplers.loop import GaussianDraw, GaussianStep, Step, from_model, walk
from ancestral.diffusion.samplers.transitions import Planned, Transition


def latents(shape: Sequence[int], seed: int, numbers: Sequence[int], streams: OpenStreams = Streams) -> Tensor:
    """x_T ~ N(0, I) of the numbered images, (B, *shape), as the streams give it: float64 on the CPU when left out."""
    return streams(seed, "latent", numbers).normal(shape)


def beginning(schedule: Process[Any], latents: Tensor) -> Tensor:
    """x_T of these latents: themselves in a Gaussian process, everything hidden in an absorbing one."""
    return schedule.end(latents).sample(latents)


def trajectory(
    denoiser: Predictor,
    start: Tensor,
    grid: Sequence[int],
    transition: Transition | Planned,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    draw: Callable[[Streams], GaussianDraw] = from_model,
    streams: OpenStreams = Streams,
) -> Iterator[GaussianStep]:
    """The reverse process from `start`, a step at a time; consume it to watch, stop, or keep what you want.

    Args:
        denoiser: predicts x0.
        start: the states at grid[0], (B, ...): `latents`, or any x_t for a grid that starts lower.
        grid: which times to visit (see `ancestral.diffusion.samplers.grids`).
        transition: Ancestral, DDIM, or one of `solvers.SOLVERS`.
        seed: of the noise along the way.
        numbers: the images' global numbers; 0..B-1 when left out.
        draw: how each state is drawn, given the noise.
        streams: that the noise is from.
    """
    noise = streams(seed, "reverse", range(len(start)) if numbers is None else numbers)
    return walk(denoiser, start, grid, transition, draw(noise))


def sample(
    denoiser: Predictor,
    shape: Sequence[int],
    count: int,
    grid: Sequence[int],
    transition: Transition | Planned,
    seed: int = 0,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    draw: Callable[[Streams], GaussianDraw] = from_model,
    streams: OpenStreams = Streams,
) -> Tensor:
    """`count` images on [-1, 1], shape (count, *shape) (reference names: `p_sample_loop`, `ddim_sample`).

    The state is float64 where the device has it, float32 on MPS.
    """
    dtype = widest(torch.device(device))
    batches: list[Tensor] = []
    for first in range(0, count, batch_size):
        numbers = range(first, min(first + batch_size, count))
        start = beginning(denoiser.schedule, latents(shape, seed, numbers, streams).to(device, dtype))
        batches.append(finish(trajectory(denoiser, start, grid, transition, seed, numbers, draw, streams)).cpu())
    return torch.cat(batches)


def finish(steps: Iterable[Step[Any, Any]]) -> Tensor:
    """The last state of a walk."""
    state: Tensor | None = None
    for step in steps:
        state = step.x_s
    if state is None:
        raise ValueError("the walk had no steps")
    return state


class Film(NamedTuple):
    """Frames kept from a walk: `x_t[k]` and the x0 predicted from it, both at `t[k]`; then the final images."""

    t: list[int]
    x_t: list[Tensor]
    x0: list[Tensor]
    final: Tensor


def film(steps: Iterable[Step[Any, Any]], keep: Collection[int] | None = None) -> Film:
    """Progressive generation (the paper's Figures 6 and 10): the states at the times in `keep`, or at all.

    A time of `keep` that a method visits more than once is kept as it is first seen. Nothing else is held, so a film of
    ten frames from a thousand steps costs ten frames.
    """
    frames = Film([], [], [], torch.empty(0))
    final = frames.final
    for step in steps:
        final = step.x_s
        if keep is None or (step.t in keep and step.t not in frames.t):
            frames.t.append(step.t)
            frames.x_t.append(step.x_t.cpu())
            frames.x0.append(step.prediction.x0.cpu())
    return frames._replace(final=final.cpu())
