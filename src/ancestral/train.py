"""Training as a generator of records (Algorithm 1). The caller's loop saves, prints and stops.

Time is counted in images seen. Image number n is the n-th image presented to the network; which image that is, whether
it is flipped, its t and its noise are functions of (seed, n) alone. The position in the data is therefore one
integer, and a run that goes on from a checkpoint is the run that was never stopped, to the bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ancestral import build
from ancestral.config import Config, Facts
from ancestral.ema import PowerAverage
from ancestral.errors import UserError
from ancestral.feed import facts, presented
from ancestral.imageset import ImageSet
from ancestral.parallel import Processes, check, tree_sum
from ancestral.rng import Streams, key
from ancestral.times import TIME_SAMPLERS, UNIFORMS

SKIPS_IN_A_ROW = 10  # updates that are not finite before a run that may skip them stops all the same


@contextmanager
def _torch_draws(seed: int, device: torch.device) -> Iterator[None]:
    """Key what torch draws by itself, initial weights and dropout, and leave its global generator as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class Record:
    """One step of training."""

    images: int  # seen so far, this step included
    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float  # of this step
    place: Tensor  # (B,) where on the time grid each image was
    losses: Tensor  # (B,) float64


class _Batch(NamedTuple):
    """The times of one update's images, and this process's share of the images, on the CPU."""

    x0: Tensor
    labels: Tensor | None
    eps: Tensor
    place: Tensor  # on the time grid, of the whole batch
    importance: Tensor  # of the whole batch
    rows: list[int]


