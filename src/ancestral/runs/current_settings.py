"""What the settings of a command are for the run that is there, and for the device that computes."""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from ancestral.errors import UserError
from ancestral.runs import checkpoint
from ancestral.runs.config import LARGEST_SHIFT, Config, from_json
from ancestral.runs.config_versions import variance_as_begun
from ancestral.runs.facts import Facts
from ancestral.runs.process_kinds import has_noise
from ancestral.runtime import disk

ACCELERATED = {"stream": "philox", "precision": "auto", "channels_last": "auto", "workers": 4, "parallel": "auto"}
OF_THE_MACHINE = ("workers", "parallel")
USUAL = 32


def as_begun(
    settings: Config, given: Collection[str], device: torch.device, folder: Path | None
) -> tuple[Config, Config | None, str]:
    """The settings as the run in a folder was begun with them, its own, and a line where one has another name now.

    Args:
        settings: of a preset, with those that were set one by one.
        given: keys of these.
        device: that computes.
        folder: of the run, which resuming checks later; None for a new one.
    """
    begun, line = None, ""
    with suppress(UserError):
        if folder is not None:
            # A run whose moving aside was cut off, or of which only checkpoints were kept, has it in these.
            kept = [folder, *reversed(checkpoint.folders(folder))]
            path = next(
                (one / "config.json" for one in kept if (one / "config.json").is_file()), folder / "config.json"
            )
            document, asked = disk.document(path, float), settings.diffusion.variance
            variance = variance_as_begun(asked, document.get("config") if isinstance(document, dict) else None)
            if variance != asked:
                settings = replace(settings, diffusion=replace(settings.diffusion, variance=variance))
                was = f"when {folder} was begun, this was what is called {variance} now"
                line = f"diffusion.variance={asked}: {was}; it goes on so"
            begun = from_json(document, str(path))[0]
    return for_device(settings, given, device, begun), begun, line


def for_images(settings: Config, facts: Facts, begun: Config | None) -> tuple[Config, str]:
    """The settings with the noise of images of this size, where it is `auto`, and a line where it is another.

    A run goes on with what it began with. The schedules were chosen for images of USUAL pixels a side
    (benchmarks/log.md, 2026-11-30).
    """
    if settings.diffusion.shift != "auto":
        return settings, ""
    _, height, width = facts.shape
    if begun is not None:
        shift, why = begun.diffusion.shift, "as the run was begun"
    elif has_noise(settings):
        shift = min(LARGEST_SHIFT, max(1.0, round(math.sqrt(height * width) / USUAL, 3)))
        why = f"the noise of images of {height}x{width}"
    else:
        shift, why = 1.0, ""
    line = f"diffusion.shift = auto: {shift}, {why}" if shift != 1 else ""
    return replace(settings, diffusion=replace(settings.diffusion, shift=shift)), line


def for_device(settings: Config, given: Collection[str], device: torch.device, begun: Config | None) -> Config:
    """The settings with those of an accelerator in place of a preset's; a run goes on with what it began with."""
    own = {
        name: value
        for name, value in ACCELERATED.items()
        if f"train.{name}" not in given
        and (device.type != "cpu" if begun is None or name in OF_THE_MACHINE else getattr(begun.train, name) == value)
    }
    return replace(settings, train=replace(settings.train, **own))
