"""Build the objects that a configuration names: process, network, optimiser, sampler, grids, objective."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ancestral.data import augmentation
from ancestral.diffusion.denoisers.calibrated import Calibrated
from ancestral.diffusion.denoisers.denoiser import Conditioned, Denoiser, Predictor
from ancestral.diffusion.objectives.losses import OBJECTIVES, Networks
from ancestral.diffusion.objectives.objective import Objective
from ancestral.diffusion.objectives.time_sampling import TIME_SAMPLERS
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.noise_schedule import NoiseSchedule
from ancestral.diffusion.processes.philox import PhiloxStreams
from ancestral.diffusion.processes.schedules import SCHEDULES, from_betas
from ancestral.diffusion.processes.streams import OpenStreams, Streams
from ancestral.diffusion.samplers.grids import GRIDS, full, log_snr, trailing
from ancestral.diffusion.samplers.solvers import SOLVERS
from ancestral.diffusion.samplers.transitions import (
    DDIM,
    VARIANCES,
    Ancestral,
    Planned,
    Transition,
    Variance,
    fixedsmall,
    learned,
    optimal,
)
from ancestral.errors import UserError
from ancestral.networks import ema
from ancestral.networks.critic import Critic
from ancestral.networks.muon import Muon
from ancestral.networks.unet import UNet
from ancestral.networks.unet_layers import UNetVariant
from ancestral.runs import checkpoint, conditions
from ancestral.runs.config import Config, ModelOptions, TrainOptions
from ancestral.runs.facts import Facts
from ancestral.runs.process_kinds import FEW_CALLS, chain, denoiser_of, has_noise
from ancestral.runs.registry import choose
from ancestral.runtime.launch import local_rank
from ancestral.runtime.tensor_files import fitting

WITHOUT_NAME = "betas"  # the schedule that is a vector of its own, `diffusion.betas`
AUXILIARY_RATE = 0.5  # of the network's learning rate, for one that learns beside it
OPTIMIZERS: dict[str, type[torch.optim.AdamW]] = {"adamw": torch.optim.AdamW, "muon": Muon}


def schedule(config: Config) -> NoiseSchedule:
    """The forward process.

    Raises:
        UserError: for an unknown name, or betas that are none or not T of them.
    """
    options, kind = config.diffusion, chain(config)
    betas = options.betas
    if betas and (options.schedule != WITHOUT_NAME or len(betas) != options.T):
        raise UserError(
            f"diffusion.betas: has {len(betas)} entries, for diffusion.schedule={WITHOUT_NAME} and as many "
            f"diffusion.T; these are {options.schedule} and {options.T}"
        )
    try:
        if not betas:
            made = choose(SCHEDULES, options.schedule, "diffusion.schedule")(options.T)
        else:
            made = from_betas(torch.tensor(betas, dtype=torch.float64))
    except ValueError as error:
        raise UserError(f"diffusion.{'betas' if betas else 'T'}: {error}") from None
    shift = 1.0 if options.shift == "auto" else options.shift  # auto: of images that nobody has seen yet
    if shift != 1 and not has_noise(config):
        raise UserError(
            f"diffusion.shift: diffusion.chain={options.chain} hides places and adds no noise; leave it out"
        )
    return kind.process(made if shift == 1 else made.shifted(shift), options)


def time_schedule(config: Config) -> NoiseSchedule:
    """The schedule by whose noise times are drawn in training: without `diffusion.shift`, which changes no share."""
    return schedule(replace(config, diffusion=replace(config.diffusion, shift=1.0)))


def gaussian(config: Config) -> Gaussian:
    """The forward process of a run with Gaussian noise."""
    made = schedule(config)
    assert isinstance(made, Gaussian), "asked of a run that hides pixels"
    return made


def variant(options: ModelOptions) -> UNetVariant:
    """The network's details."""
    return UNetVariant(**{field.name: getattr(options, field.name) for field in fields(UNetVariant)})


