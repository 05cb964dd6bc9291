"""Labels on contact sheets: the pixels of the images stay, the letters stand in their own room."""

import numpy as np
import pytest

from ancestral.data import pictures
from ancestral.data.pictures import Labels, contact_sheet


def cells(sheet, count, columns, shape, gap=2, above=0, head=0, beside=0):
    """The images cut out of a sheet, each (height, width, channels) large."""
    pixels = np.asarray(sheet)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width = shape
    for i in range(count):
        top = i // columns * (height + gap + above) + gap + head + above
        left = i % columns * (width + gap) + gap + beside
        yield pixels[top : top + height, left : left + width]


@pytest.mark.parametrize("channels", [1, 3])
def test_labels_take_room_of_their_own(channels):
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28, channels), np.uint8)
    large = images.repeat(2, 1).repeat(2, 2)
    line = pictures.LINE
    plain = contact_sheet(images, 3)
    assert plain.size == (3 * 58 + 2, 2 * 58 + 2)
    assert np.array_equal(np.stack([*cells(plain, 6, 3, (56, 56))]), large)
    named = contact_sheet(images, 3, labels=Labels(images="abcdef"))
    assert named.size == (plain.width, plain.height + 2 * line)
    assert np.array_equal(np.stack([*cells(named, 6, 3, (56, 56), above=line)]), large)
    timed = contact_sheet(images, 3, labels=Labels(title="t", columns="abc", rows=["x_t", "x0"]))
    beside = timed.width - plain.width
    assert beside > 0
    assert timed.height == plain.height + 2 * line
    assert np.array_equal(np.stack([*cells(timed, 6, 3, (56, 56), head=2 * line, beside=beside)]), large)
    ink = np.asarray(named)[:line] < 100  # above the first row
    assert all(ink[:, column * 58 : (column + 1) * 58].any() for column in range(3))


def test_a_small_image_grows_until_its_label_fits_and_a_long_one_is_cut():
    images = np.full((2, 8, 8, 3), 255, np.uint8)
    short, long = (contact_sheet(images, 2, labels=Labels(images=[name, "b"])) for name in ("a", "a name " * 40))
    assert short.width == 2 * 66 + 2
    assert long.width == 2 * (pictures.WIDEST + 2) + 2
    band = np.asarray(long)[: pictures.LINE + 2, :, 0]
    assert (band[:, pictures.WIDEST + 2 : pictures.WIDEST + 4] == 128).all()  # nothing is written over the gap


def test_letters_that_no_font_has_are_given_by_number():
    images = np.zeros((1, 64, 64, 1), np.uint8)
    private, escaped = "\U000f1234", "\\U000f1234"
    assert contact_sheet(images, labels=Labels(images=[private])).tobytes() == (
        contact_sheet(images, labels=Labels(images=[escaped])).tobytes()
    )
    lines = contact_sheet(images, labels=Labels(images=["two\nlines"]))
    assert lines.tobytes() == contact_sheet(images, labels=Labels(images=["two lines"])).tobytes()
