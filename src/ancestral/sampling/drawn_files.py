"""The files of drawn images: a PNG each or one array, what class each is of, and the film of the first."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ancestral.data import pictures
from ancestral.data.pictures import Labels
from ancestral.data.pixels import to_bytes
from ancestral.diffusion.samplers.sample import Film
from ancestral.runtime import array_files
from ancestral.runtime.resumable_job import Files, Job
from ancestral.runtime.system import each

FILM = ("film.png", "film.gif")
FRAMES = 12  # of a film
FILMED = 8  # images in a film


class ImageFiles(Protocol):
    """How images are kept; they are drawn, and may be kept, in pieces of their numbers."""

    settings: Mapping[str, object]  # by which a job of these is known from one of others

    def names(self, count: int) -> Iterable[str]:
        """Of the files of so many images."""
        ...

    def classes(self, labels: Tensor, names: Sequence[str]) -> Files:
        """The file that says which class each image is of: its number (N,), and its name."""
        ...

    def packed(self, numbers: range, images: np.ndarray) -> Files:
        """The files of a piece: images (N, H, W, C) of these numbers, as bytes."""
        ...

    def whole(self, numbers: range, files: Files, shape: tuple[int, ...]) -> bool:
        """Whether these are the files of a piece, of images of this shape (H, W, C)."""
        ...

    def joined(self, job: Job, work: list[range], shape: tuple[int, ...]) -> dict[str, Path]:
        """All files of the pieces, as they belong into the folder of the images."""
        ...

    def first(self, files: Mapping[str, Path], count: int) -> np.ndarray:
        """The first images (N, H, W, C) of these files."""
        ...


class Pngs:
    """A numbered PNG for each image."""

    settings: Mapping[str, object] = {}

    def names(self, count: int) -> Iterable[str]:
        """000000.png, 000001.png, ..."""
        return map(_png, range(count))

    def classes(self, labels: Tensor, names: Sequence[str]) -> Files:
        """Lines of {"file_name": "000000.png", "label": "seven"}, as a training reads them."""
        rows = ({"file_name": _png(number), "label": name} for number, name in enumerate(names))
        return {"metadata.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()}

    def packed(self, numbers: range, images: np.ndarray) -> Files:
        """Each as PNG."""
        return dict(zip(map(_png, numbers), each(pictures.png, images), strict=True))

    def whole(self, numbers: range, files: Files, shape: tuple[int, ...]) -> bool:
        """Whether every image is there."""
        return all(pictures.is_png(files.get(_png(number), b""), shape) for number in numbers)

    def joined(self, job: Job, work: list[range], shape: tuple[int, ...]) -> dict[str, Path]:
        """As they are."""
        return {path.name: path for path in job.files(work)}

    def first(self, files: Mapping[str, Path], count: int) -> np.ndarray:
        """Read back."""
        return np.stack([pictures.read_png(files[name]) for name in self.names(count)])


class Array:
    """All images in one array (N, H, W, C) of bytes."""

    settings: Mapping[str, object] = {"array": True}
    name, labels = "images.npy", "images.labels.npy"  # as a training reads them

    def names(self, count: int) -> Iterable[str]:
        """One."""
        return [self.name]

    def classes(self, labels: Tensor, names: Sequence[str]) -> Files:
        """The numbers, in an array beside that of the images."""
        return {self.labels: array_files.packed(labels.numpy())}

    def packed(self, numbers: range, images: np.ndarray) -> Files:
        """An array of the piece."""
        return {self.name: array_files.packed(images)}

    def whole(self, numbers: range, files: Files, shape: tuple[int, ...]) -> bool:
        """Whether the array is that of so many images."""
        return array_files.is_packed(files.get(self.name, b""), (len(numbers), *shape))

    def joined(self, job: Job, work: list[range], shape: tuple[int, ...]) -> dict[str, Path]:
        """One array, written in the job's folder."""
        path = job.folder / self.name
        path.unlink(missing_ok=True)  # it may be a link to what was drawn before
        whole = np.lib.format.open_memmap(path, "w+", np.uint8, (work[-1].stop, *shape))
        for piece, files in zip(work, job.results(work), strict=True):
            whole[piece.start : piece.stop] = np.load(io.BytesIO(files[self.name]), allow_pickle=False)
        whole.flush()
        return {one.name: one for one in job.files(work)} | {self.name: path}

    def first(self, files: Mapping[str, Path], count: int) -> np.ndarray:
        """Those of the array's beginning."""
        return np.asarray(array_files.mapped(files[self.name])[:count])


def _png(number: int) -> str:
    return f"{number:06d}.png"


def film_times(times: Sequence[int]) -> set[int]:
    """About a dozen times, closer together towards the end, where the picture is made."""
    share = 1 - (1 - np.linspace(0, 1, FRAMES)) ** 1.5
    return {times[round(float(part) * (len(times) - 2))] for part in share}


def film_files(frames: Film) -> dict[str, bytes]:
    """Rows of pairs: x_t above the x0 predicted from it, one image a pair of rows, the times above; and as a film."""
    rows = []
    for image in range(min(FILMED, len(frames.final))):
        final = frames.final[image]
        rows += [*(x[image] for x in frames.x_t), final, *(x[image] for x in frames.x0), final]
    names = [f"t = {t}" for t in (*frames.t, 0)]
    labels = Labels(columns=names, rows=["x_t", "x0"] * (len(rows) // len(names) // 2))
    sheet = pictures.sheet(to_bytes(torch.stack(rows)), len(names), labels)
    states = zip(names, (*frames.x_t, frames.final), strict=True)
    stills = [pictures.contact_sheet(to_bytes(x[:16]), labels=Labels(title=name)) for name, x in states]
    return dict(zip(FILM, (sheet, pictures.animation(stills)), strict=True))
