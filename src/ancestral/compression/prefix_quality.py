"""What the first bytes of files show, for every step of the walk, from one decoding of each file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ancestral.compression.bit_io import Reader
from ancestral.compression.codec import Codec
from ancestral.compression.errors import CodecError
from ancestral.compression.file_header import parse
from ancestral.compression.progressive import Row, received
from ancestral.data.pixels import to_bytes
from ancestral.diffusion.objectives.statistics import psnr


@dataclass(frozen=True)
class Prefixes:
    """Of N files with K predictions each: after how many bytes a picture is shown, and how far off it is."""

    size: np.ndarray  # (N, K) bytes, header included, of the shortest prefix that has all bits of the steps before
    mse: np.ndarray  # (N, K) mean squared error on 0..255 of the picture finished by its mean
    header: int  # bytes of each file that are no picture
    whole: np.ndarray  # (N,) bytes of the files

    @property
    def psnr(self) -> np.ndarray:
        """(K,) in dB, of the mean squared error over the files."""
        return psnr(self.mse.mean(0))


def prefixes(codec: Codec, images: Sequence[np.ndarray], profile: int, files: Sequence[bytes]) -> Prefixes:
    """Measure files of one profile against the images (H, W, C), of the model's own size, that they were made from.

    Raises:
        CodecError: when a file is of another size or profile, or damaged.
    """
    headers = [parse(file) for file in files]
    if any(header.size or header.profile != profile for header, _ in headers):
        raise CodecError(f"only files of profile {profile} and of the model's own size can be measured together")
    rows = [Row(Reader(codec.picture(file)[begin:])) for file, (_, begin) in zip(files, headers, strict=True)]
    original, sizes, errors = np.stack(images).astype(np.float64), [], []
    begin, before = headers[0][1], np.zeros(len(rows), np.int64)
    for step, _ in received(codec.predictor, codec.codebook.profiles[profile], codec.shape, rows, codec.like):
        errors.append(np.square(to_bytes(step.prediction.x0) - original).mean((1, 2, 3)))
        sizes.append(begin + -(-before // 8))
        before = np.array([row.stream.position for row in rows])
    return Prefixes(np.stack(sizes, 1), np.stack(errors, 1), begin, np.array(list(map(len, files))))
