"""How far drawn images are from real ones, on features of any network.

A metric is made from the features of the reference, computes there what it needs once, and is then evaluated on subsets
of the samples: all of them, and all but a tenth, from which its error comes. The reference is taken as fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ancestral.diffusion.objectives.statistics import Estimate
from ancestral.diffusion.processes.streams import permutation, stream

GROUPS = 10  # of the jackknife
BOOTSTRAPS = 1000
APART = 5  # standard deviations of the logarithm, and at least a factor of two, by which a repetition is nearer
AS_NEAR = 0.01  # share of the held-out images that are as near to a training image as a copy
NEIGHBOURS = 5  # that span the manifold, as Naeem et al. 2020 chose
ROWS = 1024  # of a pairwise matrix that are held at a time
VALUES = 1 << 24  # of what is compared that are held at a time
ROUNDING = 1e-5  # of the vectors' length, within which distances are equal

Metric = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""Samples (N, D) and subsets of them, bool (V, N), to the named values (V,)."""


def frechet(reference: Tensor) -> Metric:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the two sets' means and covariances (Heusel et al. 2017).

    Biased upwards by about 1/N: compare at equal numbers of images only.
    """
    mean, root = _moments(reference)

    def distance(samples: Tensor) -> Tensor:
        other_mean, other = _moments(samples)
        # With C1 = R^T R and C2 = S^T S, tr (C1 C2)^(1/2) is the sum of the singular values of R S^T.
        cross = torch.linalg.svdvals(root @ other.T).sum()
        return (mean - other_mean).square().sum() + root.square().sum() + other.square().sum() - 2 * cross

    return lambda samples, subsets: {"fd": torch.stack([distance(samples[kept]) for kept in subsets])}


def kernel(reference: Tensor) -> Metric:
    """Kernel distance: the unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018)."""
    y = reference.double()
    own = _mean_of_pairs(y, torch.ones(1, len(y), dtype=torch.float64))

    def measure(samples: Tensor, subsets: Tensor) -> dict[str, Tensor]:
        x, chosen = samples.double(), subsets.double()
        between = torch.cat([_cubic(part, y).mean(1) for part in x.split(ROWS)])
        return {"kid": _mean_of_pairs(x, chosen) + own - 2 * chosen @ between / chosen.sum(1)}

    return measure


def manifold(reference: Tensor) -> Metric:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    A set's manifold is the union of closed balls about its points, each out to the point's fifth nearest neighbour: of
    radius 0 where an image is there six times. So precision, recall and coverage of equal sets are 1, always, and their
    density is 6/5, or more where points are equally far: N/5 of N equal images.
    """
    y = reference.double()
    radii = _radii(y, torch.ones(1, len(y), dtype=torch.bool))[0]

    def measure(samples: Tensor, subsets: Tensor) -> dict[str, Tensor]:
        x, chosen = samples.double(), subsets.double()
        reach = _radii(x, subsets)
        counts = torch.zeros(len(x), dtype=torch.float64)
        covered = torch.zeros(len(subsets), len(y), dtype=torch.float64)
        recalled = torch.zeros(len(subsets), len(y), dtype=torch.bool)
        for rows in torch.arange(len(x)).split(ROWS):
            distances = torch.cdist(x[rows], y)
            inside = (distances <= radii).double()
            counts[rows] = inside.sum(1)
            covered += chosen[:, rows] @ inside
            for found, own in zip(recalled, reach[:, rows], strict=True):
                found |= (distances <= own[:, None]).any(0)
        return {
            "precision": chosen @ (counts > 0).double() / chosen.sum(1),
            "recall": recalled.double().mean(1),
            "density": chosen @ counts / chosen.sum(1) / NEIGHBOURS,
            "coverage": (covered > 0).double().mean(1),
        }

    return measure


def score(logits: Tensor, subsets: Tensor) -> dict[str, Tensor]:
    """exp E[KL(p(class | image) || p(class))] from a network's logits (N, K) (Salimans et al. 2016).

    Needs no reference, and so says nothing of likeness: between 1 and the number of classes.
    """
    given = logits.double().log_softmax(1)
    chosen = subsets.double() / subsets.sum(1, keepdim=True)
    everywhere = chosen @ given.exp()
    information = chosen @ (given.exp() * given).sum(1) - torch.special.xlogy(everywhere, everywhere).sum(1)
    return {"is": information.exp()}


