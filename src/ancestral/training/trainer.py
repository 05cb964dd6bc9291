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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ancestral.data.dataset import ImageSet
from ancestral.diffusion.objectives.time_sampling import TIME_SAMPLERS, UNIFORMS
from ancestral.diffusion.processes.streams import key
from ancestral.errors import UserError
from ancestral.networks.ema import PowerAverage
from ancestral.runs import build
from ancestral.runs.compute_format import ComputeFormat, laid_out
from ancestral.runs.conditions import Conditions, trained_with
from ancestral.runs.config import Config, Facts
from ancestral.runtime.disk import Damaged
from ancestral.runtime.distributed import Processes, check
from ancestral.runtime.tensor_files import fitting
from ancestral.training.gradient_sync import engine, like, open_formats, whole
from ancestral.training.loss_spikes import Guard
from ancestral.training.prefetch import Feed

MOMENTS = ({"step", "exp_avg", "exp_avg_sq"}, {"step", "momentum"})  # of a parameter: AdamW's, Muon's
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
    made: bool  # or left out, because the loss was not finite or far out of line


class _Batch(NamedTuple):
    """The times of one update's images, and this process's share of the images, on the CPU."""

    x0: Tensor
    cond: Conditions
    eps: Tensor
    place: Tensor  # on the time grid, of the whole batch
    importance: Tensor  # of the whole batch
    rows: list[int]


class NotFinite(UserError):
    """An update that stops the run, with what is needed to look into it; the weights are as before it.

    Args:
        message: what happened.
        batch: the images, times and losses of this process's share.
        inputs: the share's x0 and eps.
    """

    def __init__(self, message: str, batch: dict[str, Any], inputs: dict[str, Tensor]) -> None:
        super().__init__(message)
        self.batch, self.inputs = batch, inputs


