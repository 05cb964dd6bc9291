"""Drawn images: an array, PIL images, files, or a sheet in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from ancestral.apps.python.words import names_parameters
from ancestral.data import decode, pictures
from ancestral.errors import UserError
from ancestral.runtime import verified_folder
from ancestral.runtime.console import screen
from ancestral.runtime.result_files import held


@dataclass(frozen=True, eq=False)
class Images:
    """Images as bytes; a notebook shows them as a contact sheet.

    Args:
        array: uint8 (N, H, W, C).
    """

    array: np.ndarray

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, number: int) -> Image.Image: ...
    @overload
    def __getitem__(self, number: slice | Sequence[int] | np.ndarray) -> Images: ...
    def __getitem__(self, number: int | slice | Sequence[int] | np.ndarray) -> Image.Image | Images:
        chosen = self.array[list(number) if isinstance(number, tuple) else number]
        return pictures.to_pil(chosen) if chosen.ndim == 3 else Images(chosen)

    def __iter__(self) -> Iterator[Image.Image]:
        return (self[number] for number in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype=dtype) if copy or dtype is not None else self.array

    def __repr__(self) -> str:
        count, height, width, channels = self.array.shape
        return f"<{count} images of {height}x{width}x{channels}>"

    def _repr_png_(self) -> bytes:
        return pictures.sheet(self.array)

    def pil(self) -> list[Image.Image]:
        """The images for Pillow."""
        return list(self)

    @names_parameters
    def save(self, path: str | Path) -> None:
        """Write a contact sheet, where the path ends with .png; otherwise a folder of numbered PNG files.

        A set that was saved there before goes.

        Raises:
            UserError: for another picture's ending, and where a file of that name is there that is of no such set.
        """
        path = Path(path)
        if path.suffix.lower() == ".png":
            verified_folder.write_file(path, pictures.sheet(self.array))
            return
        if path.suffix.lower() in decode.SUFFIXES:
            raise UserError(f"{path}: a contact sheet is a .png file, and single images go into a folder")
        names = [f"{number:06d}.png" for number in range(len(self))]
        with held(path, "images") as results:
            results.need_free(names)
            for kept in results.replace(zip(names, map(pictures.png, self.array), strict=True)):
                screen.print(f"kept, as it was changed since it was saved: {kept}")


@dataclass(frozen=True, eq=False)
class Film:
    """How images were made: states x_t above the x0 predicted from them, time to the right; then the images.

    Args:
        images: the last frame.
        array: the states, uint8 (frames, N, H, W, C); the last are the images.
        png: the sheet, as bytes of a file.
        gif: the states one after the other, as bytes of a file.
    """

    images: Images
    array: np.ndarray = field(repr=False)
    png: bytes = field(repr=False)
    gif: bytes = field(repr=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype=dtype) if copy or dtype is not None else self.array

    def __repr__(self) -> str:
        return f"<film of {len(self.array)} frames: {self.images!r}>"

    def _repr_png_(self) -> bytes:
        return self.png

    def pil(self) -> list[Image.Image]:
        """The frames for Pillow, each a contact sheet of the states."""
        return [pictures.contact_sheet(states) for states in self.array]

    def save(self, path: str | Path) -> None:
        """Write the sheet, to a path that ends with .png, or what moves, to one that ends with .gif.

        Raises:
            UserError: for another ending.
        """
        kinds = {".png": self.png, ".gif": self.gif}
        if (suffix := Path(path).suffix.lower()) not in kinds:
            raise UserError(f"{path}: a film is a .png or a .gif file")
        verified_folder.write_file(Path(path), kinds[suffix])
