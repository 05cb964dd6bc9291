"""A sampler as numbers, and as a module: noise in, images out.

Each solver is linear in the states and in the x0 predicted at them. What it does is read off the loop itself, walked
once over unit vectors in place of images, so that no solver is written twice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from ancestral.diffusion.denoisers.denoiser import Prediction, predict, unclipped
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.types import Time
from ancestral.diffusion.samplers.loop import Move, walk
from ancestral.errors import UserError
from ancestral.sampling.sampler import Sampler

ROUNDING = 1e-10  # a state that gives less of the images than this is none


class Row(NamedTuple):
    """One network call and the step after it; a table is a row of tensors with one axis more, the call's number.

    Args:
        time: what the network is given for t, float32.
        x0: (2,), the shares of the network's output and of x in x0.
        guidance: the scale.
        next: (M, M + 2), the states after: x, and what the solver remembers, of those before, of x0 and of noise.
        draw: the number of that noise.
    """

    time: Tensor
    x0: Tensor
    guidance: Tensor
    next: Tensor
    draw: Tensor


def table(sampler: Sampler) -> Row:
    """All rows of a sampler.

    Raises:
        UserError: when its variance differs from pixel to pixel.
    """
    model, schedule, times = sampler.model, sampler.model.schedule, torch.tensor(sampler.visits[:-1])
    one, zero = torch.ones(len(times), 1, dtype=torch.float64), torch.zeros(len(times), 1, dtype=torch.float64)
    x0 = [model.target.x0(*parts, schedule, times) for parts in ((one, zero), (zero, one))]
    after, noisy = _states(sampler)
    return Row(
        model.clock(times, schedule.T).float(),
        torch.cat(x0, dim=1),
        torch.tensor([sampler.guidance.scale_at(int(t)) for t in times], dtype=torch.float64),
        after,
        noisy.cumsum(0) * noisy,  # 0 is the start
    )


def _states(sampler: Sampler) -> tuple[Tensor, Tensor]:
    """`next` of each row, and whether it adds noise: the fewest states that give every x to come, found backwards."""
    xs, noisy = _walked(sampler)
    calls, needed, found = len(noisy), xs[-1:], list[tuple[Tensor, Tensor]]()
    for k in reversed(range(calls)):
        before, new = needed.split([2 * k + 1, 2], dim=1)  # what is known before the k-th call, its x0 and noise
        x = xs[k, : 2 * k + 1]
        of_x = before @ x / (x @ x)
        shares, sizes, rest = torch.linalg.svd(before - of_x[:, None] * x, full_matrices=False)
        more = sizes > ROUNDING
        found.append((torch.cat([of_x[:, None], shares[:, more]], dim=1), new))
        needed = torch.cat([x[None], sizes[more, None] * rest[more]])
    held = max(max(states.shape) for states, _ in found)
    after = torch.zeros(calls, held, held + 2, dtype=torch.float64)
    for row, (states, new) in zip(after, reversed(found), strict=True):
        row[: states.shape[0], : states.shape[1]] = states
        row[: len(new), held:] = new
    return after, noisy


class _Units:
    """A predictor over unit vectors: the start, then x0 and noise of each call."""

    def __init__(self, schedule: Gaussian, calls: int) -> None:
        self.schedule, self.units, self.calls = schedule, torch.eye(2 * calls + 1, dtype=torch.float64), 0

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        self.calls += 1
        return predict(self.units[None, 2 * self.calls - 1], x_t, self.schedule, t)


def _walked(sampler: Sampler) -> tuple[Tensor, Tensor]:
    """Each x of a walk over unit vectors (N + 1, 2 N + 1), and whether noise was added on the way to the next."""
    predictor = _Units(sampler.model.schedule, len(sampler.visits) - 1)
    noisy = list[bool]()

    def draw(move: Move[Prediction, Normal]) -> Tensor:
        amount = move.p.var.max().sqrt() if move.s else torch.tensor(0.0)
        noisy.append(bool(amount > 0))
        return move.p.mean + amount * predictor.units[None, 2 * predictor.calls]

    try:
        states = [step.x_s for step in walk(predictor, predictor.units[None, 0], sampler.times, sampler.move, draw)]
    except ValueError:  # a variance asks for what is known of the image
        raise UserError(
            "--variance: a learned or optimal one differs from pixel to pixel and is not exported; "
            "name another (fixedsmall, fixedlarge), a --solver, or fewer --steps"
        ) from None
    return torch.cat([predictor.units[None, 0], *states]), torch.tensor(noisy)


class TableSampler(nn.Module):
    """A sampler by its table, for whatever traces modules; the states are float64, as in `Sampler.walk`.

    Args:
        network: takes x, time, and labels and dropped if it is conditioned.
        sampler: whose table it is.
        early: the network of the first calls, if that is another.
        calls: how many of them.
    """

    def __init__(self, network: nn.Module, sampler: Sampler, early: nn.Module | None = None, calls: int = 0) -> None:
        super().__init__()
        self.network, self.early, self.calls, self.rows = network, early, calls, table(sampler)
        for name, column in self.rows._asdict().items():
            self.register_buffer(name, column)
        clip, options = sampler.model.clip, sampler.saved.config.model
        self.limit = None if clip is unclipped else float(clip(torch.tensor(torch.inf)))
        self.droppable, self.guided = options.condition_dropout > 0, bool((self.rows.guidance != 1).any())
        self.draws = int(self.rows.draw.max()) + 1

    def start(self, noise: Tensor) -> Tensor:
        """The states held before the first step, (M, B, C, H, W): x and what no row looks at."""
        return noise[:1].double().repeat(self.rows.next.shape[1], 1, 1, 1, 1)

    def phases(self) -> list[tuple[nn.Module, slice]]:
        """Its networks in turn, each with the rows that it is for."""
        early = [] if self.early is None else [(self.early, slice(self.calls))]
        return [*early, (self.network, slice(self.calls, None))]

    def step(self, network: nn.Module, states: Tensor, row: Row, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """The states held after a step with this network."""
        x, inputs = states[0], {"time": row.time.expand(states.shape[1])}
        inputs |= {} if labels is None else {"labels": labels}

        def output(x: Tensor, dropped: bool) -> Tensor:
            given = {"dropped": torch.full(x.shape[:1], dropped)} if self.droppable else {}
            return network(x=x.float(), **inputs, **given)[:, : x.shape[1]].double()

        def guided(x: Tensor, found: Tensor) -> Tensor:
            weak = output(x, True)
            return weak + row.guidance * (found - weak)

        found = output(x, False)
        if self.guided:
            found = torch.cond(row.guidance != 1, guided, lambda x, found: found.clone(), (x, found))
        x0 = row.x0[0] * found + row.x0[1] * x
        x0 = x0 if self.limit is None else x0.clamp(-self.limit, self.limit)
        drawn = noise.index_select(0, row.draw[None]).double()
        return torch.tensordot(row.next, torch.cat([states, x0[None], drawn]), 1)

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images on about [-1, 1], (B, C, H, W).

        Args:
            noise: float32 (draws, B, C, H, W): the start, then one for each step that adds noise.
            labels: int64 (B,), of a model with classes.
        """
        states, columns = self.start(noise), [getattr(self, name) for name in Row._fields]
        for network, part in self.phases():

            def step(states: Tensor, row: Any, network: nn.Module = network) -> tuple[Tensor, Tensor]:
                return self.step(network, states, Row(*row), noise, labels), row[0].clone()

            states = scan(step, states, tuple(one[part] for one in columns))[0]
        return states[0].float()


class Step(nn.Module):
    """One step of a table sampler with one of its networks, for whatever loops over modules that it has traced."""

    def __init__(self, whole: TableSampler, network: nn.Module) -> None:
        super().__init__()
        self.network, self.step = network, whole.step

    def forward(
        self,
        states: Tensor,
        time: Tensor,
        x0: Tensor,
        guidance: Tensor,
        next: Tensor,  # the table's name
        draw: Tensor,
        noise: Tensor,
        labels: Tensor | None = None,
    ) -> Tensor:
        """The states held after it, from those before, a row, and what the sampler is given."""
        return self.step(self.network, states, Row(time, x0, guidance, next, draw), noise, labels)
