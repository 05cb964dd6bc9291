"""Edits of given images as uses of the loop: inpainting, interpolation, inversion, the way back from a noised image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Prediction, Predictor, Wrapped
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.processes.types import Time, per_image
from ancestral.diffusion.samplers.loop import GaussianDraw, Move, walk
from ancestral.diffusion.samplers.sample import finish
from ancestral.diffusion.samplers.transitions import DDIM, Stepper, StepThenNoise, Transition


def below(schedule: Gaussian, grid: Sequence[int], t: int) -> list[int]:
    """The walk from t on: t, then the times of the grid below it.

    A noised image taken down from there is SDEdit (Meng et al. 2022, Algorithm 1).

    Raises:
        ValueError: unless 1 <= t <= T.
    """
    if not 1 <= t <= schedule.T:
        raise ValueError(f"t must be between 1 and T = {schedule.T}, got {t}")
    return [t, *(s for s in grid if s < t)]


def known_region(schedule: Gaussian, x0: Tensor, known: Tensor, noise: Streams, draw: GaussianDraw) -> GaussianDraw:
    """x_s ~ q(x_s | x0) where x0 is known, elsewhere what `draw` chooses (Lugmayr et al. 2022, RePaint, Eq. 8).

    Args:
        schedule: the forward process.
        x0: (B, ...); what stands where nothing is known is never read.
        known: bool, broadcasts against x0.
        noise: of the known part.
        draw: of the rest.
    """

    def composed(move: Move[Prediction, Normal]) -> Tensor:
        fresh = schedule.marginal(x0, move.s).draw(noise)
        return torch.where(known, fresh, draw(move))

    return composed


@dataclass(frozen=True)
class Resampled:
    """A walk that goes up again: after every `jump` steps back by as many, and down anew, `resamples` times in all.

    What was drawn comes to agree with what is known (Lugmayr et al. 2022, RePaint, section 4.2 and appendix B). A jump
    up from x_s adds noise to the known part just drawn, which is then a draw of q(x_t | x0) again: so the step down and
    the jump are one Gaussian, and no prediction is made in between.
    """

    transition: Transition  # of one step down, without a memory
    jump: int = 10  # steps of the grid in a jump
    resamples: int = 10  # how often each stretch is walked; 1 is the plain walk

    def begin(self, schedule: Gaussian, grid: Sequence[int]) -> tuple[Stepper, Sequence[int]]:
        """The steps of one walk, and the times that it visits.

        Raises:
            ValueError: when there are not more steps than a jump is long, or either number is below 1.
        """
        if min(self.jump, self.resamples) < 1:
            raise ValueError(f"a jump of {self.jump} steps, {self.resamples} times in all: both are 1 or more")
        steps = len(grid) - 1
        if self.resamples > 1 and self.jump >= steps:
            raise ValueError(f"a jump of {self.jump} steps needs a walk of more than that, this one has {steps}")
        left = dict.fromkeys(range(0, steps - self.jump, self.jump), self.resamples - 1)
        visits, level = [grid[0]], steps
        ends: list[int] = []
        while level:
            level -= 1
            ends.append(grid[steps - level])
            if left.get(level, 0):
                left[level] -= 1
                level += self.jump
            visits.append(grid[steps - level])
        return StepThenNoise(self.transition, ends), visits


def mix(a: Tensor, b: Tensor, share: float | Tensor) -> Tensor:
    """(1 - share) a + share b: how the paper mixes two noised images (section 4.4, Figure 8)."""
    return (1 - share) * a + share * b


def slerp(a: Tensor, b: Tensor, share: float | Tensor) -> Tensor:
    """From a to b along the great circle between them, which keeps the length of a latent (Song et al. 2021, Eq. 67).

    a, b: (B, ...); latents in one direction are mixed.
    """
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(flat_a, flat_b).clamp(-1, 1)
    angle = per_image(cosine.acos(), a)
    sine = angle.sin()
    along = (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / sine
    return torch.where(sine > 1e-6, along, mix(a, b, share))


class _FromClean(Wrapped):
    """A predictor that also speaks at t = 0, where x0 is x itself: eps is what is seen at the first noise level."""

    def __init__(self, predictor: Predictor, first: int) -> None:
        super().__init__(predictor)
        self.first = first

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        """Predict x0 and eps from x_t, the latter not quite consistent at t = 0."""
        if t != 0:
            return self.predictor(x_t, t)
        noised = self.schedule.marginal(x_t, self.first).mean
        return Prediction(x_t, self.predictor(noised, self.first).eps)


def inverted(predictor: Predictor, x0: Tensor, grid: Sequence[int]) -> Tensor:
    """The latent from which DDIM comes back to x0: its steps taken upwards (Song et al. 2021, section 4.3).

    Args:
        predictor: of x0.
        x0: (B, ...).
        grid: as for sampling, falling; the latent is at grid[0].
    """
    rising = list(grid)[::-1]
    return finish(walk(_FromClean(predictor, rising[1]), x0, rising, DDIM(0.0), lambda move: move.p.mean))
