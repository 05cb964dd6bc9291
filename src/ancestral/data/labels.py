"""A label for each file of a folder: from a list beside them, or from the folder that each is in."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ancestral.data.dataset import MOST_CLASSES
from ancestral.data.inventory import listed
from ancestral.errors import UserError
from ancestral.runtime import disk
from ancestral.runtime.text import utf8

DATASET = "dataset.json"


class Labels(NamedTuple):
    """Labels by file, in order, and where they come from."""

    by_file: dict[str, str | None]
    source: str


def label(root: Path, files: list[str], within: str = "") -> Labels:
    """A label for each file: from metadata where they have one, otherwise its first folder, otherwise none.

    Args:
        root: the folder.
        files: by their names below it.
        within: the folder below it that holds them all, its lists and the folders of the classes.

    Raises:
        UserError: naming the list beside the files that does not fit them.
    """
    if within:
        inner = label(root / within, [file.removeprefix(f"{within}/") for file in files])
        return Labels({f"{within}/{file}": name for file, name in inner.by_file.items()}, inner.source)
    for name, read in (("metadata.csv", _csv_rows), ("metadata.jsonl", _jsonl_rows), (DATASET, _pairs)):
        if (root / name).is_file():
            rows = read(root / name)
            if rows is None:
                return Labels(dict.fromkeys(files), f"none, as {name} says")
            by_file = _metadata_labels(root / name, files, rows)
            return Labels(by_file, name) if by_file else _by_folder(files)
    return _by_folder(files)


def in_order(root: Path, parts: Iterable[Labels]) -> tuple[str, ...]:
    """The classes of all parts: numbers by size where dataset.json gives them, otherwise names as texts.

    Raises:
        UserError: when some parts count their classes and others name them.
    """
    found: set[str] = set()
    sources: set[str] = set()
    for part in parts:
        if names := {utf8(label, "the name of a class") for label in part.by_file.values() if label is not None}:
            found |= names
            sources.add(part.source)
    if DATASET in sources and len(sources) > 1:
        (other,) = sources - {DATASET}
        raise UserError(
            f"{root}: of its parts one has its classes from {DATASET}, as numbers, another from {other}, as names; "
            f"give each a {DATASET}"
        )
    return tuple(sorted(found, key=int) if DATASET in sources else sorted(found))


def _by_folder(files: list[str]) -> Labels:
    first = [file.partition("/")[0] if "/" in file else None for file in files]
    folders, loose = sorted({one for one in first if one is not None}), [one for one in files if "/" not in one]
    if not loose:
        return Labels(dict(zip(files, first, strict=True)), "the folders")
    none = dict.fromkeys(files)
    if not folders:
        return Labels(none, "none")
    are, it = ("lies", "it") if len(loose) == 1 else ("lie", "them")
    of = "folder" if len(folders) == 1 else "folders"
    return Labels(
        none,
        f"none, since {listed(loose)} {are} beside the {of} {listed(folders)}; to have classes by folders, move {it} "
        "into one of them or away",
    )


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    try:
        return list(csv.DictReader(io.StringIO(disk.text(path), newline=""), strict=True))
    except csv.Error as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _jsonl_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(disk.text(path).split("\n"), 1):
        if line.strip():
            rows.append(disk.parsed(line, f"{path}:{number}"))
            if not isinstance(rows[-1], dict):
                raise UserError(f"{path}:{number}: each line must be a JSON object with file_name and label")
    return rows


def _pairs(path: Path) -> list[dict[str, Any]] | None:
    """dataset.json as StyleGAN's, EDM's and EDM2's tools write it: {"labels": [["00000/img00000000.png", 6], ...]}."""
    document = disk.document(path)
    if not isinstance(document, dict) or "labels" not in document:
        return []
    pairs = document["labels"]
    if pairs is None:  # folders are pieces of the set then, no classes
        return None
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
    ):
        raise UserError(f'{path}: labels must be a list of ["file", number], or null')
    for name, number in pairs:
        if type(number) is not int or not 0 <= number < MOST_CLASSES:
            raise UserError(f"{path}: the label of {name} is {number!r}, not a class number from 0")
    return [{"file_name": name, "label": number} for name, number in pairs]


def _metadata_labels(path: Path, files: list[str], rows: list[dict[str, Any]]) -> dict[str, str | None]:
    """A label for every file, or nothing where the metadata have none."""
    column = next((name for name in ("label", "class") if any(name in row for row in rows)), None)
    if path.name == DATASET and column is None:
        return {}
    names, found = set(files), dict[str, str | None]()
    for number, row in enumerate(rows, 1):
        name = row.get("file_name")
        if not isinstance(name, str):
            raise UserError(f"{path}: row {number} has no file_name")
        if name not in names:
            raise UserError(f"{path}: names {name}, which is not among the images beside it")
        if name in found:
            raise UserError(f"{path}: has two rows for {name}; keep one")
        label = row.get(column) if column else None
        if column and not (isinstance(label, (str, int)) and str(label)):
            raise UserError(f"{path}: row {number} ({name}) has no {column}; give every row one, or none")
        found[name] = None if label is None else str(label)
    for file in files:
        if file not in found:
            raise UserError(f"{path}: has no row for {file}; add one or move the file away")
    return found if column else {}
