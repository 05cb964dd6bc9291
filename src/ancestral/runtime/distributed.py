"""Several processes, one training, on torch's own engine: `torchrun --nproc-per-node=N -m ancestral train ...`.

Every process draws what belongs to its share of the batch's image numbers, so that the images, their order, t and noise
are those of a single process. Gradients are summed over the processes: by all-reduce, equal to a single process to
rounding; or, in exact mode, shard by shard in one fixed binary tree, equal to the bit on 1, 2, 4, ... processes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from ancestral.errors import UserError
from ancestral.runtime.launch import local_rank, world_size

PATIENCE = timedelta(minutes=10)  # of processes that wait for each other
LONG = timedelta(days=1)  # where one of them does something that the others need
_ASKED = timedelta(seconds=5)  # in which a process that is waited for in vain may still answer


@dataclass(frozen=True)
class Processes:
    """Those that train together, and which of them this is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of this machine
    patience: timedelta = field(default=PATIENCE, compare=False)  # with which they wait for each other
    control: distributed.ProcessGroup | None = field(default=None, compare=False, repr=False)  # gloo: names who is late
    patient: distributed.ProcessGroup | None = field(default=None, compare=False, repr=False)  # the same, for `LONG`

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

    def from_first_(self, value: Tensor) -> None:
        """Fill a tensor with the first process's."""
        if self.size > 1:
            distributed.broadcast(value, 0)

    def text_of(self, rank: int, text: str) -> str:
        """The text of one process, at most 4096 bytes of UTF-8."""
        return self.texts(text)[rank]

    def texts(self, text: str) -> list[str]:
        """The text of each process, at most 4096 bytes of UTF-8."""
        padded = torch.zeros(4096, dtype=torch.uint8)
        encoded = torch.tensor(list(text.encode()), dtype=torch.uint8)
        padded[: len(encoded)] = encoded
        return [bytes(one.tolist()).rstrip(b"\0").decode() for one in self.all_of(padded)]

    def gather(self, values: Tensor, flags: Sequence[bool] = ()) -> tuple[Tensor, tuple[bool, ...]]:
        """In one call: the values (B / size,) of all in the order of the batch, and which flags any process raises."""
        asked = torch.tensor(flags, dtype=values.dtype)
        parts = [one.split([len(values), len(flags)]) for one in self.all_of(torch.cat([values, asked]))]
        raised = torch.stack([own for _, own in parts]).any(0)
        return torch.cat([one for one, _ in parts]), tuple(raised.tolist())

    def wait(self) -> None:
        """Until all are here, for as long as is their patience.

        Raises:
            UserError: naming who is not.
        """
        self._wait(self.control, self.patience)

    def wait_long(self) -> None:
        """Until all are here, for `LONG`: one of them does what the others need.

        Raises:
            UserError: naming who is not.
        """
        self._wait(self.patient, LONG)

    def _wait(self, group: distributed.ProcessGroup | None, patience: timedelta) -> None:
        if self.size > 1:
            try:  # the time given is the first's alone: the others wait as long as their group does
                distributed.monitored_barrier(group, timeout=patience, wait_all_ranks=True)
            except RuntimeError as error:
                raise self._named(error) from None

    def all_of(self, value: Tensor) -> list[Tensor]:
        """The value of every process, in the order of their ranks; from the CPU by gloo, from a GPU by NCCL.

        Raises:
            UserError: when one does not answer, naming it.
        """
        if self.size == 1:
            return [value]
        gathered = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(self.size)]
        try:
            distributed.all_gather(gathered, value.contiguous())
        except RuntimeError as error:
            raise self._named(error) from None
        return gathered

    def _named(self, error: RuntimeError) -> Exception:
        """The error, or one that names the processes that were waited for in vain, which the first finds out."""
        found = re.search(r"Ranks? ([0-9, ]+) failed", str(error))
        if found is None:
            if not re.search("[Tt]imed out", str(error)):
                return error
            try:
                distributed.monitored_barrier(self.control, timeout=_ASKED, wait_all_ranks=True)
            except RuntimeError as late:
                found = re.search(r"Ranks? ([0-9, ]+) failed", str(late))
        if not self.first:
            time.sleep(1)  # so that the first, which knows, is heard
        who = "another process" if found is None else f"process {found[1].strip(' ,')} (counted from 0)"
        return UserError(
            f"{who} of the {self.size} does not answer: it hangs, or is far slower than the others; look at its "
            "machine, and the same command goes on from the last checkpoint"
        )


def tree_sum(parts: Sequence[Tensor]) -> Tensor:
    """((a + b) + (c + d)) + ...: the order of addition depends on the number of parts alone."""
    level = list(parts)
    while len(level) > 1:
        level = [a + b for a, b in zip(level[::2], level[1::2], strict=True)]
    return level[0]


def join(device: torch.device, patience: timedelta = PATIENCE) -> Processes:
    """Join the other processes that torchrun started, if it did.

    None waits for another longer than `patience`, and than `LONG` in `wait_long`.
    """
    size, number = world_size(), local_rank()
    if size > 1 and device.type == "mps":
        raise UserError("--processes: there is one mps device, and no library joins processes on it; use --device cpu")
    bound = device if device.type == "cuda" else None
    if bound is not None:
        if size > 1 and bound.index != number:
            raise UserError(f"--device {bound}: each of the {size} processes has a GPU of its own; use --device cuda")
        torch.cuda.set_device(bound)  # torch's seeds are for this one, and "cuda" means it
    if size == 1:
        return Processes()
    if not distributed.is_initialized():
        backend = "gloo" if bound is None else "cpu:gloo,cuda:nccl"
        distributed.init_process_group(backend, timeout=patience, device_id=bound)
    control: Any = distributed.new_group(timeout=patience, backend="gloo")
    patient: Any = distributed.new_group(timeout=LONG, backend="gloo")
    return Processes(distributed.get_rank(), size, number, patience, control, patient)


def leave() -> None:
    """Part from the others in order."""
    if distributed.is_available() and distributed.is_initialized():
        # The engine's threads must drop their last tensors first: freeing the group holds the interpreter's lock while
        # it waits for them, and they wait for the lock (seen as a process that never ends, torch 2.13 with gloo).
        time.sleep(0.2)
        distributed.destroy_process_group()


def need_divisible(processes: Processes, batch_size: int, shards: int | None) -> None:
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
    """Context manager: join the processes that share a command, and leave them at its end.

    On CUDA a process that failed leaves by its own end, which must follow.
    """
    try:
        yield join(device, patience)
    except BaseException:
        if device.type != "cuda":  # NCCL would wait for what the others still expect of this one, and nobody hear why
            leave()
        raise
    leave()
