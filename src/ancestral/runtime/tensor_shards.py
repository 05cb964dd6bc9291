"""Tensors that are divided among processes, in safetensors files of torch.distributed.checkpoint's layout.

    shard-00002-model-00001-of-00001.safetensors    the second process's parts, and where each begins in its tensor

torch's HuggingFaceStorageWriter writes such files and its HuggingFaceStorageReader reads these. They are written here
all the same: torch sends pickled plans among the processes while the training goes on, and a file that is missing
makes its reader take a shorter tensor for the whole one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ancestral.runtime import tensor_files, verified_folder
from ancestral.runtime.disk import Damaged

Parts = dict[str, tuple[Tensor, int]]  # one process's part of each tensor, and the row at which it begins
_BEGINS = "DCP_SHARDING_INFO"


def file_name(rank: int) -> str:
    """The file of one process."""
    return f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"


def packed(parts: Parts) -> bytes:
    """The file of one process's parts, on the CPU."""
    begins = {
        name: {"saved_offsets": [start, *[0] * (part.ndim - 1)][: part.ndim]} for name, (part, start) in parts.items()
    }
    metadata = {"format": "pt", "DCP_VERSION": "1.0", _BEGINS: json.dumps(begins)}
    return safetensors.torch.save({name: part.contiguous() for name, (part, _) in parts.items()}, metadata)


class _Part(NamedTuple):
    path: Path
    file: Any  # open, so that it can be read when its checkpoint has been dropped meanwhile
    key: str
    start: int
    shape: tuple[int, ...]


class Shards(Mapping[str, Tensor]):
    """Whole tensors by name, each put together when it is asked for and kept by nobody."""

    def __init__(self, parts: Mapping[str, Sequence[_Part]], shapes: Mapping[str, Tensor]) -> None:
        self._parts, self.shapes = parts, shapes  # the latter on the meta device

    @classmethod
    def of(cls, paths: Sequence[Path]) -> Shards:
        """Those in these files, which are all of one checkpoint.

        Raises:
            Damaged: naming the file that is none, or the tensor whose parts do not make a whole.
        """
        parts: dict[str, list[_Part]] = {}
        kinds: dict[str, torch.dtype] = {}
        for path in paths:
            try:
                file = safe_open(path, "pt").__enter__()
                begins = json.loads((file.metadata() or {})[_BEGINS])
                for key in file.keys():  # noqa: SIM118 # it is no mapping
                    found = file.get_slice(key)
                    shape = tuple(found.get_shape())
                    start = begins[key]["saved_offsets"][0] if shape else 0
                    parts.setdefault(key, []).append(_Part(path, file, key, start, shape))
                    kinds[key] = (found[:1] if shape and shape[0] else file.get_tensor(key)).dtype
            except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
                raise Damaged(f"{path}: damaged or no part of a checkpoint ({str(error)[:200]})") from None
        shapes = {}
        for name, own in parts.items():
            own.sort(key=lambda part: (part.start, part.shape))
            reached = 0
            for part in own:
                if part.shape[1:] != own[0].shape[1:] or part.start != reached:
                    raise Damaged(f"{part.path}: its part of {name} does not follow the part before")
                reached += part.shape[0] if part.shape else 1
            whole = (reached, *own[0].shape[1:]) if own[0].shape else ()
            shapes[name] = torch.empty(whole, dtype=kinds[name], device="meta")
        return cls(parts, shapes)

    def __getitem__(self, name: str) -> Tensor:
        """The whole tensor, on the CPU."""
        read = [part.file.get_tensor(part.key) for part in self._parts[name]]
        return read[0] if len(read) == 1 else torch.cat(read)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def under(self, prefix: str) -> Shards:
        """Those whose names begin so, without this beginning."""
        names = {name.removeprefix(prefix): name for name in self if name.startswith(prefix)}
        parts = {short: self._parts[name] for short, name in names.items()}
        return Shards(parts, {short: self.shapes[name] for short, name in names.items()})


def parsed_divided_folder(
    folder: Path, required: Sequence[str], shared: Sequence[str], unchecked: tuple[str, ...]
) -> tuple[dict[str, Any], Shards | None]:
    """What the files of a verified folder hold, and the tensors that are divided among some of them, if any.

    Args:
        folder: the folder.
        required: files that it must have where no tensors are divided.
        shared: files that it must have where some are.
        unchecked: beginnings of the names of tensors whose values need not be finite.

    Raises:
        Damaged: naming the file.
    """
    names = sorted(verified_folder.manifest(folder))
    shards = [name for name in names if name.startswith("shard-") and name.endswith(".safetensors")]
    if not shards:
        return tensor_files.parsed_folder(folder, required, unchecked), None
    parsed = tensor_files.parsed_folder(folder, shared, unchecked, [name for name in names if name not in shards])
    verified_folder.need_unchanged(folder, shards)
    tensors = Shards.of([folder / name for name in shards])
    for name in tensors:  # one at a time
        if not name.startswith(unchecked):
            tensor_files.finite({name: tensors[name]}, str(folder))
    return parsed, tensors


def under(prefix: str, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Those whose names begin so, without this beginning."""
    if isinstance(tensors, Shards):
        return tensors.under(prefix)
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def shapes_of(tensors: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """The same by name, shape and kind; those of `Shards` without their values."""
    return tensors.shapes if isinstance(tensors, Shards) else tensors
