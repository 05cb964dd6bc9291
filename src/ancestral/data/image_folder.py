"""A folder of images: which of them, as what, in which split."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ancestral.data.bit_depth import white_for
from ancestral.data.cache import cached, gather, listing
from ancestral.data.dataset import DataOptions, ImageSet, Item, Splits, splits_of
from ancestral.data.decode import BadImage, Look, decode, look
from ancestral.data.folder_listing import METADATA, Listing, parts_of
from ancestral.data.inventory import BAD, Reading, counted, listed
from ancestral.data.labels import Labels, in_order, label
from ancestral.errors import UserError
from ancestral.runtime.console import Progress


def load_folder(root: Path, options: DataOptions) -> Splits:
    """The images below a folder; its sub-folders are classes, or parts of a split (see `folder_listing`).

    Raises:
        UserError: naming the files that are missing, damaged or of another size.
    """
    parts = parts_of(root)
    labels = [label(part.root, part.images, parts.within) for part in parts.folders]
    class_names = in_order(root, labels)
    skipped: list[str] = []
    seen = _survey(root, parts.folders, options, skipped)
    sets = []
    for part, (by_file, _) in zip(parts.folders, labels, strict=True):
        files = [file for file in by_file if str(part.root / file) not in seen.bad]
        settings = asdict(replace(options, white=seen.white))  # found or given, they are the same images
        named = [by_file[file] for file in files], class_names  # numbers are kept, which count all parts' classes
        key = [listing(part.root / file for file in files), named, settings, seen.channels]
        read = partial(_read, part.root, {file: by_file[file] for file in files}, class_names, seen, options)
        sets.append(gather(read, class_names, str(part.root), options.cache, key, skipped))
    refuse_bad(skipped, options)
    splits = splits_of(sets, options.holdout, str(root))
    bad = tuple(line.removeprefix(f"{root}{os.sep}") for line in skipped)
    left_out: dict[str, tuple[str, ...]] = {BAD: bad} if bad else {}
    if root not in [part.root for part in parts.folders] and (lists := [n for n in METADATA if (root / n).is_file()]):
        left_out["labels are read from each part's own folder"] = tuple(lists)
    for others in (parts.others, *(part.others for part in parts.folders)):
        for reason, names in others.items():
            left_out[reason] = left_out.get(reason, ()) + tuple(names)
    return read_as(
        splits,
        str(root),
        split=parts.split or splits.reading.split,
        classes=_class_source(parts.folders, labels),
        left_out=left_out,
        white=seen.white,
        sizes=size_range(seen.sizes),
        notes=seen.notes,
        skipped=tuple(skipped),
    )


def size_range(sizes: Sequence[tuple[int, int]]) -> str:
    """Heights x widths: the one, or the smallest and the largest area."""
    smallest, largest = (f"{h}x{w}" for h, w in (min(sizes, key=np.prod), max(sizes, key=np.prod)))
    return smallest if len(sizes) == 1 else f"from {smallest} to {largest}"


def _class_source(folders: Sequence[Listing], labels: Sequence[Labels]) -> str:
    if len({one.source for one in labels}) == 1:
        return labels[0].source
    return "; ".join(f"of {part.root.name}: {one.source}" for part, one in zip(folders, labels, strict=True))


class _Seen(NamedTuple):
    """What the options make of all files together, before any is decoded."""

    channels: int
    white: int | None  # of values with more than 8 bits, where there are any and no file says
    sizes: list[tuple[int, int]]
    notes: tuple[str, ...]
    bad: frozenset[str]


def _look_at_all(paths: Sequence[Path], max_pixels: int) -> dict[str, Any]:
    """What all files together hold, as JSON; all are looked at, so that every bad one is named."""
    looks: dict[str, Look] = {}
    bad: dict[str, str] = {}
    with Progress() as bar:
        for path in bar.track(paths, description="looking at each file"):
            try:
                looks[str(path)] = look(path, max_pixels)
            except BadImage as error:
                bad[str(path)] = str(error)
    unsaid = [one.largest for one in looks.values() if one.largest is not None]
    return {
        "bad": bad,
        "grey": all(one.grey for one in looks.values()),
        "sizes": list(Counter(one.size for one in looks.values())),
        "unsaid": len(unsaid),
        "largest": max(unsaid, default=0),
        "declared": sum(one.deep and one.largest is None for one in looks.values()),
        "several": [name for name, one in looks.items() if one.frames > 1],
    }


def _survey(root: Path, folders: Sequence[Listing], options: DataOptions, skipped: list[str]) -> _Seen:
    paths = [folder.root / file for folder in folders for file in folder.images]
    key = ["looks", listing(paths), options.max_pixels]
    # What made a file bad may pass without a trace in its name, size or time: permissions, a disk, another Pillow.
    found = cached(options.cache, key, lambda: _look_at_all(paths, options.max_pixels), lambda one: not one["bad"])
    skipped += found["bad"].values()
    if not found["sizes"]:
        refuse_bad(skipped, options)
        raise UserError(f"{folders[0].root}: none of its images can be read; the first: {skipped[0]}")
    unsaid, largest, declared = (found[name] for name in ("unsaid", "largest", "declared"))
    several = [name.removeprefix(f"{root}{os.sep}") for name in found["several"]]
    notes = [white_note(unsaid, largest, options.white)] if unsaid else []
    if declared:
        notes.append(f"{counted(declared, 'file')} with more than 8 bits a value; rounded to 8")
    if several:
        notes.append(
            f"{counted(len(several), 'file')} with several frames, of which the first is used: {listed(several)}"
        )
    white = options.white or (white_for(largest) if unsaid else None)
    channels = options.channels or (1 if found["grey"] else 3)
    return _Seen(channels, white, [(h, w) for h, w in found["sizes"]], tuple(notes), frozenset(found["bad"]))


def white_note(count: int, largest: int, white: int | None) -> str:
    """What was made of values with more than 8 bits, whose range nothing but the set says."""
    images = f"{counted(count, 'image')} with more than 8 bits a value, rounded to 8"
    if white is not None:
        return f"{images}: {white} is white (data.white)"
    return (
        f"{images}: the largest is {largest}, so that {white_for(largest)} is white (another: --set data.white=65535)"
    )


def refuse_bad(skipped: list[str], options: DataOptions) -> None:
    """Refuse all bad images in one message, unless they are to be left out."""
    if skipped and options.bad_images == "refuse":
        many = "" if len(skipped) == 1 else f"{len(skipped):,} bad images: "
        more = f"; and {len(skipped) - MOST_NAMED:,} more" if len(skipped) > MOST_NAMED else ""
        named = "; ".join(skipped[:MOST_NAMED]) + more
        raise UserError(f"{many}{named}; mend or remove them, or leave such files out: --set data.bad_images=skip")


MOST_NAMED = 50  # bad images in one message
LOOKED_AT = 100  # images of a source that is read once, by which it is known to be grey


def _read(
    root: Path,
    labels: dict[str, str | None],
    class_names: tuple[str, ...],
    seen: _Seen,
    options: DataOptions,
    skipped: list[str],
) -> Iterator[Item]:
    number = {name: index for index, name in enumerate(class_names)}

    def items() -> Iterator[Item]:
        for file, name in labels.items():
            pixels = decoded(root / file, seen.channels, replace(options, white=seen.white), skipped)
            if pixels is not None:
                yield Item(pixels, None if name is None else number[name], file)

    return of_one_size(items(), f"{root}/")


def decoded(
    file: Path | bytes, channels: int, options: DataOptions, skipped: list[str], name: str | None = None
) -> np.ndarray | None:
    """One image as the options say, or None where it is bad, which `skipped` then says; see `refuse_bad`."""
    try:
        return decode(file, channels, options.size, options.background, options.max_pixels, name, options.white)
    except BadImage as error:
        skipped.append(str(error))
        return None


def channels_of(file: bytes, options: DataOptions, name: str) -> int:
    """1 where every pixel is grey, otherwise 3, for sources whose files are not all looked at beforehand."""
    pixels = decode(file, 3, options.size, options.background, options.max_pixels, name, options.white)
    return 1 if (pixels == pixels[..., :1]).all() else 3


def channels_of_first(files: Iterable[tuple[bytes, str]], options: DataOptions, source: str) -> int:
    """1 where the first `LOOKED_AT` files, of (content, name), that can be read are grey, otherwise 3.

    Looking at all would read a source twice; `streamed` says so of a grey one.

    Raises:
        UserError: when there is none.
    """
    seen, bad = 0, ""
    for content, name in files:
        try:
            if channels_of(content, options, name) == 3:
                return 3
            seen += 1
        except BadImage as error:
            bad = bad or f"; the first: {error}"
        if seen == LOOKED_AT:
            break
    if not seen:
        raise UserError(f"{source}: no image can be read{bad}")
    return 1


def of_one_size(items: Iterator[Item], within: str = "") -> Iterator[Item]:
    """The items, as long as they are of the first one's size; `within` is what their names lack to be found.

    Raises:
        UserError: naming the two that differ.
    """
    first = None
    for item in items:
        first = first or item
        if item.pixels.shape != first.pixels.shape:
            (height, width, _), (other_height, other_width, _) = first.pixels.shape, item.pixels.shape
            raise UserError(
                f"{within}{item.name}: {other_height}x{other_width} (height x width), but {first.name} is "
                f"{height}x{width}; scale them to one size (train: --size 32, data.size)"
            )
        yield item


def read_as(splits: Splits, source: str, *, skipped: tuple[str, ...] = (), **facts: Any) -> Splits:
    """Splits with what was understood of their source; the numbers found and used are theirs, with those left out."""
    used = len(splits.train) + len(splits.test)
    left_out: dict[str, tuple[str, ...]] = facts.get("left_out", {})
    facts = {"split": splits.reading.split, "found": used + sum(map(len, left_out.values())), **facts}
    return replace(splits, skipped=skipped, reading=Reading(source, used=used, **facts))


def streamed(images: ImageSet, options: DataOptions) -> dict[str, Any]:
    """The facts of a reading for a source that is read once, from front to back."""
    height, width, _ = images.shape
    notes = () if options.white is None else (f"{options.white} is white where values have more than 8 bits",)
    if images.shape[2] == 1 and options.channels is None and len(images) > LOOKED_AT:
        notes += (f"grey, as the first {LOOKED_AT} images are (in colour: --set data.channels=3)",)
    if options.size is None:
        return {"white": options.white, "sizes": f"{height}x{width}", "notes": notes}
    return {"white": options.white, "sizes": "", "notes": (*notes, "sizes before scaling were not looked at")}
