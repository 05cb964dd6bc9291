"""Files that may be damaged or hostile: regular ones only, no larger than is asked for, and JSON read strictly.

Every reader of the package opens its files here, tensors with `tensor_files`, arrays with `array_files`.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any

from ancestral.errors import UserError

LARGEST = 64 * 2**30  # bytes of any file that is read whole
LARGEST_JSON = 256 * 2**20
DEEPEST = 64  # lists and objects of a JSON document inside each other
_INTEGERS = range(-(2**63), 2**64)


class Damaged(UserError):
    """A file or folder that is not what was written, or cannot be read."""


class Missing(Damaged):
    """A file that is not there."""


def opened(path: Path) -> BufferedReader:
    """A regular file, for reading bytes; links to one are followed.

    Raises:
        Missing: when there is none; a link to nothing is damage.
        Damaged: for a folder, pipe, device or socket, none of which is waited for, and where the disk refuses.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        if path.is_symlink():
            raise Damaged(f"{path}: a link to nothing") from None
        raise Missing(f"{path}: no such file") from None
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a device without a driver
            raise Damaged(f"{path}: not a regular file") from None
        raise Damaged(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # NUL or a lone surrogate in the name
        raise Damaged(f"{str(path)!r}: no name of a file ({error})") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Damaged(f"{path}: not a regular file")
    return os.fdopen(descriptor, "rb")


def read(path: Path, largest: int = LARGEST) -> bytes:
    """The bytes of a regular file.

    Raises:
        Missing, Damaged: as `opened`, and when it is larger than that.
    """
    with opened(path) as file:
        try:
            content = file.read() if os.fstat(file.fileno()).st_size <= largest else None  # never a buffer of `largest`
        except OSError as error:
            raise Damaged(f"{path}: cannot be read ({error.strerror})") from None
        if content is None or len(content) > largest:
            raise Damaged(f"{path}: larger than {largest:,} bytes, the most that is read")
        return content


def text(path: Path, largest: int = LARGEST_JSON) -> str:
    """The text of a regular file in UTF-8, with or without a byte order mark.

    Raises:
        Missing, Damaged: as `read`, and when it is no such text.
    """
    return _decoded(read(path, largest), str(path))


def document(path: Path, constant: Callable[[str], float] | None = None) -> Any:
    """The JSON document in a file (see `parsed`)."""
    return parsed(read(path, LARGEST_JSON), str(path), constant)


def parsed(content: bytes | str, where: str, constant: Callable[[str], float] | None = None) -> Any:
    """A JSON document: UTF-8, no key twice, no lone surrogate, integers of 64 bits, not deeper than `DEEPEST`.

    Args:
        content: the document.
        where: what it is called in messages.
        constant: makes numbers of NaN, Infinity and what overflows, which are no JSON and otherwise refused; `float`
            for logs of our own, which hold them.

    Raises:
        Damaged: saying what is wrong.
    """

    def refuse(name: str) -> float:
        raise ValueError(f"{name[:20]} is no number of JSON")

    def real(digits: str) -> float:
        value = float(digits)
        return value if abs(value) < float("inf") else (constant or refuse)(digits)

    written = content if isinstance(content, str) else _decoded(content, where)
    try:
        found = json.loads(
            written,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=real,
            parse_constant=constant or refuse,
        )
        if "\\u" in written:
            json.dumps(found, ensure_ascii=False).encode()
        _need_shallow(found)
    except RecursionError:
        raise Damaged(f"{where}: damaged (nested deeper than {DEEPEST})") from None
    except ValueError as error:
        raise Damaged(f"{where}: damaged or not JSON ({error})") from None
    return found


def records(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The objects of a file of JSON lines, and one line for each that is damaged and passed over.

    The last line, where it has no end, was torn by a kill and is passed over silently.

    Raises:
        Missing, Damaged: when the file as a whole cannot be read.
    """
    content = read(path, LARGEST_JSON)
    found, problems = list[dict[str, Any]](), list[str]()
    whole, _, torn = content.rpartition(b"\n")
    lines = [*whole.split(b"\n"), torn]
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = parsed(line, f"{path}:{number}", float)
            if not isinstance(entry, dict):
                raise Damaged(f"{path}:{number}: damaged (not an object)")
            found.append(entry)
        except Damaged as error:
            if number < len(lines):
                problems.append(str(error))
    return found, problems


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Damaged(f"{where}: damaged or not UTF-8 text (byte {error.start})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"has {twice[:80]!r} twice")
    return made


def _integer(digits: str) -> int:
    value = int(digits) if len(digits) <= 20 else None
    if value is None or value not in _INTEGERS:
        raise ValueError(f"the integer {digits[:20]}... is longer than 64 bits")
    return value


def _need_shallow(found: Any) -> None:
    level, depth = [found], 0
    while level := [one for one in level if isinstance(one, (list, dict))]:
        depth += 1
        if depth > DEEPEST:
            raise RecursionError
        level = [child for one in level for child in (one.values() if isinstance(one, dict) else one)]
