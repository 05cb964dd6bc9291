"""Exact answers that only tests ask for."""

import numpy as np
import torch
from torch.nn import functional

from ancestral.compression import residual_coder
from ancestral.compression.quantiser_cells import between_flat
from ancestral.compression.residual_tables import TOTAL, bits_of
from ancestral.diffusion.denoisers.analytic import Mixture
from ancestral.diffusion.denoisers.masked import guess
from ancestral.diffusion.processes.absorbing import hidden
from ancestral.diffusion.processes.levels import Softmax, level_of


def dataset(schedule, points):
    """The exact predictor for a finite data set, points (N, D): what a network that memorised it would say."""
    return Mixture(schedule, points, torch.zeros(len(points), dtype=points.dtype))


class Joint:
    """The exact predictor of hidden places for data that are one of a few images.

    points: (N, ...), all of whose values are levels; weights: (N,) their probabilities.
    """

    def __init__(self, schedule, points, weights):
        self.schedule, self.points, self.weights = schedule, points, weights / weights.sum()

    def __call__(self, x_t, t):
        """p(each place | the places seen), by counting."""
        agree = (hidden(x_t)[:, None] | (x_t[:, None] == self.points)).flatten(2).all(2)
        posterior = agree * self.weights
        posterior = posterior / posterior.sum(1, keepdim=True)
        of_level = functional.one_hot(level_of(self.points, self.schedule.levels), self.schedule.levels)
        return guess(Softmax(torch.tensordot(posterior, of_level.to(posterior), 1).log()), x_t)


def score_of(energy, x_t, t):
    """grad_x log q(x_t) by differentiating the log density."""
    x = x_t.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(energy.log_prob(x, t).sum(), x)
    return gradient


def known_spread(schedule, prediction, t):
    """r_t^2 as the mean of Var[x0 | x_t] over an image: right for N(m, v I)."""
    return prediction.x0_var.flatten(1).mean(1).reshape(-1, *[1] * (prediction.x0.ndim - 1))


def cost_bits(pixels, x0_hat, table, guard):
    """Bits that an ideal coder would take for what `residual_coder.encode` sends."""
    grids, helpers, cells = residual_coder._placed(x0_hat, pixels.shape, guard)
    any_value, flat = grids.rare(table.leaving / TOTAL)
    share = np.where(between_flat(cells), flat, any_value)
    helping = -np.log2(np.where(helpers, share, 1 - share)).sum()
    return float(np.log2(max(2, len(table.bits))) + helping + bits_of(pixels[None], cells[None], table).min())
