"""docs/img/compression-prefixes.png: what the first bytes of a file of `ancestral compress` show.

Run: .venv/bin/python scripts/figures/compression.py RUN, of grey images.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from sheets import labelled

from ancestral.apps.cli.main import main
from ancestral.data import load
from ancestral.data.pictures import contact_sheet, png, read_png
from ancestral.runs import checkpoint

OUT = Path(__file__).resolve().parents[2] / "docs" / "img" / "compression-prefixes.png"
SHOWN = (1, 2, 5, 7)  # of the held-out images
BYTES = (12, 16, 24, 32, 48, 64, 96)


def command(verb: str, *arguments: object) -> None:
    """Run it; end with its exit code where it fails."""
    if code := main.main([verb, *map(str, arguments), "--device", "cpu"], standalone_mode=False):
        raise SystemExit(code)


def prefixes(run: Path, folder: Path) -> tuple[np.ndarray, list[int]]:
    """A row an image: from its first bytes, more to the right, then exactly; and the sizes of the whole files."""
    saved, _ = checkpoint.open_run(run)
    images = load.load(saved.config.source, saved.config.data).test.images[list(SHOWN)]
    for name in ("whole", "files"):
        (folder / name).mkdir()
    for place, image in enumerate(images):
        (folder / "whole" / f"{place}.png").write_bytes(png(image))
    command("compress", run, *sorted((folder / "whole").iterdir()), "--out", folder / "files", "--profile", "small")
    files = sorted((folder / "files").iterdir())
    columns = []
    for count in (*BYTES, None):
        out = folder / f"upto-{count}"
        out.mkdir()
        part = [] if count is None else ["--upto", count, "--finish", "ode"]
        command("decompress", run, *files, "--out", out, *part)
        columns.append(np.stack([read_png(path) for path in sorted(out.iterdir())]))
    assert (columns[-1] == images).all()
    return np.stack(columns, 1), [file.stat().st_size for file in files]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pictures, sizes = prefixes(given.run, Path(folder))
    sheet = contact_sheet(pictures.reshape(-1, *pictures.shape[2:]), pictures.shape[1])
    words = [f"{BYTES[0]} bytes", *map(str, BYTES[1:]), "all"]
    labelled(sheet, words, [f"{size} in all" for size in sizes]).save(OUT, optimize=True)
