"""Text from elsewhere (file names, class names, settings, paths) as it is shown."""

from __future__ import annotations

import re
import shlex

from ancestral.errors import UserError

# What Markdown, its tables, HTML, formulas, mentions, emoji and bare addresses are made of, where it could be read so.
_MARKUP = re.compile(r'[!"#$&*;<>@\[\\\]^`{|}~]|(?<![^\W_])_|_(?![^\W_])|:(?! )|(?<=www)\.|^ | $', re.IGNORECASE)


def shown(text: str) -> str:
    r"""On one line, as it is read: whatever is not printed (controls, ends of lines, marks of direction, halves of
    surrogate pairs) as its escape, such as `\n`, `\x1b` and `\u202e`.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def utf8(text: str, what: str) -> str:
    """A text that the JSON of a run can hold.

    Raises:
        UserError: naming what it is, when it is no Unicode, as a file name in another encoding.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{text}: {what} is not UTF-8, so that no run could keep it; rename it") from None
    return text


def quoted(word: object) -> str:
    """As one word of a shell command: by `shlex`, and what is not printed as octal bytes in $'...'."""
    text = str(word)
    if text.isprintable():
        return shlex.quote(text)
    escapes = {"\\": r"\\", "'": r"\'"}
    return f"$'{''.join(escapes.get(c, c) if c.isprintable() else _octal(c) for c in text)}'"


def _octal(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))


def minutes(seconds: float) -> str:
    """A duration as M:SS, or H:MM:SS from an hour on."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def markdown(text: str) -> str:
    """As a part of a line of Markdown, also in a table or beside HTML: nothing in it is markup."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", shown(text))


def markdown_code(text: str) -> str:
    """As code in a line of Markdown outside a table: its fence is longer than any row of backticks in it."""
    text = shown(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    room = " " if not text.strip() or text[0] in "` " or text[-1] in "` " else ""
    return f"{fence}{room}{text}{room}{fence}"
