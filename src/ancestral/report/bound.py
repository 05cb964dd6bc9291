"""Section 4 of the report."""

from __future__ import annotations

from ancestral.report.parts import Part
from ancestral.report.subject import Subject


def part(subject: Subject) -> Part:
    """Nothing yet."""
    return Part()