class Training:
    """Network, optimiser, averages and position: all that changes while training, and nothing else.

    Args:
        config: of the run.
        facts: of its data.
        device: that computes.
        processes: that train together.
        chosen: of the formats that the settings leave open; the last of them when left out.
    """

    def __init__(
        self,
        config: Config,
        facts: Facts,
        device: torch.device,
        processes: Processes | None = None,
        chosen: ComputeFormat | None = None,
    ) -> None:
        options = config.train
        self.processes = processes or Processes()
        check(self.processes, options.batch_size, options.exact_shards)
        self.config, self.facts, self.device, self.images = config, facts, device, 0
        self.skipped = 0  # updates left out in a row
        self.feed = Feed(options.workers)
        with _torch_draws(key(options.seed, "weights"), device):
            self.denoiser = build.denoiser(config, facts).to(device)
        self.formats = open_formats(options, device, self.processes)
        self.format = chosen or self.formats[-1]
        self.network = laid_out(self.denoiser.network, self.format.channels_last)
        if options.compile:
            self.network.compile()
        self.engine = engine(self.network, self.processes, options)
        self.denoiser.network = self.engine.module
        self.shard = options.batch_size // (self.processes.size * self.engine.shards)
        self.part = min(options.micro_batch or self.shard, self.shard)  # images that meet the network at a time
        grid = build.training_grid(config)
        self.objective = build.objective(config, len(grid) - 1)
        uniforms, sampler = TIME_SAMPLERS[config.diffusion.times]
        self.uniforms, self.sampler = UNIFORMS[uniforms], sampler(grid, self.denoiser.schedule)
        self.optimizer = build.optimizer(self.network, options)
        self.lower = torch.autocast(device.type, self.format.dtype, self.format.precision != "float32")
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.format.precision == "float16")
        self.guard = Guard(options.spike)
        self.averages = [
            PowerAverage(width, {name: value.detach().clone() for name, value in self.network.state_dict().items()})
            for width in options.average_widths
        ]

    def step(self, data: ImageSet, total: int) -> Record:
        """One update; `total` is the length of the run in images, which the learning rate follows.

        Raises:
            NotFinite: when the loss or the gradient is not finite, or updates had to be left out again and again.
        """
        started, options = time.perf_counter(), self.config.train
        numbers = range(self.images, self.images + options.batch_size)
        batch = self._batch(data, numbers)
        rate = learning_rate(self.images / total, options.learning_rate, options.warmup, options.decay)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = self.processes.gather(self._accumulate(batch))
        self.scaler.unscale_(self.optimizer)
        loss = float((losses * batch.importance).mean())
        norm = float(whole(nn.utils.clip_grad_norm_(self.network.parameters(), options.clip_norm)))
        finite = math.isfinite(loss) and math.isfinite(norm)
        made = finite and not self.guard.is_spike(loss)
        if made:
            self.scaler.step(self.optimizer)
            self.sampler.update(batch.place, losses)
            self.guard.take(loss)
            self.skipped = 0
        else:
            self._leave_out(batch, data, losses, loss, norm)
        self.scaler.update()
        self.images += options.batch_size
        current = self.network.state_dict()
        for average in self.averages:
            average.update(current, self.images, options.batch_size)
        return Record(self.images, loss, norm, rate, time.perf_counter() - started, batch.place, losses, made)

    def _leave_out(self, batch: _Batch, data: ImageSet, losses: Tensor, loss: float, norm: float) -> None:
        """Leave the update out, or stop, as the settings say; the weights are untouched so far."""
        self.skipped += 1
        # Half precision overflows now and then by design; its scale is then lowered.
        may_skip = self.config.train.not_finite == "skip" or self.scaler.is_enabled() or math.isfinite(loss + norm)
        if may_skip and self.skipped < SKIPS_IN_A_ROW:
            return
        names = [data.names[row] for row in batch.rows]
        what = "far above those before" if math.isfinite(loss + norm) else "or its gradient is not finite"
        mine = self.processes.share(range(len(losses)))
        raise NotFinite(
            f"the loss ({loss:.4g}) {what} at image {self.images} (batch: {', '.join(names[:8])}, ...), "
            f"{self.skipped} time(s) in a row: the run has diverged and stops before the weights are touched; "
            "lower train.learning_rate, or use train.precision=float32",
            {
                "images": self.images,
                "loss": loss,
                "grad_norm": norm,
                "names": names,
                "t": self.sampler.t[batch.place[mine.start : mine.stop]].tolist(),
                "losses": losses[mine.start : mine.stop].tolist(),
            },
            {"x0": batch.x0, "eps": batch.eps},
        )

    def _batch(self, data: ImageSet, numbers: range) -> _Batch:
        seed = self.config.train.seed
        place, importance = self.sampler.draw(self.uniforms(seed, numbers))
        mine = self.processes.share(numbers)
        x0, known, rows, eps = self.feed(data, seed, mine, self.config.train.flip, stride=len(numbers))
        return _Batch(x0, trained_with(known, self.config, mine), eps, place, importance, rows)

    def _accumulate(self, batch: _Batch) -> Tensor:
        """Gradients of the mean loss, from this process's share a part at a time and from the others.

        Where memory runs out the part is halved and the share begun again: the same images, t and noise. Returns the
        share's losses, float64, on the CPU.
        """
        self.network.train()
        while True:
            self.engine.begin()
            try:
                losses = self._parts(batch)
            except torch.OutOfMemoryError:
                if self.part == 1:
                    raise UserError("a single image does not fit into memory; use a smaller model.width") from None
                self.part = (self.part + 1) // 2
                if not self.engine.repeats:
                    raise UserError(f"out of memory; use --set train.micro_batch={self.part}") from None
            else:
                self.engine.finish()
                return losses

    def _parts(self, batch: _Batch) -> Tensor:
        losses = []
        for start in range(0, len(batch.x0), self.shard):
            end = start + self.shard
            for i in range(start, end, self.part):
                with self.engine.part(last=i + self.part >= len(batch.x0)):
                    losses.append(self._backward(batch, slice(i, min(i + self.part, end))))
            self.engine.end_shard()
        return torch.cat(losses)

    def _backward(self, batch: _Batch, part: slice) -> Tensor:
        options = self.config.train
        before = self.processes.rank * len(batch.x0)  # this share's place in the whole batch
        place = batch.place[before + part.start : before + part.stop]
        importance = batch.importance[before + part.start : before + part.stop]
        with _torch_draws(key(options.seed, "dropout", self.images + before + part.start), self.device), self.lower:
            losses = self.objective(
                self.denoiser,
                batch.x0[part].to(self.device),
                self.sampler.t[place],
                self.sampler.s[place],
                batch.eps[part].to(self.device),
                **{name: value[part].to(self.device) for name, value in batch.cond.items()},
            )
        mean = (losses * importance.to(losses)).sum() * (self.engine.scale / options.batch_size)
        self.scaler.scale(mean).backward()
        return losses.detach().cpu().double()

    def model_weights(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The averaged weights that are the model, out of what `tensors` gave."""
        return _under(f"average-{self.averages[self.config.train.average].width:g}/", tensors)

    def whole_averages(self) -> list[PowerAverage]:
        """Both averages, whole; all processes must ask."""
        return [
            PowerAverage(one.width, {name: whole(value) for name, value in one.weights.items()})
            for one in self.averages
        ]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that training needs to go on, named and whole; all processes must ask."""
        named = self._fixed()
        for index, moments in self.optimizer.state_dict()["state"].items():
            named |= {f"optimizer/{index}/{name}": value for name, value in moments.items()}
        named |= {f"scaler/{name}": torch.tensor(value) for name, value in self.scaler.state_dict().items()}
        return {name: whole(value.detach()) for name, value in named.items()}

    def _fixed(self) -> dict[str, Tensor]:
        """Of these tensors those that are there, in one shape, before the first update too."""
        named = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        for average in self.averages:
            named |= {f"average-{average.width:g}/{name}": value for name, value in average.weights.items()}
        named |= {f"sampler/{name}": value for name, value in self.sampler.state().items()}
        return named | {f"guard/{name}": value for name, value in self.guard.state().items()}

    def _check(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Refuse tensors that are not those of this training, before any is taken up."""
        grown = ("optimizer/", "scaler/")
        fitting({name: value for name, value in tensors.items() if not name.startswith(grown)}, self._fixed(), where)
        parameters = {str(index): value for index, value in enumerate(self.network.parameters())}
        kept: dict[str, set[str]] = {}
        for name, value in _under("optimizer/", tensors).items():
            index, _, moment = name.partition("/")
            if index not in parameters or value.shape != (() if moment == "step" else parameters[index].shape):
                raise Damaged(f"{where}: optimizer/{name} is of no parameter, or not of its shape")
            kept.setdefault(index, set()).add(moment)
        for index, moments in kept.items():
            if moments not in MOMENTS:
                raise Damaged(f"{where}: optimizer/{index} has {', '.join(sorted(moments))} only")

    def load(self, tensors: Mapping[str, Tensor], images: int, where: str) -> None:
        """Take up a state that `tensors` gave, on any number of processes; `where` is what its file is called.

        Raises:
            Damaged: when it is of another network or optimiser.
        """
        self._check(tensors, where)
        try:
            own = self.network.state_dict()
            self.network.load_state_dict(
                {name: like(value, own[name]) for name, value in _under("network/", tensors).items()}
            )
            for average in self.averages:
                saved = _under(f"average-{average.width:g}/", tensors)
                for name, value in average.weights.items():
                    value.copy_(like(saved[name], value))
            optimizer, parameters = self.optimizer.state_dict(), list(self.network.parameters())
            optimizer["state"] = {}
            for name, value in _under("optimizer/", tensors).items():
                index, _, moment = name.partition("/")
                optimizer["state"].setdefault(int(index), {})[moment] = like(value, parameters[int(index)])
            self.optimizer.load_state_dict(optimizer)
            self.sampler.load_state(_under("sampler/", tensors))
            self.guard.load_state(_under("guard/", tensors))
            if self.scaler.is_enabled():
                self.scaler.load_state_dict({name: value.item() for name, value in _under("scaler/", tensors).items()})
        except (KeyError, RuntimeError, ValueError) as error:
            raise Damaged(f"{where}: does not fit this configuration ({error})") from None
        self.images = images


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


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
