"""A folder of images: which files, which labels, which split."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ancestral.errors import UserError
from ancestral.images import SUFFIXES, BadImage, decode, is_grey
from ancestral.imageset import DataOptions, ImageSet, Splits, split_off


def load_folder(root: Path, options: DataOptions) -> Splits:
    """The images below a folder; sub-folders are classes, `train` and `test` (or `validation`, `val`) are splits.

    Raises:
        UserError: naming the file that is missing, damaged or of another size.
    """
    parts = {name: root / name for name in ("train", "test", "validation", "val") if (root / name).is_dir()}
    own_test = next((parts[name] for name in ("test", "validation", "val") if name in parts), None)
    folders = [parts["train"], own_test] if "train" in parts and own_test else [root]
    listings = [_label(folder, _files(folder)) for folder in folders]
    class_names = tuple(sorted({label for listing in listings for label in listing.values() if label is not None}))
    skipped: list[str] = []
    channels = options.channels or _common_channels(folders, listings, options, skipped)
    sets = [
        _read(folder, listing, class_names, channels, options, skipped)
        for folder, listing in zip(folders, listings, strict=True)
    ]
    shapes = {one.shape for one in sets}
    if len(shapes) > 1:
        raise UserError(f"{root}: images differ in size between the splits; set one: --set data.size=32")
    splits = split_off(sets[0], options.holdout, str(root)) if len(sets) == 1 else Splits(sets[0], sets[1])
    return replace(splits, skipped=tuple(dict.fromkeys(skipped)))


def _files(root: Path) -> list[str]:
    """Relative names of the images below a folder, sorted; links to folders are not followed, so that none can loop."""
    found = []
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in files:
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                found.append((Path(folder) / name).relative_to(root).as_posix())
    if not found:
        raise UserError(f"{root}: no images below it; looked for {', '.join(sorted(SUFFIXES))} in any case")
    return sorted(found)


def _label(root: Path, files: list[str]) -> dict[str, str | None]:
    """A label for each file: from metadata where there is one, otherwise its first folder, otherwise none."""
    for name, read in (("metadata.csv", _csv_rows), ("metadata.jsonl", _jsonl_rows)):
        if (root / name).is_file():
            return _metadata_labels(root / name, files, read(root / name))
    if all("/" in file for file in files):
        return {file: file.partition("/")[0] for file in files}
    return dict.fromkeys(files)


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _jsonl_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                rows.append(json.loads(line))
                if not isinstance(rows[-1], dict):
                    raise UserError(f"{path}:{number}: each line must be a JSON object with file_name and label")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    return rows


def _metadata_labels(path: Path, files: list[str], rows: list[dict[str, Any]]) -> dict[str, str | None]:
    if not rows or "file_name" not in rows[0]:
        raise UserError(f"{path}: needs a column file_name")
    column = next((name for name in ("label", "class") if name in rows[0]), None)
    listed = {str(row.get("file_name")): str(row[column]) if column and column in row else None for row in rows}
    for name in listed:
        if name not in set(files):
            raise UserError(f"{path}: names {name}, which is not among the images beside it")
    for file in files:
        if file not in listed:
            raise UserError(f"{path}: has no row for {file}; add one or move the file away")
    return {file: listed[file] for file in files}


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
    listing: dict[str, str | None],
    class_names: tuple[str, ...],
    channels: int,
    options: DataOptions,
    skipped: list[str],
) -> ImageSet:
    images, kept = [], []
    for file in listing:
        try:
            images.append(decode(root / file, channels, options.size, options.background, options.max_pixels))
            kept.append(file)
        except BadImage as error:
            _skip_or_raise(error, options, skipped)
        if images[1:] and images[-1].shape != images[0].shape:
            (height, width, _), (other_height, other_width, _) = images[0].shape, images[-1].shape
            raise UserError(
                f"{root / file}: {other_height}x{other_width} (height x width), but {kept[0]} is {height}x{width}; "
                "set one size for all: --set data.size=32"
            )
    if not images:
        raise UserError(f"{root}: none of its {len(listing)} images can be read; the first: {skipped[0]}")
    labels = [class_names.index(label) for file in kept if (label := listing[file]) is not None]
    whole = len(labels) == len(kept)
    return ImageSet(
        np.stack(images), np.array(labels, dtype=np.int64) if whole else None, class_names if whole else (), tuple(kept)
    )
