"""Training as a generator of records, one a step (Algorithm 1). The caller's loop saves, prints and stops.

Time is counted in images seen. Image number n is the n-th image presented to the network; which image that is, whether
it is flipped, its t and its noise are functions of (seed, n) alone. The position in the data is therefore one
integer, and a run resumed from a checkpoint equals the run that was never stopped, to the bit.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ancestral.data.dataset import ImageSet
from ancestral.diffusion.objectives.time_sampling import TIME_SAMPLERS
from ancestral.diffusion.processes.streams import key
from ancestral.diffusion.processes.torch_generators import forked
from ancestral.diffusion.processes.types import on
from ancestral.errors import UserError
from ancestral.networks.ema import PowerAverage
from ancestral.runs import build
from ancestral.runs.compute_format import ComputeFormat, laid_out
from ancestral.runs.conditions import Conditions, trained_with
from ancestral.runs.config import Config
from ancestral.runs.facts import Facts
from ancestral.runs.plan import Plan
from ancestral.runtime.distributed import Processes, need_divisible
from ancestral.runtime.system import out_of_memory
from ancestral.runtime.tensor_files import fitting
from ancestral.runtime.tensor_shards import Parts, under
from ancestral.training.gradient_sync import (
    divides,
    engine,
    images_at_a_time,
    like,
    on_first,
    open_formats,
    shard_size,
    whole,
)
from ancestral.training.loss_spikes import LossMonitor
from ancestral.training.prefetch import Batch, Prefetcher, batch
from ancestral.training.training_state import TrainingState

SKIPS_IN_A_ROW = 10  # updates, before a run that may skip those that are not finite stops all the same


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Within it torch takes, or refuses, only what gives the same bits each time on CUDA; a CPU does so anyway."""
    before = torch.are_deterministic_algorithms_enabled()
    if device.type == "cuda":
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@dataclass(frozen=True)
class Record:
    """One step of training."""

    images: int  # seen so far, this step included
    loss: float
    grad_norm: float
    learning_rate: float
    seconds: float  # of this step
    index: Tensor  # (B,) of each image's time on the grid
    losses: Tensor  # (B,) float64
    applied: bool  # or skipped, because the loss was not finite or a spike
    flags: tuple[bool, ...]  # those of `Training.flags` that any process raised


@dataclass(frozen=True)
class _Batch:
    """This process's share of the images of one update, and the times of all of them, on the CPU."""

    share: Batch
    cond: Conditions
    index: Tensor  # of the times on the grid, for the whole batch
    earlier: Tensor  # the s of each t of the grid, at this point of the run
    importance: Tensor  # for the whole batch


class NotFinite(UserError):
    """An update that stops the run, with its batch for inspection; the weights are as before it.

    Args:
        message: what happened.
        batch: the images, times and losses of this process's share.
        inputs: the share's x0 and eps.
    """

    def __init__(self, message: str, batch: dict[str, Any], inputs: dict[str, Tensor]) -> None:
        super().__init__(message)
        self.batch, self.inputs = batch, inputs


