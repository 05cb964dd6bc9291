"""Several processes, one training, on torch's own engine: `torchrun --nproc-per-node=N -m ancestral train ...`.

Every process draws what belongs to its share of the batch's image numbers, so that the images, their order, t and noise
are those of a single process. Gradients are summed over the processes: by all-reduce, equal to a single process to
rounding; or, in exact mode, shard by shard in one fixed binary tree, equal to the bit on 1, 2, 4, ... processes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

from ancestral.errors import UserError
from ancestral.runtime.console import screen

PATIENCE = timedelta(minutes=30)  # of processes that wait for each other


@dataclass(frozen=True)
class Processes:
    """Those that train together, and which of them this is."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def share(self, numbers: range) -> range:
        """This process's contiguous part of a batch's image numbers."""
        each = len(numbers) // self.size
        return numbers[self.rank * each : (self.rank + 1) * each]

    def most(self, count: int) -> int:
        """Of so many things that are shared, how many are this process's at most."""
        return -(-count // self.size)

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process; all get the same answer."""
        return any(bool(one) for one in self.all_of(torch.tensor([flag])))

    def from_first(self, value: float) -> float:
        """The first process's value."""
        return float(self.all_of(torch.tensor([value], dtype=torch.float64))[0])

    def gather(self, values: Tensor) -> Tensor:
        """The values (B / size,) of all processes in the order of the batch, on the CPU."""
        return torch.cat(self.all_of(values))

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            distributed.barrier()

    def all_of(self, value: Tensor) -> list[Tensor]:
        """The value of every process, in the order of their ranks."""
        if self.size == 1:
            return [value]
        # gloo gathers on the CPU, NCCL on the device; small values are moved to where the engine is.
        here = value.cuda() if distributed.get_backend() == "nccl" else value.contiguous()
        gathered = [torch.empty_like(here) for _ in range(self.size)]
        distributed.all_gather(gathered, here)
        return [one.to(value.device) for one in gathered]


def tree_sum(parts: Sequence[Tensor]) -> Tensor:
    """((a + b) + (c + d)) + ...: the order of addition depends on the number of parts alone."""
    level = list(parts)
    while len(level) > 1:
        level = [a + b for a, b in zip(level[::2], level[1::2], strict=True)]
    return level[0]


def join(device: torch.device, patience: timedelta = PATIENCE) -> Processes:
    """Join the other processes that torchrun started, if it did; none waits for another longer than `patience`."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Processes()
    if device.type == "mps":
        raise UserError("--processes: there is one mps device, and no library joins processes on it; use --device cpu")
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # "cuda" then means this process's own
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)
    return Processes(distributed.get_rank(), size)


def leave() -> None:
    """Part from the others in order."""
    if distributed.is_available() and distributed.is_initialized():
        # The engine's threads must drop their last tensors first: freeing the group holds the interpreter's lock while
        # it waits for them, and they wait for the lock (seen as a process that never ends, torch 2.13 with gloo).
        time.sleep(0.2)
        distributed.destroy_process_group()


def check(processes: Processes, batch_size: int, shards: int | None) -> None:
    """Refuse sizes that do not divide.

    Raises:
        UserError: naming the setting and what would do.
    """
    if batch_size % processes.size:
        raise UserError(f"train.batch_size: {batch_size} does not divide by the {processes.size} processes")
    if shards is None:
        return
    if shards & (shards - 1) or shards % processes.size or batch_size % shards:
        raise UserError(
            f"train.exact_shards: {shards} must be a power of two that divides train.batch_size = {batch_size} "
            f"and is a multiple of the {processes.size} processes"
        )


@contextmanager
def process_group(device: torch.device, patience: timedelta = PATIENCE) -> Iterator[Processes]:
    """Context manager: join the processes that share a command, leave them however it ends; the first prints."""
    try:
        processes = join(device, patience)
        screen.quiet = not processes.first
        yield processes
    finally:
        leave()
