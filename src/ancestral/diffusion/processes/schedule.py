"""The forward process q and its exact posterior, from one vector.

Time is the paper's: t = 1..T is noisy, index 0 is clean data. With alpha_bar from Eq. 4,

    signal_t = sqrt(alpha_bar_t),  noise_t = sqrt(1 - alpha_bar_t),  SNR_t = alpha_bar_t / (1 - alpha_bar_t).

For any s < t the *gain* c = 1 - SNR_t / SNR_s is the share of what x0 adds to the knowledge of x_s, and

    q(x_s | x_t, x0) = N(signal_s ((1 - c) x_t / signal_t + c x0),  c noise_s^2)           (Eqs. 6-7 at s = t-1).

Everything is computed in float64 from log alpha_bar and rounded once, where it meets the images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ancestral.diffusion.processes.normal import Normal, standard_normal_like
from ancestral.diffusion.processes.types import Likelihood, Time, over


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """A forward process with T steps.

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

    def marginal(self, x0: Tensor, t: Time) -> Normal:
        """q(x_t | x0) = N(signal_t x0, noise_t^2), Eq. 4 (reference name of a draw: `q_sample`). x0: (B, ...)."""
        return Normal(over(self.signal(t), x0) * x0, over(self.noise_var(t), x0))

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Normal:
        """q(x_t | x_s) for s < t, Eq. 2 at s = t-1."""
        ratio = self.log_alpha_bar_at(t) - self.log_alpha_bar_at(s)
        return Normal(over((ratio / 2).exp(), x_s) * x_s, over(-torch.expm1(ratio), x_s))

    def posterior(self, x_t: Tensor, x0: Tensor, t: Time, s: Time) -> Normal:
        """q(x_s | x_t, x0), Eqs. 6-7 for any s < t (reference name: `q_posterior`). x_t, x0: (B, ...)."""
        of_x_t, of_x0 = self.posterior_coefficients(t, s)
        variance = self.gain(t, s) * self.noise_var(s)
        return Normal(over(of_x_t, x_t) * x_t + over(of_x0, x_t) * x0, over(variance, x_t))

    def end(self, like: Tensor) -> Normal:
        """p(x_T) = N(0, I), in the shape, type and device of `like`."""
        return standard_normal_like(like)

    def shown(self, x_t: Tensor) -> Tensor:
        """A state as a picture."""
        return x_t

    def prior(self, x0: Tensor, t: int) -> Tensor:
        """L_T = KL(q(x_t | x0) || N(0, I)) in nats an image, for a walk that begins at t. Shape (B,)."""
        return self.marginal(x0, t).kl(self.end(x0)).flatten(1).sum(1)

    def term(
        self,
        p: Normal,
        x_t: Tensor,
        x0: Tensor,
        t: Tensor,
        s: Tensor,
        likelihood: Likelihood = Normal.log_prob_byte,
    ) -> Tensor:
        """L_{t-1} in nats an image: KL(q || p) where s > 0, the decoder's -log p(x0 | x_t) where s = 0. Shape (B,)."""
        last = (s == 0).to(x0.device)
        q = self.posterior(x_t, x0, t, s)
        # Each branch sees harmless numbers in the other's rows, so that no infinity enters a gradient.
        mask = last.reshape(-1, *[1] * (x0.ndim - 1))
        kl = Normal(q.mean, torch.where(mask, p.var.detach(), q.var)).kl(p).flatten(1).sum(1)
        if not last.any():
            return kl
        nll = torch.zeros_like(kl).masked_scatter(
            last, -likelihood(Normal(p.mean[last], p.var[last]), x0[last]).flatten(1).sum(1)
        )
        return torch.where(last, nll, kl)

    def zero_terminal_snr(self) -> NoiseSchedule:
        """The same schedule with sqrt(alpha_bar) shifted and scaled to reach 0 at T (Lin et al. 2024, Alg. 1)."""
        if self.T < 2:
            raise ValueError("zero terminal SNR needs T >= 2: with T = 1 nothing but noise would be seen")
        root = (self.log_alpha_bar / 2).exp()
        scale = root[1] / (root[1] - root[-1])
        rescaled = 2 * ((root[1:] - root[-1]) * scale).log()
        return NoiseSchedule(torch.cat([self.log_alpha_bar[:1], rescaled]))