@dataclass(frozen=True)
class Learner:
    """A network that learns, and by what."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    rate: float  # the peak of its learning rate


class Training:
    """The state of a training: networks that learn, averages of the first one's weights, and images seen.

    Args:
        config: of the run.
        facts: of its data.
        device: that computes.
        processes: that train together.
        compute_format: of those that the settings leave open; the last of them when left out.
    """

    def __init__(
        self,
        config: Config,
        facts: Facts,
        device: torch.device,
        processes: Processes | None = None,
        compute_format: ComputeFormat | None = None,
    ) -> None:
        options = config.train
        self.processes = processes or Processes()
        need_divisible(self.processes, options.batch_size, options.exact_shards)
        if device.type == "mps" and options.recompute and config.model.dropout:
            raise UserError(
                "train.recompute: on mps torch would drop other activations in the second pass, so that gradients were "
                "wrong; set train.recompute=false or model.dropout=0"
            )
        self.config, self.facts, self.device, self.images = config, facts, device, 0
        self.skipped = 0  # updates in a row
        self.flags: Callable[[], Sequence[bool]] = tuple  # what processes agree on beside the losses, in one call
        self.streams = build.streams(config)  # of what the host draws
        make = partial(
            batch,
            seed=options.seed,
            flip=options.flip,
            augment=options.augment,
            streams=self.streams,
            noise=build.streams(config, device),
        )
        self.prefetcher = Prefetcher(make, options.workers, device)
        self.divided = divides(options, self.processes)
        if self.divided:  # never whole on a device
            with torch.device("meta"):
                network = build.network(config, facts)
            self.denoiser = build.setting(config, facts, nn.Identity()).to(device)
        else:
            with forked(device, key(options.seed, "weights")):
                self.denoiser = build.denoiser(config, facts).to(device)
            network = self.denoiser.network
        self.formats = open_formats(options, device, self.processes)
        self.format = compute_format or self.formats[-1]
        self.network = laid_out(network, self.format.channels_last)
        if options.compile:
            self.network.compile()
        grid = build.training_grid(config)
        with forked(device, key(options.seed, "auxiliary")):
            self.objective = build.objective(config, facts, len(grid) - 1)
        auxiliary = laid_out(self.objective.auxiliary.to(device), self.format.channels_last)
        learns = any(one.requires_grad for one in auxiliary.parameters())
        beside = auxiliary if learns else nn.Identity()
        self.engine = engine(self.network, self.processes, options, beside, self.format.dtype, device)
        self.denoiser.network = self.engine.module
        if self.divided:
            self.network.to_empty(device=device)
            self._draw_divided()
        self.shard = shard_size(options, self.processes)
        self.micro_batch = images_at_a_time(options, self.processes)
        self.uniforms, sampler = TIME_SAMPLERS[config.diffusion.times]
        self.sampler = sampler(grid, build.time_schedule(config))
        self.earlier = partial(self.objective.earlier, self.denoiser.schedule, self.sampler.t, self.sampler.s)
        self.learners = {"": Learner(self.network, build.optimizer(self.network, options), options.learning_rate)}
        self.networks = {"": self.network, "auxiliary-": auxiliary}  # of a checkpoint
        if learns:
            rate = build.AUXILIARY_RATE * options.learning_rate
            self.learners["auxiliary-"] = Learner(auxiliary, build.auxiliary_optimizer(auxiliary, rate), rate)
        # In torch of before December 2025 a weight cast in a call without gradients has none in the next (its #165068).
        self.autocast = self.format.autocast(device, cache_enabled=False)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.format.precision == "float16")
        self.starts = self.objective.starts
        self.monitors = [LossMonitor(options.spike) for _ in self.starts]
        self.spikes = self.monitors[0]  # of the part of the run
        self.averages = [
            PowerAverage(width, {name: value.detach().clone() for name, value in self.network.state_dict().items()})
            for width in options.average_widths
        ]

    def _draw_divided(self) -> None:
        """The initial weights of one process: the first draws them on its CPU, each takes its part of each."""
        drawn = {}
        if self.processes.first:
            with forked(torch.device("cpu"), key(self.config.train.seed, "weights")):
                drawn = build.network(self.config, self.facts).state_dict()
        own = self.network.state_dict()
        with torch.no_grad():
            for name, value in own.items():
                full = drawn.pop(name) if drawn else torch.empty(value.shape, dtype=value.dtype)
                self.processes.from_first_(full)
                value.copy_(like(full, value))

    def step(self, data: ImageSet, progress: float = 0.0, stage: float | None = None) -> Record:
        """One update; the learning rate follows the run's progress, from 0 to 1, and so does the loss, or a stage.

        Raises:
            NotFinite: when the loss or the gradient is not finite, or too many updates in a row were skipped.
        """
        with deterministic(self.device) if self.config.train.deterministic else nullcontext():
            return self._step(data, progress, progress if stage is None else stage)

    def _step(self, data: ImageSet, progress: float, stage: float) -> Record:
        started, options = time.perf_counter(), self.config.train
        numbers = range(self.images, self.images + options.batch_size)
        batch = self._batch(data, numbers, stage)
        self.spikes = self.monitors[bisect_right(self.starts, stage) - 1]
        for one in self.learners.values():
            for group in one.optimizer.param_groups:
                group["lr"] = learning_rate(progress, one.rate, options.warmup, options.decay)
        own = self._accumulate(batch)
        norms = [self._clipped(one) for one in self.learners.values()]
        # The one time that the host waits for the device.
        read = torch.cat([own, torch.stack(norms)]).cpu().double()
        norm, *others = map(float, read[len(own) :])
        losses, flags = self.processes.gather(read[: len(own)], self.flags())
        loss = float((losses * batch.importance).mean())
        finite = all(map(math.isfinite, (loss, norm, *others)))
        applied = finite and not self.spikes.is_spike(loss)
        if applied:
            for one in self.learners.values():
                self.scaler.step(one.optimizer)
            self.sampler.update(batch.index, losses)
            self.spikes.add(loss)
            self.skipped = 0
        else:
            self._skip(batch, data, losses, loss, sum(others, norm))
        self.scaler.update()
        self.images += options.batch_size
        current = self.network.state_dict()
        for average in self.averages:
            average.update(current, self.images, options.batch_size)
        rate = learning_rate(progress, options.learning_rate, options.warmup, options.decay)
        return Record(self.images, loss, norm, rate, time.perf_counter() - started, batch.index, losses, applied, flags)

    def _clipped(self, one: Learner) -> Tensor:
        """The norm of its gradient before it was clipped."""
        self.scaler.unscale_(one.optimizer)
        norm = whole(nn.utils.clip_grad_norm_(one.network.parameters(), self.config.train.clip_norm))
        return on(self.device, norm)  # of a network that had no gradient it is on the CPU

    def _skip(self, batch: _Batch, data: ImageSet, losses: Tensor, loss: float, norm: float) -> None:
        """Count a skipped update, or stop the run, as the settings say; the weights are untouched so far."""
        self.skipped += 1
        # Half precision overflows now and then by design; its scale is then lowered.
        may_skip = self.config.train.not_finite == "skip" or self.scaler.is_enabled() or math.isfinite(loss + norm)
        if may_skip and self.skipped < SKIPS_IN_A_ROW:
            return
        names = [data.names[row] for row in batch.share.rows]
        what = "far above those before" if math.isfinite(loss + norm) else "or its gradient is not finite"
        share = self.processes.share(range(len(losses)))
        raise NotFinite(
            f"the loss ({loss:.4g}) {what} at image {self.images} (batch: {', '.join(names[:8])}, ...), "
            f"{self.skipped} time(s) in a row: the run has diverged and stops before the weights are touched; "
            "lower train.learning_rate"
            + (", or use train.precision=float32" if self.format.precision != "float32" else ""),
            {
                "images": self.images,
                "loss": loss,
                "grad_norm": norm,
                "names": names,
                "t": self.sampler.t[batch.index[share.start : share.stop]].tolist(),
                "losses": losses[share.start : share.stop].tolist(),
            },
            {"x0": batch.share.x0(), "eps": batch.share.eps().cpu()},
        )

    def _batch(self, data: ImageSet, numbers: range, stage: float) -> _Batch:
        index, importance = self.sampler.draw(self.uniforms(self.config.train.seed, numbers, self.streams))
        share = self.processes.share(numbers)
        own = self.prefetcher(data, share, len(numbers))
        cond = trained_with(own.cond, self.config, share, self.streams)
        return _Batch(own, cond, index, self.earlier(stage), importance)

    def _accumulate(self, batch: _Batch) -> Tensor:
        """Gradients of the mean loss over all processes, this one's share a micro-batch at a time.

        Where memory runs out the micro-batch is halved and the share repeated: the same images, t and noise. Returns
        the share's losses, on the device.
        """
        self.network.train()
        while True:
            self.engine.begin()
            try:
                losses = self._backward_share(batch)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if self.micro_batch == 1:
                    raise UserError("a single image does not fit into memory; use a smaller model.width") from None
                self.micro_batch = (self.micro_batch + 1) // 2
                if not self.engine.repeats:
                    raise UserError(f"out of memory; use --set train.micro_batch={self.micro_batch}") from None
            else:
                self.engine.finish()
                return losses

    def _backward_share(self, batch: _Batch) -> Tensor:
        losses, count = [], len(batch.share.rows)
        for start in range(0, count, self.shard):
            end = start + self.shard
            for i in range(start, end, self.micro_batch):
                with self.engine.part(last=i + self.micro_batch >= count):
                    losses.append(self._backward(batch, slice(i, min(i + self.micro_batch, end))))
            self.engine.end_shard()
        return torch.cat(losses)

    def _backward(self, batch: _Batch, part: slice) -> Tensor:
        options = self.config.train
        offset = self.processes.rank * len(batch.share.rows)  # of this share in the whole batch
        index = batch.index[offset + part.start : offset + part.stop]
        importance = batch.importance[offset + part.start : offset + part.stop]
        with forked(self.device, key(options.seed, "dropout", self.images + offset + part.start)), self.autocast:
            losses = self.objective(
                self.denoiser,
                batch.share.x0(part, self.device),
                self.sampler.t[index],
                batch.earlier[index],
                batch.share.eps(part, self.device),
                **{name: on(self.device, value[part]) for name, value in batch.cond.items()},
            )
        mean = (losses * on(losses.device, importance, losses.dtype)).sum() * (self.engine.scale / options.batch_size)
        self.scaler.scale(mean).backward()
        return losses.detach()

    def model_weights(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The averaged weights that are the model, from the result of `tensors`."""
        return under(f"average-{self.averages[self.config.train.average].width:g}/", tensors)

    def whole_averages(self) -> list[PowerAverage]:
        """The averages of the weights in the first process; of divided ones each must call this, and keeps nothing."""
        first = self.processes.first
        return [
            PowerAverage(one.width, {name: on_first(value, first) for name, value in one.weights.items()})
            for one in self.averages
        ]

    def begin_with(self, weights: Mapping[str, Tensor], where: str) -> None:
        """Take these weights before the first update, as the network's and as both averages.

        Raises:
            Damaged: when they are of another network; `where` is what they are called.
        """
        own = self.network.state_dict()
        fitting(dict(weights), own, where)
        self.network.load_state_dict({name: like(weights[name], value) for name, value in own.items()})
        self.objective.begin_with(weights)
        for average in self.averages:
            for name, value in average.weights.items():
                value.copy_(like(weights[name], value))

    @property
    def _state(self) -> TrainingState:
        optimizers = {prefix: one.optimizer for prefix, one in self.learners.items()}
        first = self.processes.first
        return TrainingState(self.networks, optimizers, self.averages, self.sampler, self.monitors, self.scaler, first)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of a checkpoint by name; of divided ones each process must call this, and the first has them."""
        return self._state.tensors()

    def parts(self) -> Parts:
        """Copies of this process's parts of `tensors`, on the CPU; the first has what is not divided."""
        return self._state.parts()

    def load(self, tensors: Mapping[str, Tensor], images: int, where: str) -> None:
        """Load the result of `tensors`, on any number of processes; `where` is what its file is called.

        Raises:
            Damaged: when it is of another network or optimiser.
        """
        self._state.load(tensors, where)
        self.images = images


def learning_rate(progress: float, peak: float, warmup: float, decay: float) -> float:
    """A linear rise over the first `warmup` of the run, a linear fall over the last `decay` of it."""
    rising = min(1.0, (progress + 1e-12) / warmup) if warmup else 1.0
    falling = min(1.0, (1 - progress) / decay) if decay else 1.0
    # Never zero, so that the first step of a long warm-up is not lost.
    return peak * max(min(rising, falling), 1e-3)


def train(training: Training, data: ImageSet, plan: Callable[[], Plan]) -> Iterator[Record]:
    """Step to the end of the plan as it is before each step, yielding the step's record; to stop, stop iterating."""
    while training.images < plan().end:
        now, seen = plan(), training.images
        yield training.step(data, now.progress(seen), now.stage(seen))
