"""Hooks of mkdocs: results, log and decisions lie beside docs/ and are on the site, outside its groups."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
BESIDE = ("benchmarks", "decisions")  # folders whose pages the docs link to


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of these folders."""
    for path in sorted(page for folder in BESIDE for page in (ROOT / folder).glob("*.md")):
        name = path.relative_to(ROOT).as_posix()
        page = File.generated(config, name, abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links between the folders and docs/ as they are on the site, where docs/ is the top."""
    if page.file.src_uri.startswith(BESIDE):
        return re.sub(r"\]\(\.\./docs/", "](../", markdown)
    up = "../" * page.file.src_uri.count("/")
    return re.sub(rf"\]\({re.escape(up)}\.\./({'|'.join(BESIDE)})/", rf"]({up}\1/", markdown)
