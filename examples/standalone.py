"""A whole DDPM (Ho et al. 2020) in plain lines: 8x8 digits, training, sampling, the bound in bits per dimension.

Imports nothing of this project: torch, and scikit-learn for the images. Run: python examples/standalone.py
"""

import math
import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

T = 200


def alpha_bars():
    """alpha_bar_0 .. alpha_bar_T, the cosine schedule, float64."""
    u = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    curve = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    beta = (1 - curve[1:] / curve[:-1]).clamp(max=0.999)
    return torch.cat([torch.ones(1, dtype=torch.float64), (1 - beta).cumprod(0)])


class Network(nn.Module):
    """Predicts eps from x_t (B, 64) and t (B,): three layers, each given the time."""

    def __init__(self, width=512):
        super().__init__()
        self.embed = nn.Embedding(T + 1, width)
        self.first, self.second, self.last = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, 64)

    def forward(self, x, t):
        h = torch.relu(self.first(x) + self.embed(t))
        h = torch.relu(self.second(h) + self.embed(t)) + h
        return self.last(h)


def q_sample(ab, x0, t, eps):
    """Eq. 4: x_t = sqrt(ab_t) x0 + sqrt(1 - ab_t) eps."""
    a = ab[t][:, None].float()
    return a.sqrt() * x0 + (1 - a).sqrt() * eps


def posterior(ab, x_t, x0, t):
    """Eqs. 6 and 7: mean and variance of q(x_{t-1} | x_t, x0)."""
    a, before = ab[t][:, None], ab[t - 1][:, None]
    beta = 1 - a / before
    mean = before.sqrt() * beta / (1 - a) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - a) * x_t
    return mean.float(), (beta * (1 - before) / (1 - a)).float(), beta.float()


def predict_x0(ab, x_t, eps, t):
    """Eq. 15."""
    a = ab[t][:, None].float()
    return ((x_t - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1)


def p_losses(network, ab, x0, t, eps):
    """Eq. 14."""
    return (network(q_sample(ab, x0, t, eps), t) - eps).square().mean()


def train(network, ab, data, steps, generator):
    """Algorithm 1. Returns the losses."""
    optimizer, losses = torch.optim.Adam(network.parameters(), 1e-3), []
    for _ in range(steps):
        x0 = data[torch.randint(len(data), (128,), generator=generator)]
        t = torch.randint(1, T + 1, (128,), generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        loss = p_losses(network, ab, x0, t, eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def p_sample(network, ab, x, step, generator):
    """One step of Algorithm 2 with sigma_t^2 = beta~_t."""
    t = torch.full((len(x),), step)
    mean, variance, _ = posterior(ab, x, predict_x0(ab, x, network(x, t), t), t)
    return mean + variance.sqrt() * torch.randn(x.shape, generator=generator) if step > 1 else mean


@torch.no_grad()
def p_sample_loop(network, ab, count, generator):
    """Algorithm 2."""
    x = torch.randn(count, 64, generator=generator)
    for step in range(T, 0, -1):
        x = p_sample(network, ab, x, step, generator)
    return x


@torch.no_grad()
def bits_per_dim(network, ab, x0, generator):
    """(L_T, L_1..T-1, L_0) of Eq. 5, in bits per dimension, for 17 grey levels and sigma_t^2 = beta_t."""
    to_bits = 1 / math.log(2) / 64
    end = ab[-1]
    prior = 0.5 * (end * x0.double() ** 2 - end - (1 - end).log()).sum(1).mean()  # KL(q(x_T | x0) || N(0, I))
    rates, half = torch.zeros(()), 1 / 16
    for step in range(T, 0, -1):
        t = torch.full((len(x0),), step)
        x_t = q_sample(ab, x0, t, torch.randn(x0.shape, generator=generator))
        guess = predict_x0(ab, x_t, network(x_t, t), t)
        mean, _, beta = posterior(ab, x_t, guess, t)
        if step > 1:
            true, variance, _ = posterior(ab, x_t, x0, t)
            ratio = variance / beta
            rates += 0.5 * (ratio - 1 - ratio.log() + (true - mean) ** 2 / beta).sum(1).mean()
        else:
            upper = torch.where(x0 > 1 - half, math.inf, (x0 - guess + half) / beta.sqrt())
            lower = torch.where(x0 < half - 1, -math.inf, (x0 - guess - half) / beta.sqrt())
            inside = torch.special.ndtr(upper.double()) - torch.special.ndtr(lower.double())
            decoder = -inside.clamp(min=1e-12).log().sum(1).mean()  # Eq. 13
    return float(prior) * to_bits, float(rates) * to_bits, float(decoder) * to_bits


def main(steps=3000):
    """Train, print the bound on held-out digits, and show eight new ones."""
    generator = torch.Generator().manual_seed(0)
    data = torch.tensor(load_digits().data / 8 - 1, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network()
    ab = alpha_bars()
    losses = train(network, ab, data[:-200], steps, generator)
    bound = bits_per_dim(network, ab, data[-200:], generator)
    print("bits/dim: L_T {:.4f} + L_1:T-1 {:.3f} + L_0 {:.3f} = {:.3f}".format(*bound, sum(bound)))
    images = p_sample_loop(network, ab, 8, generator).reshape(8, 8, 8)
    for row in range(8):
        print(
            "  ".join(
                "".join(" .:-=+*#%@"[int((v + 1) * 4.99)] * 2 for v in image[row].clamp(-1, 1)) for image in images
            )
        )
    return losses, bound, images


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
