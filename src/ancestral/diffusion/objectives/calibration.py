"""A model's own squared error, measured: the table that makes a predictor `Calibrated`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ancestral.diffusion.denoisers.calibrated import bucket_sums, mean_errors
from ancestral.diffusion.denoisers.denoiser import Predictor
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.levels import HALF_RANGE
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.grids import log_snr

POINTS = 40  # times at which it is measured
PRIOR_WEIGHT = 50  # pixels that the mean of all counts for in a bucket
LEAST_ERROR = (0.15 / HALF_RANGE) ** 2  # of a predicted x0: 0.15 byte, chosen on held-out images (benchmarks/log.md)


@torch.no_grad()
def calibrate(denoiser: Predictor, x0: Tensor, noise: Streams, times: Sequence[int] | None = None) -> Tensor:
    """The table that `Calibrated` needs: E|x0 - x0_hat|^2 at each t and bucket of x0_hat, float64 (T + 1, buckets).

    Measured at falling times, when left out at POINTS spread evenly in log SNR, on images x0 (B, ...), interpolated in
    log-log between them. Use training images: the table is a parameter of the model. None is below LEAST_ERROR: what a
    mean squared error says of bytes that are nearly always right is that one in so many is wrong, and a Gaussian of
    that width says never.
    """
    schedule = denoiser.schedule
    times = times or log_snr(schedule, min(POINTS, schedule.T))[:-1]
    errors: list[Tensor] = []
    for t in reversed(times):
        x_t = schedule.marginal(x0, t).draw(noise)
        x0_hat = denoiser(x_t, t).x0
        mean = (x0_hat - x0).cpu().double().square().flatten().mean()
        measured = mean_errors(*bucket_sums(x0_hat, x0), mean, PRIOR_WEIGHT)
        errors.append(measured.clamp(min=LEAST_ERROR))
    return interpolated(schedule, times, torch.stack(errors).flip(0))


def interpolated(schedule: Gaussian, times: Sequence[int], x0_var: Tensor) -> Tensor:
    """Squared errors (times, buckets) at strictly falling times as a table over t, (T + 1, buckets): log-log in SNR."""
    measured_at = schedule.log_snr(torch.tensor(times)).numpy()
    every = schedule.log_snr(torch.arange(1, schedule.T + 1)).numpy()
    logs = x0_var.clamp(min=1e-12).log().numpy()
    columns = [np.interp(every, measured_at, logs[:, bucket]) for bucket in range(logs.shape[1])]
    table = torch.as_tensor(np.stack(columns, 1)).exp()
    return torch.cat([torch.zeros(1, logs.shape[1], dtype=torch.float64), table])
