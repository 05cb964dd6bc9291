"""Types and shapes that all the mathematics shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Time = int | Tensor  # one time for a whole batch, or a vector with one an image: int64, or float for times in between

Advance = Callable[[int], object]  # called with how many more things are done

untyped: Any = torch  # for its functions without annotations: what they give is annotated where they are called


def numbers(values: Any) -> list[Any]:
    """The entries of a vector as Python numbers."""
    return values.tolist()


def no_advance(count: int) -> None:
    """An `Advance` where no progress is shown."""


def on(device: torch.device, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """x on a device, which the host does not wait for where what it sends may be forgotten at once: on CUDA."""
    return x.to(device=device, dtype=dtype, non_blocking=device.type == "cuda")


def per_image(values: Tensor, x: Tensor) -> Tensor:
    """Values of shape (B,) or (B, C) as (B, 1, ...) or (B, C, 1, ...), to broadcast against x; () stays as it is."""
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim)) if values.ndim else values


def over(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient of shape (), (B,) or (B, C) as float of x's type and device that multiplies x of shape (B, ...)."""
    return on(x.device, per_image(coefficient, x), x.dtype)
