"""Choose by name, and suggest the nearest where there is none."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from ancestral.errors import UserError

_T = TypeVar("_T")


def choose(table: Mapping[str, _T], name: str, field: str) -> _T:
    """The entry of a table.

    Raises:
        UserError: naming the field, the wrong name and the nearest right one.
    """
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] # of Python's callers
        raise UserError(f"{field}: must be a name, got {name!r}; choose from: {', '.join(table)}")
    if name not in table:
        raise UserError(f"{field}: unknown name '{name}'; {suggest(name, table)}")
    return table[name]


def suggest(name: object, names: Iterable[str], likeness: float = 0.5) -> str:
    """`did you mean 'NAME'?` of the nearest name that is so like it, otherwise the list: the end of a message."""
    options = list(names)
    near = difflib.get_close_matches(str(name), options, 1, likeness)
    return f"did you mean '{near[0]}'?" if near else f"choose from: {', '.join(options)}"
