"""Every line of the derivation of the bound (Ho et al. 2020, Eqs. 17-22), measured on the same chains of q.

    -log p(x0) <= E_q[-log p(x_{0:T}) / q(x_{1:T} | x0)] = ... = E_q[L_T + sum_{t>1} L_{t-1} + L_0]

All lines but the last rewrite one random number, so that on a chain they agree to rounding. The last averages over
x_{t-1} in closed form: it agrees in expectation, and each of its terms has the variance of its term before less that
average's (Rao and Blackwell): Var[log q/p] = Var[KL] + E[Var[log q/p | x_t]].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Predictor
from ancestral.diffusion.objectives.elbo import Elbo
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.normal import Likelihood, Normal
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.processes.types import numbers, untyped
from ancestral.diffusion.samplers.loop import GaussianStep, along_q
from ancestral.diffusion.samplers.transitions import Transition


@dataclass(frozen=True)
class Chains:
    """Log probabilities along chains of q, and the KL divergences at their states; nats, float64, on the CPU.

    A row a chain; column k is the step from `t[k]` to `s[k]`, the last one ends at 0.
    """

    t: Tensor  # (K,) int64
    s: Tensor  # (K,)
    log_p_end: Tensor  # (B,) log p(x_T)
    kl_end: Tensor  # (B,) KL(q(x_T | x0) || p(x_T))
    forward: Tensor  # (B, K) log q(x_t | x_s)
    conditioned: Tensor  # (B, K) log q(x_t | x_s, x0), by conditioning q(x_s, x_t | x0)
    marginal: Tensor  # (B, K) log q(x_t | x0)
    posterior: Tensor  # (B, K) log q(x_s | x_t, x0); 0 where s = 0
    model: Tensor  # (B, K) log p(x_s | x_t); the decoder's where s = 0
    kl: Tensor  # (B, K) KL(q(x_s | x_t, x0) || p(x_s | x_t)); -log p(x0 | x_t) where s = 0
    averaged: Tensor  # (B, K) Var[log q/p | x_t] in closed form: what the KL leaves out; 0 where s = 0
    mse: Tensor  # (B, K) mean squared error of the predicted x0
    dimensions: int

    @property
    def elbo(self) -> Elbo:
        """Eq. 5: the KL terms, each with the expectation that it has in `elbo.elbo`; here an image's share a chain."""
        return self._summed(self.kl_end, self.kl)

    @property
    def monte_carlo(self) -> Elbo:
        """Eq. 3: the expectation of the whole is that of `elbo`; of a term it is not, and they vary far more."""
        return self._summed(-self.log_p_end, self.plain)

    def _summed(self, prior: Tensor, terms: Tensor) -> Elbo:
        t, last = (one.expand(terms.shape) for one in (self.t, self.s == 0))
        return Elbo(prior, t, last, terms, self.mse, torch.ones_like(terms), self.dimensions)

    @property
    def plain(self) -> Tensor:
        """log q(x_t | x_s) - log p(x_s | x_t), (B, K): the terms of Eq. 3."""
        return self.forward - self.model

    @property
    def regrouped(self) -> Tensor:
        """log q(x_s | x_t, x0) - log p(x_s | x_t), (B, K): the terms of Eq. 21, whose expectation `kl` is."""
        return self.posterior - self.model

    @property
    def lines(self) -> dict[str, Tensor]:
        """What is inside E_q[...] in each line, (B,), in order; by the names of Eqs. 17-22."""
        later, start = slice(None, -1), self.model[:, -1]
        ratio, first = self.plain[:, later].sum(1), self.plain[:, -1]
        markov = (self.conditioned - self.model)[:, later].sum(1)
        # log q(x_s | x0) of a step is log q(x_t | x0) of the next.
        moved = self.posterior[:, later] + self.marginal[:, later] - self.marginal[:, 1:]
        return {
            "joint": self.forward.sum(1) - (self.log_p_end + self.model.sum(1)),
            "steps": -self.log_p_end + self.plain.sum(1),
            "split": -self.log_p_end + ratio + first,
            "markov": -self.log_p_end + markov + first,
            "bayes": -self.log_p_end + (moved - self.model[:, later]).sum(1) + first,
            "telescoped": self.marginal[:, 0] - self.log_p_end + self.regrouped[:, later].sum(1) - start,
            "kl": self.kl_end + self.kl.sum(1),
        }


