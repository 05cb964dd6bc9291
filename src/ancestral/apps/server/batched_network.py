"""One network for many walks: each walks in a thread of its own, one thread computes, and calls that fit go together.

Rounding depends on the size of a batch, and an image must be what `ancestral sample` writes, to the byte. So it is
measured once which sizes round alike here, with this network; only batches of such sizes are joined, into another.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ancestral.apps.server.job import current, going_on
from ancestral.runtime.system import out_of_memory

PATIENCE = 0.003  # seconds that a call waits for others to join it
SIZES = (*range(1, 17), 20, 24, 28, 32, 40, 48, 56, 64)  # that are measured
MEASURING = 20.0  # seconds that this may take

Inputs = dict[str, Tensor]


class _Call:
    def __init__(self, network: nn.Module, inputs: Inputs, alike: dict[int, int]) -> None:
        self.network, self.inputs, self.alike = network, inputs, alike
        self.rows = len(inputs["x"])
        kind = inputs["x"].device.type
        # The walk's own, as torch keeps it for each thread.
        lowered = torch.is_autocast_enabled(kind)
        self.autocast = kind, torch.get_autocast_dtype(kind) if lowered else None, lowered
        self.output: Tensor | None = None
        self.error: Exception | None = None
        self.done = threading.Event()

    def joins(self, other: _Call) -> bool:
        """Whether the two could be one call, but for their sizes."""
        return (self.network, self.autocast) == (other.network, other.autocast) and all(
            name in other.inputs and value.shape[1:] == other.inputs[name].shape[1:]
            for name, value in self.inputs.items()
        ) and len(self.inputs) == len(other.inputs)  # fmt: skip


class Calls:
    """The thread that computes, and the calls that wait for it: the urgent ones, then the oldest."""

    def __init__(self) -> None:
        self.walkers = 0  # walks that are under way, each with one call at a time
        self.counted: dict[int, int] = {}  # joined calls: how many were computed
        self._waiting: deque[_Call] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._thread.start()

    def ask(self, network: nn.Module, inputs: Inputs, alike: dict[int, int]) -> Tensor:
        """What the network says to these inputs (B, ...).

        Raises:
            Stopped: when the job of this thread is cancelled.
        """
        going_on()
        call = _Call(network, inputs, alike)
        with self._changed:
            if self._closed:
                raise RuntimeError("the server is closed")
            # Who waits for a short answer goes before those who are under way.
            record = current.get()
            (self._waiting.appendleft if record is not None and record.urgent else self._waiting.append)(call)
            self._changed.notify_all()
        call.done.wait()
        going_on()
        if call.error is not None:
            raise call.error
        assert call.output is not None
        return call.output

    def walks(self, more: int) -> None:
        """So many more walks are under way, or fewer."""
        with self._changed:
            self.walkers += more
            self._changed.notify_all()

    def close(self) -> None:
        """Compute what waits, then no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while group := self._next():
            try:
                with torch.no_grad(), torch.autocast(*group[0].autocast):
                    outputs = _computed(group)
                for call, output in zip(group, outputs, strict=True):
                    call.output = output
            except Exception as error:  # it belongs to the walks, which must not wait for ever
                for call in group:
                    call.error = error
            for call in group:
                call.done.set()
            self.counted[len(group)] = self.counted.get(len(group), 0) + 1

    def _next(self) -> list[_Call]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return []
            self._changed.wait_for(lambda: len(self._waiting) >= self.walkers or self._closed, PATIENCE)
            group = _group(self._waiting)
            for call in group:
                self._waiting.remove(call)
            return group


def _group(waiting: Sequence[_Call]) -> list[_Call]:
    """The oldest call and those that can join it without a change of its rounding, or of theirs."""
    first, *others = waiting
    kind = first.alike.get(first.rows)
    if kind is None:
        return [first]
    group, rows = [first], first.rows
    for call in others:
        if call.joins(first) and call.alike.get(call.rows) == kind and _padded(rows + call.rows, first.alike, kind):
            group.append(call)
            rows += call.rows
    return group


def _padded(rows: int, alike: dict[int, int], kind: int) -> int | None:
    """The smallest size of this kind with room for so many rows."""
    return min((size for size, other in alike.items() if other == kind and size >= rows), default=None)


def _computed(group: list[_Call]) -> list[Tensor]:
    first = group[0]
    if len(group) == 1:
        return [first.network(**first.inputs)]
    rows = sum(call.rows for call in group)
    size = _padded(rows, first.alike, first.alike[first.rows])
    assert size is not None
    joined = {}
    for name in first.inputs:
        parts = [call.inputs[name] for call in group]
        joined[name] = torch.cat([*parts, parts[-1][-1:].expand(size - rows, *parts[-1].shape[1:])])
    output = first.network(**joined)
    return [part.clone() for part in output[:rows].split([call.rows for call in group])]


class Shared(nn.Module):
    """A network that computes in the thread of `calls`, joined with other calls where `alike` says that this is safe.

    Args:
        network: takes x (B, ...), time (B,) and conditions by name.
        calls: where it computes.
        alike: kind of each size of a batch; sizes of one kind round alike.
    """

    def __init__(self, network: nn.Module, calls: Calls, alike: dict[int, int]) -> None:
        super().__init__()
        self.network, self.calls, self.alike = network, calls, alike

    def __deepcopy__(self, memo: dict[int, Any]) -> Shared:
        """A copy computes in the same thread; of how it rounds nothing is known."""
        return Shared(copy.deepcopy(self.network, memo), self.calls, {})

    def forward(self, x: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        """As the network."""
        return self.calls.ask(self.network, {"x": x, "time": time, **cond}, self.alike)


@torch.no_grad()
def rounding_alike(
    network: Callable[..., Tensor], example: Inputs, sizes: Sequence[int] = SIZES, seconds: float = MEASURING
) -> dict[int, int]:
    """Which sizes of a batch give every row the same bits, wherever it stands: sizes of one kind have one number.

    An image repeated must give one output repeated; sizes where it does not are left out.

    Args:
        network: as in `Shared`.
        example: one row of inputs, (1, ...) each.
        sizes: to try, rising; what a device has no memory for ends it.
        seconds: that this may take; calls of sizes that are not measured are not joined.
    """
    began = time.monotonic()
    kinds: list[Tensor] = []
    found: dict[int, int] = {}
    for size in sizes:
        started = time.monotonic()
        try:
            output: Any = network(
                **{name: value.expand(size, *value.shape[1:]).contiguous() for name, value in example.items()}
            )
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            break
        if not torch.equal(output, output[:1].expand_as(output)):
            continue
        match = next((kind for kind, other in enumerate(kinds) if torch.equal(other, output[0])), None)
        if match is None:
            kinds.append(output[0])
            match = len(kinds) - 1
        found[size] = match
        now = time.monotonic()
        if now - began + (now - started) > seconds:  # the next is larger
            break
    return found
