"""One load of a set for all processes of a machine: the first reads, decodes and splits it, all map its bytes."""

from __future__ import annotations

import atexit
import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ancestral.data.dataset import ImageSet, Rows, Splits
from ancestral.data.inventory import Reading
from ancestral.errors import UserError
from ancestral.runtime import system
from ancestral.runtime.distributed import Processes

_CHUNK = 256  # images that are copied at a time
_PREFIX = "ancestral-images-"


def load_once(processes: Processes, load: Callable[[], Splits], cache: str | None = None) -> Splits:
    """The splits that `load` gives in the first process of each machine, mapped by all of them.

    Args:
        processes: each of which must call this; one alone just loads.
        load: reads the images.
        cache: folder on a disk of the machine for what is not in a file yet; the system's own for temporary files when
            None. It is empty again afterwards.

    Raises:
        UserError: as `load`, and when machines have read other images or nothing can be written.
    """
    if processes.size == 1:
        return load()
    leader, folder, index, lock = processes.local_rank == 0, "", "", -1
    if leader:
        splits = load()
        try:
            if cache is not None:
                Path(cache).mkdir(parents=True, exist_ok=True)
            folder, lock = temporary_folder(cache)
            index = _write(Path(folder), splits)
        except OSError as error:
            mend = "name a folder with room by data.cache" if cache is None else "name another data.cache"
            raise UserError(f"{folder or cache}: cannot be written ({error.strerror}); {mend}") from error
        del splits
    processes.wait_long()
    indices = {one for one in processes.texts(index) if one}
    if len(indices) > 1:
        raise UserError("the machines have read other images or classes; give all of them the same DATA")
    found = _read(Path(processes.texts(folder)[processes.rank - processes.local_rank]))
    processes.wait()
    if leader:
        shutil.rmtree(folder, ignore_errors=True)  # what is mapped stays; Windows keeps it until the end
        os.close(lock)
    return found


def temporary_folder(parent: str | None) -> tuple[str, int]:
    """A folder that goes with this process, and a lock of it; those of processes that were killed are removed first."""
    for path in Path(parent or tempfile.gettempdir()).glob(f"{_PREFIX}*/lock"):
        with suppress(OSError):  # another user's
            descriptor = os.open(path, os.O_RDWR)
            try:
                if system.try_lock(descriptor):
                    shutil.rmtree(path.parent, ignore_errors=True)
            finally:
                os.close(descriptor)
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = Path(folder) / "unlocked"
    lock = os.open(made, os.O_RDWR | os.O_CREAT)
    system.try_lock(lock)
    if not system.WINDOWS:  # which renames no open file: there killed ones leave their folders
        made.rename(made.with_name("lock"))
    return folder, lock


def _write(folder: Path, splits: Splits) -> str:
    """Write what others need; returns a digest of all but the pixels."""
    parts = {name: _write_part(folder, name, part) for name, part in (("train", splits.train), ("test", splits.test))}
    document = {**parts, "skipped": splits.skipped, "reading": asdict(splits.reading)}
    content = json.dumps(document).encode()
    (folder / "splits.json").write_bytes(content)
    elsewhere = {name: {**part, "file": None} for name, part in parts.items()}
    return sha256(json.dumps(elsewhere).encode()).hexdigest()


def _write_part(folder: Path, name: str, part: ImageSet) -> dict[str, Any]:
    images = part.images
    source, rows = (images.source, images.rows) if isinstance(images, Rows) else (images, np.arange(len(images)))
    entry: dict[str, Any] = {"names": part.names, "class_names": part.class_names, "dtype": str(source.dtype)}
    if (mapped := _file(source)) is not None:
        entry |= {"file": [str(Path(mapped.filename or "").absolute()), mapped.offset], "shape": source.shape}
    else:
        shape = (len(rows), *source.shape[1:])
        with open(folder / f"{name}.bin", "wb") as file:
            for start in range(0, len(rows), _CHUNK):
                file.write(source[rows[start : start + _CHUNK]].tobytes())
        entry |= {"file": [str(folder / f"{name}.bin"), 0], "shape": shape}
        rows = np.arange(len(rows))
    for kind, array in (("rows", rows), ("labels", part.labels), ("embeddings", part.embeddings)):
        if array is not None:
            np.save(folder / f"{name}.{kind}.npy", array)
    return entry


def _file(source: np.ndarray) -> np.memmap[Any, Any] | None:
    """The array of a mapped file whose bytes these are, all of them in order; None where there is none."""
    while isinstance(source.base, np.ndarray) and source.nbytes == source.base.nbytes:
        source = source.base
    whole = isinstance(source, np.memmap) and isinstance(source.base, mmap.mmap) and source.flags.c_contiguous
    return source if whole and isinstance(source, np.memmap) else None


def _read(folder: Path) -> Splits:
    document = json.loads((folder / "splits.json").read_bytes())
    train, test = (_read_part(folder, name, document[name]) for name in ("train", "test"))
    return Splits(train, test, tuple(document["skipped"]), msgspec.convert(document["reading"], Reading))


def _read_part(folder: Path, name: str, entry: dict[str, Any]) -> ImageSet:
    path, offset = entry["file"]
    shape = tuple(entry["shape"])
    empty = not np.prod(shape)  # which cannot be mapped
    images = np.empty(shape, entry["dtype"]) if empty else np.memmap(path, entry["dtype"], "r", offset, shape)
    arrays = {
        kind: np.load(file) if (file := folder / f"{name}.{kind}.npy").is_file() else None
        for kind in ("rows", "labels", "embeddings")
    }
    rows = np.asarray(arrays["rows"])
    classes, names = (tuple(entry[key]) for key in ("class_names", "names"))
    return ImageSet(Rows(images, rows), arrays["labels"], classes, names, arrays["embeddings"])
