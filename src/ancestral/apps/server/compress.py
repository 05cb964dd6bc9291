"""A file of an image by the model's codec, with what its first bytes show."""

from __future__ import annotations

import threading
import time
from functools import cached_property
from typing import Any

import numpy as np

from ancestral.apps.server import schemas
from ancestral.apps.server.actions import Task
from ancestral.apps.server.data_uri import uri_of
from ancestral.apps.server.job import Record, going_on
from ancestral.apps.server.session import FRAMES, ServedRun
from ancestral.compression.choices import PROFILES
from ancestral.compression.codebook import Codebook, check, widened
from ancestral.compression.codec import Codec
from ancestral.compression.compress_command import NO_FLOAT64, codebook_of, codec_of
from ancestral.compression.file_header import parse
from ancestral.diffusion.denoisers.denoiser import Denoiser, Watched
from ancestral.diffusion.objectives.statistics import image_psnr
from ancestral.errors import UserError
from ancestral.runs.conditions import NOT_IN_FILES
from ancestral.runs.open import device_of
from ancestral.runtime.encode import data_uri

PREFIXES = 24  # pictures of a file's first bytes
MEASURING = 100  # steps that the measurement is shown in


class Compressor:
    """The codec of an open model; what must be measured for it is measured by the first job that needs it."""

    def __init__(self, served: ServedRun) -> None:
        self.served = served
        self._book: Codebook | None = None
        self._measuring = threading.Lock()

    @property
    def unable(self) -> str | None:
        """Why this model cannot compress, if so."""
        if self.served.saved.config.model.conditional:
            return NOT_IN_FILES
        if self.served.average_width is not None:
            return "files are written with the run's own average of the weights; serve it without --average-width"
        return NO_FLOAT64 if device_of(self.served.model).type == "mps" else None

    @cached_property
    def wide(self) -> Denoiser:
        """The model in float64, in the same thread."""
        return widened(self.served.model)

    def compress(self, body: schemas.Compress) -> Task:
        """A file that gives back the exact image, as `ancestral compress` writes it, and what its beginnings show.

        Raises:
            UserError: when the image, or this model, cannot be used.
        """
        if self.unable is not None:
            raise UserError(f"compress: {self.unable}")
        pixels = self.served.decoded(body.image, "image")
        profile = PROFILES[body.profile]  # here, so that a job that waits does not keep its upload
        again = self.served.again("compress", self.served.run, "image.png", profile=body.profile, out="image.anc")

        def work(record: Record) -> dict[str, Any]:
            book = self._codebook(record)
            check(self.wide, book, book.profiles[profile])
            record.step, due = 0, 0.0

            def advance(rows: int) -> None:
                nonlocal due
                record.step += 1
                if time.monotonic() >= due:
                    due = time.monotonic() + 1 / FRAMES
                    _tell(record, record.step, record.of, "compressing")

            watched = Watched(self.wide, advance)
            codec = codec_of(watched, self.wide, self.served.saved, book)
            record.of = codec.encoding_calls([pixels], profile, ["image"]) + len(book.profiles[profile].times)
            (file,) = codec.encode([pixels], profile)
            prefixes = _prefixes(codec, file, pixels)
            _tell(record, record.of, record.of, "compressing")
            image = uri_of(pixels)
            return {
                "bytes": len(file),
                "exact": True,
                "file": data_uri(file, "application/octet-stream"),
                "image": image,
                "prefixes": [*prefixes, {"bytes": len(file), "uri": image, "psnr": None}],
                "again": again,
            }

        return Task(work, 1)

    def _codebook(self, record: Record) -> Codebook:
        limit = record.deadline - time.monotonic()
        record.deadline = float("inf")  # it is done once, however long it takes, also where another job does it
        while not self._measuring.acquire(timeout=0.2):
            going_on()
        try:
            if self._book is None:

                def tell(share: float) -> None:
                    record.step, record.of = round(MEASURING * share), MEASURING
                    _tell(record, record.step, MEASURING, "measuring the model, once")

                tell(0.0)
                self._book = codebook_of(self.served.run, self.served.saved, self.served.model, tell)
            return self._book
        finally:
            record.deadline = time.monotonic() + limit
            self._measuring.release()


def _tell(record: Record, k: int, of: int, note: str) -> None:
    record.tell("step", {"k": min(k, of), "of": of, "t": None, "x_t": [], "x0": [], "note": note})


def _prefixes(codec: Codec, file: bytes, pixels: np.ndarray) -> list[dict[str, Any]]:
    """What the first bytes show, at sizes evenly spaced in log, with the PSNR in dB, null where it is exact."""
    least, end = parse(file)[1], len(codec.picture(file))
    sizes = sorted({round(size) for size in np.geomspace(least, max(least, end), PREFIXES)})
    found = []
    for size, decoded in zip(sizes, codec.decode([file[:size] for size in sizes]), strict=True):
        psnr = image_psnr(pixels, decoded.pixels)
        found.append({"bytes": size, "uri": uri_of(decoded.pixels), "psnr": round(psnr, 3) if psnr < np.inf else None})
    return found
