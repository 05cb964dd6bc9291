"""Conditions of a model: class labels, embedding vectors, augmentation, and which images go without (`dropped`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ancestral.data.dataset import ImageSet
from ancestral.data.inventory import listed
from ancestral.diffusion.processes.streams import OpenStreams
from ancestral.errors import UserError
from ancestral.runs.config import Config
from ancestral.runs.facts import Facts
from ancestral.runs.registry import suggest

# labels int64 (B,), embedding float32 (B, E), augmentation float32 (B, A), dropped bool (B,)
Conditions = dict[str, Tensor]


NOT_IN_FILES = "this model takes conditions, which files do not hold; train one without"


def need_none(config: Config, what: str) -> None:
    """Refuse a model that takes conditions, for files that are to be read by it alone."""
    if config.model.conditional:
        raise UserError(f"{what}: {NOT_IN_FILES}")


def need_conditions(config: Config, facts: Facts) -> None:
    """Refuse conditions that the data do not have."""
    model, source = config.model, config.source
    if model.labels and not facts.class_names:
        raise UserError(f"model.labels: '{source}' has no labels; use --set model.labels=false")
    if model.embedding and not facts.embedding:
        raise UserError(f"model.embedding: '{source}' has no embeddings; give a .npz file with an array of that name")
    if model.condition_dropout and not model.conditional:
        raise UserError("model.condition_dropout: there is nothing to drop; add --set model.labels=true")


def same_kind(config: Config, trained: Facts, facts: Facts, source: str) -> None:
    """Refuse data whose conditions are not those of the model."""
    if config.model.labels and facts.class_names != trained.class_names:
        raise UserError(f"{source}: its classes are not those that the model was trained with")
    if config.model.embedding and facts.embedding != trained.embedding:
        raise UserError(f"{source}: its embeddings have length {facts.embedding}, the model's {trained.embedding}")


def class_of(config: Config, facts: Facts, label: str | None) -> int | None:
    """The number of a class that was named, None where none was.

    Raises:
        UserError: when the model has no such class, or no image of it was trained on.
    """
    if label is None:
        return None
    if not config.model.labels:
        raise UserError("--label: this model was trained without labels; train with --set model.labels=true")
    if label in facts.untrained:
        raise UserError(f"--label: no image of the class '{label}' was trained on; trained: {listed(facts.trained)}")
    if label not in facts.class_names:
        raise UserError(f"--label: no class '{label}'; {suggest(label, facts.trained)}")
    return facts.class_names.index(label)


def in_turn(facts: Facts, numbers: Sequence[int]) -> Tensor:
    """Labels int64 for images of these numbers: the classes that were trained on, one after the other."""
    trained = torch.tensor([facts.class_names.index(name) for name in facts.trained])
    return trained[torch.as_tensor(numbers) % len(trained)]


def blank(config: Config, facts: Facts, count: int) -> Conditions:
    """Conditions of the kinds that the model takes which mean nothing: the first class, a vector of zeros."""
    cond = {"labels": torch.zeros(count, dtype=torch.int64)} if config.model.labels else {}
    return cond | ({"embedding": torch.zeros(count, facts.embedding)} if config.model.embedding else {})


def all_of(images: ImageSet) -> Conditions:
    """The labels and embeddings of a set, those that it has."""
    arrays = {"labels": images.labels, "embedding": images.embeddings}
    return {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}


def for_model(cond: Conditions, config: Config) -> Conditions:
    """Keep the conditions that the model takes."""
    taken = {
        "labels": config.model.labels,
        "embedding": config.model.embedding,
        "augmentation": config.train.augment > 0,
    }
    return {name: value for name, value in cond.items() if taken[name]}


def conditions_of(images: ImageSet, config: Config, device: torch.device) -> Conditions:
    """The conditions of these images that the model takes, on the device."""
    return {name: value.to(device) for name, value in for_model(all_of(images), config).items()}


def trained_with(cond: Conditions, config: Config, numbers: Sequence[int], streams: OpenStreams) -> Conditions:
    """The conditions in training: a share of the images goes without (Ho and Salimans 2022, Algorithm 1).

    Which ones is a function of the seed and of the image's number alone.
    """
    taken, share = for_model(cond, config), config.model.condition_dropout
    if not share:
        return taken
    return {**taken, "dropped": streams(config.train.seed, "condition", numbers).uniform() < share}
