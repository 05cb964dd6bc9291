"""PNG and GIF files and contact sheets from arrays of bytes."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ancestral.runtime import verified_folder

SIZE, LINE = 12, 16  # of the labels' letters and of a line of them, in pixels
FRAME, LAST_FRAME = 120, 2000  # milliseconds of an animation
WIDEST = 128  # up to so many pixels an image is enlarged until its label fits; then the label is cut


@dataclass(frozen=True)
class Labels:
    """What is written on a contact sheet; what is empty takes no room."""

    title: str = ""  # above all
    columns: Sequence[str] = ()  # above each column
    rows: Sequence[str] = ()  # to the left of each row
    images: Sequence[str] = ()  # above each image


NO_LABELS = Labels()


@functools.cache
def _font(text: str) -> ImageFont.FreeTypeFont | None:
    """A font that has every letter of a text: matplotlib's own, else the first of this machine's; None without one."""
    import matplotlib
    from matplotlib import font_manager, ft2font

    own = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    needed = {ord(letter) for letter in text if not letter.isspace()}
    others = (entry.fname for entry in font_manager.fontManager.ttflist if "Last Resort" not in entry.name)
    for path in (str(own), *(others if needed - set(range(128)) else ())):
        with suppress(OSError, RuntimeError):
            if needed <= ft2font.FT2Font(path).get_charmap().keys():
                return ImageFont.truetype(path, SIZE)
    return None


def _legible(text: str, font: ImageFont.FreeTypeFont | None) -> str:
    """The text in one line; a letter that no font here has is given by its number, as programs write it."""
    line = " ".join(text.split())
    return line if font else line.encode("ascii", "backslashreplace").decode()


def _width(text: str) -> int:
    font = _font(text)
    return math.ceil((font or _plain()).getlength(_legible(text, font)))


def _plain() -> ImageFont.FreeTypeFont:
    font = _font("")
    assert font is not None
    return font


def _write(draw: ImageDraw.ImageDraw, left: int, top: int, text: str, width: int) -> None:
    """The text in so many pixels, cut with an ellipsis where it is longer."""
    font = _font(text)
    line, font = _legible(text, font), font or _plain()
    cut = next((n for n in range(len(line), 0, -1) if font.getlength(line[:n] + "…" * (n < len(line))) <= width), 0)
    draw.text((left, top), line[:cut] + "…" * (cut < len(line)), font=font, fill=INK[draw.mode])


INK = {"L": 0, "RGB": (0, 0, 0), "RGBA": (0, 0, 0, 255)}


def contact_sheet(
    images: np.ndarray, columns: int | None = None, side: int = 64, gap: int = 2, labels: Labels = NO_LABELS
) -> Image.Image:
    """Images (N, H, W, C) in rows, each enlarged by a whole factor to about `side` pixels, on grey, with its labels."""
    count, height, width, channels = images.shape
    columns = max(1, min(columns or math.ceil(math.sqrt(count)), count))
    fits = min(WIDEST, max(map(_width, (*labels.columns, *labels.images)), default=0))
    factor = max(1, side // max(height, width), math.ceil(fits / width))
    images = images.repeat(factor, 1).repeat(factor, 2)
    above, beside = (LINE if one else 0 for one in (labels.images, labels.rows))
    beside = beside and max(map(_width, labels.rows)) + 2 * gap
    head = (LINE if labels.title else 0) + (LINE if labels.columns else 0)
    tall, wide = images.shape[1] + gap + above, images.shape[2] + gap
    right = max(columns * wide + gap + beside, _width(labels.title) + 2 * gap if labels.title else 0)
    sheet = np.full((math.ceil(count / columns) * tall + gap + head, right, channels), 128, np.uint8)
    corners = [(i // columns * tall + gap + head + above, i % columns * wide + gap + beside) for i in range(count)]
    if channels == 4 and labels != NO_LABELS:
        sheet[..., 3] = 255  # letters on what is seen through could be read on some pages only
    for image, (top, left) in zip(images, corners, strict=True):
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    picture = to_pil(sheet if channels in (1, 4) else sheet[..., :3])
    draw = ImageDraw.Draw(picture)
    _write(draw, gap, 0, labels.title, right)
    for column, text in enumerate(labels.columns):
        _write(draw, column * wide + gap + beside, head - LINE, text, wide - gap)
    for row, text in enumerate(labels.rows):
        _write(draw, gap, corners[row * columns][0] + (images.shape[1] - LINE) // 2, text, beside)
    for text, (top, left) in zip(labels.images, corners, strict=False):
        _write(draw, left, top - LINE, text, wide - gap)
    return picture


def animation(frames: Sequence[Image.Image]) -> bytes:
    """A looping GIF that rests on its last frame, as bytes."""
    file = io.BytesIO()
    durations = [FRAME] * (len(frames) - 1) + [LAST_FRAME]
    frames[0].save(file, "gif", save_all=True, append_images=list(frames[1:]), duration=durations, loop=0)
    return file.getvalue()


def to_pil(image: np.ndarray) -> Image.Image:
    """An image (H, W, C) for Pillow, to which grey has no third axis."""
    return Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)


def png(image: np.ndarray) -> bytes:
    """One image (H, W, C) at its own size, as the bytes of a PNG file."""
    file = io.BytesIO()
    to_pil(image).save(file, "png")
    return file.getvalue()


def is_png(content: bytes, shape: tuple[int, ...]) -> bool:
    """Whether these bytes are a picture of this shape, (H, W, C)."""
    try:
        image = Image.open(io.BytesIO(content), formats=["PNG"])
        return (image.height, image.width, len(image.getbands())) == shape
    except (OSError, ValueError, SyntaxError):
        return False


def read_png(path: Path) -> np.ndarray:
    """An image written by `png`, (H, W, C)."""
    pixels = np.asarray(Image.open(path))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def sheet(images: np.ndarray, columns: int | None = None, labels: Labels = NO_LABELS) -> bytes:
    """A contact sheet as the bytes of a PNG file."""
    file = io.BytesIO()
    contact_sheet(images, columns, labels=labels).save(file, "png")
    return file.getvalue()


def save_sheet(path: Path, images: np.ndarray, columns: int | None = None) -> None:
    """A contact sheet as a PNG file, whole or not at all."""
    verified_folder.write_file(path, sheet(images, columns))
