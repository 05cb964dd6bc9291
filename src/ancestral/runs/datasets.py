"""A run's images: what its network must know of them, and those it is measured on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ancestral.data import load
from ancestral.data.dataset import ImageSet, Splits
from ancestral.data.inventory import listed
from ancestral.data.source_paths import same_source
from ancestral.errors import UserError
from ancestral.runs.checkpoint import Checkpoint
from ancestral.runs.conditions import same_kind
from ancestral.runs.facts import Facts
from ancestral.runtime.console import screen


def facts(images: ImageSet) -> Facts:
    """What a network must know about the data that it is trained on."""
    height, width, channels = images.shape
    names, vectors = images.class_names, images.embeddings
    seen = set() if images.labels is None else set(np.unique(images.labels).tolist())
    untrained = tuple(name for number, name in enumerate(names) if number not in seen)
    return Facts((channels, height, width), names, 0 if vectors is None else vectors.shape[1], untrained)


def named_untrained(names: Sequence[str]) -> str:
    """What is wrong with classes that no image was trained on."""
    return f"no training image of the class{'' if len(names) == 1 else 'es'} {listed(names)}"


def warn_of_untrained(names: Sequence[str], held_out: ImageSet) -> None:
    """Say how many of the images that are measured are of these classes, if any."""
    labels = () if held_out.labels is None else held_out.labels
    of = [held_out.class_names[label] for label in labels if held_out.class_names[label] in names]
    if of:
        screen.print(
            f"warning: {named_untrained(sorted(set(of)))}: {len(of):,} of {len(labels):,} held-out images here"
        )


def images_for(
    saved: Checkpoint, named: str | None, mend: str = load.MEND, loaded: tuple[str, Splits] | None = None
) -> tuple[str, Splits]:
    """The name and the images of the data named, or of the run's own, that its model can look at; perhaps `loaded`.

    Raises:
        UserError: for data that are not there, of another shape, or with other conditions, than the model's.
    """
    source = load.source_of(saved.config.source, named, mend)
    if loaded is not None and same_source(source, loaded[0]):
        return loaded
    images = load.load(source, saved.config.data)
    return source, fitting(saved, images, source)


def fitting(saved: Checkpoint, images: Splits, source: str) -> Splits:
    """The images, if the model can look at them."""
    found, own = facts(images.test).shape, saved.facts.shape
    if found != own:
        raise UserError(f"{source}: images of {found}, the model's are {own} (channels, height, width)")
    same_kind(saved.config, saved.facts, facts(images.test), source)
    return images
