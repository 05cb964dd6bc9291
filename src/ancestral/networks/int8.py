"""A network whose convolutions compute in 8 bits, for export: what onnxruntime has fast kernels for.

Static quantisation (Jacob et al. 2018, arXiv:1712.05877), as onnxruntime's own tool does it: q = round(x / scale) +
zero in [-128, 127], weights with a scale for each output channel and zero 0, what a convolution takes and gives with
one scale and one zero, which are read off the extremes that it met. Between them stays float32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ancestral.networks.unet import Downsample

LEAST = torch.finfo(torch.float32).tiny  # a scale of what is 0 everywhere


@torch.library.custom_op("ancestral::quantize", mutates_args=())
def quantize(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """int8 of x, by one scale and zero; ONNX's QuantizeLinear."""
    return (torch.round(x / scale) + zero).clamp(-128, 127).to(torch.int8)


@torch.library.custom_op("ancestral::dequantize", mutates_args=())
def dequantize(q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """float32 of whole numbers, by one scale and zero or by those of each row; ONNX's DequantizeLinear."""
    rows = (-1, *[1] * (q.ndim - 1)) if scale.ndim else ()
    return (q.to(torch.int32) - zero.to(torch.int32).reshape(rows)).float() * scale.reshape(rows)


@quantize.register_fake
def _(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.int8)


@dequantize.register_fake
def _(q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return torch.empty_like(q, dtype=torch.float32)


class Extremes(NamedTuple):
    """The least and the largest number of all that was seen, with 0 among them, as padding is 0."""

    low: float = 0.0
    high: float = 0.0

    def and_of(self, x: Tensor) -> Extremes:
        """Of these and x."""
        low, high = torch.aminmax(x)
        return Extremes(min(self.low, float(low)), max(self.high, float(high)))

    def scale_and_zero(self) -> tuple[Tensor, Tensor]:
        """Those that take [low, high] to [-128, 127]; float32 and int8 scalars."""
        scale = max((self.high - self.low) / 255, LEAST)
        return torch.tensor(scale), torch.tensor(round(-128 - self.low / scale), dtype=torch.int8)


class Met(NamedTuple):
    """What a convolution took and gave."""

    taken: Extremes
    given: Extremes


@contextmanager
def watched(network: nn.Module) -> Iterator[dict[str, Met]]:
    """What each convolution of a network meets while this lasts, by name, in the order of their first calls."""
    met: dict[str, Met] = {}

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def seen(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            taken, given = met.get(name, Met(Extremes(), Extremes()))
            met[name] = Met(taken.and_of(inputs[0]), given.and_of(output))

        return layer.register_forward_hook(seen)

    layers = {name: one for name, one in network.named_modules() if isinstance(one, (nn.Conv2d, Downsample))}
    hooks = [watch(name, one) for name, one in layers.items()]
    try:
        yield met
    finally:
        for hook in hooks:
            hook.remove()


def delicate(met: Mapping[str, Met]) -> list[str]:
    """Convolutions that carry the image itself: the first, the last, and the 1x1 ones past residual blocks."""
    names = list(met)
    return [name for name in names if name in (names[0], names[-1]) or name.split(".")[-1] == "shortcut"]


def quantized(network: nn.Module, met: Mapping[str, Met], left_out: Collection[str] = ()) -> nn.Module:
    """A network of the same weights, all convolutions that were met in 8 bits, but for those left out."""
    made = deepcopy(network)
    for name, found in met.items():
        if name not in left_out:
            parent, _, own = name.rpartition(".")
            setattr(made.get_submodule(parent), own, Int8Convolution(made.get_submodule(name), found))
    return made


class Int8Convolution(nn.Module):
    """A convolution of whole numbers. (B, C, H, W) to (B, C', H', W').

    Args:
        layer: a `Conv2d` or `Downsample`, with its weights.
        met: what it took and gave.
    """

    weight: Tensor
    bias: Tensor
    taken_scale: Tensor

    def __init__(self, layer: nn.Module, met: Met) -> None:
        super().__init__()
        if isinstance(layer, Downsample):
            self.stride, self.padding, self.end = 2, 0 if layer.pad_end else 1, int(layer.pad_end)
        else:
            assert isinstance(layer, nn.Conv2d)
            self.stride, self.padding, self.end = layer.stride, layer.padding, 0
        weight, bias = layer.get_parameter("weight").detach(), layer.get_parameter("bias").detach()
        for name, one in zip(("taken", "given"), met, strict=True):
            scale, zero = one.scale_and_zero()
            self.register_buffer(f"{name}_scale", scale)
            self.register_buffer(f"{name}_zero", zero)
        scale = (weight.abs().amax((1, 2, 3)) / 127).clamp_min(LEAST)
        self.register_buffer("weight", torch.round(weight / scale.reshape(-1, 1, 1, 1)).to(torch.int8))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero", torch.zeros_like(scale, dtype=torch.int8))
        scale = (scale.double() * self.taken_scale.double()).clamp_min(LEAST)  # that of the sums
        limit = 2.0**31 - 1
        self.register_buffer("bias", torch.round(bias / scale).clamp(-limit, limit).to(torch.int32))
        self.register_buffer("bias_scale", scale.float())
        self.register_buffer("bias_zero", torch.zeros_like(self.bias))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        x = self._rounded(functional.pad(x, (0, self.end) * 2) if self.end else x, "taken")
        return self._rounded(
            functional.conv2d(x, self._of("weight"), self._of("bias"), self.stride, self.padding), "given"
        )

    def _rounded(self, x: Tensor, name: str) -> Tensor:
        scale, zero = getattr(self, f"{name}_scale"), getattr(self, f"{name}_zero")
        return dequantize(quantize(x, scale, zero), scale, zero)

    def _of(self, name: str) -> Tensor:
        return dequantize(getattr(self, name), getattr(self, f"{name}_scale"), getattr(self, f"{name}_zero"))
