"""A walk down the chain that two sides take together: Algorithms 3 and 4.

The sender knows x0 and picks, among random vectors that both know, one that looks like a sample of q(x_s | x_t, x0).
The receiver learns which. Everything else in the walk is computed by both: x_t, what the network predicts from it, p.

    p(x_s | x_t) = N(mean, (1 + w r) var),   r = x0_var (SNR_s - SNR_t),   x_s = mean + std z,   m = (mean_q - mean)/std

with mean and var those of the posterior at the predicted x0. A step is four bits that choose one of 16 numbers of bits
n from the profile, then n bits of the channel. The width w follows from n: p is as wide as makes n bits the expected
cost. So an easy image takes few bits and a hard one many, and no integer that says where the next bits are comes from
the network: another machine's last bits move the pixels a little, and never lose the thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ancestral.compression.bit_io import Reader, Writer
from ancestral.compression.codebook import Profile
from ancestral.compression.portable_random import ONE, normals
from ancestral.compression.trellis import CHANNELS, Channel, Key
from ancestral.diffusion.denoisers.denoiser import Predictor
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.types import over
from ancestral.diffusion.samplers.loop import Draw, Move, Step, walk
from ancestral.diffusion.samplers.transitions import Ancestral, optimal

LEVEL_BITS = 4  # of the choice of n
CHECKED = 8  # steps from one check of the bits to the next
_WIDEST = 8 * math.log(2)  # |log w|, at most
_CURVE = np.linspace(-_WIDEST, _WIDEST, 49)[:, None]


_Stream = TypeVar("_Stream", Writer, Reader)


@dataclass(frozen=True)
class Row(Generic[_Stream]):
    """One image of a batch: where its bits are, and the number in its file that keys its random numbers."""

    stream: _Stream
    tile: int = 0


@dataclass
class Arrival:
    """What the receiver has of each row: the last state that was reached and what is predicted from it."""

    t: list[int]
    x_t: list[Tensor] = field(default_factory=list)
    x0: list[Tensor] = field(default_factory=list)


def start(profile: Profile, shape: Sequence[int], rows: Sequence[Row[_Stream]], like: Tensor) -> Tensor:
    """x at the first time, (B, *shape): the same on both sides."""
    count = math.prod(shape)
    values = [normals(count, profile.id, "start", row.tile).reshape(tuple(shape)) for row in rows]
    return torch.from_numpy(np.stack(values)).to(like) / ONE


def send(predictor: Predictor, profile: Profile, x0: Tensor, rows: Sequence[Row[Writer]]) -> Tensor:
    """Write the bits of images x0 (B, C, H, W) to the rows' streams; returns x0 predicted at the profile's last time.

    Args:
        predictor: knows Var[x0 | x_t].
        profile: the times and the numbers of bits.
        x0: on [-1, 1]; its type is that of the states.
        rows: one an image, with a `Writer`; rows may share one, which then has their bits a step at a time.
    """
    x = start(profile, x0.shape[1:], rows, x0)
    draw, predicted = sender(predictor.schedule, profile, x0, rows), x
    for step in walk(predictor, x, [*profile.times, 0], Ancestral(optimal), draw):
        predicted = step.prediction.x0
    return predicted


def receive(
    predictor: Predictor, profile: Profile, shape: Sequence[int], rows: Sequence[Row[Reader]], like: Tensor
) -> Arrival:
    """Read the rows' streams as far as they go.

    Args:
        predictor: as the sender's.
        profile: as the sender's.
        shape: of an image, (C, H, W).
        rows: as the sender's, with a `Reader`.
        like: a tensor of the type and on the device of the states.

    Raises:
        CodecError: when the bits are damaged.
    """
    arrival = Arrival([0] * len(rows), [like] * len(rows), [like] * len(rows))
    going = set(range(len(rows)))
    for step, stopped in received(predictor, profile, shape, rows, like):
        for row in going:
            arrival.t[row], arrival.x_t[row], arrival.x0[row] = step.t, step.x_t[row], step.prediction.x0[row]
        going = {row for row in going if not stopped[row]}
        if not going:
            break
    return arrival


def received(
    predictor: Predictor, profile: Profile, shape: Sequence[int], rows: Sequence[Row[Reader]], like: Tensor
) -> Iterator[tuple[Step, list[bool]]]:
    """Each step of the walk with whether a row's bits had ended in it; arguments and errors are those of `receive`."""
    draw = Receiver(predictor.schedule, profile, rows)
    for step in walk(predictor, start(profile, shape, rows, like), [*profile.times, 0], Ancestral(optimal), draw):
        yield step, draw.stopped


Choice = Callable[[int, np.ndarray, Key], tuple[float, np.ndarray]]  # row, r, key: w and z


