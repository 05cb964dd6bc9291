"""Which files of a folder are its images, and what became of every other one."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ancestral.data.decode import SUFFIXES
from ancestral.data.source_paths import is_run
from ancestral.errors import UserError

METADATA = ("metadata.csv", "metadata.jsonl", "dataset.json")
TRAIN = ("train", "training")
TEST = ("test", "testing", "validation", "valid", "val", "eval")  # the first one found is used
_DRAWN = "drawn by a model"


@dataclass(frozen=True)
class Listing:
    """The images below a folder by relative name, sorted, and all other names by the reason why they are none."""

    root: Path
    images: list[str]
    others: dict[str, list[str]] = field(default_factory=dict)


def is_shown(name: str) -> bool:
    """Hidden files are those of other programs."""
    return not name.startswith(".")


def listed_below(root: Path) -> Listing:
    """All that lies below a folder. Linked folders are followed after the others, each folder once, so that none loops.

    Raises:
        UserError: naming the folder that cannot be read.
    """
    images: list[str] = []
    others: defaultdict[str, list[str]] = defaultdict(list)
    drawn = _is_drawn(root)
    for path in _walk(root, others):
        name, suffix = path.relative_to(root).as_posix(), path.suffix.lower()
        if path.name in METADATA:
            continue
        broken = path.is_symlink() and not path.exists()
        if not is_shown(path.name):
            others["hidden"].append(name)
        elif suffix in SUFFIXES:
            if drawn and not path.stem.isdigit():
                others["a sheet beside drawn images"].append(name)
            else:
                images.append(name)
        elif broken:
            images.append(name) if not suffix else others["a link to nothing"].append(name)
        elif not path.is_file():
            others["not a regular file"].append(name)
        else:
            others[f"{suffix} is no image format that is read" if suffix else "without a suffix"].append(name)
    if not images:  # all of the set was drawn, perhaps a folder for each class
        for name in others.pop(_DRAWN, []):
            inner = listed_below(root / name)
            images += [f"{name}/{one}" for one in inner.images]
            for reason, names in inner.others.items():
                others[reason] += [f"{name}/{one}" for one in names]
    return Listing(root, sorted(images), {reason: sorted(names) for reason, names in sorted(others.items()) if names})


def _is_run(folder: Path) -> bool:
    """Whether a folder is one in which a model was trained, with its previews and plots."""
    return (folder / "config.json").is_file() and is_run(folder)


def _is_drawn(folder: Path) -> bool:
    """Whether `ancestral sample` has filled a folder, with sheets beside the numbered images."""
    return (folder / ".job").is_dir()


_PASSED_OVER = {  # folders that are not walked, by the reason
    "a run, whose pictures are not its images": _is_run,
    _DRAWN: _is_drawn,
    "hidden": lambda folder: not is_shown(folder.name),
}


def _walk(root: Path, others: dict[str, list[str]]) -> Iterator[Path]:
    """All that is no folder; links to folders, in order, once the rest is done."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); make it readable or move it away")

    seen, links = set[tuple[int, int]](), [root]
    while links:
        start, links = links[0], links[1:]
        for folder, inner, files in os.walk(start, onerror=refuse):
            here = os.stat(folder)
            if (here.st_dev, here.st_ino) in seen:
                others["a link to a folder that is read already"].append(Path(folder).relative_to(root).as_posix())
                inner.clear()
                continue
            seen.add((here.st_dev, here.st_ino))
            for reason, is_one in _PASSED_OVER.items():
                found = [name for name in inner if is_one(Path(folder) / name)]
                others[reason] += [(Path(folder) / name).relative_to(root).as_posix() for name in found]
                inner[:] = [name for name in inner if name not in found]
            linked = sorted(name for name in inner if (Path(folder) / name).is_symlink())
            links += [Path(folder) / name for name in linked]
            inner[:] = sorted(set(inner) - set(linked))
            yield from (Path(folder) / name for name in sorted(files))


