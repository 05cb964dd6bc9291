"""Steps of the probability flow that remember the steps before, one walk each; `solvers` names them.

With lambda = log(signal / noise), h = lambda_s - lambda_t and any s < t the flow has the exact solution

    x_s = noise_s / noise_t x_t + signal_s int_0^h e^(u - h) x0(lambda_t + u) du                (DPM-Solver++, Eq. 8)
    x_s / signal_s = x_t / signal_t + int eps d(sigma),   sigma = noise / signal                 (DDIM; EDM)

and a solver is a way to continue x0 or eps from what it was before. Where lambda is infinite (s = 0, zero terminal SNR)
x0 is held, which is exact there, and nothing is continued across.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Prediction
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.types import over

SETTLES = 15  # below so many steps the order falls towards the end, where the steps are the boldest


class Visited(NamedTuple):
    """A time that was visited, and what was predicted there."""

    t: int
    prediction: Prediction


class Solver:
    """One walk of a solver: a transition that remembers the last steps.

    Args:
        schedule: the forward process.
        times: the grid, of which the steps left are counted.
        order: how many predictions are used at the most.
    """

    def __init__(self, schedule: Gaussian, times: Sequence[int], order: int) -> None:
        self.schedule, self.order = schedule, order
        self.left = len(times) - 1
        self.settles = self.left < SETTLES
        self.seen: deque[Visited] = deque(maxlen=max(order, 2))

    def __call__(self, schedule: Gaussian, x_t: Tensor, prediction: Prediction, t: int, s: int) -> Normal:
        """The next state, with no variance."""
        self.remember(Visited(t, prediction))
        order = min(self.order, len(self.seen), self.left if self.settles else self.order)
        self.left -= 1
        return self.step(x_t, s, order if math.isfinite(self.lam(s)) else 1)

    def remember(self, seen: Visited) -> None:
        """Keep what was seen; nothing is continued from where lambda is infinite."""
        if self.seen and not math.isfinite(self.lam(self.seen[-1].t)):
            self.seen.clear()
        self.seen.append(seen)

    def step(self, x_t: Tensor, s: int, order: int) -> Normal:
        """From the last time seen to s, by the last `order` predictions."""
        raise NotImplementedError

    def lam(self, t: int) -> float:
        """log(signal / noise)."""
        return float(self.schedule.log_snr(t)) / 2

    def past(self, order: int, of: Callable[[Prediction], Tensor]) -> tuple[list[float], list[Tensor]]:
        """(lambda, values) at the last `order` times, the newest first."""
        recent = list(self.seen)[::-1][:order]
        return [self.lam(one.t) for one in recent], [of(one.prediction) for one in recent]

    def hold(self, x_t: Tensor, x0: Tensor, s: int, t: int | None = None) -> Tensor:
        """The exact step for an x0 that does not change: noise_s / noise_t x_t + signal_s (1 - e^-h) x0.

        t is the last time seen when left out.
        """
        t = self.seen[-1].t if t is None else t
        ratio = self.schedule.noise(s) / self.schedule.noise(t)
        decay = math.exp(self.lam(t) - self.lam(s))
        return over(ratio, x_t) * x_t + over(self.schedule.signal(s) * (1 - decay), x_t) * x0


def certain(mean: Tensor) -> Normal:
    """The one state that a step without noise can end in."""
    return Normal(mean, torch.zeros_like(mean))


def _x0(prediction: Prediction) -> Tensor:
    return prediction.x0


def _eps(prediction: Prediction) -> Tensor:
    return prediction.eps


def _combined(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    return torch.stack([w * value for w, value in zip(weights, values, strict=True)]).sum(0)


def lagrange(
    nodes: Sequence[float], low: float, high: float, density: Callable[[np.ndarray], np.ndarray]
) -> list[float]:
    """int_low^high l_j(v) density(v) dv for each basis polynomial on the nodes, by Gauss-Legendre quadrature."""
    point, weight = np.polynomial.legendre.leggauss(48)
    v = low + (high - low) * (point + 1) / 2
    mass = density(v) * weight * (high - low) / 2
    return [
        float((mass * np.prod([(v - other) / (one - other) for other in nodes if other != one], axis=0)).sum())
        for one in nodes
    ]


def _continued(lam: Sequence[float], x0: Sequence[Tensor], h: float) -> Tensor:
    """The x0 which, held over a step of h, is worth the polynomial through the values so far, the newest first."""
    if len(x0) == 1:
        return x0[0]
    if len(x0) == 2:  # the midpoint's weight, as published
        return x0[0] + h / (2 * (lam[0] - lam[1])) * (x0[0] - x0[1])
    # Divided by the integral of a constant, since `hold` multiplies by it.
    weights = lagrange(lam, lam[0], lam[0] + h, lambda v: np.exp(v - lam[0] - h))
    return _combined([w / -math.expm1(-h) for w in weights], x0)


class Dpm(Solver):
    """x0 as the polynomial in lambda through its last values; order 2 with the midpoint's weight."""

    def step(self, x_t: Tensor, s: int, order: int) -> Normal:
        """DPM-Solver++ (Lu et al. 2022b), multistep."""
        lam, x0 = self.past(order, _x0)
        return certain(self.hold(x_t, _continued(lam, x0, self.lam(s) - lam[0]), s))


