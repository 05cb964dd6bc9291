"""A variational autoencoder (Kingma and Welling 2014): Gaussian latents, and a decoder with a likelihood of bytes.

    -log P(x) <= E_q(z | x)[-log p(x | z)] + KL(q(z | x) || N(0, I))

p(x | z) is, for each value, a mixture of logistics over the 256 levels (`levels.Logistic`), independent given z.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ancestral.diffusion.processes.levels import Logistic
from ancestral.diffusion.processes.normal import Normal, standard_normal_like
from ancestral.diffusion.processes.streams import Streams
from ancestral.networks.unet_layers import fold, unfold
from baselines.training import Lowered

LEVELS = 256


class Block(nn.Module):
    """norm, SiLU, conv, twice, plus the input. (B, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(max(1, channels // 16), channels) for _ in range(2)])
        self.convs = nn.ModuleList([nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)])
        nn.init.zeros_(self.convs[1].weight)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        h = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(functional.silu(norm(h)))
        return x + h


class Vae(nn.Module):
    """Of images whose sides divide by 4.

    Args:
        shape: (C, H, W).
        latent: dimensions of z.
        width: channels at half the side; twice as many at a quarter.
        blocks: residual blocks at each side.
    """

    def __init__(self, shape: tuple[int, int, int], latent: int = 48, width: int = 48, blocks: int = 1) -> None:
        super().__init__()
        channels, height, _ = shape
        self.shape, self.latent = shape, latent
        inner = (2 * width, height // 4, shape[2] // 4)
        flat = inner[0] * inner[1] * inner[2]
        self.encoder = Lowered(
            nn.Conv2d(4 * channels, width, 3, padding=1),
            *(Block(width) for _ in range(blocks)),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            *(Block(2 * width) for _ in range(blocks)),
            nn.GroupNorm(max(1, width // 8), 2 * width),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(flat, 2 * latent),
        )
        self.decoder = Lowered(
            nn.Linear(latent, flat),
            nn.Unflatten(1, inner),
            *(Block(2 * width) for _ in range(blocks)),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(2 * width, width, 3, padding=1),
            *(Block(width) for _ in range(blocks)),
            nn.GroupNorm(max(1, width // 16), width),
            nn.SiLU(),
            nn.Conv2d(width, 4 * channels * Logistic.outputs(LEVELS), 3, padding=1),
        )

    def posterior(self, x: Tensor) -> Normal:
        """q(z | x), (B, latent)."""
        mean, log_var = self.encoder(fold(2 * x, 2)).chunk(2, 1)
        return Normal(mean, log_var.clamp(-14, 4).exp())

    def values(self, z: Tensor) -> Logistic:
        """p(x | z), elementwise over (B, C, H, W)."""
        output = unfold(self.decoder(z), 2)
        return Logistic.of(output.unflatten(1, (self.shape[0], -1)).movedim(2, -1), LEVELS)

    def nats(self, x: Tensor, noise: Streams) -> Tensor:
        """The bound with one z of each stream, in nats an image, (B,)."""
        q = self.posterior(x)
        z = q.sample(noise.normal((self.latent,)).to(x.dtype))
        return q.kl(standard_normal_like(z)).sum(1) - self.values(z).log_prob(x).flatten(1).sum(1)

    def draw(self, noise: Streams) -> Tensor:
        """z from the prior, then every value from p(x | z)."""
        values = self.values(noise.normal((self.latent,)).float())
        return values.quantile(noise.uniform(self.shape).float().clamp(max=1 - torch.finfo(torch.float32).eps))

    def mean(self, noise: Streams) -> Tensor:
        """z from the prior, then the mean of p(x | z): what is often shown, and no sample of the model."""
        return self.values(noise.normal((self.latent,)).float()).mean.clamp(-1, 1)
