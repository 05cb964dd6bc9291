"""One image file to bytes, whatever its format, mode or orientation; never squashed, never trusted."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageFile, ImageOps

from ancestral.data import bit_depth, pictures
from ancestral.data.dataset import DataOptions, Rows
from ancestral.errors import UserError

with suppress(ImportError):  # a plugin for .heic, where it is installed
    import pillow_heif  # pyright: ignore[reportMissingImports] # an extra

    pillow_heif.register_heif_opener()
Image.init()
# Left out: what hands the file to a program (EPS), draws on one system only (WMF), has no decoder (MPEG and the stubs),
# and FITS, of which Pillow reads signed values as unsigned.
_REFUSED = {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5", "IPTC", "FITS"}
_FORMATS = {
    suffix: kind
    for suffix, kind in Image.registered_extensions().items()
    if kind not in _REFUSED and (kind in Image.OPEN or kind == "MPO")
}
SUFFIXES = frozenset(_FORMATS)
_USUAL = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # tried whatever the name says; others only where it says so
_GREY_MODES = {"1", "L", "LA", "I;16", "I;16B", "I;16L", "I"}
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class BadImage(UserError):
    """A file that cannot be used, and why."""


class TooManyPixels(BadImage):
    """An image over the limit of pixels."""


def _open(file: Path | bytes, name: str, max_pixels: int) -> ImageFile.ImageFile:
    """The file's header, its size checked before a single pixel is decoded."""
    own = _FORMATS.get(Path(name).suffix.lower())
    try:
        if isinstance(file, Path) and file.exists() and not file.is_file():
            raise BadImage(f"{name}: not a regular file")  # a pipe would be waited for without end
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on metadata, which is not used, and bombs: see the limit below
            image = Image.open(
                file if isinstance(file, Path) else io.BytesIO(file),
                formats=_USUAL if own in (None, "MPO", *_USUAL) else (own, *_USUAL),
            )
    except BadImage:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit, before its size can be asked for
        raise TooManyPixels(
            f"{name}: over the limit of {max_pixels} pixels; raise data.max_pixels if it is meant"
        ) from None
    except OSError as error:
        broken = isinstance(file, Path) and file.is_symlink() and not file.exists()
        reason = "a link to nothing" if broken else error.strerror or "not an image of a known format, or damaged"
        raise BadImage(f"{name}: cannot be read ({reason})") from None
    except Exception as error:  # a parser raises whatever it trips over: struct.error, KeyError, ...
        raise BadImage(f"{name}: refused ({error})") from None
    if image.format == "TIFF":
        image.filename = ""  # else Pillow maps the file in the shape that it has after it is turned
    if image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height}"
        image.close()
        raise TooManyPixels(
            f"{name}: {size} is over the limit of {max_pixels} pixels; raise data.max_pixels if it is meant"
        )
    return image


class Look(NamedTuple):
    """What a file holds, before it is made into bytes."""

    grey: bool
    size: tuple[int, int]  # height and width, upright
    frames: int
    largest: int | None  # of more than 8 bits a value, where the file does not say what is white
    deep: bool  # more than 8 bits a value


def look(file: Path, max_pixels: int) -> Look:
    """What the file holds; the pixels are only decoded where they have more than 8 bits."""
    name = str(file)
    with _open(file, name, max_pixels) as image:
        _need_range(image, name)
        kind = bit_depth.kind(image)  # before anything decodes it, as asking for metadata may
        frames = _frames(image, name)
        grey, turned, size = image.mode in _GREY_MODES, _orientation(image) in (5, 6, 7, 8), image.size
        declared = kind is None or bit_depth.declares_white(image)
    largest = None
    if not declared:
        with _open(file, name, max_pixels) as image:
            largest = int(_values(image, file, name, max_pixels)[..., :3].max())
    return Look(grey, size if turned else (size[1], size[0]), frames, largest, kind is not None)


def _need_range(image: ImageFile.ImageFile, name: str) -> None:
    if image.mode == "F":
        raise BadImage(f"{name}: floating-point pixels have no agreed range; save it with 8 or 16 bits")
    if bit_depth.is_apart(image):
        raise BadImage(f"{name}: 16-bit colours in separate planes, which Pillow reads as bytes; save it as 16-bit PNG")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its metadata say, and as it is where these are damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # damaged metadata, which Pillow's own turning passes over as well
        return 1


def decode(
    file: Path | bytes,
    channels: int,
    size: int | None,
    background: str,
    max_pixels: int,
    name: str | None = None,
    white: int | None = bit_depth.WIDEST,
) -> np.ndarray:
    """The first frame as uint8 (H, W, C), upright, composited on `background` unless C is 4.

    With a `size`, the middle square scaled to it; otherwise the image's own size. Where values have more than 8 bits
    and the file does not say which is white, `white` becomes 255, and every value is rounded to the nearest byte.

    Raises:
        BadImage: naming the file, when it is damaged, truncated, too large or of a mode without a meaning as bytes; or
            has values above `white`, or more than 8 bits where `white` is None.
    """
    return _decoded(file, channels, size, background, max_pixels, name or str(file), partial(_white_of_set, white))


def decode_alone(
    file: Path | bytes,
    channels: int,
    size: int | None,
    background: str,
    max_pixels: int,
    name: str | None = None,
    white: int | None = None,
) -> np.ndarray:
    """As `decode`, of a file that is no part of a set: where `white` is None, the widest is.

    Raises:
        BadImage: as `decode`; or where nothing says what is white, and the values look like ones of fewer bits.
    """
    rule = _white_of_one if white is None else partial(_white_of_set, white)
    return _decoded(file, channels, size, background, max_pixels, name or str(file), rule)


