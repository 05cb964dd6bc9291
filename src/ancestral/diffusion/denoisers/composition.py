"""Products, mixtures and negations of models, or of one model's classes, at every noise level.

    product    prod_i q_i(x_t)^w_i            score = sum_i w_i score_i
    negation   q(x_t)^(1 + w) / q'(x_t)^w     a product, of weights 1 + w and -w
    mixture    sum_i w_i q_i(x_t)             score = sum_i r_i score_i,   r_i = w_i q_i(x_t) / sum_j w_j q_j(x_t)

(Du et al. 2023, section 4). The noised mixture is the mixture of the noised, and the steps of the chain sample it. The
noised product is not the product of the noised: at each level the product is a density of its own, no chain leads from
one to the next, and what the steps miss is left to moves at one level (`mcmc`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Clip, Prediction, Predictor, predict, unclipped
from ancestral.diffusion.denoisers.energy import Energy
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.types import Time, over


def _common(parts: Sequence[Predictor]) -> Gaussian:
    """The forward process of all parts.

    Raises:
        ValueError: when there is none.
    """
    if not parts:
        raise ValueError("nothing to compose: give one predictor or more")
    first = parts[0].schedule
    for number, part in enumerate(parts):
        if not torch.equal(part.schedule.log_alpha_bar, first.log_alpha_bar):
            raise ValueError(f"part {number} has another forward process than part 0; compose models of one schedule")
    return first


def _log_prob(parts: Sequence[Any], x_t: Tensor, t: Time) -> Tensor:
    """(parts, B)."""
    return torch.stack([part.log_prob(x_t, t) for part in parts])


def _need_energies(parts: Sequence[Predictor], what: str) -> None:
    for number, part in enumerate(parts):
        if not hasattr(part, "log_prob"):
            raise ValueError(
                f"{what} needs the log density of every part, and part {number}, a {type(part).__name__}, has only a "
                "score; use energies: analytic.Mixture, or energy.Learned around an EnergyNetwork"
            )


class Product:
    """prod_i q_i(x_t)^w_i; an energy where all its parts are.

    eps is the weighted sum, and with W the sum of the weights

        x0 = sum_i w_i x0_i + (1 - W) x_t / signal_t.

    Args:
        parts: predictors of one forward process, none of which should clip (`Denoiser.unclipped`).
        weights: w_i, of any sign; 1 when left out. Classes of one model are combined within its data by
            (q_1 / q) (q_2 / q) q: weights 1, 1 and -1, the last for the model without a class.
        clip: what is done to the x0 of the product.

    Raises:
        ValueError: for parts of unlike schedules; for weights that are not one a part, or that do not sum to 1 on a
            schedule with zero terminal SNR, where x0 would not be finite.
    """

    def __init__(
        self, parts: Sequence[Predictor], weights: Sequence[float] | None = None, clip: Clip = unclipped
    ) -> None:
        self.parts, self.schedule, self.clip = tuple(parts), _common(parts), clip
        self.weights = (1.0,) * len(self.parts) if weights is None else tuple(weights)
        if len(self.weights) != len(self.parts):
            raise ValueError(f"{len(self.parts)} parts and {len(self.weights)} weights; give one weight a part")
        self.excess = sum(self.weights) - 1
        if abs(self.excess) < 1e-9:
            self.excess = 0.0
        if self.excess and not self.schedule.signal(self.schedule.T) > 0:
            raise ValueError(
                f"weights that sum to {sum(self.weights):g} have no x0 at zero terminal SNR; "
                "add the unconditional model with the weight that makes the sum 1, or use another schedule"
            )

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        """Predict from x_t (B, ...) at time t: the score of the product at this level."""
        x0 = sum(
            (weight * part(x_t, t).x0 for weight, part in zip(self.weights, self.parts, strict=True)),
            torch.zeros_like(x_t),
        )
        if self.excess:
            x0 = x0 - over(self.excess / self.schedule.signal(t), x_t) * x_t
        return predict(self.clip(x0), x_t, self.schedule, t)

    def log_prob(self, x_t: Tensor, t: Time) -> Tensor:
        """sum_i w_i log q_i(x_t) in nats up to a constant of t, shape (B,).

        Raises:
            ValueError: when a part has no log density.
        """
        _need_energies(self.parts, "the density of a product")
        each = _log_prob(self.parts, x_t, t)
        return each.T @ torch.tensor(self.weights, dtype=torch.float64).to(each)


def negation(kept: Predictor, avoided: Predictor, strength: float = 1.0, clip: Clip = unclipped) -> Product:
    """kept^(1 + strength) / avoided^strength: `kept`, turned away from what `avoided` finds likely."""
    return Product((kept, avoided), (1 + strength, -strength), clip)


class OneOf:
    """sum_i w_i q_i(x_t), the mixture: x0 and Var[x0] are exact where those of the parts are.

    Args:
        parts: energies of one forward process. Unknown constants of theirs act as further weights.
        weights: w_i > 0, in any scale; equal when left out.
        clip: what is done to the x0 of the mixture.

    Raises:
        ValueError: for parts with a score only, of unlike schedules, or weights that are not positive and one a part.
    """

    def __init__(self, parts: Sequence[Energy], weights: Sequence[float] | None = None, clip: Clip = unclipped) -> None:
        _need_energies(parts, "a mixture")
        self.parts, self.schedule, self.clip = tuple(parts), _common(parts), clip
        shares = torch.tensor([1.0] * len(self.parts) if weights is None else list(weights), dtype=torch.float64)
        if len(shares) != len(self.parts) or not bool((shares > 0).all()):
            raise ValueError(f"a mixture of {len(self.parts)} parts needs as many positive weights")
        self.log_weights = shares.log().log_softmax(0)

    def _log_joint(self, x_t: Tensor, t: Time) -> Tensor:
        each = _log_prob(self.parts, x_t, t)
        return each + self.log_weights.to(each)[:, None]

    def log_prob(self, x_t: Tensor, t: Time) -> Tensor:
        """log sum_i w_i q_i(x_t) in nats, shape (B,)."""
        return self._log_joint(x_t, t).logsumexp(0)

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        """Predict from x_t (B, ...) at time t."""
        share = torch.stack([over(one, x_t) for one in self._log_joint(x_t, t).softmax(0)])
        predictions = [part(x_t, t) for part in self.parts]
        each = torch.stack([one.x0 for one in predictions])
        x0 = (share * each).sum(0)
        variances = [one.x0_var for one in predictions if one.x0_var is not None]
        x0_var = None
        if len(variances) == len(predictions):
            x0_var = (share * (torch.stack(variances) + (each - x0) ** 2)).sum(0)
        return predict(self.clip(x0), x_t, self.schedule, t, x0_var=x0_var)
