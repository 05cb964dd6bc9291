"""A generative adversarial network (Goodfellow et al. 2014), laid out as DCGAN (Radford et al. 2016).

The critic has spectral norms (Miyato et al. 2018) and learns by the hinge loss (Lim and Ye 2017). There is no
likelihood: only a map from noise to images, and a critic that tells them from real ones while it trains.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from ancestral.diffusion.processes.streams import Streams
from ancestral.networks.unet_layers import unfold
from baselines.training import Lowered, step

LATENT = 64
WIDTH = 48  # channels at half the images' side
BETAS = (0.5, 0.99)


class Generator(nn.Module):
    """N(0, I) of 64 dimensions to images; sides must divide by 4. shape: (C, H, W)."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        self.net = Lowered(
            nn.Linear(LATENT, 4 * WIDTH * height * width // 16, bias=False),
            nn.Unflatten(1, (4 * WIDTH, height // 4, width // 4)),
            nn.BatchNorm2d(4 * WIDTH),
            nn.ReLU(),
            nn.ConvTranspose2d(4 * WIDTH, 2 * WIDTH, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * WIDTH),
            nn.ReLU(),
            nn.Conv2d(2 * WIDTH, WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
            nn.Conv2d(WIDTH, 4 * channels, 3, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        """(B, 64) to (B, C, H, W) on [-1, 1]."""
        return unfold(self.net(z), 2).tanh()

    def draw(self, noise: Streams) -> Tensor:
        """An image of each stream."""
        return self(noise.normal((LATENT,)).float())


def critic(shape: tuple[int, int, int]) -> nn.Module:
    """Images to a score (B, 1), high for real ones; each layer's largest singular value is 1."""
    channels, height, width = shape
    layers = (
        spectral_norm(nn.Conv2d(4 * channels, WIDTH, 3, padding=1)),
        spectral_norm(nn.Conv2d(WIDTH, 2 * WIDTH, 4, 2, 1)),
        spectral_norm(nn.Conv2d(2 * WIDTH, 4 * WIDTH, 3, padding=1)),
    )
    out = spectral_norm(nn.Linear(4 * WIDTH * height * width // 16, 1))
    activated = (one for layer in layers for one in (layer, nn.LeakyReLU(0.2)))
    return Lowered(nn.PixelUnshuffle(2), *activated, nn.Flatten(), out)


class Adversarial:
    """Both in turns: an update of the critic, then one of the generator through it, on the same drawn images."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.network, self.critic = Generator(shape), critic(shape)
        self.parts = nn.ModuleList([self.network, self.critic])
        self.optimizers = [torch.optim.Adam(one.parameters(), betas=BETAS, fused=True) for one in self.parts]

    def update(self, x: Tensor, noise: Streams, rate: float) -> None:
        """E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))] of the critic, then -E[D(G(z))] of the generator."""
        drawn = self.network.draw(noise)
        self.optimizers[1].zero_grad()
        real, false = self.critic(torch.cat([x, drawn.detach()])).chunk(2)
        (functional.relu(1 - real).mean() + functional.relu(1 + false).mean()).backward()
        step(self.optimizers[1], rate)
        self.optimizers[0].zero_grad()
        self.critic.requires_grad_(False)
        (-self.critic(drawn).mean()).backward()
        self.critic.requires_grad_(True)
        step(self.optimizers[0], rate)
