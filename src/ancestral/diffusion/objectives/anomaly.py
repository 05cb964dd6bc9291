"""How foreign an image is to a model: scores from the terms of its bound, larger for more foreign, and their AUROC.

Plain likelihood fails: a model may give simple foreign images more of it than its own (Nalisnick et al. 2019a). The
remedies here compare an image with images of the model's own, at each t, or with what a general coder needs for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Predictor
from ancestral.diffusion.objectives.elbo import elbo
from ancestral.diffusion.objectives.statistics import Estimate
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.processes.types import untyped
from ancestral.diffusion.samplers.grids import quadratic
from ancestral.diffusion.samplers.loop import walk
from ancestral.diffusion.samplers.transitions import DDIM, Transition

STEPS = 25  # of the grid that all images share; quadratic, whose bound is as tight as that of every step
STARTS = (0.3, 0.6)  # shares of the grid from which images are restored
SHRINKAGE = 0.1  # of correlations towards none


class Trace(NamedTuple):
    """What a model did with images at the times of one grid. float64, on the CPU."""

    bits: Tensor  # (B,) the bound in bits/dim of the model that samples with these steps
    errors: Tensor  # (B, K) log of the mean squared error of the x0 predicted at each time, most noise first
    noisy: Tensor  # (B, K) bool: at that time there is more noise than signal, SNR < 1
    restored: Tensor  # (B, len(STARTS)) the same of the x0 that a walk from x_t ends at


def shared_grid(schedule: Gaussian) -> list[int]:
    """The times at which every image is measured."""
    return quadratic(schedule, min(STEPS, schedule.T))


@torch.no_grad()
def trace(denoiser: Predictor, x0: Tensor, grid: Sequence[int], transition: Transition, noise: Streams) -> Trace:
    """Measure images x0 (B, ...) on [-1, 1], all at the same times; `transition` is the model's reverse process."""
    measured = elbo(denoiser, x0, grid, transition, noise)
    starts = [round((1 - share) * (len(grid) - 1)) for share in STARTS]
    restored = [restoration_error(denoiser, x0, grid[start:], noise) for start in starts]
    return Trace(
        measured.bits_per_dim,
        _log(measured.mse),
        denoiser.schedule.snr(measured.t) < 1,
        _log(torch.stack(restored, 1)),
    )


def restoration_error(denoiser: Predictor, x0: Tensor, grid: Sequence[int], noise: Streams) -> Tensor:
    """Mean squared error (B,) of x0 noised to grid[0] and restored by a deterministic walk (Graham et al. 2023)."""
    state = denoiser.schedule.marginal(x0, grid[0]).draw(noise)
    for step in walk(denoiser, state, grid, DDIM(0.0), lambda move: move.p.mean):
        state = step.x_s
    return (state - x0).square().flatten(1).mean(1).cpu().double()


def _log(squares: Tensor) -> Tensor:
    return squares.clamp(min=1e-12).log()  # an image of one colour may be predicted exactly


def concatenate(traces: Sequence[Trace]) -> Trace:
    """The traces of several batches as one."""
    return Trace(*(torch.cat(list(parts)) for parts in zip(*traces, strict=True)))


class Traced(NamedTuple):
    """Traces, and for each image the bits/dim of its shortest file by general lossless coders, (B,)."""

    trace: Trace
    shortest: Tensor


Score = Callable[[Traced, Traced], Tensor]  # (images, images that are no anomalies) -> (B,)


def bits(images: Traced, norm: Traced) -> Tensor:
    """The bound in bits/dim, as it is."""
    return images.trace.bits


def typicality(images: Traced, norm: Traced) -> Tensor:
    """|bits/dim - their mean over known images|: too likely is foreign too (Nalisnick et al. 2019b, batches of one)."""
    return (images.trace.bits - norm.trace.bits.mean()).abs()


def complexity(images: Traced, norm: Traced) -> Tensor:
    """Bits/dim less those of the shortest lossless file: a ratio with a general coder (Serra et al. 2020)."""
    return images.trace.bits - images.shortest


def reconstruction(images: Traced, norm: Traced) -> Tensor:
    """Mean over t of the log error of the predicted x0, each t standardised by known images; one-sided."""
    return _standard(images.trace.errors, norm.trace.errors).mean(1)


def high_noise(images: Traced, norm: Traced) -> Tensor:
    """The same where SNR < 1 only: what the model makes of the image's outlines."""
    noisy = images.trace.noisy
    return (_standard(images.trace.errors, norm.trace.errors) * noisy).sum(1) / noisy.sum(1).clamp(min=1)


def restoration(images: Traced, norm: Traced) -> Tensor:
    """The mean likewise of whole restorations from several x_t (Graham et al. 2023, by squared error only)."""
    return _standard(images.trace.restored, norm.trace.restored).mean(1)


def profile(images: Traced, norm: Traced) -> Tensor:
    """Squared Mahalanobis distance of the log errors at all t from those of known images, over K; two-sided.

    Density of states (Morningstar et al. 2021) with one Gaussian. Correlations are shrunk by `SHRINKAGE`.
    """
    reference = _standard(norm.trace.errors, norm.trace.errors)
    count, times = reference.shape
    correlations = (1 - SHRINKAGE) * reference.T @ reference / (count - 1) + SHRINKAGE * torch.eye(times).double()
    z = _standard(images.trace.errors, norm.trace.errors)
    solved: Tensor = untyped.linalg.solve(correlations, z.T)
    return (z * solved.T).sum(1) / times


def _standard(values: Tensor, norm: Tensor) -> Tensor:
    return (values - norm.mean(0)) / norm.std(0).clamp(min=1e-6)


SCORES: dict[str, Score] = {
    "bits": bits,
    "typicality": typicality,
    "complexity": complexity,
    "reconstruction": reconstruction,
    "high-noise": high_noise,
    "restoration": restoration,
    "profile": profile,
}


def p_values(scores: Tensor, others: Tensor) -> Tensor:
    """The conformal p-value (1 + #{others >= score}) / (n + 1) of each score (B,) among n others (Bates et al. 2023).

    Uniform or above for an image drawn as the others were, if these took no part in making the score.
    """
    return (1 + _counts(scores, others, below=0.0, equal=1.0, above=1.0)) / (len(others) + 1)


def auroc(own: Tensor, foreign: Tensor) -> Estimate:
    """P(foreign score > own score) + P(equal)/2 over all pairs, with DeLong's standard error (DeLong et al. 1988).

    The error takes both sets of images as drawn, and the model as given.

    Raises:
        ValueError: unless there are two scores on each side.
    """
    if min(len(own), len(foreign)) < 2:
        raise ValueError("auroc needs at least 2 scores on each side")
    of_foreign = 1 - _counts(foreign, own, below=0.0, equal=0.5, above=1.0) / len(own)
    of_own = _counts(own, foreign, below=0.0, equal=0.5, above=1.0) / len(foreign)
    variance = of_foreign.var() / len(foreign) + of_own.var() / len(own)
    return Estimate(float(of_foreign.mean()), float(variance.sqrt()))


def _counts(values: Tensor, others: Tensor, below: float, equal: float, above: float) -> Tensor:
    """For each value, the sum of these weights over the others that lie below, at and above it, float64."""
    ordered = others.sort().values
    less, not_more = (torch.searchsorted(ordered, values, side=side).double() for side in ("left", "right"))
    return below * less + equal * (not_more - less) + above * (len(others) - not_more)
