"""Section 3, the reverse process: what the model predicts, what follows from it, and how images come about."""

from __future__ import annotations

from ancestral.report import identities, predictions, walks
from ancestral.report.identities import FORMULAS, OTHER
from ancestral.report.parts import Number, Part, Text
from ancestral.report.subject import Subject


def part(subject: Subject) -> Part:
    """One network for every step, its predictions at each t, and its reverse process at work."""
    network = {} if subject.saved is None else _network(subject)
    own = subject.config.diffusion.target
    facts = {"trained": subject.saved is not None, "target": own, "formula": Text(FORMULAS.get(own, OTHER))}
    calls = Number(len(subject.times) - 1, "", "ancestral.build.training_grid")
    known = Part(numbers={"calls": calls, **network}, facts=facts)
    return known | identities.part(subject) | predictions.part(subject) | walks.part(subject)


def _network(subject: Subject) -> dict[str, Number]:
    assert subject.saved is not None
    count = sum(tensor.numel() for tensor in subject.saved.weights.values())
    return {"parameters": Number(count, "", "ancestral.checkpoint.Checkpoint")}
