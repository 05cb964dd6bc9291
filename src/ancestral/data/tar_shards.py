"""Tar shards in the WebDataset layout, read where they lie: nothing is extracted or run.

The members of one image share their name up to the first dot: `dir/000017.png`, `dir/000017.cls`. What is not on the
list below is refused by name, since other readers would load it as a Python object or hand it to a shell.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ancestral.data.cache import gather, listing
from ancestral.data.dataset import MOST_CLASSES, DataOptions, Item, Splits, split_off
from ancestral.data.decode import SUFFIXES
from ancestral.data.image_folder import channels_of_first, decoded, of_one_size, read_as, refuse_bad, streamed
from ancestral.data.inventory import BAD
from ancestral.errors import UserError
from ancestral.runtime import disk

_TEXT = {".cls", ".json", ".txt"}
_LARGEST = {"image": 64_000_000, "text": 100_000}  # bytes of a member


def is_pattern(source: str) -> bool:
    """Whether a source names tar files: one, a range `data-{000..031}.tar`, or a folder of them."""
    path = Path(source)
    return source.endswith(".tar") or (path.is_dir() and bool(_tars(path)))


def _tars(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.tar") if path.is_file())


def files_of(source: str) -> list[Path]:
    """The shards that a source names, in order.

    Raises:
        UserError: naming the one that is absent.
    """
    path = Path(source)
    if path.is_dir():
        return _tars(path)
    span = re.search(r"\{(\d+)\.\.(\d+)\}", source)
    if span is None:
        names = [source]
    else:
        first, last = span.groups()
        if int(last) - int(first) >= 100_000:
            raise UserError(f"{source}: more than 100,000 shards; is the range right?")
        numbers = range(int(first), int(last) + 1)
        names = [source.replace(span.group(), str(number).zfill(len(first)), 1) for number in numbers]
    absent = [name for name in names if not Path(name).is_file()]
    if absent or not names:
        raise UserError(f"{absent[0] if absent else source}: no such file; shards are local tar files")
    return [Path(name) for name in names]


def load_shards(source: str, options: DataOptions) -> Splits:
    """The images of tar shards; a share of them, by name, is held out. Set data.cache where they are many.

    Raises:
        UserError: naming the shard and member that is refused.
    """
    shards, skipped = files_of(source), list[str]()
    channels = options.channels or _channels(shards, options)
    key = [listing(shards), channels, asdict(options)]
    read = partial(_read, shards, channels, options)
    whole = gather(read, None, source, options.cache, key, skipped)
    refuse_bad(skipped, options)
    left_out = {BAD: tuple(skipped)} if skipped else {}
    beside = sorted(one.name for one in Path(source).iterdir()) if Path(source).is_dir() else []
    if beside := [name for name in beside if name not in {shard.name for shard in shards}]:
        left_out["beside the shards"] = tuple(beside)
    return read_as(
        split_off(whole, options.holdout, source),
        source,
        classes=whole.classes("the members .cls or .json, as numbers"),
        left_out=left_out,
        skipped=tuple(skipped),
        **streamed(whole, options),
    )


def _samples(shards: list[Path]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(name, content by suffix) of each image, in order."""
    seen: set[str] = set()
    for shard in shards:
        name, parts = "", dict[str, bytes]()
        for member, content in _members(shard):
            folder, _, file = member.rpartition("/")
            stem, _, rest = file.partition(".")
            sample, suffix = f"{folder}/{stem}".lstrip("/"), f".{rest.lower()}"
            if sample != name:
                if parts:
                    yield f"{shard.name}/{name}", parts
                name, parts = sample, {}
                if (key := f"{shard}/{sample}") in seen:
                    raise UserError(f"{shard}: the members of {sample} do not lie together")
                seen.add(key)
            if suffix not in SUFFIXES | _TEXT:
                raise UserError(
                    f"{shard}: {member} is refused; read are {', '.join(sorted(SUFFIXES | _TEXT))}, nothing else"
                )
            if suffix in parts:
                raise UserError(f"{shard}: has {member} twice")
            parts[suffix] = content
        if parts:
            yield f"{shard.name}/{name}", parts


def _members(shard: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each regular file."""
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isdir():
                    continue
                if not member.isreg() or name.startswith("/") or ".." in Path(name).parts:
                    raise UserError(f"{shard}: {member.name} is refused; only plain files inside the archive are read")
                kind = "text" if Path(name).suffix.lower() in _TEXT else "image"
                if member.size > _LARGEST[kind]:
                    raise UserError(f"{shard}: {member.name} has {member.size:,} bytes; at most {_LARGEST[kind]:,}")
                file = archive.extractfile(member)
                content = b"" if file is None else file.read()
                if len(content) != member.size:
                    raise UserError(f"{shard}: ends inside {member.name}; fetch it again")
                yield name, content
            end = archive.offset
        with open(shard, "rb") as file:  # tarfile takes an archive that was cut off for one that ends
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise UserError(f"{shard}: has no end, so that it was cut off; fetch it again")
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
        raise UserError(f"{shard}: cannot be read as a tar file ({error})") from None


def _label(name: str, parts: dict[str, bytes]) -> int | None:
    try:
        if ".cls" in parts:
            label: Any = int(parts[".cls"])
        elif ".json" in parts:
            document = disk.parsed(parts[".json"], name)
            label = next((document[key] for key in ("label", "class") if key in document), None)
        else:
            return None
    except (disk.Damaged, ValueError, TypeError):
        raise UserError(f"{name}: its label is not a number") from None
    if label is not None and (type(label) is not int or not 0 <= label < MOST_CLASSES):
        raise UserError(f"{name}: its label is {label!r}, not a class number from 0")
    return label


def _image(name: str, parts: dict[str, bytes]) -> tuple[bytes, str]:
    """(content, suffix)."""
    images = [(content, suffix) for suffix, content in parts.items() if suffix in SUFFIXES]
    if len(images) != 1:
        raise UserError(f"{name}: has {len(images)} images; one is needed")
    return images[0]


def _channels(shards: list[Path], options: DataOptions) -> int:
    files = ((content, name + suffix) for name, parts in _samples(shards) for content, suffix in [_image(name, parts)])
    return channels_of_first(files, options, str(shards[0]))


def _read(shards: list[Path], channels: int, options: DataOptions, skipped: list[str]) -> Iterator[Item]:
    def items() -> Iterator[Item]:
        for name, parts in _samples(shards):
            content, suffix = _image(name, parts)
            pixels = decoded(content, channels, options, skipped, name + suffix)
            if pixels is not None:
                yield Item(pixels, _label(name, parts), name)

    return of_one_size(items(), f"{shards[0].parent}/")
