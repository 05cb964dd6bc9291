"""Ways to step, by name. Those that remember make a transition with a memory of its own for every walk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Prediction
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.types import over
from ancestral.diffusion.samplers.langevin import Langevin, PredictorCorrector
from ancestral.diffusion.samplers.multistep import Deis, Dpm, DpmSde, DpmSingle, Ipndm, Lms, Solver, UniPCSteps, Visited
from ancestral.diffusion.samplers.transitions import DDIM, Planned, Stepper, StepThenNoise, Transition


def _raised(schedule: Gaussian, grid: Sequence[int], churn: float) -> list[int]:
    """Where each interval starts: the time whose sigma is nearest to 1 + churn times that of the grid's own.

    The first one stays, as there is nothing above T.
    """
    lam = schedule.log_snr(torch.arange(1, schedule.T + 1)) / 2
    nearest = [int((lam - (lam[t - 1] - math.log1p(churn))).abs().argmin()) + 1 for t in grid[1:-1]]
    return [grid[0], *map(max, grid[1:-1], nearest)]


class HeunSteps(Solver):
    """Euler to s, then the mean of the slopes at both ends (Karras et al. 2022, Algorithms 1 and 2).

    Each interval is visited at its start, and at its end for the second slope: from there the walk goes to where the
    next interval starts, which with churn is a little up again.
    """

    def __init__(self, schedule: Gaussian, times: Sequence[int], starts: Sequence[int], reach: float) -> None:
        super().__init__(schedule, times, 2)
        self.reach, self.second = reach, False
        self.visits = [starts[0]]
        for end, start in zip(times[1:-1], starts[1:], strict=True):
            self.visits += [end, start]
        self.visits += [0] if times[-1] == 0 else [times[-1]] * 2

    def __call__(self, schedule: Gaussian, x_t: Tensor, prediction: Prediction, t: int, s: int) -> Normal:
        """Euler from the start of an interval; at its end the correction, and the noise of the next one's churn."""
        if not self.second:
            self.seen.append(Visited(t, prediction))
            self.second = s != 0
            return DDIM()(schedule, x_t, prediction, t, s)
        self.second = False
        first, end = self.seen[-1], math.exp(-self.lam(t))
        half = max((end - math.exp(-self.lam(first.t))) / 2, -self.reach * end)
        mean = x_t + over(schedule.signal(t) * half, x_t) * (prediction.eps - first.prediction.eps)
        raised = schedule.transition(mean, t, s)  # certain where s = t
        return Normal(raised.mean, raised.var.expand_as(mean))


@dataclass(frozen=True)
class Multistep:
    """A solver of one kind, made anew for each walk by `begin`."""

    kind: type[Dpm | DpmSingle | DpmSde | Deis | Ipndm | Lms]
    order: int

    def begin(self, schedule: Gaussian, grid: Sequence[int]) -> tuple[Stepper, Sequence[int]]:
        """The solver of one walk, and the times that it visits."""
        return self.kind(schedule, grid, self.order), grid


@dataclass(frozen=True)
class UniPC:
    """UniPC-`order` with B(h) = h (bh1) or e^h - 1 (bh2, the default)."""

    order: int = 3
    bh1: bool = False

    def begin(self, schedule: Gaussian, grid: Sequence[int]) -> tuple[Stepper, Sequence[int]]:
        """The solver of one walk, and the times that it visits."""
        return UniPCSteps(schedule, grid, self.order, self.bh1), grid


@dataclass(frozen=True)
class Euler:
    """Euler in sigma with churn: the stochastic sampler of EDM without its second evaluation.

    Args:
        churn: gamma, the share by which sigma is raised before each step; 0 is DDIM.
    """

    churn: float = 0.0

    def begin(self, schedule: Gaussian, grid: Sequence[int]) -> tuple[Stepper, Sequence[int]]:
        """The steps of one walk, and the times that it visits."""
        return StepThenNoise(DDIM(), grid[1:]), [*_raised(schedule, grid, self.churn), grid[-1]]


@dataclass(frozen=True)
class Heun:
    """Heun's method, 2 N - 1 network calls; with churn the stochastic sampler of EDM.

    Args:
        churn: gamma, the share by which sigma is raised before each step; 0 is the deterministic method.
        reach: the most by which a correction replaces the x0 predicted at the start of a step by that at its end. The
            mean of the slopes goes beyond 1 where sigma falls to less than a third, and from sigma = 2 10^4, as cosine
            schedules have it, beyond all bounds. Infinite: as published, for schedules whose sigma is finite.
    """

    churn: float = 0.0
    reach: float = 1.0

    def begin(self, schedule: Gaussian, grid: Sequence[int]) -> tuple[Stepper, Sequence[int]]:
        """The solver of one walk, and the times that it visits."""
        stepper = HeunSteps(schedule, grid, _raised(schedule, grid, self.churn), self.reach)
        return stepper, stepper.visits


SOLVERS: dict[str, Transition | Planned] = {
    "euler": DDIM(0.0),
    "euler-ancestral": DDIM(1.0),
    "euler-churn": Euler(0.2),
    "dpm++2s": Multistep(DpmSingle, 2),
    "dpm++2m": Multistep(Dpm, 2),
    "dpm++3m": Multistep(Dpm, 3),
    "dpm++2m-sde": Multistep(DpmSde, 2),
    "unipc2": UniPC(2),
    "unipc3": UniPC(3),
    "deis3": Multistep(Deis, 3),
    "ipndm4": Multistep(Ipndm, 4),
    "lms4": Multistep(Lms, 4),
    "heun": Heun(),
    "heun-churn": Heun(0.2),
    "langevin": Langevin(),
    "pc": PredictorCorrector(),
}
FLOW_SOLVER = "unipc3"  # what the flow is followed with, which draws no noise
DEFAULT_CALLS = 20  # an image, where nothing is said
TUNED = 2  # steps that one is worth whose time was tuned


def default_solver(steps: int) -> str:
    """The solver of so many steps where none is named: new noise mends from DEFAULT_CALLS on (benchmarks/log.md)."""
    return "dpm++2m-sde" if steps >= DEFAULT_CALLS else FLOW_SOLVER
