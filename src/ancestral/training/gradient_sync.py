"""Gradient accumulation over micro-batches and synchronisation over processes.

auto        ddp, or all-reduce where a second network learns
all-reduce  every process adds up its micro-batches, then one call adds up these sums; a micro-batch may be repeated
ddp         torch's DistributedDataParallel: the adding overlaps with the backward pass of the last part
fsdp        torch's fully_shard (FSDP2): weights, gradients, moments and averages are divided among the processes
exact       the shards of `train.exact_shards` are added in one binary tree: the same bits on 1, 2, 4, ... processes
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ancestral.errors import UserError
from ancestral.runs.compute_format import ComputeFormat, candidates
from ancestral.runs.config import TrainOptions
from ancestral.runtime.distributed import Processes, tree_sum

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class Engine:
    """All-reduce after the backward passes; base class of the others."""

    scale = 1  # by which the loss is multiplied, since some engines average over processes instead of adding
    repeats = True  # whether one process may repeat a micro-batch without the others

    def __init__(self, network: nn.Module, processes: Processes, auxiliary: nn.Module) -> None:
        self.processes = processes
        self.learning = nn.ModuleList([network, auxiliary])
        self.module: Any = network  # that the forward pass calls
        self._learned: list[nn.Parameter] = []  # that have a gradient: an objective may leave out one of two networks

    def begin(self) -> None:
        """Called before the first micro-batch, also when the share is repeated."""
        self.learning.zero_grad()

    def part(self, last: bool) -> AbstractContextManager[object]:
        """Context of the forward and backward pass of one micro-batch."""
        return nullcontext()

    def end_shard(self) -> None:
        """Called after the micro-batches of one shard."""

    def finish(self) -> None:
        """Called after all micro-batches: every process then has the gradient of the whole batch."""
        if self.processes.size > 1:
            gradient = self._gradient()
            distributed.all_reduce(gradient)
            self._set_gradient(gradient)

    def _gradient(self) -> Tensor:
        """All gradients as one vector."""
        self._learned = [one for one in self.learning.parameters() if one.grad is not None]
        return torch.cat([one.grad.flatten() for one in self._learned if one.grad is not None])

    def _set_gradient(self, gradient: Tensor) -> None:
        sizes = [one.numel() for one in self._learned]
        for parameter, part in zip(self._learned, gradient.split(sizes), strict=True):
            # Laid out as the weight: the fused optimiser goes through memory and looks at no strides.
            parameter.grad = torch.empty_like(parameter).copy_(part.reshape(parameter.shape))


class Exact(Engine):
    """Adds shards in a binary tree whose shape does not depend on the number of processes."""

    def __init__(self, network: nn.Module, processes: Processes, auxiliary: nn.Module) -> None:
        super().__init__(network, processes, auxiliary)
        self._sums: list[Tensor] = []

    def begin(self) -> None:
        """Also drop the shards of a share that is repeated."""
        super().begin()
        self._sums.clear()

    def end_shard(self) -> None:
        """Keep this shard's gradient."""
        self._sums.append(self._gradient())
        self.learning.zero_grad()

    def finish(self) -> None:
        """The lower part of the tree here, the upper part over the processes."""
        own, self._sums = tree_sum(self._sums), []
        self._set_gradient(tree_sum(self.processes.all_of(own)))


class Averaging(Engine):
    """Engines of torch: they average during the backward pass of the last micro-batch."""

    repeats = False

    def __init__(self, network: nn.Module, processes: Processes, auxiliary: nn.Module) -> None:
        super().__init__(network, processes, auxiliary)
        if any(True for _ in auxiliary.parameters()):
            raise UserError(
                "train.parallel: ddp and fsdp wrap one network, and with this diffusion.objective two learn; use "
                "all-reduce"
            )
        self.scale = processes.size

    def finish(self) -> None:
        """Nothing: the gradients are averaged already."""


class Ddp(Averaging):
    """DistributedDataParallel."""

    def __init__(self, network: nn.Module, processes: Processes, auxiliary: nn.Module) -> None:
        super().__init__(network, processes, auxiliary)
        # Gradients are parts of what is sent, not copies.
        self.module = DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)

    def part(self, last: bool) -> AbstractContextManager[object]:
        """Gradients are synchronised in the last micro-batch only."""
        return nullcontext() if last else self.module.no_sync()


