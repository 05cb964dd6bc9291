"""The model's own squared error, measured on training images."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ancestral.data.dataset import ImageSet
from ancestral.data.pixels import to_unit
from ancestral.diffusion.denoisers.denoiser import Denoiser, InParts, Watched, images_per_call
from ancestral.diffusion.objectives.calibration import POINTS, calibrate
from ancestral.diffusion.processes.types import Advance, no_advance
from ancestral.runs import build
from ancestral.runs.checkpoint import Checkpoint
from ancestral.runs.conditions import conditions_of
from ancestral.runs.config import Config
from ancestral.runs.open import device_of
from ancestral.runs.process_kinds import chain
from ancestral.runtime.console import advancing

MOST_IMAGES = 32  # predicted in one call of the network: less memory than training takes
CALIBRATED = 128  # training images on which the model's own error is measured


def calibration(
    config: Config,
    shown: Denoiser,
    train_images: ImageSet,
    device: torch.device,
    advance: Advance = no_advance,
    count: int = CALIBRATED,
) -> Tensor | None:
    """The model's own squared error, measured on so many training images (`calibrate`); None where it has no use.

    `advance` gets the number of images of each call of the network.
    """
    if not chain(config).calibrated:
        return None
    images = train_images.spread(count)
    cond, streams = conditions_of(images, config, device), build.streams(config, device)
    watched = Watched(InParts(shown, images_per_call(MOST_IMAGES, *images.shape[:2]), **cond), advance)
    x0, noise = to_unit(images.images).to(device), streams(0, "calibrate", range(len(images)))
    return calibrate(watched, x0, noise, build.spread_times(config, POINTS))


def calls(config: Config) -> int:
    """How often `calibration` predicts an image."""
    return len(build.spread_times(config, POINTS)) if chain(config).calibrated else 0


def calibrated(saved: Checkpoint, model: Denoiser, train_images: ImageSet) -> Checkpoint:
    """The checkpoint with the model's own error, measured now where that was not done."""
    if saved.calibration is not None:
        return saved
    with advancing("calibrating the variances", CALIBRATED * calls(saved.config)) as advance:
        return replace(saved, calibration=calibration(saved.config, model, train_images, device_of(model), advance))
