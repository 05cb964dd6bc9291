"""Moves at one noise level that leave a density exactly as it is: MALA and Hamiltonian Monte Carlo.

A Langevin step from t to t with variance 2h is the first move of a leapfrog of length d = sqrt(2h) with momentum z:

    x_1 = x + d^2/2 score(x) + d z = x + d z_1/2,    z_1/2 = z + d/2 score(x)

so that the transition stays what it is (`Langevin`, `PredictorCorrector`), and only the draw changes. It leapfrogs on
to x' with momentum z', and accepts x' with probability

    min(1, q(x') exp(-||z'||^2 / 2) / (q(x) exp(-||z||^2 / 2))),

one decision an image. After one leapfrog this is MALA, the density ratio of both proposals included (Roberts and
Tweedie 1996; Neal 2011, section 5.2). Without the decision it is ULA, `loop.from_model`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Prediction, score
from ancestral.diffusion.denoisers.energy import Energy
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.processes.types import over
from ancestral.diffusion.samplers.loop import Draw, Move, Step, from_model


def adjusted(energy: Energy, leapfrogs: int = 1) -> Callable[[Streams], Draw[Prediction, Normal]]:
    """A draw that corrects each move from t to t, and draws every other as `from_model` does.

    The step is the transition's: its variance must not depend on x_t. A walk that starts in q(x_t) stays in it, at any
    step size and with any score; those of `energy` only say how often a proposal is accepted. A move costs `leapfrogs`
    predictions and two log densities more than a Langevin step.

    Args:
        energy: what is walked with.
        leapfrogs: 1 is MALA, more Hamiltonian Monte Carlo.

    Raises:
        ValueError: for less than one leapfrog.
    """
    if leapfrogs < 1:
        raise ValueError(f"leapfrogs: {leapfrogs}; one or more")

    def with_noise(noise: Streams) -> Draw[Prediction, Normal]:
        elsewhere = from_model(noise)

        def draw(move: Move[Prediction, Normal]) -> Tensor:
            if move.s != move.t:
                return elsewhere(move)
            z = noise.normal(move.x_t.shape[1:]).to(move.x_t)
            log_ratio, x = proposal(energy, move, z, leapfrogs)
            accept = noise.uniform().to(log_ratio).log() < log_ratio
            return torch.where(over(accept, x).bool(), x, move.x_t)

        return draw

    return with_noise


def proposal(energy: Energy, move: Move[Prediction, Normal], z: Tensor, leapfrogs: int) -> tuple[Tensor, Tensor]:
    """The log of the acceptance ratio, (B,), and the x' that momentum z (B, ...) leads to."""
    step, t = move.p.var.sqrt(), move.t
    x = move.p.sample(z)
    half = z + (move.p.mean - move.x_t) / step
    for _ in range(leapfrogs - 1):
        half = half + step * score(energy(x, t), energy.schedule, t)
        x = x + step * half
    end = half + step / 2 * score(energy(x, t), energy.schedule, t)
    kinetic = (z.square() - end.square()).flatten(1).sum(1) / 2
    return energy.log_prob(x, t) - energy.log_prob(move.x_t, t) + kinetic, x


def acceptance(steps: Iterable[Step[Prediction, Normal]]) -> Tensor:
    """The share of its moves from t to t that moved each image, (B,); of `adjusted` draws the acceptance rate.

    Raises:
        ValueError: when there was no such move.
    """
    moved = [(step.x_s != step.x_t).flatten(1).any(1) for step in steps if step.t == step.s]
    if not moved:
        raise ValueError("the walk had no move from a time to itself; repeat levels, as `PredictorCorrector` does")
    return torch.stack(moved).cpu().double().mean(0)
