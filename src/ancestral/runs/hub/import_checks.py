"""Checks of models from elsewhere: names and shapes fit the configuration, weights are finite, the network runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ancestral.diffusion.denoisers.calibrated import X0_EDGES
from ancestral.errors import UserError
from ancestral.runs import build
from ancestral.runs.checkpoint import Checkpoint
from ancestral.runs.config import Config
from ancestral.runs.facts import Facts
from ancestral.runs.process_kinds import chain

LARGEST = 1e6  # size of a weight
Shapes = Mapping[str, tuple[int, ...]]


def shapes(config: Config, facts: Facts, where: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of the network, for which no memory is taken.

    Raises:
        UserError: when there is no such network, or not for this process.
    """
    try:
        with torch.device("meta"):
            network = build.network(config, facts)
        chain(config).denoiser(network, build.schedule(config), config, facts)  # a target that the schedule allows
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (ValueError, RuntimeError, ArithmeticError, MemoryError, TypeError) as error:
        raise UserError(f"{where}: no network can be built from it ({_line(error)})") from None
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def need_same(expected: Shapes, found: Shapes, where: Path) -> None:
    """Refuse tensors that are absent, unknown or of another shape."""
    for name, shape in expected.items():
        if name not in found:
            raise UserError(f"{where}: has no tensor {name}; is it the network of its config.json?")
        if found[name] != shape:
            raise UserError(f"{where}: {name} has shape {found[name]}, that of config.json is {shape}")
    if unknown := sorted(found.keys() - expected.keys()):
        raise UserError(f"{where}: unknown tensor {unknown[0]}; is it the network of its config.json?")


def need_numbers(tensors: Mapping[str, Tensor], where: Path) -> None:
    """Refuse tensors that are not of finite real numbers."""
    for name, value in tensors.items():
        if not value.is_floating_point() or not value.isfinite().all():
            raise UserError(f"{where}: {name} holds values that are no finite real numbers")


def need_plausible(tensors: Mapping[str, Tensor], where: Path) -> None:
    """Refuse weights that no training gives: where nothing carries a digest, all that shows a flipped exponent."""
    for name, value in tensors.items():
        if value.numel() and (largest := float(value.abs().max())) > LARGEST:
            raise UserError(f"{where}: damaged? {name} holds {largest:.3g}, and weights lie within {LARGEST:.0e}")


def passed(saved: Checkpoint) -> Checkpoint:
    """The same model, whose network was built and called once on the smallest image that it takes.

    Raises:
        UserError: when its tensors are not those of its configuration, or it cannot be built or computes no numbers.
    """
    config, facts, where = saved.config, saved.facts, saved.folder
    weights = where / "model.safetensors"
    found = {name: tuple(value.shape) for name, value in saved.weights.items()}
    need_same(shapes(config, facts, where), found, weights)
    need_numbers(saved.weights, weights)
    if saved.calibration is not None:
        table = {"x0_var": saved.calibration}
        need_same(
            {"x0_var": (config.diffusion.T + 1, len(X0_EDGES) + 1)},
            {"x0_var": tuple(table["x0_var"].shape)},
            where / "calibration.safetensors",
        )
        need_numbers(table, where / "calibration.safetensors")
    channels, *sides = facts.shape
    taken = chain(config).channels(channels, config.diffusion)[0]
    cond = {"labels": torch.zeros(1, dtype=torch.long)} if config.model.labels else {}
    cond |= {"embedding": torch.zeros(1, facts.embedding)} if config.model.embedding else {}
    try:
        network = build.ready(config, facts, saved.weights).network
        small = [min(side, 2 * config.model.patch * 2 ** (len(config.model.multipliers) - 1)) for side in sides]
        with torch.no_grad():
            output = network(torch.zeros(1, taken, *small), torch.ones(1), **cond)
    except (ValueError, RuntimeError, ArithmeticError, MemoryError, TypeError) as error:
        raise UserError(f"{where}: the network cannot be called ({_line(error)})") from None
    need_numbers({"the network's output": output}, where)
    return saved


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
