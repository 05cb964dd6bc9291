"""Named tensors from safetensors, checked before anything uses them: their names, their shapes, finite values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ancestral.runtime import disk, verified_folder
from ancestral.runtime.disk import Damaged

Tensors = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]
_Named = TypeVar("_Named", bound=Mapping[str, Tensor])


def parsed_folder(
    folder: Path, required: Sequence[str], unchecked: tuple[str, ...] = (), names: Sequence[str] | None = None
) -> dict[str, Any]:
    """What the files of a verified folder hold, by name: the document of a .json, the tensors of a .safetensors.

    Args:
        folder: the folder.
        required: files that it must have.
        unchecked: beginnings of the names of tensors whose values need not be finite.
        names: of the files to read; all of the manifest when None.

    Raises:
        Damaged: naming the file.
    """
    parsed: dict[str, Any] = {}
    for name, content in verified_folder.read(folder, names).items():
        where = str(folder / name)
        if name.endswith(".json"):
            parsed[name] = disk.parsed(content, where, float)
        elif name.endswith(".safetensors"):
            parsed[name] = unpacked(content, where)
            finite({key: one for key, one in parsed[name].items() if not key.startswith(unchecked)}, where)
    for name in required:
        if name not in parsed:
            raise Damaged(f"{folder / verified_folder.MANIFEST}: names no {name}")
    return parsed


def unpacked(content: bytes, where: str) -> Tensors:
    """The tensors of a safetensors file.

    Raises:
        Damaged: when it is none.
    """
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise Damaged(f"{where}: damaged or not safetensors ({str(error)[:200]})") from None


def finite(found: _Named, where: str) -> _Named:
    """The same tensors.

    Raises:
        Damaged: naming the first that has a value which is not finite.
    """
    for name, tensor in found.items():
        values = tensor if tensor.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16) else None
        if values is None and tensor.is_floating_point():
            values = tensor.float()  # eight bits: torch has no test for these
        if values is not None and not bool(torch.isfinite(values).all()):
            count = int((~torch.isfinite(values)).sum())
            raise Damaged(f"{where}: {name} is not finite ({count:,} of {values.numel():,} values)")
    return found


def fitting(found: _Named, expected: Mapping[str, Tensor], where: str) -> _Named:
    """The same tensors.

    Args:
        found: those of a file.
        expected: those of the network that they are for; only names and shapes are looked at.
        where: what the file is called.

    Raises:
        Damaged: naming one that is missing, not of this network, of another shape, or not of numbers like it.
    """
    there, own = ({name: tuple(one.shape) for name, one in tensors.items()} for tensors in (found, expected))
    need_shapes(there, own, where)
    for name, tensor in expected.items():
        if found[name].is_floating_point() != tensor.is_floating_point() or found[name].is_complex():
            raise Damaged(f"{where}: {name} holds {found[name].dtype}, the network's is {tensor.dtype}")
    return found


def need_shapes(found: Shapes, expected: Shapes, where: str) -> None:
    """Refuse tensors that are absent, unknown or of another shape.

    Raises:
        Damaged: naming the first.
    """
    for name, shape in expected.items():
        if name not in found:
            raise Damaged(f"{where}: has no tensor {name}; is it the network of its config.json?")
        if found[name] != shape:
            raise Damaged(f"{where}: {name} has shape {found[name]}, the network's has {shape}")
    if unknown := sorted(found.keys() - expected.keys()):
        raise Damaged(f"{where}: unknown tensor {unknown[0]}; is it the network of its config.json?")
