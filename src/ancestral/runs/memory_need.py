"""Whether so many images at a time fit into this machine's memory, before a step is tried that would end the process.

A device says when it has no more, and a training halves its micro-batch; on a CPU Linux ends whoever asks for too much.
What an image needs is counted on torch's `meta` device, where nothing is computed, and is a lower bound: what is saved
for the backward pass where there is one, else what the largest operation of a prediction takes and gives.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ancestral.errors import UserError
from ancestral.runs import build
from ancestral.runs.conditions import blank
from ancestral.runs.config import Config
from ancestral.runs.facts import Facts
from ancestral.runs.process_kinds import chain
from ancestral.runtime import system

FLOAT32 = 4  # bytes of a number
PLAINLY = 1600  # bytes of a pixel and channel of the network's width, more than any preset saves: 240 to 420


def need_for_training(config: Config, facts: Facts, images: int, device: torch.device) -> None:
    """Refuse a batch of which so many images meet the network at a time, where they do not fit."""
    _refuse(_shortage_in_training(config, facts, images, device))


def _shortage_in_training(config: Config, facts: Facts, images: int, device: torch.device) -> str | None:
    number = FLOAT32 if config.train.precision == "float32" else 2  # bytes of one, at least
    others = (config.train.batch_size - images) * prod(facts.shape)  # bytes of those that wait for their turn
    each, instead = lambda: _saved(config, facts) * number, "" if others else ", or --set train.micro_batch= as many"
    return _shortage("train.batch_size", images, config, facts, device, each, others, instead=instead)


def fits(config: Config, facts: Facts, images: int, device: torch.device) -> bool:
    """Whether `need_for_training` lets it."""
    return _shortage_in_training(config, facts, images, device) is None


def need_for_drawing(
    config: Config,
    facts: Facts,
    images: int,
    device: torch.device,
    option: str = "--batch-size",
    mend: str | None = None,
) -> None:
    """Refuse to predict so many images at a time where they do not fit.

    Args:
        option: that says how many, or what does.
        mend: what to do; to take fewer when left out.
    """
    _refuse(_shortage(option, images, config, facts, device, lambda: _largest(config, facts) * FLOAT32, mend=mend))


def need_for_gradient(config: Config, facts: Facts, images: int, device: torch.device) -> None:
    """Refuse to differentiate the predictions of so many images at a time where they do not fit."""
    _refuse(_shortage("--batch-size", images, config, facts, device, lambda: _saved(config, facts) * FLOAT32))


def fits_for_drawing(config: Config, facts: Facts, images: int, device: torch.device) -> bool:
    """Whether `need_for_drawing` lets it."""
    return _shortage("", images, config, facts, device, lambda: _largest(config, facts) * FLOAT32) is None


def _refuse(problem: str | None) -> None:
    if problem is not None:
        raise UserError(problem)


def _shortage(
    option: str,
    images: int,
    config: Config,
    facts: Facts,
    device: torch.device,
    of_an_image: Callable[[], int],
    others: int = 0,
    mend: str | None = None,
    instead: str = "",
) -> str | None:
    """What is wrong where so many images do not fit; None where they do, or nobody says how much memory is free."""
    free = system.free_memory() if device.type == "cpu" else None
    _, height, width = facts.shape
    if free is None or images * height * width * config.model.width * PLAINLY + others <= free:
        return None
    each = of_an_image()
    if images * each + others <= free:
        return None
    mend = mend or f"take {max(1, free // (2 * each)):,} or fewer{instead}"
    return (
        f"{option}: {images + others // prod(facts.shape):,} images, {images:,} at a time, need "
        f"{(images * each + others) / 1e9:,.1f} GB of memory at least, and this machine has {free / 1e9:,.1f} GB "
        f"free; {mend}"
    )


def _saved(config: Config, facts: Facts) -> int:
    """Numbers of an image that are saved for the backward pass."""
    counter = _Saved()
    weights = _predict(config, facts, saved_tensors_hooks(counter, lambda tensor: tensor))
    return sum(size for storage, size in counter.sizes.items() if storage not in weights)


def _largest(config: Config, facts: Facts) -> int:
    """Numbers of an image that the largest operation of a prediction takes and gives."""
    counter = _Largest()
    with torch.no_grad():
        _predict(config, facts, counter)
    return counter.size


def _predict(config: Config, facts: Facts, counted: AbstractContextManager[Any]) -> set[int]:
    """One image meets the network on the device `meta`; returns where its weights are stored."""
    with torch.device("meta"):
        network = build.network(config, facts)
        inputs, _ = chain(config).channels(facts.shape[0], config.diffusion)
        cond = blank(config, facts, 1)
        with counted:
            network(torch.empty(1, inputs, *facts.shape[1:]), torch.empty(1), **cond)
    return {_storage(one) for one in network.parameters()}


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # on meta every address is 0


class _Saved:
    """Numbers by storage; the tensors stay, so that no two storages have one name."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self._tensors: list[Tensor] = []

    def __call__(self, tensor: Tensor) -> Tensor:
        self._tensors.append(tensor)
        self.sizes[_storage(tensor)] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor


class _Largest(TorchDispatchMode):
    """The most numbers that an operation takes and gives together, weights left out."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((args, kwargs, given)) if isinstance(one, Tensor)]
        sizes = {_storage(one): one.numel() for one in tensors if not isinstance(one, torch.nn.Parameter)}
        self.size = max(self.size, sum(sizes.values()))
        return given