class Fsdp(Averaging):
    """FSDP2: each layer's weights are divided among the processes and gathered for its passes.

    In bfloat16 they are gathered so, half as many bytes; gradients are added in float32.
    """

    def __init__(
        self,
        network: nn.Module,
        processes: Processes,
        auxiliary: nn.Module,
        precision: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(network, processes, auxiliary)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # 0.6 s, which only this engine needs

        # The default is the accelerator of the machine, whatever computes.
        mesh = init_device_mesh(device.type, (processes.size,))
        lower = MixedPrecisionPolicy(precision, torch.float32, torch.float32, cast_forward_inputs=False)
        policy = lower if precision == torch.bfloat16 else MixedPrecisionPolicy()
        for layers in [module for module in network.modules() if isinstance(module, nn.ModuleList)]:
            for layer in layers:
                fully_shard(layer, mesh=mesh, mp_policy=policy)
        self.module = fully_shard(network, mesh=mesh, mp_policy=policy)

    def part(self, last: bool) -> AbstractContextManager[object]:
        """Gradients are synchronised in the last micro-batch only."""
        self.module.set_requires_gradient_sync(last)
        return nullcontext()


def engine(
    network: nn.Module,
    processes: Processes,
    options: TrainOptions,
    auxiliary: nn.Module,
    precision: torch.dtype,
    device: torch.device,
) -> Engine:
    """The engine of these options; a single process has nothing to divide or to wrap.

    Raises:
        UserError: for an auxiliary network that this engine cannot have beside the network.
    """
    if options.exact_shards:
        if options.parallel in ("ddp", "fsdp"):
            raise UserError(
                f"train.exact_shards: adds gradients in a tree of its own, and train.parallel={options.parallel} "
                "another way; leave one of them out"
            )
        return Exact(network, processes, auxiliary)
    if divides(options, processes):
        return Fsdp(network, processes, auxiliary, precision, device)
    second = any(True for _ in auxiliary.parameters())
    overlaps = options.parallel == "ddp" or (options.parallel == "auto" and not second)
    return (Ddp if overlaps and processes.size > 1 else Engine)(network, processes, auxiliary)


def shard_size(options: TrainOptions, processes: Processes) -> int:
    """Images of a batch whose gradients are added before others join them."""
    return max(1, options.batch_size // (options.exact_shards or processes.size))


def images_at_a_time(options: TrainOptions, processes: Processes) -> int:
    """In one pass of the network, as long as memory does not run out."""
    shard = shard_size(options, processes)
    return min(shard, options.micro_batch or shard)


def divides(options: TrainOptions, processes: Processes) -> bool:
    """Whether weights are divided among the processes."""
    return options.parallel == "fsdp" and processes.size > 1 and not options.exact_shards


def open_formats(options: TrainOptions, device: torch.device, processes: Processes) -> list[ComputeFormat]:
    """The formats that the settings leave open, plainest first.

    Raises:
        UserError: for weights that are divided among processes, but not laid out as torch divides them.
    """
    divided = divides(options, processes)
    if divided and options.channels_last is True:
        raise UserError("train.channels_last: fsdp divides contiguous weights only; use auto, or train.parallel=ddp")
    return candidates(options.precision, options.channels_last, device, divided)


def whole(value: Tensor) -> Tensor:
    """The full tensor of one that may be divided among processes, each of which must call this."""
    return value.full_tensor() if _is_divided(value) else value


def on_first(value: Tensor, first: bool) -> Tensor:
    """`whole` in the first process, of a divided tensor on its CPU; elsewhere nothing is kept of that."""
    if not _is_divided(value):
        return value
    full = value.full_tensor()
    return full.cpu() if first else full.new_empty(0)


def part_of(value: Tensor) -> tuple[Tensor, int] | None:
    """A copy on the CPU of this process's part of a divided tensor, and the row at which it begins; None of others."""
    if not _is_divided(value):
        return None
    return value.to_local().detach().to("cpu", copy=True), _begin(value)


def like(value: Tensor, reference: Tensor) -> Tensor:
    """A whole tensor, divided and laid out in memory as `reference` is, if it is of its shape.

    Of a divided one only this process's part is copied, and to its device; nobody else is asked.
    """
    if value.shape != reference.shape:
        return value
    if _is_divided(reference):
        from torch.distributed.tensor import DTensor

        local = reference.to_local()
        part = value.narrow(0, _begin(reference), local.shape[0]).to(local.device, copy=True)
        shape, stride = reference.shape, reference.stride()
        return DTensor.from_local(part, reference.device_mesh, reference.placements, shape=shape, stride=stride)
    return torch.empty_like(reference, dtype=value.dtype, device=value.device).copy_(value)


def _begin(value: DTensor) -> int:
    """The row at which this process's part begins: FSDP2 divides rows as `torch.chunk` does."""
    rows, mesh = value.shape[0], value.device_mesh
    return min(rows, mesh.get_local_rank() * -(-rows // mesh.size()))


def _is_divided(value: Tensor) -> TypeGuard[DTensor]:
    """Whether it is a DTensor, without the import of its class."""
    return hasattr(value, "placements")
