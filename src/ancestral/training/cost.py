"""What a run will cost, from a few seconds of it: parameters, operations, memory, images per second."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ancestral.data.dataset import ImageSet
from ancestral.runs.datasets import facts
from ancestral.training.trainer import Training

SECONDS = 4.0  # of measuring the speed
ENDLESS = 10**9  # images: the length of a run whose learning rate does not matter


@dataclass(frozen=True)
class Cost:
    """Of one update, on all processes together unless said otherwise."""

    parameters: int
    flops: int  # floating-point operations of matrix products and convolutions, backward pass included
    state_bytes: int  # weights, gradients, moments, averages; a checkpoint is as large: the model, but no gradients
    activation_bytes: int  # kept for the backward pass of one part of a batch
    images_per_second: float


def measure_speed(training: Training, data: ImageSet, seconds: float = SECONDS) -> float:
    """Images per second of all processes together, from steps of a throw-away training of the same kind."""
    probe = _probe(training, data)
    probe.step(data, ENDLESS)  # allocations and kernel choices are not speed
    return _speed(probe, data, seconds)


def _probe(training: Training, data: ImageSet) -> Training:
    return Training(training.config, facts(data), training.device, training.processes, training.format)


def _speed(probe: Training, data: ImageSet, seconds: float) -> float:
    """Of a training that has made its first step."""
    durations = []
    while len(durations) < 50 and probe.processes.any(sum(durations) < seconds):
        durations.append(probe.step(data, ENDLESS).seconds)
    return probe.config.train.batch_size / probe.processes.from_first(float(np.median(durations)))


def measure(training: Training, data: ImageSet) -> Cost:
    """Run a few steps of a throw-away training and count."""
    probe = _probe(training, data)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        probe.step(data, ENDLESS)
    weights = {value.untyped_storage().data_ptr() for value in probe.network.parameters()}
    parameters = sum(value.numel() for value in probe.network.parameters())
    parts = -(-probe.shard // probe.part) * probe.engine.shards
    return Cost(
        parameters=parameters,
        flops=counter.get_total_flops() * training.processes.size,
        state_bytes=parameters * torch.float32.itemsize * (4 + len(probe.averages)),
        activation_bytes=sum(size for place, size in kept.items() if place not in weights) // parts,
        images_per_second=_speed(probe, data, SECONDS),
    )
