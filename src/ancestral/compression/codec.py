"""Images to files and back: `Codec.encode` and `Codec.decode`.

A file is a header (`file_header`), the picture (`progressive`: bits in the order of the steps, and of the tiles in
each) and the exact pixels given the picture (`exact_pixels`). Cut anywhere after the header it is a whole file of less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ancestral.compression import exact_pixels, tiles
from ancestral.compression.bit_io import Reader, Writer
from ancestral.compression.codebook import Codebook, Profile
from ancestral.compression.completion import Finish, mean
from ancestral.compression.errors import CodecError
from ancestral.compression.file_header import MOST_PIXELS, Exact, Header, check_model, parse
from ancestral.compression.progressive import Row, receive, send, skip
from ancestral.data.pixels import to_bytes, to_unit
from ancestral.diffusion.denoisers.denoiser import Predictor, images_per_call

_T = TypeVar("_T")


class Decoded(NamedTuple):
    """An image from a file."""

    pixels: np.ndarray  # uint8 (H, W, C)
    lossless: bool  # exactly those that were encoded
    steps: int  # of the chain that were received, even if in part, by the tile with the fewest


class _Opened(NamedTuple):
    """A file in its parts."""

    header: Header
    size: tuple[int, int]
    profile: Profile
    picture: bytes
    rest: bytes | None  # the exact pixels, if they are all there


class _Picture(NamedTuple):
    """A picture as it is put together from its tiles."""

    predicted: np.ndarray  # x0 from the last state, (H, W, C) float64
    finished: np.ndarray  # uint8 (H, W, C)
    steps: list[int]  # of each tile


class _Part(NamedTuple):
    """A tile of one of the images that are walked together."""

    image: int
    tile: tiles.Tile


@dataclass(frozen=True)
class Codec:
    """A model, with what was measured on it, as a codec."""

    predictor: Predictor  # knows Var[x0 | x_t] (`calibrated.Calibrated`)
    shape: tuple[int, int, int]  # of the images it was trained on, (C, H, W)
    codebook: Codebook  # profiles and tables
    like: Tensor  # a tensor of the type and on the device of the states
    trained: Sequence[int] | None = None  # times that the model was trained at; all of them when None

    @property
    def tile(self) -> tuple[int, int]:
        """(height, width) of a tile."""
        return self.shape[1], self.shape[2]

    def encode(self, images: Sequence[np.ndarray], profile: int) -> list[bytes]:
        """Files of images, uint8 (H, W, C), decoded and compared before they are returned.

        Where the exact pixels do not come out, the guard against drift is widened, and in the end they are stored
        without the prediction: every image has a file.

        Raises:
            CodecError: for an unknown profile, other channels than the model's, or an image that is too large.
        """
        chosen = self._profile(profile)
        for image in images:
            self._check(image)
        pictures, predicted = self._send(images, chosen)
        again = [one.predicted for one in self._receive([image.shape[:2] for image in images], chosen, pictures, mean)]
        return [self._file(*parts, chosen) for parts in zip(images, pictures, predicted, again, strict=True)]

    def header(self, size: tuple[int, int], profile: int, exact: Exact = Exact.GUARDED) -> Header:
        """Of a file of an image of this (height, width)."""
        return Header(profile, self.codebook.model_id, exact, None if size == self.tile else size)

    def encoding_calls(self, images: Sequence[np.ndarray], profile: int, names: Sequence[str]) -> int:
        """Of the network, that `encode` makes: a walk to and one back for each batch."""
        for name, image in zip(names, images, strict=True):
            named(name, self._check, image)
        return 2 * len(self._profile(profile).times) * self._calls([image.shape[:2] for image in images])

    def decoding_calls(self, files: Sequence[bytes], names: Sequence[str]) -> int:
        """Of the network, that `decode` makes for whole files; what is cut takes fewer, and those of its finish.

        Raises:
            CodecError: as `decode`, of what can be seen without the network.
        """
        opened = [named(name, self._open, file) for name, file in zip(names, files, strict=True)]
        profiles = {one.profile.id: one.profile for one in opened}.values()
        sizes = [[one.size for one in opened if one.profile is profile] for profile in profiles]
        return sum(len(profile.times) * self._calls(same) for profile, same in zip(profiles, sizes, strict=True))

    def _calls(self, sizes: Sequence[tuple[int, ...]]) -> int:
        """Of the network, for a step of images of these (height, width)."""
        return sum(-(-len(parts) // images_per_call(tiles.MOST_TILES, *self.tile)) for parts in self._batches(sizes))

    def _file(
        self, image: np.ndarray, picture: bytes, predicted: np.ndarray, again: np.ndarray, profile: Profile
    ) -> bytes:
        size = (image.shape[0], image.shape[1])
        for how in Exact:
            rest = exact_pixels.pack(image, predicted, self.codebook.residual, profile.guard, how)
            try:
                exact_pixels.unpack(rest, again, self.codebook.residual, profile.guard, how)
            except CodecError:
                continue
            return self.header(size, profile.id, how).content() + picture + rest
        raise RuntimeError("stored pixels did not come back: this is a bug")

    def decode(
        self, files: Sequence[bytes], finish: Finish = mean, names: Sequence[str] | None = None
    ) -> list[Decoded]:
        """The images of files, whole or cut anywhere after the header.

        Args:
            files: contents.
            finish: how a picture whose bits have ended is completed (`completion.FINISHES`).
            names: what errors call the files; their numbers when left out.

        Raises:
            CodecError: when a file is of another model or damaged, or when its exact pixels do not come out.
        """
        names = names or [f"file {number}" for number in range(len(files))]
        opened = [named(name, self._open, file) for name, file in zip(names, files, strict=True)]
        decoded: dict[int, Decoded] = {}
        for profile in {one.profile.id: one.profile for one in opened}.values():
            same = [number for number, one in enumerate(opened) if one.profile is profile]
            sizes = [opened[number].size for number in same]
            found = self._receive(sizes, profile, [opened[number].picture for number in same], finish)
            for number, picture in zip(same, found, strict=True):
                decoded[number] = named(names[number], self._decoded, opened[number], picture)
        return [decoded[number] for number in range(len(files))]

    def _decoded(self, opened: _Opened, picture: _Picture) -> Decoded:
        if opened.rest is None:
            return Decoded(picture.finished, False, min(picture.steps))
        tables = self.codebook.residual, opened.profile.guard, opened.header.exact
        return Decoded(exact_pixels.unpack(opened.rest, picture.predicted, *tables), True, min(picture.steps))

    def picture(self, file: bytes, name: str = "file") -> bytes:
        """A file without its exact pixels: header and picture, as far as they are there.

        Raises:
            CodecError: as `decode`, of what can be seen without the network.
        """
        opened = named(name, self._open, file)
        return file[: len(opened.header.content()) + len(opened.picture)]

    def _open(self, file: bytes) -> _Opened:
        header, begin = parse(file)
        check_model(header, self.codebook.model_id)
        profile, size, reader = self._profile(header.profile), header.size or self.tile, Reader(file[begin:])
        for band in tiles.bands(size, self.tile):
            skip(reader, profile, len(band))
        end = begin + reader.align()
        rest = None if reader.short else file[end:]
        values = size[0] * size[1] * self.shape[0]
        return _Opened(
            header,
            size,
            profile,
            file[begin:end],
            rest if rest is not None and exact_pixels.whole(rest, values) else None,
        )

    def _profile(self, number: int) -> Profile:
        if number not in self.codebook.profiles:
            own = ", ".join(map(str, self.codebook.profiles))
            raise CodecError(f"profile {number} is not one of this model's, which are {own}")
        return self.codebook.profiles[number]

    def _check(self, image: np.ndarray) -> None:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != self.shape[0]:
            raise CodecError(f"an image is {image.dtype} {image.shape}; the model's are uint8 (H, W, {self.shape[0]})")
        if not 0 < image.shape[0] * image.shape[1] <= MOST_PIXELS:
            raise CodecError(f"an image is {image.shape[0]}x{image.shape[1]}; images have 1 to {MOST_PIXELS} pixels")

    def _batches(self, sizes: Sequence[tuple[int, ...]]) -> Iterator[list[_Part]]:
        """What is walked together: a band of one image, or several images of a single tile."""
        single: list[_Part] = []
        for image, size in enumerate(sizes):
            for band in tiles.bands((size[0], size[1]), self.tile):
                parts = [_Part(image, tile) for tile in band]
                if len(parts) > 1 or tuple(size) != self.tile:
                    yield parts
                    continue
                single += parts
                if len(single) == tiles.MOST_TILES:
                    yield single
                    single = []
        if single:
            yield single

    def _send(self, images: Sequence[np.ndarray], profile: Profile) -> tuple[list[bytes], list[np.ndarray]]:
        """(the pictures' bytes, x0 predicted from their last state)."""
        writers, predicted = [Writer() for _ in images], [np.empty(image.shape) for image in images]
        for parts in self._batches([image.shape[:2] for image in images]):
            pixels = np.stack([tiles.cut(images[image], tile, self.tile) for image, tile in parts])
            rows = [Row(writers[image], tile.number) for image, tile in parts]
            x0 = send(self.predictor, profile, to_unit(pixels).to(self.like), rows)
            for (image, tile), one in zip(parts, _pixels_last(x0), strict=True):
                tiles.paste(predicted[image], tile, one)
        return [writer.content() for writer in writers], predicted

    def _receive(
        self, sizes: Sequence[tuple[int, ...]], profile: Profile, contents: Sequence[bytes], finish: Finish
    ) -> list[_Picture]:
        readers = [Reader(content) for content in contents]
        shapes = [(size[0], size[1], self.shape[0]) for size in sizes]
        pictures = [_Picture(np.empty(shape), np.empty(shape, np.uint8), []) for shape in shapes]
        for parts in self._batches(sizes):
            rows = [Row(readers[image], tile.number) for image, tile in parts]
            arrival = receive(self.predictor, profile, self.shape, rows, self.like)
            for t in set(arrival.t):
                group = [row for row, reached in enumerate(arrival.t) if reached == t]
                x_t, x0 = (torch.stack([values[row] for row in group]) for values in (arrival.x_t, arrival.x0))
                below = sorted({t, *(s for s in self.trained or range(t) if 0 < s < t)})
                finished = to_bytes(finish(self.predictor, x_t, below, x0, [parts[row].tile.number for row in group]))
                for row, predicted, pixels in zip(group, _pixels_last(x0), finished, strict=True):
                    picture, tile = pictures[parts[row].image], parts[row].tile
                    tiles.paste(picture.predicted, tile, predicted)
                    tiles.paste(picture.finished, tile, pixels)
                    picture.steps.append(profile.times.index(t))
        return pictures


def named(name: str, do: Callable[..., _T], *arguments: object) -> _T:
    """What `do` returns; its error with the name before it."""
    try:
        return do(*arguments)
    except CodecError as error:
        raise CodecError(f"{name}: {error}") from None


def _pixels_last(x0: Tensor) -> np.ndarray:
    return x0.permute(0, 2, 3, 1).cpu().double().numpy()
