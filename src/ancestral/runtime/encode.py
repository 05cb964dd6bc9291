"""JSON documents and CSV tables as the bytes of files, and files as data URIs."""

from __future__ import annotations

import csv
import io
import json
import math
from base64 import b64encode
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


def data_uri(file: bytes, media_type: str = "image/png") -> str:
    """A file as a data URI, in base64."""
    return f"data:{media_type};base64,{b64encode(file).decode('ascii')}"