class Training:
    """Network, optimiser, averages and position: all that changes while training, and nothing else."""

    def __init__(self, config: Config, facts: Facts, device: torch.device, processes: Processes | None = None) -> None:
        options = config.train
        self.processes = processes or Processes()
        check(self.processes, options.batch_size, options.exact_shards)
        self.config, self.device, self.images = config, device, 0
        self.skipped = 0  # updates left out in a row
        share = options.batch_size // (options.exact_shards or self.processes.size)
        self.part = min(options.micro_batch or share, share)  # images that meet the network at a time
        with _torch_draws(key(options.seed, "weights"), device):
            self.denoiser = build.denoiser(config, facts).to(device)
        self.network = self.denoiser.network
        grid = build.training_grid(config)
        self.objective = build.objective(config, len(grid) - 1)
        uniforms, sampler = TIME_SAMPLERS[config.diffusion.times]
        self.uniforms, self.sampler = UNIFORMS[uniforms], sampler(grid)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), options.learning_rate, (0.9, options.beta2), weight_decay=options.weight_decay
        )
        self.averages = [
            PowerAverage(width, {name: value.detach().clone() for name, value in self.network.state_dict().items()})
            for width in options.average_widths
        ]

    @property
    def model_weights(self) -> dict[str, Tensor]:
        """The averaged weights that are the model."""
        return self.averages[self.config.train.average].weights

    def step(self, data: ImageSet, total: int) -> Record:
        """One update; `total` is the length of the run in images, which the learning rate follows.

        Raises:
            UserError: when the loss or the gradient is not finite; the weights are then as before the step.
        """
        started, options = time.perf_counter(), self.config.train
        numbers = range(self.images, self.images + options.batch_size)
        batch = self._batch(data, numbers)
        rate = learning_rate(self.images / total, options.learning_rate, options.warmup, options.decay)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = self.processes.gather(self._accumulate(batch))
        self._sum_gradients()
        loss = float((losses * batch.importance).mean())
        norm = float(torch.nn.utils.clip_grad_norm_(self.network.parameters(), options.clip_norm))
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimizer.step()
            self.sampler.update(batch.place, losses)
            self.skipped = 0
        else:
            self._not_finite(", ".join(data.names[row] for row in batch.rows[:8]))
        self.images += options.batch_size
        current = self.network.state_dict()
        for average in self.averages:
            average.update(current, self.images, options.batch_size)
        return Record(self.images, loss, norm, rate, time.perf_counter() - started, batch.place, losses)

    def _not_finite(self, names: str) -> None:
        """Leave the update out, or stop, as the settings say; the weights are untouched so far."""
        self.skipped += 1
        if self.config.train.not_finite == "stop" or self.skipped == SKIPS_IN_A_ROW:
            raise UserError(
                f"the loss or its gradient is not finite at image {self.images} (batch: {names}, ...), "
                f"{self.skipped} time(s) in a row; the run stops before the weights are touched: "
                "lower train.learning_rate, or use train.precision=float32"
            )

    def _batch(self, data: ImageSet, numbers: range) -> _Batch:
        seed = self.config.train.seed
        place, importance = self.sampler.draw(self.uniforms(seed, numbers))
        mine = self.processes.share(numbers)
        x0, labels, rows = presented(data, seed, mine, self.config.train.flip)
        eps = Streams(seed, "noise", mine).normal(x0.shape[1:]).float()
        return _Batch(x0, labels if self.config.model.labels else None, eps, place, importance, rows)

    def _accumulate(self, batch: _Batch) -> Tensor:
        """Gradients of this process's share of the mean loss, a part at a time.

        Where memory runs out the part is halved and the share begun again: the same images, t and noise. Returns the
        share's losses, float64, on the CPU.
        """
        self.network.train()
        while True:
            self.optimizer.zero_grad()
            try:
                return self._parts(batch)
            except torch.OutOfMemoryError:
                if self.part == 1:
                    raise UserError("a single image does not fit into memory; use a smaller model.width") from None
                self.part = (self.part + 1) // 2

    def _parts(self, batch: _Batch) -> Tensor:
        shards = self.config.train.exact_shards
        size = self.config.train.batch_size // shards if shards else len(batch.x0)
        losses, sums = [], []
        for start in range(0, len(batch.x0), size):
            end = start + size
            losses += [self._backward(batch, slice(i, min(i + self.part, end))) for i in range(start, end, self.part)]
            if shards:
                # Each shard's gradient by itself, to be added in a tree whose shape no number of processes changes.
                sums.append(self._gradient())
                self.optimizer.zero_grad()
        if shards:
            self._set_gradient(tree_sum(sums))
        return torch.cat(losses)

    def _sum_gradients(self) -> None:
        if self.processes.size > 1:
            exact = self.config.train.exact_shards is not None
            add = self.processes.sum_exact if exact else self.processes.sum_fast
            self._set_gradient(add(self._gradient()))

    def _gradient(self) -> Tensor:
        """Every gradient in one vector."""
        return torch.cat(
            [parameter.grad.flatten() for parameter in self.network.parameters() if parameter.grad is not None]
        )

    def _set_gradient(self, gradient: Tensor) -> None:
        learned = list(self.network.parameters())
        for parameter, part in zip(learned, gradient.split([parameter.numel() for parameter in learned]), strict=True):
            parameter.grad = part.reshape(parameter.shape).clone()

    def _backward(self, batch: _Batch, part: slice) -> Tensor:
        options = self.config.train
        before = self.processes.rank * len(batch.x0)  # this share's place in the whole batch
        place = batch.place[before + part.start : before + part.stop]
        importance = batch.importance[before + part.start : before + part.stop]
        lower = torch.autocast(self.device.type, torch.bfloat16, enabled=options.precision == "bfloat16")
        with _torch_draws(key(options.seed, "dropout", self.images + before + part.start), self.device), lower:
            losses = self.objective(
                self.denoiser,
                batch.x0[part].to(self.device),
                self.sampler.t[place],
                self.sampler.s[place],
                batch.eps[part].to(self.device),
                **({} if batch.labels is None else {"labels": batch.labels[part].to(self.device)}),
            )
        ((losses * importance.to(losses)).sum() / options.batch_size).backward()
        return losses.detach().cpu().double()

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that training needs to go on, named."""
        named = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        for average in self.averages:
            named |= {f"average-{average.width:g}/{name}": value for name, value in average.weights.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            named |= {f"optimizer/{index}/{name}": value for name, value in moments.items()}
        named |= {f"sampler/{name}": value for name, value in self.sampler.state().items()}
        return {name: value.detach() for name, value in named.items()}

    def load(self, tensors: Mapping[str, Tensor], images: int) -> None:
        """Take up a state that `tensors` gave.

        Raises:
            UserError: when it is of another network.
        """

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        try:
            self.network.load_state_dict(part("network/"))
            for average in self.averages:
                saved = part(f"average-{average.width:g}/")
                for name, value in average.weights.items():
                    value.copy_(saved[name])
            optimizer = self.optimizer.state_dict()
            optimizer["state"] = {}
            for name, value in part("optimizer/").items():
                index, _, moment = name.partition("/")
                optimizer["state"].setdefault(int(index), {})[moment] = value
            self.optimizer.load_state_dict(optimizer)
            self.sampler.load_state(part("sampler/"))
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(f"the checkpoint's state does not fit this configuration ({error})") from None
        self.images = images


def learning_rate(progress: float, peak: float, warmup: float, decay: float) -> float:
    """Rising linearly for the first `warmup` of the run, falling linearly to zero over the last `decay` of it."""
    rising = min(1.0, (progress + 1e-12) / warmup) if warmup else 1.0
    falling = min(1.0, (1 - progress) / decay) if decay else 1.0
    # Never zero, so that the first step of a long warm-up is not lost.
    return peak * max(min(rising, falling), 1e-3)


def train(training: Training, data: ImageSet, total: int) -> Iterator[Record]:
    """Step until `total` images have been seen, yielding a record each; stop by no longer asking."""
    while training.images < total:
        yield training.step(data, total)


def measure_speed(training: Training, data: ImageSet, seconds: float = 4.0) -> float:
    """Images per second of all processes together, from steps of a throw-away training of the same kind."""
    config, processes = training.config, training.processes
    probe = Training(config, facts(data), training.device, processes)
    total = 10**9
    probe.step(data, total)  # allocations and kernel choices are not speed
    durations = []
    while len(durations) < 50 and processes.any(sum(durations) < seconds):
        durations.append(probe.step(data, total).seconds)
    return config.train.batch_size / processes.from_first(float(np.median(durations)))
