"""The absorbing process: positions of an image are hidden one after another, and revealed on the way back.

The state is the image with one more symbol, MASK, in the positions that are hidden (Austin et al. 2021, section 3.1).
alpha_bar_t is the share of positions that are seen, so that every schedule, grid and time sampler serves. With
n_t = D (1 - alpha_bar_t) of the D positions hidden,

    q(x_s | x_t, x0)   reveals n_t - n_s of the n_t hidden positions with the values of x0, each choice alike
    p(x_s | x_t)       reveals as many, with values drawn from the predicted distributions
    KL(q || p)         = (n_t - n_s) / n_t  sum over the hidden positions of -log p(x0 | x_t)

which for T = D is Eq. 16 of the paper: the bound is the log likelihood of an autoregressive model, averaged over the
orders (Uria et al. 2014; Hoogeboom et al. 2022). Every draw takes one standard normal number a position: its
probability u = Phi(eps) says whether the position changes, and, since u given that is uniform again, to which value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ancestral.diffusion.processes.levels import Point, Values, snap
from ancestral.diffusion.processes.noise_schedule import NoiseSchedule
from ancestral.diffusion.processes.normal import Likelihood
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.processes.types import Time, over, per_image, untyped

MASK = 2.0  # off the data's range [-1, 1], and exact in every floating type


def hidden(x: Tensor) -> Tensor:
    """Which positions hold no value yet, bool."""
    return x == MASK


Pick = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (u, may change) to (changes, what u is uniform below)


def by_chance(probability: Tensor) -> Pick:
    """Each position that may change does with this probability, () or (B, 1, ...)."""

    def pick(u: Tensor, may: Tensor) -> tuple[Tensor, Tensor]:
        return may & (u < probability), probability.expand_as(u)

    return pick


def so_many(count: Tensor) -> Pick:
    """Exactly `count` (B,) positions of those that may change, every choice alike: the ones of least u."""

    def pick(u: Tensor, may: Tensor) -> tuple[Tensor, Tensor]:
        ranked, positions = torch.where(may, u, 1.0).flatten(1).sort(dim=1, stable=True)
        number = count.to(u.device).expand(len(u))[:, None]
        taken = torch.arange(ranked.shape[1], device=u.device) < number
        changes = torch.zeros_like(taken).scatter(1, positions, taken).reshape(u.shape) & may
        # The least u of those left bounds the others, which are uniform below it.
        bound = torch.cat([ranked, torch.ones_like(ranked[:, :1])], 1).gather(1, number)
        return changes, per_image(bound, u).expand_as(u)

    return pick


def these(positions: Tensor) -> Pick:
    """The positions where this is true."""
    return lambda u, may: (may & positions, torch.ones_like(u))


class Change(NamedTuple):
    """The state after some positions have changed."""

    x: Tensor  # (B, ...) the state before
    may: Tensor  # bool, the positions that may change
    odds: Tensor  # that one of these does; broadcasts against x
    pick: Pick
    values: Values  # what they change to

    def sample(self, eps: Tensor) -> Tensor:
        """A state, from standard normal `eps` of the shape of x."""
        most = 1 - torch.finfo(eps.dtype).eps
        u: Tensor = untyped.special.ndtr(eps).clamp(max=most)
        changes, below = self.pick(u, self.may)
        new = self.x.clone()
        new[changes] = self.values.at(changes).quantile((u[changes] / below[changes]).clamp(max=most)).to(new)
        return new

    def draw(self, noise: Streams) -> Tensor:
        """`sample` with the next values of the streams, one an image."""
        return self.sample(noise.normal(self.x.shape[1:]).to(self.x))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability in nats of the values that x reveals, elementwise, given which positions these are.

        Which positions they are is as probable in q as in p and cancels in the bound.
        """
        revealed = hidden(self.x) & ~hidden(x)
        return torch.where(revealed, self.values.log_prob(torch.where(revealed, x, 0.0)), 0.0)

    def nll(self, x0: Tensor) -> Tensor:
        """KL(q || p) in nats an image against the same step with the values of x0. Shape (B,)."""
        return -torch.where(self.may, self.odds * self.values.log_prob(x0), 0.0).flatten(1).sum(1)