def _white_of_set(white: int | None, largest: int, name: str) -> int:
    if white is None:
        raise BadImage(
            f"{name}: more than 8 bits a value (up to {largest}), and what is white is not known before all is read; "
            f"say it: --set data.white={bit_depth.white_for(largest)}"
        )
    if largest > white:
        raise BadImage(f"{name}: has the value {largest}, above data.white={white}; raise data.white")
    return white


def _white_of_one(largest: int, name: str) -> int:
    if bit_depth.white_for(largest) < bit_depth.WIDEST:
        raise BadImage(
            f"{name}: more than 8 bits a value, up to {largest}, and nothing says what is white; save it with 8 bits, "
            f"or with values up to {bit_depth.WIDEST}"
        )
    return bit_depth.WIDEST


def _decoded(
    file: Path | bytes,
    channels: int,
    size: int | None,
    background: str,
    max_pixels: int,
    name: str,
    white_of: Callable[[int, str], int],
) -> np.ndarray:
    """As `decode`; `white_of` says what is white, of the largest value and the name, where the file does not."""
    with _open(file, name, max_pixels) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `_open`
        _need_range(image, name)
        if bit_depth.kind(image) is None:
            try:
                image.load()
            except Exception as error:  # as in `_open`
                raise BadImage(f"{name}: damaged or truncated ({error})") from None
            upright = _upright(image)
        else:
            declared = bit_depth.declares_white(image)
            values = _values(image, file, name, max_pixels)
            white = bit_depth.WIDEST if declared else white_of(int(values[..., :3].max()), name)
            turned = _orientation(image)
            upright = _upright(bit_depth.to_bytes(values, white, image.info.get("transparency"), turned))
        try:
            square = _fit(_convert(upright, channels, background), size)
        except ValueError as error:
            raise BadImage(f"{name}: {image.mode} pixels cannot be made into these channels ({error})") from None
    return np.asarray(square).reshape(square.height, square.width, channels)


def _values(image: ImageFile.ImageFile, file: Path | bytes, name: str, max_pixels: int) -> np.ndarray:
    """All bits of an opened file with more than 8 a value, (H, W, C)."""
    try:
        return bit_depth.values(image, lambda: _open(file, name, max_pixels))
    except bit_depth.Unreadable as error:
        raise BadImage(f"{name}: {error}") from None
    except Exception as error:  # as in `_open`
        raise BadImage(f"{name}: damaged or truncated ({error})") from None


def exact(path: Path, channels: int, max_pixels: int) -> np.ndarray:
    """The first frame as uint8 (H, W, C), upright, if it has these channels and no others: nothing is converted away.

    Raises:
        BadImage: as `decode`, and when the file holds more than that: colour, transparency, 16 bits, another colour
            space or more frames.
    """
    with _open(path, str(path), max_pixels) as image:
        if image.mode == "F" or bit_depth.kind(image) is not None or bit_depth.is_read_at_8(image):
            raise BadImage(f"{path}: more than 8 bits a value; save it with 8 bits, as that is what is kept")
        if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            raise BadImage(f"{path}: {image.mode} colours change when made into RGB; convert it to RGB first")
        if _frames(image, str(path)) > 1:
            raise BadImage(f"{path}: has several frames, of which one would be kept; save them one by one")
    pixels = decode(path, 4, None, "white", max_pixels)
    if channels < 4 and bool((pixels[:, :, 3] < 255).any()):
        raise BadImage(f"{path}: has transparency, and this model has none; flatten it first")
    if channels == 1 and bool((pixels[:, :, :1] != pixels[:, :, 1:3]).any()):
        raise BadImage(f"{path}: has colour, and this model is of grey images; convert it to grey first")
    return np.ascontiguousarray(pixels[:, :, :channels])


def _frames(image: Image.Image, name: str) -> int:
    if image.format == "MPO":  # a photo whose other frames are its preview or its gain map
        return 1
    try:
        return getattr(image, "n_frames", 1)
    except Exception as error:  # as in `_open`
        raise BadImage(f"{name}: damaged or truncated ({error})") from None


def adapt(pixels: np.ndarray, channels: int, size: int | None, background: str) -> np.ndarray:
    """An array (H, W, C) as a file of it would be decoded."""
    return from_pil(pictures.to_pil(pixels), channels, size, background)


def adapt_all(images: np.ndarray | Rows, options: DataOptions) -> np.ndarray | Rows:
    """Images (N, H, W, C) with the size and channels of the options; the same object where they have these."""
    _, height, width, channels = images.shape
    as_they_are = options.size in (None, height if height == width else None) and options.channels in (None, channels)
    if as_they_are or not len(images):
        return images
    return np.stack([adapt(one, options.channels or channels, options.size, options.background) for one in images[:]])


def from_pil(image: Image.Image, channels: int, size: int | None, background: str) -> np.ndarray:
    """An image of 8 bits a value as `decode` gives that of a file, upright."""
    square = _fit(_convert(_upright(image), channels, background), size)
    return np.asarray(square).reshape(square.height, square.width, channels)


def _convert(image: Image.Image, channels: int, background: str) -> Image.Image:
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if channels != 4:
            canvas = Image.new("RGBA", image.size, ImageColor.getrgb(background))
            image = Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert(_MODES[channels])


def _fit(image: Image.Image, size: int | None) -> Image.Image:
    """The centre square at `size`, cut at whole pixels: a cut through pixels would blur all of them."""
    if size is None:
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square if side == size else square.resize((size, size), Image.Resampling.LANCZOS)