def total(values: Tensor) -> Tensor:
    """The sum over an image's elements, float64 (B,) on the CPU."""
    return values.flatten(1).sum(1).cpu().double()


@torch.no_grad()
def along_chains(
    denoiser: Predictor,
    x0: Tensor,
    grid: Sequence[int],
    transition: Transition,
    noise: Streams,
    likelihood: Likelihood = Normal.log_prob_coded,
) -> Chains:
    """One chain of q for each image, and all that the lines ask of it. Arguments as of `elbo.elbo`."""
    schedule = denoiser.schedule
    q_end, p_end = schedule.marginal(x0, grid[0]), schedule.end(x0)
    steps = along_q(denoiser, x0, grid, transition, noise)
    first = next(steps)
    columns = [_column(schedule, step, x0, likelihood) for step in chain((first,), steps)]
    return Chains(
        t=torch.tensor(grid[:-1]),
        s=torch.tensor(grid[1:]),
        log_p_end=total(p_end.log_prob(first.x_t)),
        kl_end=total(q_end.kl(p_end)),
        **{name: torch.stack([column[name] for column in columns], 1) for name in columns[0]},
        dimensions=x0[0].numel(),
    )


def _column(schedule: Gaussian, step: GaussianStep, x0: Tensor, likelihood: Likelihood) -> dict[str, Tensor]:
    t, s, p, x_t = step.t, step.s, step.p, step.x_t
    forward = total(schedule.transition(step.x_s if s else x0, s, t).log_prob(x_t))
    column = {"forward": forward, "marginal": total(schedule.marginal(x0, t).log_prob(x_t))}
    column["mse"] = (step.prediction.x0 - x0).square().flatten(1).mean(1).cpu().double()
    if s == 0:
        log_p, none = total(likelihood(p, x0)), torch.zeros_like(forward)
        return column | {"conditioned": forward, "posterior": none, "model": log_p, "kl": -log_p, "averaged": none}
    q = schedule.posterior(x_t, x0, t, s)
    return column | {
        "conditioned": total(_given_both(schedule, step.x_s, x0, s, t).log_prob(x_t)),
        "posterior": total(q.log_prob(step.x_s)),
        "model": total(p.log_prob(step.x_s)),
        "kl": total(q.kl(p)),
        "averaged": total(log_ratio_variance(q, p)),
    }


def _given_both(schedule: Gaussian, x_s: Tensor, x0: Tensor, s: int, t: int) -> Normal:
    """q(x_t | x_s, x0) from the joint Gaussian q(x_s, x_t | x0), x0 kept: that it drops out is the Markov property."""
    share = ((schedule.log_alpha_bar_at(t) - schedule.log_alpha_bar_at(s)) / 2).exp()
    covariance = share * schedule.noise_var(s)  # of x_s and x_t, given x0
    slope = covariance / schedule.noise_var(s)
    mean = float(schedule.signal(t)) * x0 + float(slope) * (x_s - float(schedule.signal(s)) * x0)
    return Normal(mean, (schedule.noise_var(t) - slope * covariance).to(x0))


def log_ratio_variance(q: Normal, p: Normal) -> Tensor:
    """Var[log q(x) - log p(x)] for x ~ q, of each element, nats^2."""
    ratio = q.var / p.var
    return 0.5 * (ratio - 1) ** 2 + (q.mean - p.mean) ** 2 * ratio / p.var


def noise_variance(values: Tensor) -> Tensor:
    """Variance by the draws alone, (M, ...), of values (2M, ...) whose row i + M is of image i once more. Unbiased."""
    first, second = values.chunk(2)
    return (first - second) ** 2 / 2


def random_terms_variance(terms: Tensor, width: Tensor) -> Tensor:
    """Variance by the draws alone, (M,), of the sum of terms that `elbo.random_terms` draws from strata so wide.

    terms (2M, K), as `noise_variance`; nats^2 if these are nats. Unbiased: E[x]^2 is the product of independent draws.
    """
    first, second = terms.chunk(2)
    squares = (first**2 + second**2) / 2
    variance = noise_variance(terms[:, -1])
    widths = numbers(width)
    parts: list[list[Tensor]] = [list(untyped.split(one[:, :-1], widths, 1)) for one in (squares, first, second)]
    for size, square, one, other in zip(widths, *parts, strict=True):
        variance = variance + size * square.sum(1) - one.sum(1) * other.sum(1)
    return variance
