"""Section 3, the reverse process: what the model predicts, what follows from it, and how images come about."""

from __future__ import annotations

from ancestral.apps.report import reverse_film, reverse_identities, reverse_predictions
from ancestral.apps.report.part import Number, Part, Text
from ancestral.apps.report.reverse_identities import FORMULAS, OTHER
from ancestral.apps.report.subject import Subject


def part(subject: Subject) -> Part:
    """One network for every step, its predictions at each t, and its reverse process at work."""
    network = {} if subject.saved is None else _network(subject)
    target = subject.config.diffusion.target
    facts = {"trained": subject.saved is not None, "target": target, "formula": Text(FORMULAS.get(target, OTHER))}
    calls = Number(len(subject.times) - 1, "", "ancestral.runs.build.training_grid")
    own = Part(numbers={"calls": calls, **network}, facts=facts)
    return own | reverse_identities.part(subject) | reverse_predictions.part(subject) | reverse_film.part(subject)


def _network(subject: Subject) -> dict[str, Number]:
    assert subject.saved is not None
    count = sum(tensor.numel() for tensor in subject.saved.weights.values())
    return {"parameters": Number(count, "", "ancestral.runs.checkpoint.Checkpoint")}