@dataclass(frozen=True, eq=False)
class Absorbing(NoiseSchedule):
    """The process that has hidden exactly round(D (1 - alpha_bar_t)) positions at t; with `even(D)`, one a step.

    Args:
        log_alpha_bar: as in `NoiseSchedule`, but -inf at T, where everything is hidden.
        levels: grey levels of a value.

    Raises:
        ValueError: for fewer than two levels, or where something would be seen at T.
    """

    levels: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels < 2:
            raise ValueError(f"levels must be at least 2, got {self.levels}")
        if self.noise_var(self.T) != 1:
            raise ValueError("everything must be hidden at T: use the schedule 'even', or one with zero terminal SNR")

    def count(self, t: Time, dimensions: int) -> Tensor:
        """n_t, how many of so many positions are hidden; int64."""
        return (dimensions * self.noise_var(t)).round().long()

    def expected(self, t: int, dimensions: int) -> float:
        """How many of so many positions are hidden on average."""
        return float(self.count(t, dimensions))

    def marginal(self, x0: Tensor, t: Time) -> Change:
        """q(x_t | x0): the values, rounded to levels, with some positions hidden. x0: (B, ...)."""
        x0 = snap(x0, self.levels)
        return self._hide(x0, 0, t)

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Change:
        """q(x_t | x_s) for s < t."""
        return self._hide(x_s, s, t)

    def posterior(self, x_t: Tensor, x0: Tensor, t: Time, s: Time) -> Change:
        """q(x_s | x_t, x0)."""
        return self.reveal(x_t, Point(snap(x0, self.levels)), t, s)

    def reveal(self, x_t: Tensor, values: Values, t: Time, s: Time) -> Change:
        """The step from t to s < t on which hidden positions take these values."""
        before, after = (self.count(time, x_t[0].numel()) for time in (t, s))
        odds = over((before - after).double() / before.clamp(min=1), x_t)
        return Change(x_t, hidden(x_t), odds, so_many(before - after), values)

    def _hide(self, x_s: Tensor, s: Time, t: Time) -> Change:
        before, after = (self.count(time, x_s[0].numel()) for time in (s, t))
        odds = over((after - before).double() / (x_s[0].numel() - before).clamp(min=1), x_s)
        return Change(x_s, ~hidden(x_s), odds, so_many(after - before), Point(torch.full_like(x_s, MASK)))

    def end(self, like: Tensor) -> Change:
        """p(x_T): everything hidden."""
        everything = torch.ones_like(like, dtype=torch.bool)
        mask = torch.full_like(like, MASK)
        return Change(mask, everything, torch.ones_like(like), these(everything), Point(mask))

    def shown(self, x_t: Tensor) -> Tensor:
        """A state as a picture, grey where it is hidden."""
        return x_t.masked_fill(hidden(x_t), 0)

    def prior(self, x0: Tensor, t: int) -> Tensor:
        """L_T in nats an image, 0 where everything is hidden. Shape (B,).

        Raises:
            ValueError: where something is seen.
        """
        if self.noise_var(t) != 1:
            raise ValueError(f"the walk begins with everything hidden, which is at {self.T}, not at {t}")
        return torch.zeros(len(x0), dtype=torch.float64)

    def term(self, p: Change, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor, likelihood: Likelihood | None) -> Tensor:
        """L_{t-1} in nats an image, of a `Change` p. Shape (B,)."""
        return p.nll(snap(x0, self.levels))


@dataclass(frozen=True, eq=False)
class Independent(Absorbing):
    """The process that hides each position on its own, with probability 1 - alpha_bar_t (Austin et al. 2021, D3PM)."""

    def expected(self, t: int, dimensions: int) -> float:
        """How many of so many positions are hidden on average."""
        return dimensions * float(self.noise_var(t))

    def reveal(self, x_t: Tensor, values: Values, t: Time, s: Time) -> Change:
        """The step from t to s < t: each hidden position is revealed with probability 1 - (1 - ab_s) / (1 - ab_t)."""
        odds = over(1 - self.noise_var(s) / self.noise_var(t), x_t)
        return Change(x_t, hidden(x_t), odds, by_chance(odds), values)

    def _hide(self, x_s: Tensor, s: Time, t: Time) -> Change:
        odds = over(-torch.expm1(self.log_alpha_bar[t] - self.log_alpha_bar[s]), x_s)
        return Change(x_s, ~hidden(x_s), odds, by_chance(odds), Point(torch.full_like(x_s, MASK)))