def _moved(schedule: Gaussian, move: Move, rows: Sequence[Row[_Stream]], profile: Profile, choose: Choice) -> Tensor:
    """x_s, each row's with the w and z that were chosen for it."""
    var = schedule.posterior(move.x_t, move.prediction.x0, move.t, move.s).var
    r = move.p.var / var - 1
    index = profile.times.index(move.t)
    flat = r.flatten(1).cpu().double().numpy()
    chosen = [choose(number, flat[number], (profile.id, index, row.tile)) for number, row in enumerate(rows)]
    z = torch.from_numpy(np.stack([z for _, z in chosen])).to(move.x_t).reshape(move.x_t.shape)
    width = over(torch.tensor([width for width, _ in chosen], dtype=torch.float64), move.x_t)
    if checked(profile, index):
        for stream in dict.fromkeys(row.stream for row in rows):
            stream.check()
    return move.p.mean + (var * (1 + width * r)).sqrt() * z


def sender(schedule: Gaussian, profile: Profile, x0: Tensor, rows: Sequence[Row[Writer]]) -> Draw:
    """x_s that looks drawn from q(x_s | x_t, x0), its bits written; the mean at s = 0, where the pixels are coded."""
    channel = CHANNELS[profile.channel]

    def draw(move: Move) -> Tensor:
        if move.s == 0:
            return move.p.mean
        q = schedule.posterior(move.x_t, x0, move.t, move.s)
        shift = ((q.mean - move.p.mean) / q.var.sqrt()).flatten(1).cpu().double().numpy()
        counts = profile.counts[profile.times.index(move.t)]

        def choose(row: int, r: np.ndarray, key: Key) -> tuple[float, np.ndarray]:
            level = best_level(shift[row], r, counts, channel)
            bits, width = counts[level], width_of(r, counts[level], channel)
            path = channel.encode(shift[row] / np.sqrt(1 + width * r), width * r, bits, key)
            stream = rows[row].stream
            stream.number(level, LEVEL_BITS)
            stream.bits(path)
            return width, channel.decode(path, bits, len(r), key)

        return _moved(schedule, move, rows, profile, choose)

    return draw


class Receiver:
    """The same x_s from the bits. A row whose bits end is `stopped`; within a step the missing z are 0."""

    def __init__(self, schedule: Gaussian, profile: Profile, rows: Sequence[Row[Reader]]) -> None:
        self.schedule, self.profile, self.rows = schedule, profile, rows
        self.stopped = [False] * len(rows)

    def __call__(self, move: Move) -> Tensor:
        """x_s, as `Draw`."""
        if move.s == 0:
            return move.p.mean
        counts, channel = self.profile.counts[self.profile.times.index(move.t)], CHANNELS[self.profile.channel]

        def choose(row: int, r: np.ndarray, key: Key) -> tuple[float, np.ndarray]:
            stream = self.rows[row].stream
            level = None if self.stopped[row] else stream.number(LEVEL_BITS)
            path = stream.bits(counts[level]) if level is not None else np.empty(0, np.uint8)
            if level is None or (counts[level] and not len(path)):
                self.stopped[row] = True
                return 1.0, np.zeros(len(r))
            return width_of(r, counts[level], channel), channel.decode(path, counts[level], len(r), key)

        return _moved(self.schedule, move, self.rows, self.profile, choose)


def skip(reader: Reader, profile: Profile, rows: int) -> None:
    """Read over the bits of so many rows that share a stream: where they end is seen without the network.

    Raises:
        CodecError: when the bits are damaged.
    """
    for index, counts in enumerate(profile.counts):
        if reader.short:
            return
        for _ in range(rows):
            level = reader.number(LEVEL_BITS)
            if level is not None:
                reader.bits(counts[level])
        if checked(profile, index):
            reader.check()


def checked(profile: Profile, index: int) -> bool:
    """Whether a check of the bits follows this step."""
    return (index + 1) % CHECKED == 0 or index + 1 == len(profile.counts)


def width_of(r: np.ndarray, bits: int, channel: Channel) -> float:
    """w such that sum log2(1 + w r) / 2 is what so many bits carry, between 1/256 and 256.

    Newton's method from the right, where the sum is convex in log w: it never passes the root. Continuous in r.
    """
    target, u = 2 * math.log(2) * channel.efficiency * bits, _WIDEST
    for _ in range(24):
        grown = math.exp(u) * r
        slope = float((grown / (1 + grown)).sum())
        if slope <= 0:
            break
        u = min(max(u - (float(np.log1p(grown).sum()) - target) / slope, -_WIDEST), _WIDEST)
    return math.exp(u)


def best_level(shift: np.ndarray, r: np.ndarray, counts: Sequence[int], channel: Channel) -> int:
    """The number of bits, as its index in `counts`, nearest to what KL(q || p) takes at the best width.

    Args:
        shift: float64 (D,), (mean_q - mean) / sqrt(var).
        r: float64 (D,).
        counts: the numbers of bits to choose from.
        channel: how many bits of KL one carries.
    """
    spread = np.exp(_CURVE) * r
    kl = (np.log1p(spread) + (1 + shift * shift) / (1 + spread) - 1).sum(1) / 2  # nats, by width
    needed = float(kl.min()) / math.log(2) / channel.efficiency
    return int(np.abs(np.log(np.maximum(counts, 0.5)) - math.log(max(needed, 0.5))).argmin())
