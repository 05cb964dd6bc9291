"""Images on their way into a set: held in memory, or decoded once into a file that is mapped from then on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import TimeElapsedColumn

from ancestral.data.dataset import MOST_CLASSES, ImageSet, Item, Rows, labelled
from ancestral.errors import UserError
from ancestral.runtime import array_files, verified_folder
from ancestral.runtime.console import Progress, TextColumn
from ancestral.runtime.resumable_job import cache_folder

Read = Callable[[list[str]], Iterator[Item]]  # appends a line for each file that it leaves out


def gather(
    read: Read, class_names: tuple[str, ...] | None, source: str, cache: str | None, key: Any, skipped: list[str]
) -> ImageSet:
    """The images that `read` gives, in its order.

    Args:
        read: gives the images, all of one size.
        class_names: what the labels count; None: the numbers themselves.
        source: what they are read from, for messages.
        cache: folder for decoded images, or None to hold them in memory.
        key: everything that the images depend on, as JSON; another key is read anew.
        skipped: gets a line for each file that was left out, also when the images come from the cache.

    Raises:
        UserError: when there are no images.
    """
    if cache is None:
        items = list(_watched(read(skipped), source))
        _need(len(items), source, skipped)
        labels, class_names, missing = labelled([item.label for item in items], class_names)
        stacked, names = np.stack([item.pixels for item in items]), tuple(item.name for item in items)
        return ImageSet(stacked, labels, class_names, names, unlabelled=missing)
    folder = cache_folder(Path(cache), key)
    index = _index(folder)
    if index is None:
        left_out: list[str] = []
        entries: list[tuple[int | None, str]] = []
        shapes: set[Sequence[int]] = set()

        def pixels() -> Iterator[bytes]:
            for item in _watched(read(left_out), source):
                entries.append((item.label, item.name))
                shapes.add(item.pixels.shape)
                yield item.pixels.tobytes()
            _need(len(entries), source, left_out)

        def written() -> Iterator[bytes]:
            labels, names = zip(*entries, strict=True)
            yield json.dumps({"shape": shapes.pop(), "labels": labels, "names": names, "skipped": left_out}).encode()

        verified_folder.write(folder, {"images.bin": pixels(), "index.json": written()})
        index = _index(folder)
        assert index is not None
    skipped += index["skipped"]
    shape = (len(index["names"]), *index["shape"])
    images = np.memmap(folder / "images.bin", np.uint8, "r", shape=shape)
    labels, class_names, missing = labelled(index["labels"], class_names)
    rows, names = Rows(images, np.arange(len(images))), tuple(index["names"])
    return ImageSet(rows, labels, class_names, names, unlabelled=missing)


def _watched(items: Iterator[Item], source: str) -> Iterator[Item]:
    """The items, with a line on the screen of how many there are so far."""
    columns = TextColumn("{task.description}"), TextColumn("{task.completed:,.0f} images read"), TimeElapsedColumn()
    with Progress(*columns) as bar:
        yield from bar.track(items, description=source)


def cached(
    cache: str | None, key: Any, compute: Callable[[], Any], lasting: Callable[[Any], bool] = lambda found: True
) -> Any:
    """The JSON that `compute` returns, a function of `key` alone while it is `lasting`; computed once with a cache."""
    if cache is None:
        return compute()
    folder = cache_folder(Path(cache), key)
    try:
        return _ours(folder, "found.json")
    except (verified_folder.Damaged, ValueError):
        found = compute()
        if lasting(found):
            verified_folder.write(folder, {"found.json": json.dumps(found).encode()})
        return found


def _ours(folder: Path, name: str) -> Any:
    """JSON that was written here: in it a file name that is not UTF-8 stands as in Python, which is no one else's."""
    return json.loads(verified_folder.read(folder, [name])[name])


def _need(count: int, source: str, skipped: list[str]) -> None:
    if not count:
        raise UserError(f"{source}: none of its images can be read" + (f"; the first: {skipped[0]}" if skipped else ""))


def _index(folder: Path) -> Any:
    """The index of a folder in the cache, or None where it is absent, damaged or not whole."""
    try:
        index = _ours(folder, "index.json")
        size = int(np.prod([len(index["names"]), *index["shape"]]))
        return index if (folder / "images.bin").stat().st_size == size else None
    except (verified_folder.Damaged, OSError, KeyError, ValueError, TypeError):
        return None


def array(path: Path) -> ImageSet:
    """A .npy file of images, uint8 or uint16 (N, H, W, C) or (N, H, W), mapped as they are.

    Labels and vectors come from NAME.labels.npy and NAME.embeddings.npy beside it.

    Raises:
        UserError: when it holds anything else.
    """
    images = array_files.mapped(path)
    images = checked_images(images, str(path))
    names = tuple(f"{path.stem}[{row}]" for row in range(len(images)))
    label_path = path.with_suffix(".labels.npy")
    labels = array_files.mapped(label_path) if os.path.lexists(label_path) else None
    if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu" or labels.min() < 0):
        raise UserError(f"{label_path}: must be {len(images)} class numbers, not {labels.dtype} {labels.shape}")
    vector_path = path.with_suffix(".embeddings.npy")
    embeddings = None
    if os.path.lexists(vector_path):
        embeddings = checked_vectors(array_files.mapped(vector_path), str(vector_path), len(images))
    count = 0 if labels is None else int(labels.max()) + 1
    if count > MOST_CLASSES:
        raise UserError(f"{label_path}: the label {count - 1} is no class number; count classes from 0")
    rows = Rows(images, np.arange(len(images)))
    classes = tuple(map(str, range(count)))
    return ImageSet(rows, None if labels is None else labels.astype(np.int64), classes, names, embeddings)


def checked_images(images: np.ndarray, called: str) -> np.ndarray:
    """The same as (N, H, W, C).

    Raises:
        UserError: unless they are images of 8 or 16 bits with 1, 3 or 4 channels.
    """
    if images.dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"{called}: must be uint8 (0..255) or uint16 (see data.white), not {images.dtype}; convert it to one"
        )
    if images.shape[:1] == (0,):
        raise UserError(f"{called}: holds no images")
    shaped = images[..., None] if images.ndim == 3 else images
    if shaped.ndim != 4 or shaped.shape[3] not in (1, 3, 4) or 0 in shaped.shape:
        raise UserError(f"{called}: must be (N, H, W) or (N, H, W, C) with C 1, 3 or 4, not {images.shape}")
    return shaped


def vectors(path: Path) -> np.ndarray:
    """The vectors of a .npy file, float32 (N, E); one vector (E,) is N = 1.

    Raises:
        UserError: when it holds anything else.
    """
    return checked_vectors(np.atleast_2d(array_files.mapped(path)), str(path))


def checked_vectors(found: np.ndarray, called: str, count: int | None = None) -> np.ndarray:
    """The same as float32.

    Raises:
        UserError: unless they are `count` vectors (any number when None) of finite numbers.
    """
    if found.dtype.kind not in "fiu" or found.ndim != 2 or not found.size or len(found) != (count or len(found)):
        many = "" if count is None else f"{count} "
        raise UserError(f"{called}: must be {many}vectors of numbers (N, E), not {found.dtype} {found.shape}")
    if not np.isfinite(found).all():
        raise UserError(f"{called}: has values that are not finite")
    return found.astype(np.float32)


def listing(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Name, size and time of change of each file: whether these are the files that were read before."""
    return [(str(file), (stat := _stat(file)).st_size, stat.st_mtime_ns) for file in files]


def _stat(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError:  # a link to nothing
        return file.lstat()
