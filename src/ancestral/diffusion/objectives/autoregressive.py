"""Uses of the walk that reveals: drawing, the likelihood in an order, and which times serve few steps best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ancestral.diffusion.denoisers.masked import Guess, Guesser
from ancestral.diffusion.objectives.elbo import elbo
from ancestral.diffusion.processes.absorbing import Change
from ancestral.diffusion.processes.levels import snap
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.loop import Draw, Move, walk
from ancestral.diffusion.samplers.reveal import InOrder, Reveal
from ancestral.diffusion.samplers.sample import finish


def from_p(noise: Streams) -> Draw[Guess, Change]:
    """x_s ~ p(x_s | x_t), at s = 0 too, where nothing may be left hidden."""
    return lambda move: move.p.draw(noise)


def from_data(x0: Tensor) -> Draw[Guess, Change]:
    """x_s: the positions due in an order that is given, with the values of x0."""

    def draw(move: Move[Guess, Change]) -> Tensor:
        return torch.where(move.p.odds > 0, x0, move.x_t)

    return draw


def nll_in_order(denoiser: Guesser, x0: Tensor, times: Sequence[int], turn: Tensor) -> Tensor:
    """-log p(x0 | order) in nats, a column a step: the sum over its x0_i of -log p(x0_i | those before), (B, steps).

    Args:
        denoiser: guesses hidden positions.
        x0: (B, ...) images; their values are rounded to levels.
        times: from T to 0; T, T-1, ..., 0 with `even(D)` is one position a step, and the sum then exact.
        turn: the order (see `reveal.InOrder`).
    """
    x0 = snap(x0, denoiser.schedule.levels)
    start = denoiser.schedule.end(x0).sample(torch.zeros_like(x0))
    steps = walk(denoiser, start, times, InOrder(turn), from_data(x0))
    return torch.stack([-step.p.log_prob(step.x_s).flatten(1).sum(1) for step in steps], 1)


def costs(nats: Tensor, counts: Sequence[float]) -> np.ndarray:
    """What a step that reveals several positions costs, in nats an image: (times, times), inf unless it goes down.

    The positions of one step are drawn independently, each given what was seen before it, so that a step from n to m
    hidden positions costs (n - m) l_n, where l_n is the mean -log p of a hidden position with n of them hidden. With it
    `grid_search.shortest(cost, steps)` finds the times of least bound (Hoogeboom et al. 2022, section 3.2).

    Args:
        nats: (steps,) the mean L_{t-1} of each step of the whole grid, from T down.
        counts: the positions hidden at each time of the grid, the 0 at its end included; strictly falling.
    """
    n = np.asarray(counts, dtype=np.float64)
    per_position = nats.double().numpy() / (n[:-1] - n[1:])
    cost = np.full((len(n), len(n)), np.inf)
    cost[:-1] = np.where(n[:-1, None] > n, (n[:-1, None] - n) * per_position[:, None], np.inf)
    return cost


def monotone(nats: Tensor, counts: Sequence[float]) -> Tensor:
    """Isotonic least-squares fit of the per-position loss, so that it does not rise as more positions are seen.

    Without it a shortest path would exploit noise in the estimates. The fit keeps the sum of the losses where all steps
    reveal equally many positions. Arguments as those of `costs`.
    """
    positions = -np.diff(np.asarray(counts, dtype=np.float64))
    rising = (nats.double().numpy() / positions)[::-1]
    total = np.concatenate([[0.0], rising.cumsum()])
    first, after = np.arange(len(rising))[:, None], np.arange(1, len(rising) + 1)
    means = np.where(after > first, (total[after] - total[first]) / np.maximum(after - first, 1), np.inf)
    # The isotonic regression as the largest, over where a block begins, of the least, over where it ends, of its means.
    least = np.minimum.accumulate(means[:, ::-1], 1)[:, ::-1]
    fitted = np.where(first < after, least, -np.inf).max(0)
    return torch.as_tensor(fitted[::-1] * positions)


def imagined_costs(denoiser: Any, start: Tensor, times: Sequence[int]) -> np.ndarray:
    """`costs` on images of the model's own, drawn in these times from the states `start` (B, ...).

    A time at which no more is seen than at the one before serves no path.
    """
    numbers, q = range(len(start)), denoiser.schedule
    hidden = np.array([q.expected(t, start[0].numel()) for t in times])
    useful = np.flatnonzero(np.append(True, hidden[1:] < hidden[:-1]) & (hidden > 0))
    useful = np.append(useful, len(times) - 1)
    fine = [times[int(index)] for index in useful]
    x0 = finish(walk(denoiser, start, fine, Reveal(), from_p(Streams(0, "imagined", numbers))))
    measured: Any = Reveal()
    nats = elbo(denoiser, x0, fine, measured, Streams(0, "costs", numbers)).terms.mean(0)
    cost = np.full((len(times), len(times)), np.inf)
    cost[np.ix_(useful, useful)] = costs(monotone(nats, hidden[useful].tolist()), hidden[useful].tolist())
    return cost
