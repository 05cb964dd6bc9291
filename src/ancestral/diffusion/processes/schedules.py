"""Schedules by name, each the Gaussian process that has it (`process_kinds` makes others of the same table)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ancestral.diffusion.processes.gaussian import Gaussian


def _from_continuous(log_alpha_bar: Callable[[Tensor], Tensor], T: int) -> Gaussian:
    """Sample a continuous log alpha_bar(u), u in [0, 1], at u = t/T."""
    if T < 1:
        raise ValueError(f"T must be at least 1, got {T}")
    values = log_alpha_bar(torch.linspace(0, 1, T + 1, dtype=torch.float64))
    return Gaussian(torch.cat([torch.zeros(1, dtype=torch.float64), values[1:]]))


def from_betas(beta: Tensor) -> Gaussian:
    """The schedule of given beta_1..beta_T, each in (0, 1] and 1 only at T."""
    cumulative = torch.log1p(-beta.double()).cumsum(0)
    return Gaussian(torch.cat([torch.zeros(1, dtype=torch.float64), cumulative]))


def _at_other_length(beta: Tensor, T: int) -> Gaussian:
    """A 1000-step beta table taken as a process in continuous time u = t/1000, read at u = t/T.

    The usual rescaling (beta times 1000/T) leaves (0, 1) for T <= 20; reading log alpha_bar never does.
    """
    table = from_betas(beta).log_alpha_bar

    def interpolated(u: Tensor) -> Tensor:
        # The integral of a rate that is linear between table entries: quadratic, so that alpha_bar stays
        # smooth and T finer than the table is right as well.
        position = u * (len(table) - 1)
        index = position.floor().long().clamp(max=len(table) - 2)
        fraction = position - index
        rate = table.diff()
        slope = torch.gradient(rate)[0]
        correction = slope[index] * fraction * (fraction - 1) / 2
        return table[index] + rate[index] * fraction + correction

    return _from_continuous(interpolated, T)


def linear(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Gaussian:
    """The paper's schedule: beta linear from 1e-4 to 0.02 at T = 1000 (`linear_beta_schedule`), any other T by time."""
    return _at_other_length(torch.linspace(beta_start, beta_end, 1000, dtype=torch.float64), T)


def scaled_linear(T: int = 1000, beta_start: float = 8.5e-4, beta_end: float = 0.012) -> Gaussian:
    """sqrt(beta) linear, the latent-diffusion schedule; defined at T = 1000 and read at any other T by time."""
    root = torch.linspace(beta_start**0.5, beta_end**0.5, 1000, dtype=torch.float64)
    return _at_other_length(root**2, T)


def cosine(T: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Gaussian:
    """alpha_bar = cos^2 of (u + s)/(1 + s) pi/2 (Nichol and Dhariwal 2021, Eq. 17), beta capped at `max_beta`."""
    u = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    alpha_bar = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
    return from_betas((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta))


def sigmoid(T: int = 1000, start: float = -3, end: float = 3, tau: float = 1, floor: float = 1e-9) -> Gaussian:
    """alpha_bar = a sigmoid of time (Jabri et al. 2022, Algorithm 1), not the older sigmoid of beta."""

    def log_alpha_bar(u: Tensor) -> Tensor:
        def at(v: Tensor) -> Tensor:
            return torch.sigmoid(-v / tau)

        first, last = at(torch.tensor(start).double()), at(torch.tensor(end).double())
        value = (at(start + (end - start) * u) - last) / (first - last)
        # The floor is mixed in, not clamped, so that alpha_bar keeps falling strictly up to T.
        return (floor + (1 - floor) * value).log()

    return _from_continuous(log_alpha_bar, T)


def linear_log_snr(T: int = 1000, log_snr_max: float = 13.3, log_snr_min: float = -5.0) -> Gaussian:
    """log SNR linear in time; the defaults are the range of Kingma et al. 2021 (VDM) for 8-bit images."""

    def log_alpha_bar(u: Tensor) -> Tensor:
        return torch.nn.functional.logsigmoid(log_snr_max + (log_snr_min - log_snr_max) * u)

    return _from_continuous(log_alpha_bar, T)


def even(T: int) -> Gaussian:
    """alpha_bar = 1 - t/T: every step of an absorbing process hides as many positions (Austin et al. 2021)."""
    return _from_continuous(lambda u: torch.log1p(-u), T)


def ve(T: int = 1000, sigma_min: float = 0.01, sigma_max: float = 50.0) -> Gaussian:
    """sigma = noise / signal geometric in t: the variance-exploding chain (Song et al. 2021, Appendix C).

    Its state is x_VE = x / signal, in units of data on [-1, 1]; x_T ~ N(0, I) is x_VE ~ N(0, (1 + sigma_max^2) I).
    """
    if T < 1:
        raise ValueError(f"T must be at least 1, got {T}")
    log_sigma = torch.linspace(math.log(sigma_max), math.log(sigma_min), T, dtype=torch.float64).flip(0)
    clean = torch.zeros(1, dtype=torch.float64)
    return Gaussian(torch.cat([clean, torch.nn.functional.logsigmoid(-2 * log_sigma)]))


SCHEDULES: dict[str, Callable[[int], Gaussian]] = {
    "linear": linear,
    "scaled-linear": scaled_linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "linear-log-snr": linear_log_snr,
    "even": even,
    "ve": ve,
    "linear-zero-snr": lambda T: linear(T).zero_terminal_snr(),
    "cosine-zero-snr": lambda T: cosine(T).zero_terminal_snr(),
}
