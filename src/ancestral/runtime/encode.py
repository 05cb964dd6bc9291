"""JSON documents and CSV tables as the bytes of files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from typing import Any


def json_bytes(document: dict[str, Any]) -> bytes:
    """A JSON file in UTF-8."""
    return (json.dumps(document, indent=1) + "\n").encode()


def csv_bytes(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> bytes:
    """A CSV file in UTF-8; names of files keep their bytes."""
    file = io.StringIO()
    csv.writer(file).writerows([heads, *rows])
    return file.getvalue().encode("utf-8", "surrogateescape")
