"""Whether a run has learned: did its loss fall, and does it code held-out images in fewer bits than a trivial model?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ancestral.data.dataset import ImageSet, Splits
from ancestral.data.lossless_files import sizes
from ancestral.data.pixels import to_unit
from ancestral.diffusion.denoisers.denoiser import Denoiser
from ancestral.diffusion.objectives.elbo import elbo
from ancestral.diffusion.objectives.statistics import Estimate, mean_and_error
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.samplers.transitions import fixedlarge
from ancestral.runs import build
from ancestral.runs.conditions import conditions_of
from ancestral.runs.config import Config
from ancestral.runs.open import device_of
from ancestral.runs.process_kinds import chain

IMAGES = 64  # held-out images, at most
MIN_IMAGES = 8  # of fewer the error itself is not known
TERMS = 10  # of the bound, an image
BATCH = 32
FITTED = 4096  # training images that the Gaussian is fitted to, at most
LEAST_VAR = (2 / 255) ** 2  # of the Gaussian: a pixel that never changes is known to one byte
TRIVIAL = {"gaussian": "a Gaussian for each pixel", "png": "PNG without its container"}


@dataclass(frozen=True)
class Compared:
    """The model and a trivial one on the same images; `more` is the mean of the images' differences, in bits/dim."""

    bits_per_dim: float
    more: Estimate

    @property
    def worse(self) -> bool:
        """Whether the model is the worse of the two by more than chance."""
        return self.more.value > 2 * self.more.error


@dataclass(frozen=True)
class Health:
    """What was measured at the end of a run; each part is None or empty where it cannot be measured."""

    loss_at_first: Estimate | None
    loss_at_last: Estimate | None
    images: int
    bits_per_dim: Estimate | None
    trivial: Mapping[str, Compared]

    @property
    def findings(self) -> list[str]:
        """What is wrong, a clause each."""
        found = []
        if self.loss_at_first is not None and self.loss_at_last is not None:
            first, last = self.loss_at_first, self.loss_at_last
            # What spreads the first losses is their fall, too: by chance a mean of them spreads as one of the last.
            if last.value > first.value - 2 * math.sqrt(2) * last.error:
                found.append(f"its loss never fell ({_format(first)} in the first fifth, {_format(last)} in the last)")
        for name, one in self.trivial.items():
            if one.worse and self.bits_per_dim is not None:
                found.append(
                    f"{self.images} held-out images cost {_format(self.bits_per_dim)} bits/dim, and by {TRIVIAL[name]} "
                    f"{one.bits_per_dim:.4g}, which is {_format(one.more)} less"
                )
        return found

    def to_json(self) -> dict[str, Any]:
        """As JSON; estimates as [value, standard error]."""
        return {**asdict(self), "findings": self.findings}


def _format(estimate: Estimate) -> str:
    return f"{estimate.value:.4g} ± {estimate.error:.2g}"


def health(
    config: Config, model: Denoiser, table: Tensor | None, images: Splits, log: Sequence[Mapping[str, Any]]
) -> Health:
    """Compare a trained model with the trivial ones on the same held-out images, and the ends of its log.

    A chain of fewer than 256 levels codes other pixels than the trivial ones do, and one without a bound codes none:
    there only the loss is compared.
    """
    first, last = ends([entry["loss"] for entry in log if entry["loss"] is not None])
    held_out = images.test.spread(IMAGES)
    if not calls(config, len(held_out)):
        return Health(first, last, 0, None, {})
    own = held_out_bits(config, model, table, held_out)
    files, container = sizes(held_out.images[:], "png")
    others = {
        "gaussian": gaussian_bits(images.train.spread(FITTED), held_out),
        "png": torch.from_numpy((files - container) * 8 / math.prod(held_out.shape)),
    }
    compared = {
        name: Compared(float(bits.mean()), Estimate(*mean_and_error(own - bits))) for name, bits in others.items()
    }
    return Health(first, last, len(held_out), Estimate(*mean_and_error(own)), compared)


def calls(config: Config, held_out: int) -> int:
    """How many predictions of an image `health` makes, with so many images held out."""
    if held_out < MIN_IMAGES or config.diffusion.levels != 256 or chain(config).bound_step is None:
        return 0
    return min(IMAGES, held_out) * min(TERMS, build.most_steps(config))


def ends(losses: Sequence[float]) -> tuple[Estimate | None, Estimate | None]:
    """The loss in the first and in the last fifth of a log; None where that is too short to say."""
    count = len(losses) // 5
    if count < 2:
        return None, None
    ordered = torch.tensor(losses, dtype=torch.float64)
    return Estimate(*mean_and_error(ordered[:count])), Estimate(*mean_and_error(ordered[-count:]))


def held_out_bits(config: Config, model: Denoiser, table: Tensor | None, held_out: ImageSet) -> Tensor:
    """The bound on each image in bits/dim, float64 (N,), by a few terms, with the run's own reverse step."""
    device, times = device_of(model), build.training_grid(config)
    assert chain(config).bound_step is not None, "asked of a run without a bound"
    step = build.own_step(config, fixedlarge if table is None else None)
    streams = build.streams(config, device)
    parts = []
    for start in range(0, len(held_out), BATCH):
        rows = np.arange(start, min(start + BATCH, len(held_out)))
        part = held_out.take(rows)
        measured = elbo(
            build.predictor(model, table, **conditions_of(part, config, device)),
            to_unit(part.images).to(device),
            times,
            step,
            streams(0, "health", range(start, start + len(rows))),
            terms=min(TERMS, len(times) - 1),
        )
        parts.append(measured.bits_per_dim)
    return torch.cat(parts)


def gaussian_bits(train: ImageSet, held_out: ImageSet) -> Tensor:
    """Bits/dim of each image, float64 (N,), by a Gaussian of each pixel's bytes in training images (Eq. 13)."""
    fitted = to_unit(train.images).double()
    each = Normal(fitted.mean(0), fitted.var(0, correction=0).clamp(min=LEAST_VAR))
    nats = -each.log_prob_coded(to_unit(held_out.images).double())
    return nats.flatten(1).mean(1) / math.log(2)
