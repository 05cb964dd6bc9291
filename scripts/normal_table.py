"""Write the table of normal quantiles of `compression.portable_random`. Its bytes are part of the file format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.special import ndtri

PATH = Path(__file__).parent.parent / "src/ancestral/compression/normal.bin"


def table() -> bytes:
    """uint16 (32768,), little-endian: round(4096 Phi^-1(1/2 + (k + 1/2) / 65536))."""
    return np.rint(4096 * ndtri(0.5 + (np.arange(32768) + 0.5) / 65536)).astype("<u2").tobytes()


if __name__ == "__main__":
    PATH.write_bytes(table())
    print(f"written: {PATH}")
