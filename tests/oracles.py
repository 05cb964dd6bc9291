"""Exact answers that only tests ask for."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional

from ancestral.compression import residual_coder
from ancestral.compression.quantiser_cells import between_flat
from ancestral.compression.residual_tables import TOTAL, bits_of
from ancestral.compression.step_planning import step_bits
from ancestral.diffusion.denoisers.analytic import Mixture
from ancestral.diffusion.denoisers.masked import guess
from ancestral.diffusion.processes.absorbing import hidden
from ancestral.diffusion.processes.levels import Softmax, level_of
from ancestral.diffusion.processes.normal import Normal


def dataset(schedule, points):
    """The exact predictor for a finite data set, points (N, D): what a network that memorised it would say."""
    return Mixture(schedule, points, torch.zeros(len(points), dtype=points.dtype))


class Joint:
    """The exact predictor of hidden positions for data that are one of a few images.

    points: (N, ...), all of whose values are levels; weights: (N,) their probabilities.
    """

    def __init__(self, schedule, points, weights):
        self.schedule, self.points, self.weights = schedule, points, weights / weights.sum()

    def __call__(self, x_t, t):
        """p(each position | the positions seen), by counting."""
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


@torch.no_grad()
def rate(denoiser, x0, times, noise):
    """What images cost on a grid: each step by the variance that is predicted at an x_t of its own.

    The expectation is that of `elbo` on [*times, 0] with the optimal variance, if the predicted one is right. Returns
    the bits of each step, (B, K), of L_0 as residual, (B,), and all with L_T as bits_per_dim, (B,).
    """
    schedule, steps = denoiser.schedule, [torch.zeros(len(x0), 0, dtype=torch.float64)]
    for t, s in pairwise([*times, 0]):
        x_t = schedule.marginal(x0, t).sample(noise.normal(x0.shape[1:]).to(x0))
        prediction = denoiser(x_t, t)
        x0_var = prediction.x0_var.expand_as(x0)
        if s:
            r = x0_var * float(schedule.snr(s) - schedule.snr(t))
            steps.append(step_bits(r.double()).flatten(1).sum(1, keepdim=True))
    prior, steps = schedule.prior(x0, times[0]) / np.log(2), torch.cat(steps, 1)
    residual = -Normal(prediction.x0, x0_var).log_prob_coded(x0).flatten(1).sum(1) / np.log(2)
    total = prior + steps.sum(1) + residual
    return SimpleNamespace(steps=steps, residual=residual, bits_per_dim=total / x0[0].numel())
