"""Rate and distortion along the reverse process (section 4.3, Figure 5 and Table 4 of the paper).

A receiver of x_T .. x_t has been sent L_T + sum of the KL terms of the steps down to t, and shows the x0 predicted
from x_t. Rates are ideal: what a code without any loss of its own would need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ancestral.diffusion.objectives.elbo import Elbo
from ancestral.diffusion.objectives.statistics import psnr
from ancestral.diffusion.processes.levels import HALF_RANGE


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
    def psnr(self) -> np.ndarray:
        """In dB, of the mean squared error over images."""
        return psnr(self.rmse.square())

    @property
    def share_in_last_tenth(self) -> float:
        """Of the rate at the last x_t, how much is sent in the last tenth of the steps."""
        before = max(0, len(self.t) - 1 - math.ceil(len(self.t) / 10))
        return float(1 - self.rate[before] / self.rate[-1])

    def rmse_at(self, rate: float) -> float:
        """The distortion at a rate in bits/dim, linear between steps; nan at a rate that is not reached."""
        return float(np.interp(rate, self.rate.numpy(), self.rmse.numpy(), left=math.nan, right=math.nan))


def curve(measured: Elbo) -> Curve:
    """The curve of images measured along their chains (`elbo_derivation.Chains.elbo`), as a receiver meets them."""
    sent = torch.cat([measured.prior[:, None], measured.terms], 1).cumsum(1)[:, :-1]
    rate, distortion = measured.bits(sent), measured.mse * HALF_RANGE**2
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
