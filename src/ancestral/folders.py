"""A folder of images: which files, which labels, which split."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ancestral.errors import UserError
from ancestral.images import SUFFIXES, BadImage, decode, is_grey
from ancestral.imageset import DataOptions, Item, Splits, split_off
from ancestral.reading import Reading
from ancestral.store import gather, listing


def load_folder(root: Path, options: DataOptions) -> Splits:
    """The images below a folder; sub-folders are classes, `train` and `test` (or `validation`, `val`) are splits.

    Raises:
        UserError: naming the file that is missing, damaged or of another size.
    """
    parts = {name: root / name for name in ("train", "test", "validation", "val") if (root / name).is_dir()}
    own_test = next((parts[name] for name in ("test", "validation", "val") if name in parts), None)
    folders = [parts["train"], own_test] if "train" in parts and own_test else [root]
    if list(parts) == ["train"] and not any(one != parts["train"] and _is_shown(one.name) for one in root.iterdir()):
        folders = [parts["train"]]
    listings = [_label(folder, _files(folder)) for folder in folders]
    class_names = tuple(sorted({label for listing in listings for label in listing.values() if label is not None}))
    skipped: list[str] = []
    channels = options.channels or _common_channels(folders, listings, options, skipped)
    sets = []
    for folder, labels in zip(folders, listings, strict=True):
        key = [listing(folder / file for file in labels), list(labels.values()), channels, asdict(options)]
        read = partial(_read, folder, labels, class_names, channels, options)
        sets.append(gather(read, class_names, str(folder), options.cache, key, skipped))
    shapes = {one.shape for one in sets}
    if len(shapes) > 1:
        raise UserError(f"{root}: images differ in size between the splits; set one: --set data.size=32")
    splits = split_off(sets[0], options.holdout, str(root)) if len(sets) == 1 else Splits(sets[0], sets[1])
    skipped = list(dict.fromkeys(skipped))
    used = len(splits.train) + len(splits.test)
    reading = Reading(str(root), used + len(skipped), used, {"cannot be read": tuple(skipped)} if skipped else {})
    reading = replace(reading, split=splits.reading.split)
    return replace(splits, skipped=tuple(skipped), reading=reading)


def _is_shown(name: str) -> bool:
    return not name.startswith(".")


def _files(root: Path) -> list[str]:
    """Relative names of the images below a folder, sorted; links to folders are not followed, so that none can loop."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); make it readable or move it away")

    found, drawn = [], (root / ".job").is_dir()  # by `ancestral sample`, which puts sheets beside the numbered images
    for folder, inner, files in os.walk(root, onerror=refuse):
        inner[:] = filter(_is_shown, inner)
        for name in filter(_is_shown, files):
            if Path(name).suffix.lower() in SUFFIXES and (Path(name).stem.isdigit() or not drawn):
                found.append((Path(folder) / name).relative_to(root).as_posix())
    if not found:
        raise UserError(f"{root}: no images below it; looked for {', '.join(sorted(SUFFIXES))} in any case")
    return sorted(found)


def _label(root: Path, files: list[str]) -> dict[str, str | None]:
    """A label for each file: from metadata where they have one, otherwise its first folder, otherwise none."""
    first = [file.partition("/")[0] if "/" in file else None for file in files]
    by_folder = dict(zip(files, first if None not in first else [None] * len(files), strict=True))
    for name, read in (("metadata.csv", _csv_rows), ("metadata.jsonl", _jsonl_rows)):
        if (root / name).is_file():
            return _metadata_labels(root / name, files, read(root / name)) or by_folder
    return by_folder


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _jsonl_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    rows.append(json.loads(line))
                    if not isinstance(rows[-1], dict):
                        raise UserError(f"{path}:{number}: each line must be a JSON object with file_name and label")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    return rows


def _metadata_labels(path: Path, files: list[str], rows: list[dict[str, Any]]) -> dict[str, str | None]:
    """A label for every file, or nothing where the metadata have none."""
    column = next((name for name in ("label", "class") if any(name in row for row in rows)), None)
    known, listed = set(files), dict[str, str | None]()
    for number, row in enumerate(rows, 1):
        name = row.get("file_name")
        if not isinstance(name, str):
            raise UserError(f"{path}: row {number} has no file_name")
        if name not in known:
            raise UserError(f"{path}: names {name}, which is not among the images beside it")
        if name in listed:
            raise UserError(f"{path}: has two rows for {name}; keep one")
        label = row.get(column) if column else None
        if column and not (isinstance(label, (str, int)) and str(label)):
            raise UserError(f"{path}: row {number} ({name}) has no {column}; give every row one, or none")
        listed[name] = None if label is None else str(label)
    for file in files:
        if file not in listed:
            raise UserError(f"{path}: has no row for {file}; add one or move the file away")
    return listed if column else {}


def _common_channels(
    folders: list[Path], listings: list[dict[str, str | None]], options: DataOptions, skipped: list[str]
) -> int:
    def grey(path: Path) -> bool:
        try:
            return is_grey(path, options.max_pixels)
        except BadImage as error:
            _skip_or_raise(error, options, skipped)
            return True

    everywhere = (folder / file for folder, listing in zip(folders, listings, strict=True) for file in listing)
    modes = [grey(path) for path in everywhere]  # of all files, so that every bad one is named
    return 1 if all(modes) else 3


def _skip_or_raise(error: BadImage, options: DataOptions, skipped: list[str]) -> None:
    if options.bad_images == "refuse":
        raise UserError(f"{error}; mend or remove it, or leave such files out: --set data.bad_images=skip") from None
    skipped.append(str(error))


def _read(
    root: Path,
    labels: dict[str, str | None],
    class_names: tuple[str, ...],
    channels: int,
    options: DataOptions,
    skipped: list[str],
) -> Iterator[Item]:
    def items() -> Iterator[Item]:
        for file, label in labels.items():
            pixels = decoded(root / file, channels, options, skipped)
            if pixels is not None:
                yield Item(pixels, None if label is None else class_names.index(label), file)

    return of_one_size(items(), str(root))


def decoded(
    file: Path | bytes, channels: int, options: DataOptions, skipped: list[str], name: str | None = None
) -> np.ndarray | None:
    """One image as the options say, or None where it is bad and such are left out.

    Raises:
        UserError: naming a bad image, where such are refused.
    """
    try:
        return decode(file, channels, options.size, options.background, options.max_pixels, name)
    except BadImage as error:
        _skip_or_raise(error, options, skipped)
        return None


def channels_of(file: bytes, options: DataOptions, name: str) -> int:
    """1 where every pixel is grey, otherwise 3, for sources whose files are not all looked at beforehand.

    Raises:
        BadImage: as `decode`.
    """
    pixels = decode(file, 3, options.size, options.background, options.max_pixels, name)
    return 1 if (pixels == pixels[..., :1]).all() else 3


def of_one_size(items: Iterator[Item], source: str) -> Iterator[Item]:
    """The items, as long as they are of the first one's size.

    Raises:
        UserError: naming the two that differ.
    """
    first = None
    for item in items:
        first = first or item
        if item.pixels.shape != first.pixels.shape:
            (height, width, _), (other_height, other_width, _) = first.pixels.shape, item.pixels.shape
            raise UserError(
                f"{source}/{item.name}: {other_height}x{other_width} (height x width), but {first.name} is "
                f"{height}x{width}; set one size for all: --set data.size=32"
            )
        yield item
