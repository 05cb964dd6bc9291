"""The cost of a run, from a few seconds of it: parameters, operations, memory, images per second."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ancestral.data.dataset import ImageSet
from ancestral.runs.config import Config
from ancestral.runs.datasets import facts
from ancestral.runtime.distributed import Processes
from ancestral.training.trainer import Training

SECONDS = 4.0  # of measuring the speed
SIZING = 1.0  # of measuring each of some widths, of which one is chosen


@dataclass(frozen=True)
class Cost:
    """The cost of one update, on all processes together unless said otherwise."""

    parameters: int
    flops: int  # floating-point operations of matrix products and convolutions, backward pass included
    state_bytes: int  # weights, gradients, moments, averages; a checkpoint is as large: the model, but no gradients
    activation_bytes: int  # saved for the backward pass of one micro-batch
    images_per_second: float


def measure_speed(training: Training, data: ImageSet) -> float:
    """Images per second of all processes together, from steps of a throw-away training of the same kind."""
    return _first_speed(_probe(training, data), data, SECONDS)


def speed_with(config: Config, data: ImageSet, device: torch.device, processes: Processes) -> float:
    """The same for a configuration, in the format that a training has before one is chosen, and in less time."""
    return _first_speed(Training(config, facts(data), device, processes), data, SIZING)


def _first_speed(probe: Training, data: ImageSet, seconds: float) -> float:
    """Images per second of a training, its first step left out: allocations and kernel choices are not speed."""
    probe.step(data)
    return _speed(probe, data, seconds)


def _probe(training: Training, data: ImageSet) -> Training:
    return Training(training.config, facts(data), training.device, training.processes, training.format)


def _speed(probe: Training, data: ImageSet, seconds: float) -> float:
    """Images per second of a training after its first step."""
    durations = []
    while len(durations) < 50 and probe.processes.any(sum(durations) < seconds):
        durations.append(probe.step(data).seconds)
    return probe.config.train.batch_size / probe.processes.from_first(float(np.median(durations)))


def measure(training: Training, data: ImageSet) -> Cost:
    """Measure all of it on a few steps of a throw-away training."""
    probe, saved = _probe(training, data), _SavedPerPass()
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(saved.save, saved.give):
        probe.step(data)
    learned = [(value, one.optimizer.state) for one in probe.learners.values() for value in one.network.parameters()]
    parameters = sum(value.numel() for value in probe.network.parameters())
    numbers = len(probe.averages) * parameters
    for value, state in learned:  # two moments where this step gave it no gradient, and so no state
        moments = state[value].values() if value in state else (value, value)
        numbers += sum(one.numel() for one in (value, value, *moments))
    return Cost(
        parameters=parameters,
        flops=counter.get_total_flops() * training.processes.size,
        state_bytes=torch.float32.itemsize * numbers,
        activation_bytes=saved.most({value.untyped_storage().data_ptr() for value, _ in learned}),
        images_per_second=_speed(probe, data, SECONDS),
    )


class _SavedPerPass:
    """Bytes by address of what is saved from one backward pass to the next, after which addresses are used again."""

    def __init__(self) -> None:
        self._passes: list[dict[int, int]] = [{}]
        self._backward = False

    def save(self, tensor: Tensor) -> Tensor:
        """Count it."""
        if self._backward:
            self._passes.append({})
            self._backward = False
        storage = tensor.untyped_storage()
        self._passes[-1][storage.data_ptr()] = storage.nbytes()
        return tensor

    def give(self, tensor: Tensor) -> Tensor:
        """A backward pass has begun."""
        self._backward = True
        return tensor

    def most(self, others: set[int]) -> int:
        """Bytes of the pass with the most, without those at other addresses."""
        return max(sum(size for at, size in one.items() if at not in others) for one in self._passes)
