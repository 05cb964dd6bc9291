"""A decoder and a reverse variance that know the model's own error."""

from __future__ import annotations

import torch
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Prediction, Predictor, Wrapped
from ancestral.diffusion.processes.types import Time

# Pixels predicted exactly black or white are far surer than the rest: a bucket for each, and finer ones beside them.
_BELOW_1 = (1e-6, 0.003, 0.01, 0.03, 0.1, 0.3)
X0_EDGES = torch.tensor([*(-1 + d for d in _BELOW_1), *(1 - d for d in reversed(_BELOW_1))])
BUCKETS = len(X0_EDGES) + 1


class Calibrated(Wrapped):
    """A predictor that also knows its own squared error, as a table over t and over the value it predicts.

    Args:
        predictor: whose squared error was measured.
        x0_var: float64 (T + 1, buckets), E|x0 - x0_hat|^2 at each t for x0_hat in each bucket of `X0_EDGES`; it becomes
            Var[x0 | x_t], from which the optimal reverse variance follows (Bao et al. 2022, Analytic-DPM).
    """

    def __init__(self, predictor: Predictor, x0_var: Tensor) -> None:
        super().__init__(predictor)
        self.x0_var = x0_var

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        """Predict, with the measured variance attached."""
        prediction = self.predictor(x_t, t)
        bucket = x0_bucket(prediction.x0).flatten(1)
        row = t.round().long() if isinstance(t, Tensor) and t.is_floating_point() else t
        rows = self.x0_var[row].to(x_t).expand(len(x_t), -1)
        return prediction._replace(x0_var=rows.gather(1, bucket).reshape(x_t.shape))


def x0_bucket(x0: Tensor) -> Tensor:
    """Which bucket of `X0_EDGES` each predicted value lies in, int64."""
    return torch.bucketize(x0.detach().contiguous(), X0_EDGES.to(x0))


def bucket_sums(x0_hat: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
    """(sums of |x0 - x0_hat|^2, counts) by bucket of x0_hat, float64."""
    bucket = x0_bucket(x0_hat).flatten().cpu()
    squared = (x0_hat - x0).cpu().double().square().flatten()
    sums = torch.zeros(BUCKETS, dtype=torch.float64).index_add_(0, bucket, squared)
    return sums, bucket.bincount(minlength=BUCKETS).double()


def mean_errors(sums: Tensor, counts: Tensor, mean: Tensor, weight: float) -> Tensor:
    """E|x0 - x0_hat|^2 of each bucket; one with few values leans on the mean of all, by the weight of so many."""
    return (sums + weight * mean) / (counts + weight)
