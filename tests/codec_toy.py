"""A codec without a network: Gaussian pixels, whose exact denoiser is a product, and tables made of integers.

`python tests/codec_toy.py` writes tests/golden/*.anc, which guard the format: change them only with its version.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from ancestral.compression.codebook import Canary, Codebook, Profile
from ancestral.compression.codec import Codec
from ancestral.compression.quantiser_cells import FRACTIONS, SLOPES, ZONES
from ancestral.compression.residual_tables import BEFORE, ESCAPE, REACH, TOTAL, ResidualTable
from ancestral.diffusion.denoisers.calibrated import BUCKETS
from ancestral.diffusion.denoisers.denoiser import predict
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.types import over

GOLDEN = Path(__file__).parent / "golden"
VARIANCE = 0.0625  # of the data, on [-1, 1]: 32 grey levels
TIMES = (80, 55, 40, 30, 22, 16, 11, 7, 4, 2)


class Toy:
    """E[x0 | x_t] and Var[x0 | x_t] of N(0, VARIANCE) in every pixel; `shift` moves every prediction."""

    def __init__(self, shift=lambda x0: 0.0):
        self.schedule, self.shift, self.calls = schedules.cosine(100), shift, 0

    def __call__(self, x_t, t):
        self.calls += 1
        signal, noise_var = self.schedule.signal(t), self.schedule.noise_var(t)
        total = signal**2 * VARIANCE + noise_var
        x0 = over(signal * VARIANCE / total, x_t) * x_t
        return predict(x0 + self.shift(x0), x_t, self.schedule, t, x0_var=over(VARIANCE * noise_var / total, x_t))


def bits_of_step(t, s):
    """KL of a step in bits a pixel: the error of the exact denoiser is known."""
    forward = schedules.cosine(100)
    error = VARIANCE * forward.noise_var(t) / (forward.signal(t) ** 2 * VARIANCE + forward.noise_var(t))
    return float(torch.log2(1 + error * (forward.snr(s) - forward.snr(t))) / 2)


def table():
    """The same two-sided frequencies for every class, by integers alone."""
    weights = [TOTAL // (4 + abs(k) ** 2) + 1 for k in range(-REACH, REACH + 1)] + [1]
    row = [1 + (TOTAL - len(weights)) * weight // sum(weights) for weight in weights]
    row[REACH] += TOTAL - sum(row)
    frequencies = np.tile(np.array(row, np.uint32), (1, ZONES * SLOPES * FRACTIONS, 1))
    assert frequencies.shape[2] == ESCAPE + 1
    return ResidualTable(frequencies, 1000, np.zeros((1, len(BEFORE)), np.int32))


def codebook(pixels=64, guard=1e-3):
    """Profile 0 takes the best of 2^12, profile 1 the trellis."""
    profiles = {}
    for number in (0, 1):
        bits = [bits_of_step(t, s) * pixels for t, s in pairwise(TIMES)]
        counts = tuple(tuple(max(1, round(b * 2 ** ((q - 8) / 4))) for q in range(16)) for b in bits)
        profiles[number] = Profile(number, TIMES, counts, number, guard)
    empty, none = torch.empty(0), torch.empty(0, dtype=torch.int64)
    x0_var = torch.zeros(101, BUCKETS, dtype=torch.float64)
    return Codebook(x0_var, profiles, table(), b"\x01\x23\x45\x67\x89\xab\xcd\xef", Canary(empty, none, none, empty))


def codec(side=8, channels=1, predictor=None, guard=1e-3):
    book = codebook(side * side * channels, guard)
    return Codec(predictor or Toy(), (channels, side, side), book, torch.zeros((), dtype=torch.float64))


def image(number, height=8, width=8, channels=1):
    """Pixels of the toy's own kind, from a generator that is integers."""
    raw = np.random.Philox(key=number).random_raw(height * width * channels * 12).reshape(-1, 12)
    near = (raw >> np.uint64(40)).astype(np.int64).sum(1) - 6 * 2**24  # a sum of twelve: nearly normal
    return np.clip(128 + near * 32 // 2**24, 0, 255).astype(np.uint8).reshape(height, width, channels)


def golden():
    """The files by name: both channels, colour, and an image of several tiles."""
    return {
        "best-of.anc": (codec(), image(1), 0),
        "trellis.anc": (codec(), image(2), 1),
        "tiles.anc": (codec(), image(3, 11, 17), 1),
        "colour.anc": (codec(4, 3), image(4, 4, 4, 3), 1),
    }


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, (coder, pixels, profile) in golden().items():
        (GOLDEN / name).write_bytes(coder.encode([pixels], profile)[0])
        print(f"written: {GOLDEN / name}, {(GOLDEN / name).stat().st_size} bytes")
