"""What a forward process leaves of the data at each time, from one vector.

Time is the paper's: t = 1..T is noisy, index 0 is clean data. With alpha_bar from Eq. 4,

    signal_t = sqrt(alpha_bar_t),  noise_t = sqrt(1 - alpha_bar_t),  SNR_t = alpha_bar_t / (1 - alpha_bar_t).

Everything is computed in float64 from log alpha_bar and rounded once, where it meets the images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from ancestral.diffusion.processes.types import Time


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """alpha_bar_t of T steps, and what follows from it.

    Args:
        log_alpha_bar: float64 vector of length T + 1 (T >= 1), 0 at index 0, strictly decreasing;
            only its last entry may be -inf (zero terminal SNR).

    Raises:
        ValueError: when the vector breaks these rules.
    """

    log_alpha_bar: Tensor

    def __post_init__(self) -> None:
        table = self.log_alpha_bar
        if table.ndim != 1 or len(table) < 2 or table.dtype != torch.float64:
            raise ValueError("log_alpha_bar must be a float64 vector of at least 2 entries")
        if table[0] != 0 or not bool((table[1:] < table[:-1]).all()) or not bool(table[:-1].isfinite().all()):
            raise ValueError("log_alpha_bar must start at 0 and fall strictly, finite but for its last entry")

    @property
    def T(self) -> int:  # noqa: N802
        """Number of steps."""
        return len(self.log_alpha_bar) - 1

    @property
    def beta(self) -> Tensor:
        """beta_1..beta_T, float64, shape (T,): 1 - alpha_bar_t / alpha_bar_{t-1}."""
        return -torch.expm1(self.log_alpha_bar.diff())

    def log_alpha_bar_at(self, t: Time) -> Tensor:
        """log alpha_bar_t: an entry of the table, or, for a float tensor t, of the schedule between two of them.

        Between two integers the angle is linear in t, which is an interpolation of our own: no schedule defines it.
        """
        if not isinstance(t, Tensor) or not t.is_floating_point():
            return self.log_alpha_bar[t]
        before = t.double().floor().long().clamp(0, self.T - 1)
        angle = torch.lerp(self.angle(before), self.angle(before + 1), t.double() - before)
        # Each form keeps its digits at one end. The float nearest to pi/2 has a cosine: at T the table is asked.
        inner = torch.where(angle < 1, torch.log1p(-(angle.sin() ** 2)), 2 * angle.cos().log())
        return torch.where(t == self.T, self.log_alpha_bar[-1], inner)

    def angle(self, t: Time) -> Tensor:
        """phi_t = arctan(noise_t / signal_t) in [0, pi/2]: x_t = cos(phi) x0 + sin(phi) eps."""
        return torch.atan2(self.noise(t), self.signal(t))

    def time(self, angle: Tensor) -> Tensor:
        """The t at which the angle is this, float64: the inverse of `angle`."""
        table = self.angle(torch.arange(self.T + 1))
        before = (torch.searchsorted(table, angle.double().contiguous(), right=True) - 1).clamp(0, self.T - 1)
        return (before + (angle - table[before]) / (table[before + 1] - table[before])).clamp(0, self.T)

    def alpha_bar(self, t: Time) -> Tensor:
        """prod_{i<=t} (1 - beta_i) (reference name: `alphas_cumprod`)."""
        return self.log_alpha_bar_at(t).exp()

    def signal(self, t: Time) -> Tensor:
        """sqrt(alpha_bar_t), the share of x0 in x_t."""
        return (self.log_alpha_bar_at(t) / 2).exp()

    def noise(self, t: Time) -> Tensor:
        """sqrt(1 - alpha_bar_t), the standard deviation of x_t around its share of x0."""
        return self.noise_var(t).sqrt()

    def noise_var(self, t: Time) -> Tensor:
        """1 - alpha_bar_t, exact for small t too."""
        return -torch.expm1(self.log_alpha_bar_at(t))

    def log_snr(self, t: Time) -> Tensor:
        """log(alpha_bar_t / (1 - alpha_bar_t)); +inf at t = 0."""
        return self.log_alpha_bar_at(t) - self.noise_var(t).log()

    def snr(self, t: Time) -> Tensor:
        """Signal-to-noise ratio alpha_bar_t / (1 - alpha_bar_t)."""
        return self.log_snr(t).exp()

    def gain(self, t: Time, s: Time) -> Tensor:
        """c = 1 - SNR_t / SNR_s in (0, 1] for s < t; exactly 1 at s = 0."""
        later, earlier = self.log_alpha_bar_at(t), self.log_alpha_bar_at(s)
        return torch.expm1(later - earlier) / torch.expm1(later)

    def posterior_coefficients(self, t: Time, s: Time) -> tuple[Tensor, Tensor]:
        """(of x_t, of x0) in the mean of q(x_s | x_t, x0): Eq. 7, for any s < t, also where signal_t = 0."""
        of_x_t = (
            ((self.log_alpha_bar_at(t) - self.log_alpha_bar_at(s)) / 2).exp() * self.noise_var(s) / self.noise_var(t)
        )
        return of_x_t, self.signal(s) * self.gain(t, s)

    def shifted(self, side: float) -> Self:
        """The same schedule for images of so many times the side: log SNR less 2 ln side (Hoogeboom et al. 2023).

        Where neighbours are alike, averages of side^2 pixels then have the signal and noise that one pixel had.
        """
        later = self.log_snr(torch.arange(1, self.T + 1)) - 2 * math.log(side)
        return replace(self, log_alpha_bar=torch.cat([self.log_alpha_bar[:1], functional.logsigmoid(later)]))

    def zero_terminal_snr(self) -> Self:
        """The same schedule with sqrt(alpha_bar) shifted and scaled to reach 0 at T (Lin et al. 2024, Alg. 1)."""
        if self.T < 2:
            raise ValueError("zero terminal SNR needs T >= 2: with T = 1 nothing but noise would be seen")
        root = (self.log_alpha_bar / 2).exp()
        scale = root[1] / (root[1] - root[-1])
        rescaled = 2 * ((root[1:] - root[-1]) * scale).log()
        return replace(self, log_alpha_bar=torch.cat([self.log_alpha_bar[:1], rescaled]))
