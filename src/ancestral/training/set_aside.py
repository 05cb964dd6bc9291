"""A run that is begun anew in its folder: what was there is moved aside, and images are kept out of it."""

from __future__ import annotations

import time
from pathlib import Path

from ancestral.data import load
from ancestral.errors import UserError
from ancestral.runs import checkpoint
from ancestral.runs.lock import FOLDER as OWNERS

BEFORE = "before-"  # in the name of a folder to which a run is moved


def need_apart(folder: Path, source: str, fresh: bool) -> None:
    """Refuse a run whose files would lie among the images, and one that is to be moved with the images in it.

    Raises:
        UserError: naming the option to change.
    """
    data, run = Path(source).resolve(), folder.resolve()
    if source in load.BUILT_IN or not data.exists():
        return
    if data == run:
        raise UserError(f"--out: {folder} is the folder of the images; give the run one of its own")
    if fresh and data.is_relative_to(run):
        raise UserError(f"--fresh: moves {folder} aside, and the images {source} lie in it; give --out another folder")


def set_aside(folder: Path) -> Path | None:
    """Move all of a run but its ownership into a folder beside it; its checkpoints last, so that it can be resumed.

    Into a folder in it, where it is a disk of its own. A folder without a run stays as it is.

    Returns:
        The folder that it is in now; None where nothing was moved.
    """
    if not ((folder / "config.json").is_file() or checkpoint.folders(folder)):
        return None
    there = sorted(
        (path for path in folder.iterdir() if path.name != OWNERS and not path.name.startswith(BEFORE)),
        key=lambda one: one.name == "checkpoints",
    )
    if not there:
        return None
    whole = folder.resolve()  # "." has no name
    name = f"{BEFORE}{time.strftime('%Y%m%d-%H%M%S')}"
    apart = whole.stat().st_dev != whole.parent.stat().st_dev
    aside = whole / name if apart else whole.with_name(f"{whole.name}-{name}")
    aside.mkdir()
    for path in there:
        path.rename(aside / path.name)
    return aside