def _check_groups(config: Config) -> None:
    """Refuse widths that round to nothing, and groups that do not divide them."""
    options = config.model
    for multiplier, channels in zip(options.multipliers, options.widths, strict=True):
        if not channels:
            raise UserError(f"model.multipliers: {multiplier:g} of a model.width of {options.width} is no channel")
        if options.groups and channels % options.groups:
            raise UserError(
                f"model.groups: {options.groups} do not divide the {channels} channels of a level; use one that does, "
                "or leave it out"
            )


def network(config: Config, facts: Facts) -> UNet:
    """A new network for images of this shape.

    Raises:
        UserError: for sides that do not divide, levels or labels that are not there.
    """
    options = config.model
    channels, height, width = facts.shape
    conditions.need_conditions(config, facts)
    wrong = [level for level in options.attention if not 0 <= level < len(options.multipliers)]
    if wrong:
        raise UserError(
            f"model.attention: there is no level {wrong[0]}; levels are 0 to {len(options.multipliers) - 1}"
        )
    details = variant(options)
    _check_groups(config)
    inputs, outputs = chain(config).channels(channels, config.diffusion)
    unet = UNet(
        inputs,
        outputs,
        width=options.width,
        multipliers=options.multipliers,
        blocks=options.blocks,
        attention=options.attention,
        dropout=options.dropout,
        patch=options.patch,
        recompute=config.train.recompute,
        variant=details,
        null=options.condition_dropout > 0,
        **_condition_sizes(config, facts),
    )
    if height % unet.divisor or width % unet.divisor:
        below = min(height, width) // unet.divisor * unet.divisor
        sizes = f"{below} or {below + unet.divisor}" if below else str(unet.divisor)
        raise UserError(
            f"images of {height}x{width} do not divide by {unet.divisor} = model.patch * 2^(levels-1); "
            f"use fewer model.multipliers, or --size {sizes} (data.size)"
        )
    return unet


def denoiser(config: Config, facts: Facts) -> Denoiser:
    """A new network in its setting.

    Raises:
        UserError: for unknown names, or a target that the schedule does not allow; and as `network`.
    """
    return setting(config, facts, network(config, facts))


def setting(config: Config, facts: Facts, network: nn.Module) -> Denoiser:
    """A network in its setting."""
    return denoiser_of(network, schedule(config), config, facts)


def critic(config: Config, facts: Facts) -> Critic:
    """A new critic of images of this shape, under the conditions of the network."""
    if min(facts.shape[1:]) < 2:
        raise UserError(
            f"diffusion.objective: the critic of adversarial halves images, and these are {facts.shape[1]}x"
            f"{facts.shape[2]}; use consistency"
        )
    return Critic(facts.shape, **_condition_sizes(config, facts))


def _condition_sizes(config: Config, facts: Facts) -> dict[str, int]:
    """How many classes, and how long the vectors, that the networks of a run are conditioned on; 0 for none."""
    return {
        "classes": len(facts.class_names) if config.model.labels else 0,
        "embedding": facts.embedding if config.model.embedding else 0,
        "augmentation": augmentation.LENGTH if config.train.augment else 0,
    }


def auxiliary_optimizer(network: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Of a network that learns beside the denoiser's: with little momentum, as what it learns about moves on."""
    return torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.5, 0.99), weight_decay=0.0, fused=True)


