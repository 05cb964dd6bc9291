"""JSON documents and CSV tables as the bytes of files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any


def json_bytes(document: dict[str, Any]) -> bytes:
    """A JSON file in UTF-8; numbers that are not finite, which JSON does not have, are null."""
    return (json.dumps(_plain(document), indent=1, allow_nan=False) + "\n").encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def csv_bytes(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> bytes:
    """A CSV file in UTF-8; names of files keep their bytes."""
    file = io.StringIO()
    csv.writer(file).writerows([heads, *rows])
    return file.getvalue().encode("utf-8", "surrogateescape")
