"""A set of photographs at 64 px: the ground textures of 0 A.D., grass, sand, rock, roads and snow (CC BY-SA 3.0).

Run: .venv/bin/python benchmarks/ground_photographs.py ARCHIVE OUT.npz, where ARCHIVE is
usr/share/games/0ad/mods/public/public.zip of Debian's package 0ad-data (`apt-get download 0ad-data`, `dpkg -x`).

Each texture is cut into CROPS x CROPS squares, of which each is made smaller to 64 px; every tenth texture is for test.
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

FOLDER = PurePosixPath("art/textures/terrain/types")
LEFT_OUT = ("_norm", "_spec", "_mask", "Test", "test")  # directions of surfaces, reflectances, trials
LEAST, SIDE, CROPS = 512, 64, 4
TEST = 10  # one texture in so many


def textures(archive: zipfile.ZipFile) -> list[str]:
    """Names of the photographs, in order."""
    names = sorted(name for name in archive.namelist() if PurePosixPath(name).is_relative_to(FOLDER))
    return [name for name in names if name.endswith(".dds") and not any(part in name for part in LEFT_OUT)]


def squares(data: bytes) -> np.ndarray:
    """uint8 (CROPS^2, SIDE, SIDE, 3) of a texture; none of one that is small."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if min(image.size) < LEAST:
        return np.empty((0, SIDE, SIDE, 3), np.uint8)
    small = np.asarray(image.resize((CROPS * SIDE, CROPS * SIDE), Image.Resampling.LANCZOS))
    return small.reshape(CROPS, SIDE, CROPS, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)


def main() -> None:
    """Write the set and say what it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="public.zip of 0ad-data")
    parser.add_argument("out", type=Path, help="the .npz file to write")
    given = parser.parse_args()
    if not given.archive.exists():
        sys.exit(f"{given.archive}: not here; `apt-get download 0ad-data` and `dpkg -x` bring it")
    with zipfile.ZipFile(given.archive) as archive:
        found = [squares(archive.read(name)) for name in textures(archive)]
    found = [one for one in found if len(one)]
    test = np.concatenate(found[::TEST])
    train = np.concatenate([one for number, one in enumerate(found) if number % TEST])
    np.savez(given.out, train_images=train, test_images=test)
    print(f"{given.out}: {len(train)} images for training, {len(test)} for test, of {len(found)} textures")


if __name__ == "__main__":
    main()