def optimizer(network: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """The optimiser of all weights.

    Raises:
        UserError: for Muon on weights that are divided among processes.
    """
    chosen = choose(OPTIMIZERS, options.optimizer, "train.optimizer")
    if chosen is Muon and options.parallel == "fsdp":
        raise UserError(
            "train.optimizer: muon needs whole matrices and fsdp divides them; use adamw, or train.parallel=ddp"
        )
    # Fused: one pass over each tensor, on a CPU a fifth of the time.
    return chosen(
        network.parameters(),
        lr=options.learning_rate,
        betas=(0.9, options.beta2),
        weight_decay=options.weight_decay,
        fused=True,
    )


STREAMS: dict[str, Callable[[torch.device], OpenStreams]] = {
    "numpy": lambda device: Streams,
    "philox": lambda device: partial(PhiloxStreams, device=device),
}


def streams(config: Config, device: torch.device | str = "cpu") -> OpenStreams:
    """The random streams of a run; those that can are drawn on the device.

    Raises:
        UserError: for unknown ones.
    """
    return choose(STREAMS, config.train.stream, "train.stream")(torch.device(device))


def method(
    saved: checkpoint.Checkpoint, solver: str | None, variance: str | None, eta: float | None
) -> Transition | Planned:
    """The named solver; DDIM where an eta is given; otherwise ancestral with the named variance, or the run's own.

    Raises:
        UserError: as `transition`, and for an unknown solver.
    """
    if solver is not None:
        _refuse_other_steps(saved, "--solver")
        return choose(SOLVERS, solver, "--solver")
    if eta is not None:
        _refuse_other_steps(saved, "--eta")
    return transition(saved, variance) if eta is None else DDIM(eta)


def transition(saved: checkpoint.Checkpoint, variance: str | None) -> Transition:
    """The ancestral step with the named variance, or the run's own.

    Raises:
        UserError: for an unknown variance, or one that this run has not learned or measured.
    """
    if variance is not None:
        _refuse_other_steps(saved, "--variance")
    own = own_step(saved.config, None)
    chosen = own if variance is None else Ancestral(choose(VARIANCES, variance, "--variance"))
    if chosen == Ancestral(learned) and own != chosen:
        raise UserError("--variance: 'learned' needs a network with 2C output channels (diffusion.variance=learned)")
    if chosen == Ancestral(optimal) and saved.calibration is None:
        raise UserError(
            "--variance: 'optimal' is measured when training ends; this run has not, so use fixedsmall or fixedlarge"
        )
    return chosen


def own_step(config: Config, instead: Variance | None) -> Transition:
    """The reverse step of a configuration: the only one of its chain, or the ancestral one with its variance.

    Args:
        config: names the chain and the variance.
        instead: the variance in place of `optimal` where the model's error has not been measured; None where it has.

    Raises:
        UserError: for an unknown variance.
    """
    if (only := chain(config).only_step) is not None:
        return only
    variance = choose(VARIANCES, config.diffusion.variance, "diffusion.variance")
    return Ancestral(instead if variance is optimal and instead is not None else variance)


def _refuse_other_steps(saved: checkpoint.Checkpoint, option: str) -> None:
    if chain(saved.config).only_step is not None:
        raise UserError(f"{option}: a run of chain '{saved.config.diffusion.chain}' has one reverse step; leave it out")


def training_grid(config: Config) -> list[int]:
    """The times that are trained at."""
    steps = config.diffusion.train_steps
    noise_schedule = schedule(config)
    return full(noise_schedule) if steps is None else _grid(trailing, noise_schedule, steps, "diffusion.train_steps")


def most_steps(config: Config) -> int:
    """Of the walk over all times that are trained at."""
    return config.diffusion.train_steps or config.diffusion.T


def sampling_grid(config: Config, name: str, steps: int | None) -> list[int]:
    """The named grid with so many steps, or every time that was trained at.

    A model that was trained at some times only is sampled at evenly chosen ones of these, whatever the grid.

    Raises:
        UserError: for an unknown grid, or more steps than there are.
    """
    times = training_grid(config)
    if steps is None:
        return times
    make = choose(GRIDS, name, "--grid")
    if config.diffusion.train_steps is None:
        return _grid(make, schedule(config), steps, "--steps")
    only = FEW_CALLS.get(config.diffusion.objective)
    if only is not None and only.counted and steps != len(times) - 1:
        raise UserError(
            f"--steps: the model was tuned to draw in {len(times) - 1}, and in no other number; leave it out, or use "
            f"ancestral distill MODEL --calls {steps}"
        )
    if steps >= len(times):
        raise UserError(f"--steps: the model was trained at {len(times) - 1} times, so that is the most, got {steps}")
    return [*(times[round(index * (len(times) - 1) / steps)] for index in range(steps)), 0]


def spread_times(config: Config, count: int) -> list[int]:
    """At most so many of the times that are trained at, evenly spread in log SNR; falling, without 0."""
    trained = training_grid(config)[:-1]
    if len(trained) <= count:
        return trained
    wanted = log_snr(schedule(config), count)[:-1]
    if config.diffusion.train_steps is None:  # all are trained at
        return wanted
    return sorted({min(trained, key=lambda one: abs(one - t)) for t in wanted}, reverse=True)


def _grid(
    make: Callable[[NoiseSchedule, int], list[int]], noise_schedule: NoiseSchedule, steps: int, field: str
) -> list[int]:
    try:
        return make(noise_schedule, steps)
    except ValueError as error:
        raise UserError(f"{field}: {error}") from None


def objective(config: Config, facts: Facts, terms: int) -> Objective:
    """The training loss. The bound needs a variance that does not itself need a trained model."""
    make = choose(OBJECTIVES, config.diffusion.objective, "diffusion.objective")
    choose(TIME_SAMPLERS, config.diffusion.times, "diffusion.times")
    few = FEW_CALLS.get(config.diffusion.objective)
    if few is not None and few.only and config.diffusion.times not in (few.times, "uniform"):
        raise UserError(
            f"diffusion.times: objective '{config.diffusion.objective}' chooses its own few times from evenly drawn "
            f"ones; use {few.times} or uniform"
        )
    variance = choose(VARIANCES, config.diffusion.variance, "diffusion.variance")
    beside = Networks(partial(critic, config, facts), partial(network, config, facts))
    loss = make(own_step(config, fixedsmall), terms, beside)
    if variance is learned and not loss.teaches_variance:
        raise UserError("diffusion.variance: 'learned' is not taught by this objective; use diffusion.objective=hybrid")
    return loss


def device(name: str) -> torch.device:
    """The device of that name; 'auto' takes the fastest present, and 'cuda' is this process's own.

    Raises:
        UserError: when it is unknown or not here.
    """
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    here = [kind for kind, count in counts.items() if count]
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] # of Python's callers
        raise UserError(f"--device: must be a text, got {name!r}; choose from: auto, {', '.join(here)}")
    kind, _, number = (here[0] if name == "auto" else name).partition(":")
    if kind == "cuda":
        number = number or str(local_rank())  # as torchrun numbers the processes of a machine
    if kind not in here or number not in ("", *map(str, range(counts[kind]))):
        asked = f"{kind}:{number}" if number else kind
        raise UserError(f"--device: '{asked}' is not available here; choose from: auto, {', '.join(here)}")
    if kind != "cuda":
        return torch.device(kind)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for train.deterministic; read at the first product
    return torch.device(kind, int(number))


