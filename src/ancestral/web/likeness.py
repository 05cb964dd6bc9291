"""The training images that are most like a given one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ancestral import data
from ancestral.errors import UserError
from ancestral.features import Network, kept_features, network
from ancestral.imageset import ImageSet
from ancestral.jobs import pieces
from ancestral.web import bodies
from ancestral.web.record import Record, going_on
from ancestral.web.studio import Studio
from ancestral.web.uploads import uri_of
from ancestral.web.work import Work

ROWS = 4096  # images that are looked at together


class Likeness:
    """The training images of an open model, read when they are first asked for.

    Distances are between pixels, or between the features of lite0 where `ancestral metrics` has left these.

    Args:
        studio: the model.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._train: ImageSet | None = None
        self._by: Network | None = None
        self._features: Tensor | None = None
        self._reading = threading.Lock()

    @property
    def unable(self) -> str | None:
        """Why there are no training images to look at, if so."""
        source = self.studio.saved.config.source
        if source in data.BUILT_IN or source.startswith("hf:") or Path(source).exists():
            return None
        return f"the training images are not at {source} any more"

    def nearest(self, studio: Studio, body: bodies.Nearest) -> Work:
        """The training images that are most like an image.

        Raises:
            UserError: when the image cannot be used.
        """
        if self.unable:
            raise UserError(f"nearest: {self.unable}")
        pixels = studio.decoded(body.image, "image")

        def work(record: Record) -> dict[str, Any]:
            train = self._images()
            if self._by is None or self._features is None:
                metric, scale = "root mean square difference of pixels, on 0 to 255", pixels.size**0.5
                distance = _to_all(pixels, train) / scale
            else:
                metric = f"distance of {self._by.name} features"
                look = self._by.look(pixels[None]).double()
                distance = torch.cdist(look, self._features.double())[0]
            found = distance.topk(min(body.count, len(train)), largest=False)
            rows = list(zip(found.indices.tolist(), found.values.tolist(), strict=True))
            images = np.asarray(train.images[[row for row, _ in rows]])
            return {
                "neighbours": [
                    {"image": uri_of(image), "index": row, "distance": round(far, 4)}
                    for image, (row, far) in zip(images, rows, strict=True)
                ],
                "metric": metric,
            }

        return work

    def _images(self) -> ImageSet:
        with self._reading:
            if self._train is None:
                config = self.studio.saved.config
                train = data.load(config.source, config.data).train
                channels, height, width = self.studio.shape
                if train.shape != (height, width, channels):
                    raise UserError(f"nearest: the images at {config.source} are of another size now")
                self._by, self._features = _lite0(train)
                self._train = train
            return self._train


def _lite0(train: ImageSet) -> tuple[Network | None, Tensor | None]:
    """The network and its features of these images, where both are here."""
    try:
        by = network("lite0")
    except UserError:
        return None, None
    return by, kept_features(train, by)


def _to_all(pixels: np.ndarray, train: ImageSet) -> Tensor:
    """Euclidean distances of one image to all, float64 (N,)."""
    x = torch.from_numpy(pixels.reshape(1, -1).astype(np.float64))
    parts = []
    for part in pieces(len(train), ROWS):
        going_on()
        others = np.asarray(train.images[part.start : part.stop]).reshape(len(part), -1).astype(np.float64)
        parts.append(torch.cdist(x, torch.from_numpy(others))[0])
    return torch.cat(parts)
