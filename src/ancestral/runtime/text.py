"""Text from elsewhere (file names, class names, settings, paths) as it is shown."""

from __future__ import annotations


def shown(text: str) -> str:
    r"""On one line, as it is read: whatever is not printed (controls, ends of lines, marks of direction, halves of
    surrogate pairs) as its escape, such as `\n`, `\x1b` and `\u202e`.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
