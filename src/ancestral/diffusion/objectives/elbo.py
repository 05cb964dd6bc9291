"""The variational bound on -log p(x0), term by term (Eqs. 3 and 5; reference name: `calc_bpd_loop`).

    -log p(x0) <= L_T + sum_{t>1} L_{t-1} + L_0,     L_T = KL(q(x_T | x0) || N(0, I))

The KL form averages over x_{t-1} in closed form: it is the plain estimate -log p(x_T) - sum log p(x_s|x_t)/q(x_t|x_s)
with that variance taken out (appendix A; `elbo_derivation` has both along the same chains).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Predictor
from ancestral.diffusion.processes.noise_schedule import NoiseSchedule
from ancestral.diffusion.processes.normal import Likelihood, Normal
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.processes.types import untyped
from ancestral.diffusion.samplers.transitions import Transition


def tenth(t: Tensor, last: int) -> Tensor:
    """The tenth of the times 1..last that each t lies in, 0 to 9."""
    return ((t - 1) * 10 // last).clamp(max=9)


@dataclass(frozen=True)
class Elbo:
    """The terms of the bound in nats, one row an image. float64, on the CPU.

    Column k of row b is the step from `t[b, k]` to its neighbour in the grid; a step that ends at 0 is L_0. Terms that
    were not drawn are absent, and `weight` is what those present count for in the sum.
    """

    prior: Tensor  # (B,) L_T
    t: Tensor  # (B, K) int64
    last: Tensor  # (B, K) bool: the step ends at 0
    terms: Tensor  # (B, K)
    mse: Tensor  # (B, K) mean squared error of the predicted x0, on [-1, 1]
    weight: Tensor  # (B, K)
    dimensions: int

    @property
    def nats(self) -> Tensor:
        """The bound an image, shape (B,)."""
        return self.prior + (self.terms * self.weight).sum(1)

    @property
    def bits_per_dim(self) -> Tensor:
        """The bound in bits per dimension, shape (B,)."""
        return self.bits(self.nats)

    @property
    def parts(self) -> dict[str, Tensor]:
        """{'L_T', 'L_1:T-1', 'L_0'} in bits per dimension, each (B,); they sum to `bits_per_dim`."""
        weighted = self.terms * self.weight
        return {
            "L_T": self.bits(self.prior),
            "L_1:T-1": self.bits((weighted * ~self.last).sum(1)),
            "L_0": self.bits((weighted * self.last).sum(1)),
        }

    def per_t(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(the times that occur, ascending; the mean of `values` (B, K) over the images at each)."""
        found: tuple[Tensor, Tensor] = untyped.unique(self.t, return_inverse=True)
        times, where = found
        sums = torch.zeros(len(times), dtype=torch.float64).index_add_(0, where.flatten(), values.flatten())
        return times, sums / where.flatten().bincount()

    def by_tenth(self, values: Tensor, last: int) -> Tensor:
        """Sums over the terms of `values` (B, K) in each tenth of t = 1..last, least noise first: (B, 10)."""
        of_ten = torch.zeros(len(values), 10, dtype=torch.float64)
        return of_ten.scatter_add_(1, tenth(self.t, last), values.double())

    def tensors(self) -> dict[str, Tensor]:
        """All fields as tensors, to be kept."""
        return {name: torch.as_tensor(value).contiguous() for name, value in vars(self).items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Elbo:
        """The inverse of `tensors`."""
        values = dict(tensors)
        return cls(dimensions=int(values.pop("dimensions")), **values)

    def bits(self, nats: Tensor) -> Tensor:
        """Nats an image as bits per dimension."""
        return nats / self.dimensions / math.log(2)


def concatenate(parts: Sequence[Elbo]) -> Elbo:
    """The bounds of several batches as one."""
    return replace(parts[0], **{name: torch.cat([getattr(one, name) for one in parts]) for name in _tensors()})


def repeated(parts: Sequence[Elbo]) -> Elbo:
    """Independent measurements of the same images, of as many terms each, as one: side by side, each counting less."""
    by_term = [name for name in _tensors() if name != "prior"]
    joined = replace(parts[0], **{name: torch.cat([getattr(one, name) for one in parts], 1) for name in by_term})
    return replace(joined, weight=joined.weight / len(parts))


def _tensors() -> list[str]:
    """The names of the fields that have a row an image."""
    return [field.name for field in fields(Elbo) if field.name != "dimensions"]


def error_per_image(elbo: Elbo, repeats: int) -> Tensor:
    """Standard error of each image's bits/dim (B,) by the spread of its `repeated` measurements.

    With 4 repeats this standard error is itself uncertain by about 40 %.
    """
    each: Tensor = untyped.sum((elbo.terms * elbo.weight).unflatten(1, (repeats, -1)), 2) * repeats
    return elbo.bits(each).std(1) / repeats**0.5


def all_terms(steps: int, images: int) -> tuple[Tensor, Tensor]:
    """Every step of a grid for every image, each counting once: (indices, weights), both (B, steps)."""
    indices = torch.arange(steps).expand(images, steps)
    return indices, torch.ones(indices.shape, dtype=torch.float64)


def strata(schedule: NoiseSchedule, grid: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
    """(first indices, widths), int64 (count - 1,), of the strata of all steps but the last.

    Strata are equal in the sum of two normalised measures: the change of log(noise_var) (the steps' cost for unit
    Gaussian data) and the number of steps. So a draw stands for few steps where these cost much and differ most.
    """
    steps, order = len(grid) - 1, torch.arange(count)
    cost = -schedule.noise_var(torch.tensor(grid[:-1])).log()
    share = (cost - cost[0]) / (cost[-1] - cost[0]) + torch.linspace(0, 1, steps, dtype=torch.float64)
    edges = torch.searchsorted(share, 2 * order.double() / (count - 1))
    edges = (edges - order).cummax(0).values.clamp(max=steps - count) + order  # no stratum without a step
    return edges[:-1], edges.diff()


def random_terms(
    schedule: NoiseSchedule, grid: Sequence[int], images: int, count: int, noise: Streams
) -> tuple[Tensor, Tensor]:
    """`count` steps for each image, whose weighted sum of terms is unbiased: (indices, weights), (B, count).

    L_0, by far the largest term, is always among them; the others are one from each of count - 1 `strata`,
    drawn for each image on its own, so that the spread over images is all the error there is.

    Raises:
        ValueError: unless 2 <= count <= steps.
    """
    steps = len(grid) - 1
    if not 2 <= count <= steps:
        raise ValueError(f"the number of terms must be between 2 and {steps}, got {count}")
    edges, width = strata(schedule, grid, count)
    u = torch.stack([noise.uniform() for _ in width], 1).cpu()
    indices = (edges + (u * width).floor()).long()
    last = torch.full((images, 1), steps - 1)
    weights = torch.cat([width, torch.ones(1)]).double().expand(images, count)
    return torch.cat([indices, last], 1), weights


@torch.no_grad()
def elbo(
    denoiser: Predictor,
    x0: Tensor,
    grid: Sequence[int],
    transition: Transition,
    noise: Streams,
    likelihood: Likelihood = Normal.log_prob_coded,
    terms: int | None = None,
) -> Elbo:
    """The bound of images x0 (B, ...) on a grid, each term at an x_t of its own drawn from q(x_t | x0).

    Args:
        denoiser: predicts x0; its clipping is part of the model that is measured.
        x0: images on [-1, 1].
        grid: strictly falling times ending at 0; a sub-grid is the model that samples with those steps.
        transition: the reverse process.
        noise: one stream an image.
        likelihood: log p(x0 | x_1): of bytes, or `Normal.log_prob` for a density.
        terms: how many terms an image are measured (`random_terms`); all when left out, or where there is only one.
    """
    schedule, steps, images = denoiser.schedule, len(grid) - 1, len(x0)
    if terms is None or steps == 1:
        indices, weight = all_terms(steps, images)
    else:
        indices, weight = random_terms(schedule, grid, images, terms, noise)
    times = torch.tensor(grid)
    measured: list[Tensor] = []
    errors: list[Tensor] = []
    for index in indices.T:
        t, s = times[index], times[index + 1]
        x_t = schedule.marginal(x0, t).draw(noise)
        prediction = denoiser(x_t, t)
        p = transition(schedule, x_t, prediction, t, s)
        measured.append(schedule.term(p, x_t, x0, t, s, likelihood))
        errors.append((prediction.x0 - x0).square().flatten(1).mean(1))
    prior = schedule.prior(x0, grid[0])
    return collect(grid, indices, weight, prior, measured, errors, x0[0].numel())


def collect(
    grid: Sequence[int],
    indices: Tensor,
    weight: Tensor,
    prior: Tensor,
    terms: Sequence[Tensor],
    errors: Sequence[Tensor],
    dimensions: int,
) -> Elbo:
    """Put together what was measured: terms and errors (B,) of the steps that start at `indices` (B, K) of the grid."""
    times = torch.tensor(grid)
    return Elbo(
        prior=prior.cpu().double(),
        t=times[indices],
        last=times[indices + 1] == 0,
        terms=torch.stack(list(terms), 1).cpu().double(),
        mse=torch.stack(list(errors), 1).cpu().double(),
        weight=weight,
        dimensions=dimensions,
    )
