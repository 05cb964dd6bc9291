"""What becomes of a picture whose bits end before the last step: three ways to go on from x_t."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Predictor
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.loop import from_model, walk
from ancestral.diffusion.samplers.sample import finish
from ancestral.diffusion.samplers.solvers import FLOW_SOLVER, SOLVERS
from ancestral.diffusion.samplers.transitions import Ancestral, optimal

COMPLETION_CALLS = 12  # of the network, at most

# Of a predictor, x_t, the times up to t that it may be asked at, rising, the x0 predicted from x_t and each tile's
# number in its image: x0.
Finish = Callable[[Predictor, Tensor, Sequence[int], Tensor, Sequence[int]], Tensor]


def mean(predictor: Predictor, x_t: Tensor, below: Sequence[int], x0: Tensor, numbers: Sequence[int]) -> Tensor:
    """The predicted x0: the least squared error of the three, and the smoothest (the paper's Eq. 15)."""
    return x0


def ode(predictor: Predictor, x_t: Tensor, below: Sequence[int], x0: Tensor, numbers: Sequence[int]) -> Tensor:
    """The deterministic flow down from x_t with UniPC: sharp, one picture for a file (Theis et al. 2022)."""
    times = down(predictor.schedule, below)
    return finish(walk(predictor, x_t, times, SOLVERS[FLOW_SOLVER], lambda move: move.p.mean))


def sample(predictor: Predictor, x_t: Tensor, below: Sequence[int], x0: Tensor, numbers: Sequence[int]) -> Tensor:
    """A sample of the model given x_t: the most natural, and the furthest from the original in each pixel.

    One picture for a file too, whatever is decoded with it.
    """
    noise = Streams(0, "codec finish", numbers)
    return finish(walk(predictor, x_t, down(predictor.schedule, below), Ancestral(optimal), from_model(noise)))


def down(schedule: Gaussian, below: Sequence[int]) -> list[int]:
    """At most `COMPLETION_CALLS` of these rising times, the last and 0 among them, the inner ones even in log SNR."""
    log_snr = schedule.log_snr(torch.tensor(below))
    finite = log_snr[log_snr.isfinite()]  # all but that of T at zero terminal SNR
    count = min(COMPLETION_CALLS, len(below)) - (len(log_snr) - len(finite))
    targets = torch.linspace(float(finite[-1]), float(finite[0]), count, dtype=torch.float64)
    inner = {below[int((log_snr - one).abs().argmin())] for one in targets.tolist()}
    return [*sorted(inner | {below[-1]}, reverse=True), 0]


FINISHES: dict[str, Finish] = {"mean": mean, "ode": ode, "sample": sample}
