"""The figures of docs/how-to/editing.md, each a command of `ancestral edit` on held-out images of the run's own data.

Run: .venv/bin/python scripts/figures/edit.py RUN, of grey images and then of colour ones.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sheets import labelled

from ancestral.apps.cli.main import main
from ancestral.data import load, pictures
from ancestral.runs import checkpoint

IMG = Path(__file__).resolve().parents[2] / "docs" / "img"
PAIRS = ((0, 2), (3, 11))  # of the held-out images shown
COLOURED = 60  # bytes that a channel of a coloured image is from the mean of the three, somewhere
TIMES = (100, 250, 400, 550, 700, 850, 1000)
BETWEEN = ("first", *(f"{share:.0%}" for share in np.linspace(0, 1, 9)), "second")
# The words above the columns and before the rows of each sheet.
WORDS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "interpolation": (BETWEEN, ("pixels", *(f"t = {t}" for t in TIMES))),
    "inversion": (BETWEEN, ()),
    "inpainting": (("image", "kept", *"12345"), ()),
    "super-resolution": (("image", "left", *"123"), ("2x", "2x", "4x", "4x")),
    "colour": (("image", "grey", *"1234"), ()),
}


class Sheets:
    """Held-out images in a folder of their own, and the command on them."""

    def __init__(self, run: Path, folder: Path) -> None:
        self.run, self.folder = run, folder
        saved, _ = checkpoint.open_run(run)
        self.images = load.load(saved.config.source, saved.config.data).test.spread(64).images[:]
        self.number = 0

    def file(self, pixels: np.ndarray) -> str:
        """A PNG of these pixels (H, W, C)."""
        self.number += 1
        path = self.folder / f"in-{self.number}.png"
        path.write_bytes(pictures.png(pixels))
        return str(path)

    def edit(self, verb: str, *arguments: object) -> list[np.ndarray]:
        """The images that the command makes."""
        self.number += 1
        out = self.folder / f"out-{self.number}.png"
        command = ["edit", verb, str(self.run), *map(str, arguments), "--out", str(out), "--device", "cpu"]
        main.main(command, standalone_mode=False)
        return [pictures.read_png(path) for path in sorted(out.with_suffix("").glob("*.png"))]


def write(name: str, rows: list[list[np.ndarray]]) -> None:
    """A sheet of docs/img."""
    sheet = pictures.contact_sheet(np.stack([image for row in rows for image in row]), len(rows[0]))
    labelled(sheet, *WORDS[name]).save(IMG / f"edit-{name}.png", optimize=True)


def interpolation(sheets: Sheets) -> list[list[np.ndarray]]:
    """A row for each t, the share of the second image to the right; the first row mixes pixels."""
    a, b = (sheets.images[i] for i in PAIRS[0])
    mixed = [np.uint8((1 - share) * a + share * b) for share in np.linspace(0, 1, 9)]
    rows = [[a, *mixed, b]]
    for t in TIMES:
        options = ("--at", t, "--frames", 9, "--encoder", "noise", "--steps", 100)
        rows.append([a, *sheets.edit("interpolate", sheets.file(a), sheets.file(b), *options), b])
    return rows


def inversion(sheets: Sheets) -> list[list[np.ndarray]]:
    """Along the great circle between the latents of two images."""
    rows = []
    for a, b in ((sheets.images[i], sheets.images[j]) for i, j in PAIRS):
        options = ("--frames", 9, "--encoder", "inversion", "--steps", 100)
        rows.append([a, *sheets.edit("interpolate", sheets.file(a), sheets.file(b), *options), b])
    return rows


def inpainting(sheets: Sheets) -> list[list[np.ndarray]]:
    """The image, what is kept, five ways to fill it."""
    shape = sheets.images.shape[1:3]
    rows = []
    for index, (top, left) in zip((0, 2, 4, 6), ((0.3, 0.2), (0.4, 0.3), (0, 0), (0, 0.5)), strict=True):
        mask = np.zeros((*shape, 1), np.uint8)
        y, x = (int(place * side) for place, side in zip((top, left), shape, strict=True))
        mask[y : y + shape[0] // 2, x : x + shape[1] // 2] = 255
        image = sheets.images[index]
        drawn = sheets.edit("inpaint", sheets.file(image), "--mask", sheets.file(mask), "--num-images", 5)
        rows.append([image, np.where(mask > 0, np.uint8(128), image), *drawn])
    return rows


def super_resolution(sheets: Sheets) -> list[list[np.ndarray]]:
    """The image, what was left of it, three ways to restore it: twice at 2x, then at 4x."""
    rows = []
    for factor, index in ((2, 3), (2, 5), (4, 3), (4, 5)):
        image = sheets.images[index]
        height, width, channels = image.shape
        boxes = image.reshape(height // factor, factor, width // factor, factor, channels).mean((1, 3))
        small = np.uint8(boxes.round()).repeat(factor, 0).repeat(factor, 1)
        options = ("--task", "super-resolution", "--factor", factor, "--num-images", 3)
        rows.append([image, small, *sheets.edit("restore", sheets.file(image), *options)])
    return rows


def colour(sheets: Sheets) -> list[list[np.ndarray]]:
    """The image, its grey values, four ways to colour them."""
    spread = np.abs(sheets.images - sheets.images.mean(3, keepdims=True)).max((1, 2, 3))
    rows = []
    for image in sheets.images[spread > COLOURED][::8][:5]:
        grey = np.asarray(Image.fromarray(image).convert("L").convert("RGB"))
        drawn = sheets.edit("restore", sheets.file(image), "--task", "colour", "--num-images", 4)
        rows.append([image, grey, *drawn])
    return rows


GREY = {
    "interpolation": interpolation,
    "inversion": inversion,
    "inpainting": inpainting,
    "super-resolution": super_resolution,
}


def everything() -> None:
    """All figures that can be made with this run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sheets = Sheets(given.run, Path(folder))
        made = {"colour": colour} if sheets.images.shape[3] == 3 else GREY
        for name, make in made.items():
            write(name, make(sheets))


if __name__ == "__main__":
    everything()