class DpmSingle(Solver):
    """Order 2 in pairs: a step of order 1, then from the state before it to s with the slope between its ends."""

    def __init__(self, schedule: Gaussian, times: Sequence[int], order: int) -> None:
        super().__init__(schedule, times, order)
        self.base: Tensor | None = None  # the state that an open pair began from

    def step(self, x_t: Tensor, s: int, order: int) -> Normal:
        """DPM-Solver++ (Lu et al. 2022b), singlestep: the state between the two ends is only looked at."""
        lam, x0 = self.past(order, _x0)
        if self.base is None or order == 1:
            self.base = x_t
            return certain(self.hold(x_t, x0[0], s))
        base, self.base = self.base, None
        middle = x0[1] + (self.lam(s) - lam[1]) / (2 * (lam[0] - lam[1])) * (x0[0] - x0[1])
        return certain(self.hold(base, middle, s, self.seen[-2].t))


class DpmSde(Solver):
    """The same of order 2 for the reverse SDE, with noise of variance noise_s^2 (1 - e^-2h)."""

    def step(self, x_t: Tensor, s: int, order: int) -> Normal:
        """SDE-DPM-Solver++ (Lu et al. 2022b)."""
        lam, x0 = self.past(order, _x0)
        h = self.lam(s) - lam[0]
        ratio = self.schedule.noise(s) / self.schedule.noise(self.seen[-1].t) * math.exp(-h)
        share = -math.expm1(-2 * h)
        mean = over(ratio, x_t) * x_t + over(self.schedule.signal(s) * share, x_t) * _continued(lam, x0, h)
        return Normal(mean, over(self.schedule.noise_var(s) * share, x_t).expand_as(mean))