@dataclass(frozen=True)
class Parts:
    """The folders of a set, what they were taken for, and the pictures beside them that are not used."""

    folders: tuple[Listing, ...]  # one to split, or one to train on and one to test on
    split: str | None  # where the split comes from, None where there is none
    others: dict[str, list[str]] = field(default_factory=dict)
    within: str = ""  # of the only folder: the path below it that wraps the classes, or the list of the labels


def parts_of(root: Path) -> Parts:
    """The split that the names of folders say, in any case, in the folder itself or in one that is all it holds.

    Without one the set is the folder, and its classes are in it, or in the folder that is all it holds. The names of
    the images are those below the folder in any case, as it is by them that a part is held out.

    Raises:
        UserError: where there are no images, or two folders for training.
    """
    where = root
    for where in _wrapped(root):
        named = _named(where)
        train, tests = _one(where, named, TRAIN), [named[name] for name in TEST if name in named]
        if train and tests:
            return _two(root, where, train, tests)
        whole = listed_below(where) if named else None
        alone = next((one for one in (train, *tests) if one is not None), None)
        if whole and alone and whole.images and all(name.startswith(f"{alone.name}/") for name in whole.images):
            # Only one part: what lies in it is the set.
            only = listed_below(alone)
            others = {r: [n for n in names if not n.startswith(f"{alone.name}/")] for r, names in whole.others.items()}
            return Parts((only,), None, {reason: names for reason, names in others.items() if names})
        if named and where != root:
            break
    found = listed_below(root)
    _need(found)
    in_folders = len({name.rpartition("/")[0] for name in found.images}) > 1
    wraps = in_folders or any((where / name).is_file() for name in METADATA)
    return Parts((found,), None, within=where.relative_to(root).as_posix() if wraps and where != root else "")


def _wrapped(root: Path) -> Iterator[Path]:
    """The folder, and as long as there is one folder and no image in it, what is inside."""
    where, seen = root, set[Path]()
    while where.resolve() not in seen:
        seen.add(where.resolve())
        yield where
        shown = [entry for entry in sorted(where.iterdir()) if is_shown(entry.name)]
        folders = [entry for entry in shown if entry.is_dir()]
        files = [entry for entry in shown if entry not in folders]
        if len(folders) != 1 or any(one.suffix.lower() in SUFFIXES or one.name in METADATA for one in files):
            return
        where = folders[0]


def _named(where: Path) -> dict[str, Path]:
    """The folders that are named as parts of a split, by that name in small letters."""
    found: dict[str, Path] = {}
    for entry in sorted(where.iterdir()):
        name = entry.name.lower()
        if name in TRAIN + TEST and entry.is_dir():
            if name in found:
                raise UserError(f"{where}: has both {found[name].name} and {entry.name}; keep one")
            found[name] = entry
    return found


def _one(where: Path, named: dict[str, Path], names: Sequence[str]) -> Path | None:
    found = [named[name] for name in names if name in named]
    if len(found) > 1:
        raise UserError(f"{where}: has both {found[0].name} and {found[1].name}; keep one")
    return found[0] if found else None


def _two(root: Path, where: Path, train: Path, tests: list[Path]) -> Parts:
    chosen = (listed_below(train), listed_below(tests[0]))
    for part in chosen:
        _need(part)
    others: dict[str, list[str]] = {}
    for more in tests[1:]:
        reason = f"in {more.name}, while {tests[0].name} is what is held out"
        others[reason] = [f"{more.name}/{name}" for name in listed_below(more).images]
    taken = {part.name for part in (train, *tests)}
    for reason, names in (beside := listed_below(where)).others.items():
        if outside := [name for name in names if name.partition("/")[0] not in taken]:
            others[reason] = outside
    if outside := [name for name in beside.images if name.partition("/")[0] not in taken]:
        others[f"beside {train.name} and {tests[0].name}"] = outside
    within = "" if where == root else f" of {where.name}"
    split = f"the folders {train.name} and {tests[0].name}{within}"
    return Parts(chosen, split, {reason: names for reason, names in others.items() if names})


def _need(found: Listing) -> None:
    if not found.images:
        raise UserError(f"{found.root}: no images below it; looked for {', '.join(sorted(SUFFIXES))} in any case")
