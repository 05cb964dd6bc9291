"""The training images that are most like a given one."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from torch import Tensor

from ancestral.apps.server import schemas
from ancestral.apps.server.data_uri import uri_of
from ancestral.apps.server.job import Record, going_on
from ancestral.apps.server.job_queue import Full, Work
from ancestral.apps.server.session import ServedRun
from ancestral.data import load
from ancestral.data.dataset import ImageSet
from ancestral.data.source_paths import public
from ancestral.errors import UserError
from ancestral.evaluation.features import Network, kept_features, network
from ancestral.evaluation.sample_metrics import closest

READING = 2  # seconds after which who comes while the images are read may ask again


class NearestImages:
    """The training images of an open model, read when they are first asked for.

    Distances are between pixels, or between the features of lite0 where `ancestral metrics` has left these.
    """

    def __init__(self, served: ServedRun) -> None:
        self.served = served
        self._read: tuple[ImageSet, tuple[Network, Tensor] | None] | None = None
        self._reading = threading.Lock()

    @property
    def unable(self) -> str | None:
        """Why there are no training images to look at, if so."""
        source = self.served.saved.config.source
        return None if load.is_there(source) else f"the training images are not at {public(source)} any more"

    def nearest(self, body: schemas.Nearest) -> Work:
        """The training images that are most like an image.

        Raises:
            UserError: when the image cannot be used.
            Full: while the training images are being read, which may take long; the other threads are not for waiting.
        """
        if self.unable:
            raise UserError(f"nearest: {self.unable}")
        if self._read is None and self._reading.locked():
            raise Full(READING)
        pixels, count = self.served.decoded(body.image, "image"), body.count

        def work(record: Record) -> dict[str, Any]:
            train, looked = self._images()
            if looked is None:
                metric, scale = "root mean square difference of pixels, on 0 to 255", pixels.size**0.5
                found = closest(pixels[None], train.images, count, going_on)
            else:
                by, features = looked
                metric, scale = f"distance of {by.name} features", 1.0
                found = closest(by.extract(pixels[None]), features, count, going_on)
            distances, found_rows = (one[0].tolist() for one in found)
            rows = [(row, far / scale) for row, far in zip(found_rows, distances, strict=True)]
            images = np.asarray(train.images[[row for row, _ in rows]])
            return {
                "neighbours": [
                    {"image": uri_of(image), "index": row, "distance": round(far, 4)}
                    for image, (row, far) in zip(images, rows, strict=True)
                ],
                "metric": metric,
            }

        return work

    def _images(self) -> tuple[ImageSet, tuple[Network, Tensor] | None]:
        with self._reading:
            if self._read is None:
                config = self.served.saved.config
                train = load.load(config.source, config.data).train
                channels, height, width = self.served.shape
                if train.shape != (height, width, channels):
                    raise UserError(f"nearest: the images at {public(config.source)} are of another size now")
                self._read = train, _lite0(train)
            return self._read


def _lite0(train: ImageSet) -> tuple[Network, Tensor] | None:
    """The network and its features of these images, where both are here."""
    try:
        by = network("lite0")
    except UserError:
        return None
    features = kept_features(train, by)
    return None if features is None else (by, features)
