"""How sure a prediction is, without a jump: what two machines must agree on has to bear their last bits."""

from __future__ import annotations

import torch
from torch import Tensor

from ancestral.denoiser import X0_EDGES, Prediction, Predictor
from ancestral.schedule import Time

# Where a bucket's measured error is taken to hold: the distances to black or white in the middle of each, in log.
_DISTANCES = (0.0, 0.002, 0.0055, 0.017, 0.055, 0.17)
NODES = torch.tensor([*(d - 1 for d in _DISTANCES), 0.0, *(1 - d for d in reversed(_DISTANCES))], dtype=torch.float64)


class Smooth:
    """A predictor with its own squared error attached: the table of `Calibrated`, interpolated instead of looked up.

    Looked up, a prediction beside the edge of a bucket, which differs in its last bits between two machines, would be
    given one variance here and another there, and the sample made with it would differ visibly.

    Args:
        predictor: whose squared error was measured.
        x0_var: float64 (T + 1, buckets), E|x0 - x0_hat|^2, as `bound.calibrate` measures it.
    """

    def __init__(self, predictor: Predictor, x0_var: Tensor) -> None:
        if x0_var.shape[1] != len(X0_EDGES) + 1:
            raise ValueError(f"x0_var has {x0_var.shape[1]} buckets, not {len(X0_EDGES) + 1}")
        self.predictor, self.schedule = predictor, predictor.schedule
        self.log_var = x0_var.double().clamp(min=1e-12).log()

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        """Predict, with the measured variance attached, linear in log between the middles of the buckets."""
        prediction = self.predictor(x_t, t)
        nodes = NODES.to(prediction.x0)
        x0 = prediction.x0.clamp(-1, 1).contiguous()
        right = torch.bucketize(x0, nodes).clamp(1, len(nodes) - 1)
        share = (x0 - nodes[right - 1]) / (nodes[right] - nodes[right - 1])
        log_var = self.log_var[t].to(x0).expand(len(x0), -1)
        left, right = (log_var.gather(1, place.flatten(1)).reshape(x0.shape) for place in (right - 1, right))
        return prediction._replace(x0_var=(left + share * (right - left)).exp())
