"""Where each loss looks: the bound, L_simple, and the run's own objective under its own choice of times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ancestral.apps.report import plots
from ancestral.apps.report.part import Number, Words, tenths
from ancestral.apps.report.subject import BATCH, Subject
from ancestral.diffusion.objectives.elbo import tenth
from ancestral.diffusion.objectives.losses import Weighted, score_matching
from ancestral.diffusion.objectives.objective import Objective
from ancestral.diffusion.objectives.statistics import mean_and_error
from ancestral.diffusion.objectives.time_sampling import TIME_SAMPLERS, TimeSampler, stratified
from ancestral.diffusion.processes.streams import Streams
from ancestral.runs import build
from ancestral.runs.conditions import conditions_of
from ancestral.runtime.plots import ACCENT, SECOND
from ancestral.runtime.resumable_job import pieces

DRAWS = 4  # of t for each held-out image
GRAIN = 100_000  # uniform numbers by which a sampler's probabilities are counted
SIMPLE, OWN, ELBO = (
    "ancestral.diffusion.objectives.losses.Weighted",
    "ancestral.runs.build.objective",
    "ancestral.diffusion.objectives.elbo.Elbo.by_tenth",
)


@dataclass(frozen=True)
class Effort:
    """Losses at times spread evenly over the grid, and the bound's terms; shares by tenth of t, least noise first."""

    times: Tensor  # (N,) of the draws
    simple: Tensor  # (N,) ||eps - eps_hat||^2, a mean over dimensions
    elbo_t: Tensor  # the bound's terms: (K,) times and the mean of each, nats/dim
    elbo_nats: Tensor
    elbo_share: Tensor  # (10,)
    simple_share: Tensor
    drawn_share: Tensor  # of the run's draws of t; the uniform ones where there is no run
    own_share: Tensor  # of the run's own loss under these draws; that of L_simple where there is no run
    last: int
    run: bool

    def numbers(self) -> dict[str, Number]:
        """The first tenth's shares."""
        shares = {"bound": (self.elbo_share, ELBO), "simple": (self.simple_share, SIMPLE)}
        if self.run:
            shares |= {
                "drawn": (self.drawn_share, "ancestral.diffusion.objectives.time_sampling.TIME_SAMPLERS"),
                "own": (self.own_share, OWN),
            }
        mean, error = mean_and_error(self.simple.reshape(DRAWS, -1).mean(0))  # the draws of an image are one
        return {f"first_{name}": _percent(float(share[0]), again) for name, (share, again) in shares.items()} | {
            "l_simple": Number(mean, "", SIMPLE, error),
            "draws": Number(len(self.times), "", SIMPLE),
        }

    def facts(self) -> dict[str, bool]:
        """Which of the two losses looks more at little noise."""
        return {"simple_looks_later": bool(self.simple_share[0] < self.elbo_share[0])}

    def rows(self) -> list[list[Number | str]]:
        """A row a tenth."""
        columns = [(self.elbo_share, ELBO), (self.simple_share, SIMPLE)]
        if self.run:
            columns += [
                (self.drawn_share, "ancestral.diffusion.objectives.time_sampling.TIME_SAMPLERS"),
                (self.own_share, OWN),
            ]
        return [
            [times, *(_percent(float(share[index]), again) for share, again in columns)]
            for index, times in tenths(self.last).items()
        ]

    def losses(self, words: Words) -> str:
        """Both losses over t, each in its own units."""
        figure, (elbo, simple) = plots.axes(words["axes"]["t_log"], "", 2, 2.2)
        elbo.plot(*plots.by_log_t(self.elbo_t, self.elbo_nats), color=ACCENT)
        elbo.set_ylabel(words["axes"]["loss_bound"])
        plots.logarithmic(elbo.yaxis)
        simple.plot(*plots.by_log_t(self.times, self.simple, 30), color=SECOND)
        simple.set_ylabel(words["axes"]["loss_simple"])
        simple.set_ylim(bottom=0)
        for one in (elbo, simple):
            plots.logarithmic(one.xaxis)
        return plots.svg(figure)

    def by_tenth(self, words: Words) -> str:
        """Shares of the losses in each tenth."""
        figure, (on,) = plots.axes(words["axes"]["tenth"], words["axes"]["share"])
        shown = [("bound", self.elbo_share, ACCENT), ("simple", self.simple_share, SECOND)]
        if self.run:
            shown.append(("own", self.own_share, plots.THIRD))
        width = 0.8 / len(shown)
        for number, (name, share, colour) in enumerate(shown):
            positions = np.arange(10) + 1 + (number - (len(shown) - 1) / 2) * width
            on.bar(positions, 100 * share.numpy(), width, color=colour, label=words["axes"][f"share_{name}"])
        on.set_xticks(range(1, 11))
        plots.legend(on)
        return plots.svg(figure)


