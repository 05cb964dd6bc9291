"""What sheets of images in docs have in common: words at their rows and columns."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ancestral.runtime.plots import INK

PAPER, MARGIN = "#ffffff", 6  # pixels


def labelled(sheet: Image.Image, columns: Sequence[str] = (), rows: Sequence[str] = ()) -> Image.Image:
    """The sheet on white, with a word above each column and before each row; no words, no margin on that side."""
    font = ImageFont.load_default(13)
    left = round(max((font.getlength(row) for row in rows), default=-2 * MARGIN)) + 2 * MARGIN
    top = 13 + 2 * MARGIN if columns else 0
    whole = Image.new(sheet.mode, (left + sheet.width, top + sheet.height), PAPER)
    whole.paste(sheet, (left, top))
    draw = ImageDraw.Draw(whole)
    for place, word in enumerate(columns):
        x = left + (place + 0.5) * sheet.width / len(columns)
        draw.text((x, top / 2), word, INK, font, anchor="mm")
    for place, word in enumerate(rows):
        draw.text((left - MARGIN, top + (place + 0.5) * sheet.height / len(rows)), word, INK, font, anchor="rm")
    return whole