METRICS: dict[str, Callable[[Tensor], Metric]] = {"frechet": frechet, "kernel": kernel, "manifold": manifold}


def against(reference: Tensor) -> Metric:
    """All metrics against one reference as one."""
    ready = [metric(reference) for metric in METRICS.values()]
    return lambda samples, subsets: {
        name: values for metric in ready for name, values in metric(samples, subsets).items()
    }


def need_enough(count: int) -> None:
    """Refuse so few samples that a group of the jackknife would have no two.

    Raises:
        ValueError: when there are fewer.
    """
    if count < 2 * GROUPS:
        raise ValueError(f"at least {2 * GROUPS} images are needed, got {count}")


def with_errors(metric: Metric, samples: Tensor) -> dict[str, Estimate]:
    """Each value with its standard error by the delete-a-group jackknife: sqrt((g-1)/g sum_i (v_i - mean v)^2).

    v_i is the value without the i-th of ten groups. Groups are drawn by lot, so that no order of the samples matters.
    Its square is never too small on average (Efron and Stein 1981), and too large where samples stand in for one
    another: of recall and coverage the error is 1.3 to 1.75 times what fresh samples differ by.

    Raises:
        ValueError: when there are fewer than two samples a group.
    """
    count = len(samples)
    need_enough(count)
    subsets = torch.ones(GROUPS + 1, count, dtype=torch.bool)
    order = torch.from_numpy(permutation(count, 0, "jackknife", 0))
    for group in range(GROUPS):
        subsets[group + 1, order[group::GROUPS]] = False
    return {
        name: Estimate(float(values[0]), float(values[1:].std(correction=0)) * (GROUPS - 1) ** 0.5)
        for name, values in metric(samples, subsets).items()
    }


def class_imbalance(samples: Tensor, reference: Tensor) -> Estimate:
    """Half the sum of |p - q| over the shares of the classes (N,): the share of samples that are in a wrong class.

    Chance alone gives about `imbalance_by_chance`. The error is by a bootstrap of the samples; the reference is fixed.
    """
    classes = int(max(samples.max(), reference.max())) + 1
    drawn, real = (torch.bincount(one, minlength=classes).numpy() for one in (samples, reference))
    again = stream(0, "bootstrap", 0).multinomial(len(samples), drawn / len(samples), BOOTSTRAPS)
    values = np.abs(np.stack([drawn, *again]) / len(samples) - real / len(reference)).sum(1) / 2
    return Estimate(float(values[0]), float(values[1:].std()))


def imbalance_by_chance(reference: Tensor, count: int) -> float:
    """What `class_imbalance` is on the average of so many samples of the reference's shares and as many of its own."""
    shares = torch.bincount(reference).double() / len(reference)
    return float((shares * (1 - shares) / (math.pi * count)).sqrt().sum())


def few(names: Iterable[str], count: int, features: int, network: str) -> list[str]:
    """Those of the metrics, named as `name-network`, that so few images on each side distort beyond their error.

    A Frechet distance of no more images than features is of covariances without full rank; the balls of the manifolds
    hold more than a hundredth of a set of fewer than 500.
    """
    least = {"fd": features + 1} | dict.fromkeys(("precision", "recall", "density", "coverage"), 100 * NEIGHBOURS)
    return [name for name in names if count < least.get(name.removesuffix(f"-{network}"), 0)]


