"""numpy's files, whose sizes are checked against their headers before anything is unpacked or allocated."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np

from ancestral.errors import UserError
from ancestral.runtime import disk

LARGEST = 8 * 2**30  # bytes that a .npz file may unpack to


def unpacked(path: Path, names: Collection[str], largest: int = LARGEST) -> tuple[dict[str, np.ndarray], list[str]]:
    """(those of the named arrays that a .npz file has, the names of all that it has), without pickled objects.

    Raises:
        UserError: when it is damaged, or unpacks to more than `largest` bytes.
    """
    with disk.opened(path) as file:
        if not zipfile.is_zipfile(file):
            raise UserError(f"{path}: not a .npz archive, or damaged; write it with numpy.savez")
        try:
            with zipfile.ZipFile(file) as archive:
                members = {one.filename.removesuffix(".npy"): one for one in archive.infolist()}
                taken = {name: members[name] for name in names if name in members}
                size = sum(one.file_size for one in taken.values())
                if size > largest:
                    raise UserError(
                        f"{path}: unpacks to {size:,} bytes, and at most {largest:,} are held in memory; "
                        "save its images as .npy, which is mapped instead"
                    )
                found = {}
                for name, one in taken.items():
                    with archive.open(one) as member:
                        _need_whole(member, one.file_size, f"{path}: {name}")
                    with archive.open(one) as member:
                        found[name] = np.lib.format.read_array(member, allow_pickle=False)
                return found, sorted(members)
        except UserError:
            raise
        except Exception as error:  # a damaged archive raises zlib.error, NotImplementedError, ...
            raise UserError(f"{path}: cannot be read as .npz without pickled objects ({error})") from None


def mapped(path: Path) -> np.ndarray:
    """The array of a .npy file, left on the disk.

    Raises:
        UserError: when it is no regular file, damaged, shorter than its header says or of pickled objects.
    """
    with disk.opened(path) as file:
        try:
            size = file.seek(0, 2)
            file.seek(0)
            _need_whole(file, size, str(path))
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except UserError:
            raise
        except Exception as error:  # a damaged header raises tokenize.TokenError, OverflowError, ...
            raise UserError(f"{path}: cannot be read as .npy without pickled objects ({error})") from None


def packed(array: np.ndarray) -> bytes:
    """A .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def is_packed(content: bytes, shape: tuple[int, ...]) -> bool:
    """Whether this is a .npy file of bytes of this shape."""
    try:
        found = np.load(io.BytesIO(content), allow_pickle=False)
    except (OSError, ValueError):
        return False
    return (found.dtype, found.shape) == (np.uint8, shape)


def _need_whole(file: IO[bytes], size: int, where: str) -> None:
    """Refuse a header that promises more than there is, which would be allocated first."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise UserError(f"{where}: holds pickled objects, which are not read")
    if file.tell() + math.prod(shape) * dtype.itemsize > size or min(shape, default=0) < 0:
        raise UserError(f"{where}: damaged (its header says {dtype} {shape}, and the file is shorter)")
