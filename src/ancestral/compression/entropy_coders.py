"""The entropy coders of `constriction`, a package that an extra brings."""

from __future__ import annotations

from typing import Any

from ancestral.errors import missing

try:
    import constriction
except ImportError:
    raise missing("compression", "constriction", "compress") from None

stream: Any = constriction.stream  # pyright: ignore[reportAttributeAccessIssue] # it has no types