def _percent(share: float, again: str) -> Number:
    return Number(100 * share, "%", again, digits=3)


@torch.no_grad()
def measured(subject: Subject) -> Effort:
    """The losses of held-out images, each at DRAWS times."""
    numbers = range(DRAWS * len(subject.test))
    sampler = TimeSampler(subject.times)
    index, _ = sampler.draw(stratified(subject.seed, numbers))
    simple, own = torch.empty(len(numbers)).double(), torch.empty(len(numbers)).double()
    for some in pieces(len(numbers), BATCH):
        rows = slice(some.start, some.stop)
        losses = _losses(subject, some, sampler.t[index[rows]], sampler.s[index[rows]])
        simple[rows], own[rows] = (values.cpu().double() for values in losses)
    found, last = subject.elbo, subject.times[0]
    of_each = tenth(sampler.t[index], last)
    chance, importance = _choice(subject)
    elbo_t, elbo_nats = found.per_t(found.terms / found.dimensions)
    of_grid = tenth(sampler.t, last)
    return Effort(
        times=sampler.t[index],
        simple=simple,
        elbo_t=elbo_t,
        elbo_nats=elbo_nats,
        elbo_share=_shares(found.by_tenth(found.terms * found.weight, last).sum(0)),
        simple_share=_shares(_sums(of_each, simple)),
        drawn_share=_shares(_sums(of_grid, chance)),
        own_share=_shares(_sums(of_each, own * (chance * importance)[index])),
        last=last,
        run=subject.model is not None,
    )


def _losses(subject: Subject, some: range, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """(the error of eps, the run's own loss) of each image, (B,)."""
    shown = subject.test.take([number % len(subject.test) for number in some])
    x0, schedule = subject.x0(shown), subject.schedule
    eps = Streams(subject.seed, "explain-effort", some).normal(subject.shape).to(x0)
    if subject.model is None:
        error = (
            (subject.conditioned(shown)(schedule.marginal(x0, t).sample(eps), t).eps - eps).square().flatten(1).mean(1)
        )
        return error, error
    cond = conditions_of(shown, subject.config, subject.device)
    # Before clipping: training sees what the network says, not what sampling makes of it.
    assert subject.saved is not None
    trained = build.objective(subject.config, subject.saved.facts, len(subject.times) - 1)
    losses: list[Objective] = [Weighted(score_matching), trained]
    simple, own = (loss(subject.model, x0, t, s, eps, **cond) for loss in losses)
    return simple, own


def _choice(subject: Subject) -> tuple[Tensor, Tensor]:
    """(probability, importance) of each time of the grid under the run's own choice of times, float64 (K,)."""
    make = TIME_SAMPLERS[subject.config.diffusion.times].sampler
    sampler = make(subject.times, build.time_schedule(subject.config))
    kept = {} if subject.saved is None else subject.saved.tensors
    if state := {name.removeprefix("sampler/"): one for name, one in kept.items() if name.startswith("sampler/")}:
        sampler.load_state(state)
    index, weight = sampler.draw((torch.arange(GRAIN, dtype=torch.float64) + 0.5) / GRAIN)
    count = index.bincount(minlength=len(sampler)).double()
    total = torch.zeros(len(sampler), dtype=torch.float64).index_add_(0, index, weight.double())
    return count / GRAIN, total / count.clamp(min=1)


def _sums(tenth: Tensor, values: Tensor) -> Tensor:
    return torch.zeros(10, dtype=torch.float64).index_add_(0, tenth, values.double())


def _shares(sums: Tensor) -> Tensor:
    return sums / sums.sum()
