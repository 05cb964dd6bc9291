"""docs/img/front.png, the strip of README: what more and more of MNIST gives. scripts/figures/front.py RUN...

The runs are those of scripts/figures/all. The second is the one that edits and films, and was evaluated.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import ancestral
from ancestral.data import load, pictures
from ancestral.data.dataset import DataOptions
from ancestral.runtime.plots import INK

OUT = Path(__file__).resolve().parents[2] / "docs" / "img" / "front.png"
SIDE, GAP, HEAD = 196, 14, 22  # pixels: a panel, between panels, a line of words above each
COUNT = 36  # digits of a panel


def panel(images: np.ndarray, columns: int = 6, width: int = SIDE) -> Image.Image:
    """A sheet of this width."""
    sheet = pictures.contact_sheet(images, columns).convert("RGB")
    return sheet.resize((width, round(sheet.height * width / sheet.width)), Image.Resampling.LANCZOS)


def words(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, size: int = 13, fill: str = INK) -> None:
    """A line of text, its middle at y."""
    draw.text((x, y), text, fill, ImageFont.load_default(size), anchor="lm")


def inpainted(model: ancestral.Model, images: np.ndarray) -> np.ndarray:
    """Rows: the image, what is kept of it, and three ways to go on."""
    mask = np.zeros(images.shape[1:3], bool)
    mask[14:] = True  # the lower half is drawn anew
    rows = [images, np.where(mask[..., None], np.uint8(127), images)]
    rows += list(
        np.stack([model.edit.inpaint(image, mask, count=3, seed=1, steps=20, resamples=3).array for image in images], 1)
    )
    return np.concatenate(rows)


def main(runs: list[Path]) -> None:
    """The picture from two runs or more."""
    splits = load.load("mnist", DataOptions())
    models = [ancestral.load(run) for run in runs]
    model, width = models[1], (len(models) + 2) * (SIDE + GAP) + GAP
    real = np.asarray(splits.train.images)[np.linspace(0, len(splits.train) - 1, COUNT).astype(int)]
    panels = {
        "images it learned from": panel(real),
        **{f"after {one.saved.images:,} images": panel(one.sample(COUNT, seed=0).array) for one in models},
    }
    states = model.film(2, steps=20, seed=4).array
    film = panel(
        states[np.linspace(0, len(states) - 1, 12).astype(int)].swapaxes(0, 1).reshape(-1, 28, 28, 1),
        12,
        width - 2 * GAP,
    )
    held_out = np.asarray(splits.test.images)[np.linspace(0, len(splits.test) - 1, 6).astype(int)]
    panels["lower half drawn anew, 3 ways"] = panel(inpainted(model, held_out))
    found = json.loads((runs[1] / "evaluation.json").read_text())["bits_per_dim"]
    whole = Image.new("RGB", (width, 2 * (HEAD + GAP) + SIDE + film.height), "white")
    draw = ImageDraw.Draw(whole)
    for column, (name, sheet) in enumerate(panels.items()):
        left = GAP + column * (SIDE + GAP)
        words(draw, left, GAP / 2 + HEAD / 2, name)
        whole.paste(sheet, (left, GAP // 2 + HEAD))
    top = GAP + HEAD + SIDE
    bits = {
        "model": found["bound, bits/dim"],
        "WebP": found["webp without container"],
        "PNG": found["png without container"],
    }
    said = ", ".join(f"{name} {value['mean']:.2f}" for name, value in bits.items())
    words(draw, GAP, top + HEAD / 2, "how two are drawn: from noise, left, to digits, right")
    for line, text in enumerate(("bits a pixel of held-out images:", said)):
        words(draw, width - SIDE - GAP, top - 24 + 16 * line, text, 12)
    whole.paste(film, (GAP, top + HEAD))
    whole.quantize(64, dither=Image.Dither.NONE).save(OUT, optimize=True)
    print(OUT, OUT.stat().st_size)


if __name__ == "__main__":
    main([Path(run) for run in sys.argv[1:]])
