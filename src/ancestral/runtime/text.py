"""Text from elsewhere (file names, class names, settings, paths) as it is shown."""

from __future__ import annotations


def shown(text: str) -> str:
    r"""On one line, as it is read: whatever is not printed (controls, ends of lines, marks of direction, halves of
    surrogate pairs) as its escape, such as `\n`, `\x1b` and `\u202e`.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def seconds(text: str) -> float:
    """A wall time: 90s, 10m or 2h.

    Raises:
        ValueError: for anything else.
    """
    try:
        found = float(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1:]]
    except (KeyError, ValueError):
        found = 0.0
    if not 0 < found < 1e8:
        raise ValueError(f"'{text}' is not a time; write 90s, 10m or 2h")
    return found