class UniPCSteps(Solver):
    """A predictor and, from the prediction at its result, a corrector: no further network calls (Zhao et al. 2023)."""

    def __init__(self, schedule: Gaussian, times: Sequence[int], order: int, bh1: bool) -> None:
        super().__init__(schedule, times, order)
        self.bh1, self.settles = bh1, True
        self.base: Tensor | None = None  # the state that the last step began from, corrected itself
        self.used = 1  # order of the last step

    def __call__(self, schedule: Gaussian, x_t: Tensor, prediction: Prediction, t: int, s: int) -> Normal:
        """Correct x_t by what is predicted at it, then go on."""
        if self.base is not None and math.isfinite(self.lam(self.seen[-1].t)):
            x_t = self._corrected(prediction.x0, t)
        result = super().__call__(schedule, x_t, prediction, t, s)
        self.base = x_t
        return result

    def step(self, x_t: Tensor, s: int, order: int) -> Normal:
        """UniP of this order."""
        self.used = order
        lam, x0 = self.past(order, _x0)
        h = self.lam(s) - lam[0]
        if order == 1:
            return certain(self.hold(x_t, x0[0], s))
        r = [(one - lam[0]) / h for one in lam[1:]]
        return certain(self._moved(x_t, x0[0], x0[1:], r, h, s))

    def _corrected(self, arrived: Tensor, s: int) -> Tensor:
        assert self.base is not None
        lam, x0 = self.past(self.used, _x0)
        h = self.lam(s) - lam[0]
        r = [(one - lam[0]) / h for one in lam[1:]]
        return self._moved(self.base, x0[0], [*x0[1:], arrived], [*r, 1.0], h, s)

    def _moved(
        self, base: Tensor, x0: Tensor, others: Sequence[Tensor], r: Sequence[float], h: float, s: int
    ) -> Tensor:
        """The step that holds x0, and what x0's differences to the others, r h away in lambda, add to it."""
        w = [0.5] if len(r) == 1 else self._weights(r, h)
        slope = _combined([one / ratio for one, ratio in zip(w, r, strict=True)], [one - x0 for one in others])
        return self.hold(base, x0, s) - over(self.schedule.signal(s) * self._b(h), base) * slope

    def _b(self, h: float) -> float:
        return -h if self.bh1 else math.expm1(-h)

    def _weights(self, r: Sequence[float], h: float) -> list[float]:
        """Those that make the first powers of u exact."""
        rows = np.array([[one**k for one in r] for k in range(len(r))])
        c = math.expm1(-h) / -h - 1
        right: list[float] = []
        for k in range(1, len(r) + 1):
            right.append(c * math.factorial(k) / self._b(h))
            c = c / -h - 1 / math.factorial(k + 1)
        return np.linalg.solve(rows, np.array(right)).tolist()


class _EpsSolver(Solver):
    """eps continued, and x_s / signal_s moved along it by `weights`, which sum to sigma_s - sigma_t."""

    def step(self, x_t: Tensor, s: int, order: int) -> Normal:
        lam, eps = self.past(order, _eps)
        first = self.seen[-1]
        mean = over(self.schedule.signal(s), x_t) * first.prediction.x0 + over(self.schedule.noise(s), x_t) * eps[0]
        if order > 1:
            weights = self.weights(lam, self.lam(s))
            moved = _combined(weights[1:], [one - eps[0] for one in eps[1:]])
            mean = mean + over(self.schedule.signal(s), x_t) * moved
        return certain(mean)

    def weights(self, lam: Sequence[float], end: float) -> list[float]:
        """Of each eps, the newest first."""
        raise NotImplementedError


class Deis(_EpsSolver):
    """eps as the polynomial in log sigma through its last values (Zhang and Chen 2023, tAB in log rho)."""

    def weights(self, lam: Sequence[float], end: float) -> list[float]:
        """int d(sigma) of each basis polynomial in log sigma."""
        return lagrange([-one for one in lam], -lam[0], -end, np.exp)


class _InSigma(_EpsSolver):
    """Finite at sigma = 0."""

    def __call__(self, schedule: Gaussian, x_t: Tensor, prediction: Prediction, t: int, s: int) -> Normal:
        """All orders to the end: the last step to sigma = 0 is one like the others."""
        self.remember(Visited(t, prediction))
        return self.step(x_t, s, min(self.order, len(self.seen)))


class Lms(_InSigma):
    """eps as the polynomial in sigma through its last values: Adams-Bashforth for steps of any lengths.

    Linear multistep, or DEIS with tAB in rho (Zhang and Chen 2023, Eq. 15 and Prop. 3).
    """

    def weights(self, lam: Sequence[float], end: float) -> list[float]:
        """int d(sigma) of each basis polynomial in sigma."""
        return lagrange([math.exp(-one) for one in lam], math.exp(-lam[0]), math.exp(-end), np.ones_like)


class Ipndm(_InSigma):
    """eps with the weights of Adams and Bashforth for equal steps (Zhang and Chen 2023)."""

    table = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))

    def weights(self, lam: Sequence[float], end: float) -> list[float]:
        """The table's, times the length of the step in sigma."""
        length = math.exp(-end) - math.exp(-lam[0])
        return [length * share for share in self.table[len(lam) - 1]]
