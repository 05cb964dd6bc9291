"""Checks of models from elsewhere: names and shapes fit the configuration, weights are finite, the network runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ancestral.errors import UserError
from ancestral.runs import build
from ancestral.runs.checkpoint import CALIBRATION, Checkpoint
from ancestral.runs.conditions import blank
from ancestral.runs.config import Config
from ancestral.runs.facts import Facts
from ancestral.runs.process_kinds import chain, denoiser_of
from ancestral.runtime.tensor_files import Tensors, finite, fitting

LARGEST = 1e6  # size of a weight


def tensors_of(config: Config, facts: Facts, where: Path) -> Tensors:
    """The tensors of the network without their values, for which no memory is taken.

    Raises:
        UserError: when there is no such network, or not for this process.
    """
    try:
        with torch.device("meta"):
            network = build.network(config, facts)
        denoiser_of(network, build.schedule(config), config, facts)  # a target that the schedule allows
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (ValueError, RuntimeError, ArithmeticError, MemoryError, TypeError) as error:
        raise UserError(f"{where}: no network can be built from it ({_line(error)})") from None
    return network.state_dict()


def need_plausible(tensors: Mapping[str, Tensor], where: Path) -> None:
    """Refuse weights that no training gives: where nothing carries a digest, all that shows a flipped exponent."""
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise UserError(f"{where}: {name} holds {value.dtype}, and weights are real numbers")
        if value.numel() and (largest := float(value.double().abs().max())) > LARGEST:
            raise UserError(f"{where}: damaged? {name} holds {largest:.3g}, and weights lie within {LARGEST:.0e}")


def passed(saved: Checkpoint) -> Checkpoint:
    """The same model, whose network was built and called once on the smallest image that it takes.

    Raises:
        UserError: when its tensors are not those of its configuration, or it cannot be built or computes no numbers.
    """
    config, facts, where = saved.config, saved.facts, saved.folder
    weights = str(where / "model.safetensors")
    finite(fitting(saved.weights, tensors_of(config, facts, where), weights), weights)
    if saved.calibration is not None:
        finite({"x0_var": saved.calibration}, str(where / CALIBRATION))
    channels, *sides = facts.shape
    taken = chain(config).channels(channels, config.diffusion)[0]
    cond = blank(config, facts, 1)
    try:
        network = build.ready(config, facts, saved.weights).network
        small = [min(side, 2 * config.model.patch * 2 ** (len(config.model.multipliers) - 1)) for side in sides]
        with torch.no_grad():
            output = network(torch.zeros(1, taken, *small), torch.ones(1), **cond)
    except (ValueError, RuntimeError, ArithmeticError, MemoryError, TypeError) as error:
        raise UserError(f"{where}: the network cannot be called ({_line(error)})") from None
    finite({"the network's output": output}, str(where))
    return saved


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
