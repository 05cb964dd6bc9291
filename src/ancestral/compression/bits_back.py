"""Images on and off a stack of bits at the rate of the variational bound: bits-back along the chain of x_t.

To push x0, for the times 0 = s < t < ... of the grid, rising (Kingma et al. 2019, Bit-Swap):

    pop x_t ~ q(x_t | x_s),   push x_s under p(x_s | x_t),   and at the end push x_T under N(0, I).

What is popped was on the stack before, so that x0 costs -log p(x_T) + sum log q(x_t | x_s) - log p(x_s | x_t), Eq. 3:
what `elbo_derivation.Chains.monte_carlo` is. Popping x0 is the same the other way round, hence one walk; see `Chain`.

Each x_t lies on a lattice, whose spacing is a part of the narrower of the two Gaussians that meet there. What is
*sampled* comes from a window of 7 standard deviations: a quantised Gaussian gives every symbol of its domain at least
2^-24, and over a wide domain such symbols would be drawn and take the chain where no data are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ancestral.compression.entropy_coders import stream
from ancestral.compression.errors import CodecError
from ancestral.diffusion.denoisers.denoiser import Predictor
from ancestral.diffusion.processes.levels import HALF_RANGE, level_of
from ancestral.diffusion.processes.normal import Normal, standard_normal_like
from ancestral.diffusion.samplers.loop import Move, walk
from ancestral.diffusion.samplers.transitions import Transition

AnsCoder, QuantizedGaussian = stream.stack.AnsCoder, stream.model.QuantizedGaussian
WINDOW = 7.0  # standard deviations of q on either side of its mean
TAIL = 10.0  # the same of p, besides the largest error of x0
SUREST = 1e-4  # bytes: the smallest standard deviation of L_0
BYTES = QuantizedGaussian(0, 255)  # its first and last bins are open: the probabilities of `Normal.log_prob_coded`


class OutOfReach(Exception):
    """A symbol too far from where the model expects it; a wider reach is needed."""


class Stack:
    """Bits, last in first out, that remember how low they once were."""

    def __init__(self, words: np.ndarray) -> None:
        self._coder: Any = AnsCoder(words)
        self.lowest = len(words)

    def __len__(self) -> int:
        """In words of 32 bits."""
        return self._coder.num_words()

    def words(self) -> np.ndarray:
        """All bits, uint32; the bottom of the stack first."""
        return self._coder.get_compressed()

    def push(self, symbols: np.ndarray, family: Any, mean: np.ndarray, std: np.ndarray) -> None:
        """Put int32 symbols on top, each under its own quantised Gaussian."""
        self._coder.encode_reverse(symbols, family, *_checked(mean, std))

    def pop(self, family: Any, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
        """Take as many int32 symbols off the top."""
        symbols = self._coder.decode(family, *_checked(mean, std))
        self.lowest = min(self.lowest, len(self))
        return symbols


def _checked(mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # The coder ends the process on a standard deviation that is none, and takes a mean that is none as it is.
    if not (np.isfinite(mean).all() and (std > 1e-9).all() and (std < 1e9).all()):
        raise CodecError("the model's prediction is no Gaussian with a finite mean and a positive variance")
    return mean, std


def reaches(denoiser: Predictor, times: Sequence[int], spacing: dict[int, float], error: float) -> dict[int, int]:
    """How many lattice points x_s may lie from the mean of p(x_s | x_t), when x0 is predicted to within `error`."""
    schedule = denoiser.schedule
    half = {times[0]: math.ceil(TAIL / spacing[times[0]])}
    for t, s in pairwise(times[:-1]):
        shift = float(schedule.posterior_coefficients(t, s)[1]) * error
        spread = float((schedule.gain(t, s) * schedule.noise_var(s)).sqrt()) * TAIL
        half[s] = math.ceil((shift + spread) / spacing[s])
    return half


def spacings(denoiser: Predictor, times: Sequence[int], bins: float) -> dict[int, float]:
    """The distance of lattice points for x_t at each time of a grid: the narrower of q(x_t | x_s) and of
    q(x_t | x_u, x0), divided by `bins`, where s < t < u are neighbours."""
    schedule = denoiser.schedule
    widths = {}
    for index, t in enumerate(times[:-1]):
        gain = schedule.gain(t, times[index + 1])
        if index:
            gain = torch.minimum(gain, schedule.gain(times[index - 1], t))
        widths[t] = float(gain.sqrt() * schedule.noise(t)) / bins
    return widths


class Chain:
    """The coder of one model on one grid.

    Args:
        denoiser: predicts x0; with the same bits for the same input whenever it is called.
        times: strictly falling, ending at 0.
        transition: makes p(x_s | x_t).
        bins: lattice points a standard deviation.
        error: largest error of a predicted x0 for which there is room; images with a larger one are `OutOfReach`.
    """

    def __init__(
        self, denoiser: Predictor, times: Sequence[int], transition: Transition, bins: float = 1.0, error: float = 2.0
    ) -> None:
        self.denoiser, self.times, self.transition = denoiser, tuple(times), transition
        self.spacing = spacings(denoiser, times, bins)
        self.half = reaches(denoiser, times, self.spacing, error)

    def push(self, stack: Stack, pixels: Tensor) -> Tensor:
        """Put images on the stack.

        Args:
            stack: must hold enough bits to draw x_t from.
            pixels: bytes, int64 (B, ...).

        Returns:
            Eq. 3 along the chain that was drawn, in nats an image, float64 (B,): the ideal cost.

        Raises:
            OutOfReach: when an x_s lies farther from the mean of p than the reach; the stack is then useless.
        """
        schedule = self.denoiser.schedule
        x_s, nats = _unit(pixels), torch.zeros(len(pixels), dtype=torch.float64)
        for s, t in pairwise(reversed(self.times)):
            q = schedule.transition(x_s, s, t)
            x_t = self._pop(stack, q, t, self._window(q, t))
            (step,) = walk(
                self.denoiser, x_t, (t, s), self.transition, lambda move, x_s=x_s: self._put(stack, move, x_s)
            )
            log_p = step.p.log_prob(x_s) if s else step.p.log_prob_coded(x_s)
            nats += (q.log_prob(x_t) - log_p).flatten(1).sum(1)
            x_s = x_t
        self._push(stack, standard_normal_like(x_s), self.times[0], self.half[self.times[0]], x_s)
        return nats - standard_normal_like(x_s).log_prob(x_s).flatten(1).sum(1)

    def pop(self, stack: Stack, shape: Sequence[int]) -> Tensor:
        """Take images (B, ...) of this shape off the stack: bytes, int64. What had been drawn is put back.

        Raises:
            OutOfReach: when the bits are none that `push` has made.
        """
        x = self._pop(
            stack,
            standard_normal_like(torch.zeros(*shape, dtype=torch.float64)),
            self.times[0],
            self.half[self.times[0]],
        )
        for step in walk(self.denoiser, x, self.times, self.transition, lambda move: self._take(stack, move)):
            x = step.x_s
        return level_of(x, 256)

    def _put(self, stack: Stack, move: Move, x_s: Tensor) -> Tensor:
        """Push x_s under p: a draw whose outcome is known."""
        if move.s == 0:
            stack.push(_flat(level_of(x_s, 256), np.int32), BYTES, *_of_bytes(move.p))
        else:
            self._push(stack, move.p, move.s, self.half[move.s], x_s)
        return x_s

    def _take(self, stack: Stack, move: Move) -> Tensor:
        """Pop x_s under p and give back the bits that x_t was drawn with: the inverse of a step of `push`."""
        if move.s == 0:
            symbols = stack.pop(BYTES, *_of_bytes(move.p))
            x_s = _unit(torch.from_numpy(symbols.astype(np.int64)).reshape(move.x_t.shape))
        else:
            x_s = self._pop(stack, move.p, move.s, self.half[move.s])
        q = self.denoiser.schedule.transition(x_s, move.s, move.t)
        self._push(stack, q, move.t, self._window(q, move.t), move.x_t)
        return x_s

    def _window(self, q: Normal, t: int) -> int:
        return math.ceil(WINDOW * float(q.var.sqrt().max()) / self.spacing[t]) + 1

    def _pop(self, stack: Stack, normal: Normal, t: int, half: int) -> Tensor:
        centre, mean, std = self._on_lattice(normal, t)
        symbols = stack.pop(QuantizedGaussian(-half, half), mean, std)
        return self._points(centre + torch.from_numpy(symbols.astype(np.int64)).reshape(centre.shape), t)

    def _push(self, stack: Stack, normal: Normal, t: int, half: int, x: Tensor) -> None:
        centre, mean, std = self._on_lattice(normal, t)
        symbols = (x / self.spacing[t]).round() - centre
        if not bool((symbols.abs() <= half).all()):
            raise OutOfReach
        stack.push(_flat(symbols, np.int32), QuantizedGaussian(-half, half), mean, std)

    def _on_lattice(self, normal: Normal, t: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """(the lattice point nearest to the mean, int64; mean and standard deviation in lattice points from there)."""
        mean = normal.mean / self.spacing[t]
        centre = mean.round()
        std = (normal.var.sqrt() / self.spacing[t]).expand_as(mean)
        return centre, _flat(mean - centre, np.float64), _flat(std, np.float64)

    def _points(self, points: Tensor, t: int) -> Tensor:
        return points.double() * self.spacing[t]


def _flat(values: Tensor, dtype: Any) -> np.ndarray:
    return np.ascontiguousarray(values.detach().cpu().numpy().reshape(-1), dtype=dtype)


def _unit(pixels: Tensor) -> Tensor:
    return pixels.double() / HALF_RANGE - 1


def _of_bytes(p: Normal) -> tuple[np.ndarray, np.ndarray]:
    """(mean, standard deviation) in bytes; a surer one than the coder can tell apart is as good."""
    std = (p.var.sqrt() * HALF_RANGE).clamp(min=SUREST).expand_as(p.mean)
    return _flat((p.mean + 1) * HALF_RANGE, np.float64), _flat(std, np.float64)