def _from_continuous(log_alpha_bar: Callable[[Tensor], Tensor], T: int) -> NoiseSchedule:
    """Sample a continuous log alpha_bar(u), u in [0, 1], at u = t/T."""
    if T < 1:
        raise ValueError(f"T must be at least 1, got {T}")
    values = log_alpha_bar(torch.linspace(0, 1, T + 1, dtype=torch.float64))
    return NoiseSchedule(torch.cat([torch.zeros(1, dtype=torch.float64), values[1:]]))


def from_betas(beta: Tensor) -> NoiseSchedule:
    """The schedule of given beta_1..beta_T, each in (0, 1] and 1 only at T."""
    cumulative = torch.log1p(-beta.double()).cumsum(0)
    return NoiseSchedule(torch.cat([torch.zeros(1, dtype=torch.float64), cumulative]))


def _at_other_length(beta: Tensor, T: int) -> NoiseSchedule:
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


def linear(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
    """The paper's schedule: beta linear from 1e-4 to 0.02 at T = 1000 (`linear_beta_schedule`), any other T by time."""
    return _at_other_length(torch.linspace(beta_start, beta_end, 1000, dtype=torch.float64), T)


def scaled_linear(T: int = 1000, beta_start: float = 8.5e-4, beta_end: float = 0.012) -> NoiseSchedule:
    """sqrt(beta) linear, the latent-diffusion schedule; defined at T = 1000 and read at any other T by time."""
    root = torch.linspace(beta_start**0.5, beta_end**0.5, 1000, dtype=torch.float64)
    return _at_other_length(root**2, T)


def cosine(T: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
    """alpha_bar = cos^2 of (u + s)/(1 + s) pi/2 (Nichol and Dhariwal 2021, Eq. 17), beta capped at `max_beta`."""
    u = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    alpha_bar = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
    return from_betas((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta))


def sigmoid(T: int = 1000, start: float = -3, end: float = 3, tau: float = 1, floor: float = 1e-9) -> NoiseSchedule:
    """alpha_bar = a sigmoid of time (Jabri et al. 2022, Algorithm 1), not the older sigmoid of beta."""

    def log_alpha_bar(u: Tensor) -> Tensor:
        def at(v: Tensor) -> Tensor:
            return torch.sigmoid(-v / tau)

        first, last = at(torch.tensor(start).double()), at(torch.tensor(end).double())
        value = (at(start + (end - start) * u) - last) / (first - last)
        # The floor is mixed in, not clamped, so that alpha_bar keeps falling strictly up to T.
        return (floor + (1 - floor) * value).log()

    return _from_continuous(log_alpha_bar, T)


def linear_log_snr(T: int = 1000, log_snr_max: float = 13.3, log_snr_min: float = -5.0) -> NoiseSchedule:
    """log SNR linear in time; the defaults are the range of Kingma et al. 2021 (VDM) for 8-bit images."""

    def log_alpha_bar(u: Tensor) -> Tensor:
        return torch.nn.functional.logsigmoid(log_snr_max + (log_snr_min - log_snr_max) * u)

    return _from_continuous(log_alpha_bar, T)


def even(T: int) -> NoiseSchedule:
    """alpha_bar = 1 - t/T: every step of an absorbing process hides as many places (Austin et al. 2021)."""
    return _from_continuous(lambda u: torch.log1p(-u), T)


def ve(T: int = 1000, sigma_min: float = 0.01, sigma_max: float = 50.0) -> NoiseSchedule:
    """sigma = noise / signal geometric in t: the variance-exploding chain (Song et al. 2021, Appendix C).

    Its state is x_VE = x / signal, in units of data on [-1, 1]; x_T ~ N(0, I) is x_VE ~ N(0, (1 + sigma_max^2) I).
    """
    if T < 1:
        raise ValueError(f"T must be at least 1, got {T}")
    log_sigma = torch.linspace(math.log(sigma_max), math.log(sigma_min), T, dtype=torch.float64).flip(0)
    clean = torch.zeros(1, dtype=torch.float64)
    return NoiseSchedule(torch.cat([clean, torch.nn.functional.logsigmoid(-2 * log_sigma)]))


SCHEDULES: dict[str, Callable[[int], NoiseSchedule]] = {
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
