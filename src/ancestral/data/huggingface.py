"""Images from Hugging Face `datasets`: a folder, parquet files or a name on the hub, streamed."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ancestral.data.cache import gather, listing
from ancestral.data.dataset import DataOptions, Item, Splits, splits_of
from ancestral.data.folder_listing import TEST, TRAIN
from ancestral.data.image_folder import channels_of_first, decoded, of_one_size, read_as, refuse_bad, streamed
from ancestral.data.inventory import BAD, listed
from ancestral.data.source_paths import HUB_PREFIX
from ancestral.errors import UserError, missing


def load_hub(name: str, options: DataOptions) -> Splits:
    """The images of a data set: its train split, and its test or validation split or else a share held out.

    Args:
        name: a folder (imagefolder), a .parquet file, or a name on the hub.
        options: with `cache` the decoded images are kept on disk and mapped.

    Raises:
        UserError: when the package or the set is absent, or it has no column of images.
    """
    source = HUB_PREFIX + name
    try:
        import datasets
    except ImportError:
        raise missing(source, "datasets", "hf") from None
    path = Path(name)
    if path.suffix == ".parquet":
        how: dict[str, Any] = {"path": "parquet", "data_files": {"train": name}}
    elif path.is_dir():
        how = {"path": "imagefolder", "data_dir": name}
    else:
        how = {"path": name}
    try:
        builder = datasets.load_dataset_builder(**how)
        splits: Any = builder.as_streaming_dataset()
    except Exception as error:  # a missing file, no network, a set of another kind: each library below has its own
        raise _refused(source, "opened", error) from None
    named = {split.lower(): split for split in splits}
    trains, tests = ([named[one] for one in names if one in named] for names in (TRAIN, TEST))
    parts = trains[:1] + tests[:1]
    if not trains:
        raise UserError(f"{source}: has no split named train; it has {', '.join(splits)}")
    files = sorted(path.rglob("*")) if path.is_dir() else sorted(map(Path, glob.glob(name)))
    skipped: list[str] = []
    sets, channels, notes = [], options.channels, tuple[str, ...]()
    for part in parts:
        image, label, class_names, notes = _columns(source, splits[part].features)
        of_part = f"{source}/{part}"
        rows = _Rows(splits[part].cast_column(image, datasets.Image(decode=False)), of_part)
        files_in = ((_bytes(row[image], of_part), of_part) for row in rows)
        channels = channels or channels_of_first(files_in, options, of_part)
        read = partial(_read, rows, image, label, of_part, channels, options)
        key = [name, builder.hash, part, listing(files), channels, asdict(options)]  # the hash is a hub's commit
        sets.append(gather(read, class_names, of_part, options.cache, key, skipped))
    refuse_bad(skipped, options)
    result = splits_of(sets, options.holdout, source)
    more = [split for split in splits if split not in parts]
    how = streamed(sets[0], options)
    how["notes"] += notes
    how["notes"] += (f"the splits {listed(more)} are not used",) if more else ()
    return read_as(
        result,
        source,
        split=result.reading.split or f"the set's own {parts[0]} and {parts[1]}",
        classes=sets[0].classes("the column of labels"),
        left_out={BAD: tuple(skipped)} if skipped else {},
        skipped=tuple(skipped),
        **how,
    )


def _refused(source: str, done: str, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"{source}: cannot be {done} ({reason})")


class _Rows:
    """The rows of a split, again each time, where what cannot be read is an error of the user's."""

    def __init__(self, rows: Any, source: str) -> None:
        self.rows, self.source = rows, source

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.rows
        except Exception as error:  # as in `load_hub`
            raise _refused(self.source, "read", error) from None


def _columns(source: str, features: Any) -> tuple[str, str | None, tuple[str, ...] | None, tuple[str, ...]]:
    """(column of images, column of labels or None, names of the classes or None, what to say of others).

    The first of each is taken.
    """
    if features is None:
        raise UserError(f"{source}: does not say what its columns hold, so that none is known to be of images")
    kinds = {column: type(kind).__name__ for column, kind in features.items()}
    images = [column for column, kind in kinds.items() if kind == "Image"]
    labels = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    if not images:
        raise UserError(f"{source}: has no column of images; it has {', '.join(kinds)}")
    notes = tuple(
        f"the {what} are of the column {first}, not of {listed(others)}"
        for what, (first, *others) in (("images", images), ("labels", labels or [""]))
        if others
    )
    return images[0], labels[0] if labels else None, tuple(features[labels[0]].names) if labels else None, notes


def _bytes(value: Any, source: str) -> bytes:
    """The file of a cell, which may lie elsewhere; an empty one, which is no image, where there is none."""
    if value is None:
        return b""
    if value["bytes"] is not None:
        return value["bytes"]
    path = value["path"]
    if "://" not in path and not Path(path).is_file():  # a pipe or a device would be read without end
        return b""
    from datasets.utils.file_utils import xopen

    try:
        with xopen(path, "rb") as file:
            return file.read()
    except Exception as error:  # as in `load_hub`
        raise _refused(source, "read", error) from None


def _read(
    rows: Any, image: str, label: str | None, name: str, channels: int, options: DataOptions, skipped: list[str]
) -> Iterator[Item]:
    def items() -> Iterator[Item]:
        for number, row in enumerate(rows):
            called = f"{name}[{number}]"
            pixels = decoded(_bytes(row[image], name), channels, options, skipped, called)
            if pixels is not None:
                number = None if label is None else row[label]  # below 0, or none: it has no class
                yield Item(pixels, None if number is None or number < 0 else number, called)

    return of_one_size(items())