def ready(config: Config, facts: Facts, weights: Mapping[str, torch.Tensor]) -> Denoiser:
    """A model with these weights, in evaluation mode.

    Raises:
        RuntimeError: when they are of another network.
    """
    model = denoiser(config, facts)
    model.network.load_state_dict(weights)
    return model.eval().requires_grad_(requires_grad=False)


def trained(saved: checkpoint.Checkpoint, run: Path, on: torch.device, average_width: float | None = None) -> Denoiser:
    """The model of a checkpoint, in evaluation mode; with its weights averaged over another width if asked.

    Raises:
        UserError: when the weights do not fit the configuration.
    """
    with torch.device("meta"):
        expected = network(saved.config, saved.facts).state_dict()
    weights = fitting(saved.weights, expected, str(saved.folder / "model.safetensors"))
    if average_width is not None:
        try:
            snapshots = checkpoint.load_snapshots(run, saved)
            weights = ema.rebuild(snapshots, average_width)
        except ValueError as error:
            raise UserError(f"--average-width: {error}") from None
    return ready(saved.config, saved.facts, weights).to(on)


def drawing(model: Denoiser, config: Config, move: Transition | Planned) -> Denoiser:
    """The model as images are drawn from it by this step, where no clip is named.

    The paper's step and those of models for few calls see x0 as the run clips it. For all others that is one more
    error of the flow (`benchmarks/log.md`, 2026-11-30), and is left out where the target bounds x0 by itself.
    """
    free = chain(config).only_step is None and not isinstance(move, Ancestral)
    return model.unclipped if free and model.target.bounds_x0(model.schedule) else model


def predictor(model: Denoiser, calibration: torch.Tensor | None, **cond: torch.Tensor) -> Predictor:
    """The model under these conditions, with its own error where that was measured."""
    conditioned = Conditioned(model, **cond)
    return conditioned if calibration is None else Calibrated(conditioned, calibration)
