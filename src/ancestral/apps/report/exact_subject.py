"""An exact subject for a report without a run: drawn shapes with noise on them, whose denoiser is known in closed form.

x0 ~ (1/K) sum_k N(shape_k, spread^2 I), rounded to bytes
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ancestral.apps.report.subject import Subject
from ancestral.data.dataset import ImageSet, Splits
from ancestral.data.pixels import to_bytes, to_unit
from ancestral.diffusion.denoisers.analytic import Mixture
from ancestral.diffusion.denoisers.denoiser import Prediction, predict
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.processes.types import Time
from ancestral.diffusion.samplers.transitions import Ancestral, optimal
from ancestral.errors import UserError
from ancestral.runs import build, config

SIDE, LIMIT, SPREAD = 16, 0.7, 0.08  # values beyond [-1, 1], which bytes have not, are 3.75 spreads away
TRAIN, TEST = 1024, 256


def shapes() -> Tensor:
    """Rings, discs, crosses and bars in several places, (K, 1, SIDE, SIDE) on [-LIMIT, LIMIT]."""
    down, across = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    drawn = []
    for y in (5.5, 8.0, 10.5):
        for x in (5.5, 8.0, 10.5):
            far = np.hypot(down - y, across - x)
            near = np.maximum(abs(down - y), abs(across - x)) <= 4
            drawn += [
                1.0 - np.clip(abs(far - 3.6) - 0.5, 0, 1),
                np.clip(3.9 - far, 0, 1),
                near * (np.minimum(abs(down - y), abs(across - x)) <= 1.0),
                near * (abs((down - y) - (across - x)) <= 1.5),
                near * (abs(down - y) <= 1.5),
            ]
    return torch.from_numpy(np.stack(drawn))[:, None] * 2 * LIMIT - LIMIT


class Shapes:
    """The exact predictor of the shapes, for images (B, 1, H, W)."""

    def __init__(self, schedule: Gaussian) -> None:
        means = shapes().flatten(1)
        self.schedule, self.mixture = schedule, Mixture(schedule, means, torch.full((len(means),), SPREAD**2).double())

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        """E[x0 | x_t] and Var[x0 | x_t]."""
        flat = self.mixture(x_t.flatten(1).double(), t)
        assert flat.x0_var is not None
        x0, x0_var = (one.reshape(x_t.shape).to(x_t) for one in (flat.x0, flat.x0_var))
        return predict(x0, x_t, self.schedule, t, x0_var=x0_var)

    def log_prob(self, x0: Tensor) -> Tensor:
        """Log probability of byte images (B, 1, H, W) on [-1, 1], nats (B,): the density integrated over each bin."""
        means = self.mixture.means
        bins = Normal(means, torch.full_like(means, SPREAD**2))
        each = [bins.log_prob_byte(one.expand_as(means)).sum(1) for one in x0.flatten(1).double()]
        return (self.mixture.log_weights + torch.stack(each)).logsumexp(1)

    def images(self, purpose: str, count: int, seed: int) -> ImageSet:
        """So many images drawn from it, each a function of the seed, the purpose and its number."""
        noise, means = Streams(seed, purpose, range(count)), self.mixture.means
        chosen = means[(noise.uniform() * len(means)).long()]
        x0 = chosen + SPREAD * noise.normal(means.shape[1:])
        pixels = to_bytes(x0.reshape(-1, 1, SIDE, SIDE))
        return ImageSet(pixels, None, (), tuple(f"{purpose} {number}" for number in range(count)))

    def splits(self, seed: int) -> Splits:
        """Images for both sides."""
        return Splits(self.images("train", TRAIN, seed), self.images("test", TEST, seed))


def exact(num_images: int, seed: int) -> Subject:
    """Drawn shapes whose denoiser is known in closed form; nothing is trained."""
    if num_images > TEST:
        raise UserError(f"--num-images: at most {TEST} without RUN, as so many shapes are held out; got {num_images}")
    options = config.resolve("shapes", "tiny", {})
    shapes = Shapes(build.gaussian(options))
    return Subject(
        title="exact shapes",
        run=None,
        saved=None,
        config=options,
        images=shapes.splits(seed),
        source="shapes",
        move=Ancestral(optimal),
        variance="optimal",
        conditioned=lambda shown: shapes,
        model=None,
        log_prob=lambda shown: shapes.log_prob(to_unit(shown.images)),
        drawn=lambda numbers, move: shapes,
        alike=lambda numbers, move: shapes,
        num_images=num_images,
        seed=seed,
        average_width=None,
        device=torch.device("cpu"),
        dtype=torch.float64,
    )
