"""Algorithms 1 and 2 with the names of lecture notes and reference code, in plain torch: the report shows these lines.

`alphas_bar` are alpha_bar_0 .. alpha_bar_T, so `alphas_bar[t]` belongs to the paper's t, and t = 0 is the image.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Model = Callable[[Tensor, int], Tensor]  # x_t and t to the noise in x_t


def linear_beta_schedule(timesteps: int) -> Tensor:
    """beta_1 .. beta_T of the paper (section 4)."""
    return torch.linspace(1e-4, 0.02, timesteps, dtype=torch.float64)


def cosine_beta_schedule(timesteps: int, s: float = 0.008) -> Tensor:
    """beta_1 .. beta_T of Nichol and Dhariwal 2021, Eq. 17."""
    u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    alphas_bar = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - alphas_bar[1:] / alphas_bar[:-1]).clamp(max=0.999)


def alphas_bar_of(betas: Tensor) -> Tensor:
    """The products of 1 - beta, with alpha_bar_0 = 1 before them."""
    return torch.cat([betas.new_ones(1), (1 - betas).cumprod(0)])


def q_sample(x_0: Tensor, t: int, noise: Tensor, alphas_bar: Tensor) -> Tensor:
    """Eq. 4: x_t in one draw."""
    return alphas_bar[t].sqrt() * x_0 + (1 - alphas_bar[t]).sqrt() * noise


def p_losses(model: Model, x_0: Tensor, t: int, noise: Tensor, alphas_bar: Tensor) -> Tensor:
    """Eq. 14: Algorithm 1, line 5."""
    x_t = q_sample(x_0, t, noise, alphas_bar)
    return (noise - model(x_t, t)).square().mean()


def p_sample(model: Model, x_t: Tensor, t: int, noise: Tensor, alphas_bar: Tensor) -> Tensor:
    """Eqs. 15 and 7, then noise: Algorithm 2, lines 3 and 4, with the smaller variance."""
    alpha_bar, before = alphas_bar[t], alphas_bar[t - 1]
    beta = 1 - alpha_bar / before
    x_0 = (x_t - (1 - alpha_bar).sqrt() * model(x_t, t)) / alpha_bar.sqrt()
    of_x_0 = before.sqrt() * beta / (1 - alpha_bar)
    of_x_t = (1 - beta).sqrt() * (1 - before) / (1 - alpha_bar)
    mean = of_x_0 * x_0.clamp(-1, 1) + of_x_t * x_t
    variance = beta * (1 - before) / (1 - alpha_bar)
    return mean + variance.sqrt() * noise


def p_sample_loop(model: Model, shape: tuple[int, ...], alphas_bar: Tensor, generator: torch.Generator) -> Tensor:
    """Algorithm 2."""
    x = torch.randn(shape, generator=generator, dtype=alphas_bar.dtype)
    for t in range(len(alphas_bar) - 1, 0, -1):
        noise = torch.randn(shape, generator=generator, dtype=alphas_bar.dtype) if t > 1 else torch.zeros(shape)
        x = p_sample(model, x, t, noise, alphas_bar)
    return x
