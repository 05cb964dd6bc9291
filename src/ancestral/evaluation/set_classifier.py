"""Train a classifier on a set's own classes, with a fixed seed: each set's own judge of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ancestral.data.dataset import ImageSet
from ancestral.data.decode import adapt
from ancestral.diffusion.processes.streams import permutation
from ancestral.diffusion.processes.torch_generators import forked
from ancestral.errors import UserError
from ancestral.networks.classifier import FEATURES, GRID, WIDTH, Classifier
from ancestral.runtime import user_cache
from ancestral.runtime.console import advancing
from ancestral.runtime.distributed import Processes
from ancestral.runtime.resumable_job import Job, cache_folder

UPDATES, BATCH, RATE, DECAY, SEED = 800, 128, 3e-3, 0.05, 0


def tensor_of(images: np.ndarray) -> Tensor:
    """Bytes (B, H, W, C) as (B, C, H, W); transparent pixels lie on white."""
    if images.shape[3] == 4:
        images = np.stack([adapt(image, 3, None, "white") for image in images])
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)


def trained(images: ImageSet, cache: Path, processes: Processes) -> Classifier:
    """The classifier of these images and labels, from the cache where it is, in evaluation mode.

    Raises:
        UserError: where the images have no classes.
    """
    if images.labels is None or len(set(images.labels.tolist())) < 2:
        raise UserError("--network classifier: the training images have no classes to train it on; use lite0")
    height, width, channels = images.shape
    classes = max(len(images.class_names), int(images.labels.max()) + 1)
    shape = (min(channels, 3), height, width)
    recipe = {"updates": UPDATES, "batch": BATCH, "rate": RATE, "decay": DECAY, "seed": SEED, "optimizer": "AdamW"}
    network = {"grid": GRID, "width": WIDTH, "features": FEATURES, "classes": classes, "shape": list(shape)}
    settings: dict[str, Any] = {"images": images.digest(), **recipe, **network}
    folder = cache_folder(cache / "classifiers", settings)
    user_cache.used(folder)
    with forked(torch.device("cpu"), SEED):
        made = Classifier(shape, classes)

    def weights(_: range) -> dict[str, Tensor]:
        _train(made, images, torch.from_numpy(images.labels))
        return {name: value.contiguous() for name, value in made.state_dict().items()}

    (found,) = Job(folder, settings, processes).tensors([range(1)], weights)
    made.load_state_dict(found)
    return made.eval().requires_grad_(requires_grad=False)


def _train(network: Classifier, images: ImageSet, labels: Tensor) -> None:
    """By cross-entropy, each batch the next part of an order by lot, the rate rising for a tenth and falling to 0."""
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    size = min(BATCH, len(images))
    epoch = len(images) // size
    order = permutation(len(images), SEED, "classifier", 0)
    with advancing(f"a classifier of {len(images):,} images", UPDATES) as advance:
        for update in range(UPDATES):
            if update % epoch == 0:
                order = permutation(len(images), SEED, "classifier", update // epoch)
            rows = order[update % epoch * size :][:size]
            done = (update + 1) / UPDATES
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(done / 0.1, (1 - done) / 0.9)
            logits = network.last(network(tensor_of(np.asarray(images.images[rows]))))
            loss = functional.cross_entropy(logits, labels[torch.from_numpy(rows)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            advance(1)
