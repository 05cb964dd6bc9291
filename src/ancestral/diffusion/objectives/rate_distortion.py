"""Rate and distortion along the reverse process (section 4.3, Figure 5 and Table 4 of the paper).

A receiver of x_T .. x_t has been sent L_T + sum of the KL terms of the steps down to t, and shows the x0 predicted
from x_t. Rates are ideal: what a code without any loss of its own would need.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Predictor
from ancestral.diffusion.objectives.elbo import Elbo, all_places, collect
from ancestral.diffusion.objectives.losses import Likelihood, bound_term
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.loop import from_posterior, walk
from ancestral.diffusion.samplers.transitions import Transition

BYTES = 127.5  # levels of 0..255 in a unit of [-1, 1]


@torch.no_grad()
def along_chain(
    denoiser: Predictor,
    x0: Tensor,
    grid: Sequence[int],
    transition: Transition,
    noise: Streams,
    likelihood: Likelihood = Normal.log_prob_coded,
) -> Elbo:
    """The bound's KL terms along one chain of q(x_T .. x_1 | x0), as a receiver of x0 (B, ...) meets it (Algorithm 4).

    Each term has the expectation that it has in `elbo.elbo`; here those of an image belong to one chain.
    """
    schedule, terms, errors = denoiser.schedule, [], []
    x_t = schedule.marginal(x0, grid[0]).sample(noise.normal(x0.shape[1:]).to(x0))
    for step in walk(denoiser, x_t, grid, transition, from_posterior(schedule, x0, noise)):
        t, s = (torch.full((len(x0),), time) for time in (step.t, step.s))
        terms.append(bound_term(schedule, step.p, step.x_t, x0, t, s, likelihood))
        errors.append((step.prediction.x0 - x0).square().flatten(1).mean(1))
    places, weight = all_places(len(grid) - 1, len(x0))
    return collect(grid, places, weight, schedule.prior(x0, grid[0]), terms, errors, x0[0].numel())


@dataclass(frozen=True)
class Curve:
    """Rate and distortion when x_t has just been received, means over images, T first. float64 (K,) each."""

    t: Tensor  # int64
    rate: Tensor  # bits/dim: L_T and the terms of all steps before
    rate_error: Tensor  # its standard error; nan of a single image
    rmse: Tensor  # on 0..255, root of the mean squared error over images
    rmse_error: Tensor
    lossless: float  # bits/dim of the whole bound: L_0 as well

    @property
    def psnr(self) -> Tensor:
        """In dB, of the mean squared error over images."""
        return 20 * (255 / self.rmse).log10()

    @property
    def share_in_last_tenth(self) -> float:
        """Of the rate at the last x_t, how much is sent in the last tenth of the steps."""
        before = max(0, len(self.t) - 1 - math.ceil(len(self.t) / 10))
        return float(1 - self.rate[before] / self.rate[-1])

    def rmse_at(self, rate: float) -> float:
        """The distortion at a rate in bits/dim, linear between steps; nan at a rate that is not reached."""
        return float(np.interp(rate, self.rate.numpy(), self.rmse.numpy(), left=math.nan, right=math.nan))


def curve(measured: Elbo) -> Curve:
    """The curve of images measured along their chains, every term."""
    sent = torch.cat([measured.prior[:, None], measured.terms], 1).cumsum(1)[:, :-1]
    rate, distortion = measured.bits(sent), measured.mse * BYTES**2
    count = len(rate)
    rmse = distortion.mean(0).sqrt()
    spread = [
        values.std(0) / math.sqrt(count) if count > 1 else torch.full_like(values[0], math.nan)
        for values in (rate, distortion)
    ]
    return Curve(
        t=measured.t[0],
        rate=rate.mean(0),
        rate_error=spread[0],
        rmse=rmse,
        rmse_error=spread[1] / (2 * rmse.clamp(min=1e-9)),
        lossless=float(measured.bits_per_dim.mean()),
    )


def psnr(images: np.ndarray, shown: np.ndarray) -> float:
    """20 log10(255 / RMSE) in dB over all values of both, uint8 of one shape; infinite where they are equal."""
    mse = np.square(images.astype(np.float64) - shown).mean()
    return float(10 * np.log10(255**2 / mse)) if mse else math.inf