def nearest(samples: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Distance (N,) of each sample to the nearest of the others, and that one's row (N,)."""
    distances, rows = closest(samples, among, 1)
    return distances[:, 0], rows[:, 0]


def closest(samples: Any, among: Any, count: int, between: Callable[[], None] = lambda: None) -> tuple[Tensor, Tensor]:
    """Distances (N, count) of each sample to the nearest of the others, nearest first, and their rows (N, count).

    Within rounding of the samples' length they are 0.

    Args:
        samples: (N, ...), tensors or arrays; only parts are copied.
        among: (M, ...), of which slices are taken.
        count: how many, at most M.
        between: is called before each part.
    """
    size = max(1, min(4 * ROWS, VALUES // math.prod(samples.shape[1:])))
    found = []
    for part in range(0, len(samples), min(ROWS, size)):
        x = _flat(samples[part : part + min(ROWS, size)])
        distances, rows = x.new_empty(len(x), 0), torch.empty(len(x), 0, dtype=torch.int64)
        for first in range(0, len(among), size):
            between()
            here = torch.cdist(x, _flat(among[first : first + size]))
            columns = torch.arange(first, first + here.shape[1]).expand_as(here)
            both, candidates = torch.cat([distances, here], 1), torch.cat([rows, columns], 1)
            distances, chosen = both.topk(min(count, both.shape[1]), largest=False)
            rows = candidates.gather(1, chosen)
        found.append((torch.where(distances <= ROUNDING * x.norm(dim=1, keepdim=True), 0, distances), rows))
    distances, rows = (torch.cat(one) for one in zip(*found, strict=True))
    return distances, rows


def _flat(part: Any) -> Tensor:
    wide = part.double() if isinstance(part, Tensor) else torch.from_numpy(np.asarray(part).astype(np.float64))
    return wide.flatten(1)


def repeats(distances: Tensor) -> Tensor:
    """Which images repeat one of those that they are nearest to, bool (N,): equal, or far nearer than is usual here.

    Far is an outlier among the logarithms of those that are not 0, by their median and its absolute deviation: no scale
    need be known, and up to half may be near repetitions.
    """
    logs = distances.log()
    others = logs[distances > 0]
    if not len(others):
        return torch.ones_like(distances, dtype=torch.bool)
    deviation = 1.4826 * (others - others.median()).abs().median()  # the standard deviation of a Gaussian
    return logs < others.median() - (APART * deviation).clamp(min=math.log(2))


def copies(distances: Tensor, held_out: Tensor) -> Estimate:
    """The share of samples nearer to a training image than all but a hundredth of the held-out images are.

    About 0.01 where a model has learned and not memorised; 1 where it repeats its training images.

    Args:
        distances: of the samples to their nearest training images, (N,).
        held_out: the same of images that were never trained on, without those that `repeats` finds.
    """
    found = (distances <= held_out.quantile(AS_NEAR)).double()
    return Estimate(float(found.mean()), float(found.std() / len(found) ** 0.5))


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and an R with no more rows than need be for which R^T R is the covariance."""
    mean = features.double().mean(0)
    x = (features.double() - mean) / (len(features) - 1) ** 0.5
    return mean, x if x.shape[0] <= x.shape[1] else torch.linalg.qr(x, mode="r").R


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_of_pairs(x: Tensor, chosen: Tensor) -> Tensor:
    """The kernel's mean over the pairs of different points of each subset, (V,)."""
    total, count = torch.zeros(len(chosen), dtype=torch.float64), chosen.sum(1)
    for rows in torch.arange(len(x)).split(ROWS):
        values = _cubic(x[rows], x)
        values.diagonal(int(rows[0])).zero_()
        total += (chosen[:, rows] @ values * chosen).sum(1)
    return total / (count * (count - 1))


def _radii(points: Tensor, subsets: Tensor) -> Tensor:
    """Distance of each point to its fifth nearest other in each subset (V, N); -inf for points outside of it.

    A little more, as distances are rounded: at least within what vectors are equal.
    """
    radii = torch.full(subsets.shape, -torch.inf, dtype=torch.float64)
    least = ROUNDING * points.square().sum(1).mean().sqrt()
    for rows in torch.arange(len(points)).split(ROWS):
        distances = torch.cdist(points[rows], points)
        distances.diagonal(int(rows[0])).fill_(torch.inf)
        for own, kept in zip(radii, subsets, strict=True):
            fifth = distances[:, kept].topk(NEIGHBOURS, largest=False).values[:, -1]
            own[rows] = torch.where(kept[rows], (fifth * (1 + 1e-7)).clamp(min=least), -torch.inf)
    return radii
