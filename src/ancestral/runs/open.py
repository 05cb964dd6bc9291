"""Open a run for use: its newest whole checkpoint, its model, its device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ancestral.diffusion.denoisers.denoiser import Denoiser
from ancestral.diffusion.processes.normal import widest
from ancestral.runs import build, checkpoint, process_kinds
from ancestral.runtime.console import screen

Opener = Callable[[Path, str, float | None], tuple[checkpoint.Checkpoint, Denoiser]]  # as `open_model`


def open_model(folder: Path, device: str, average_width: float | None) -> tuple[checkpoint.Checkpoint, Denoiser]:
    """The newest whole checkpoint of a run and its model."""
    saved = newest_whole(folder)
    return saved, build.trained(saved, folder, build.device(device), average_width)


def newest_whole(folder: Path) -> checkpoint.Checkpoint:
    """The newest whole checkpoint of a run; says which damaged ones were passed over."""
    saved, problems = checkpoint.open_run(folder)
    for problem in problems:
        screen.print(f"warning: {problem}; the checkpoint before it is used")
    return saved


def open_gaussian(folder: Path, device: str, average_width: float | None) -> tuple[checkpoint.Checkpoint, Denoiser]:
    """As `open_model`, but a run with Gaussian noise."""
    saved, model = open_model(folder, device, average_width)
    process_kinds.need_gaussian(saved.config, str(folder))
    return saved, model


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a network's weights are."""
    return next(model.parameters()).device


def state_type(model: torch.nn.Module) -> torch.dtype:
    """The type of the states of a walk: float64 where the device has it."""
    return widest(device_of(model))
