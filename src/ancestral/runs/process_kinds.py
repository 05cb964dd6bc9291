"""Registry of diffusion processes: all that differs between the Gaussian one and the absorbing ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from ancestral.diffusion.denoisers.denoiser import CLIPS, CLOCKS, Denoiser, within
from ancestral.diffusion.denoisers.masked import Masked
from ancestral.diffusion.denoisers.targets import TARGETS
from ancestral.diffusion.objectives.autoregressive import from_p, imagined_costs
from ancestral.diffusion.processes.absorbing import Absorbing, Independent
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.levels import VALUES
from ancestral.diffusion.processes.noise_schedule import NoiseSchedule
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.grid_search import Search, by_ends, shortest
from ancestral.diffusion.samplers.loop import Draw, from_model
from ancestral.diffusion.samplers.reveal import Reveal
from ancestral.diffusion.samplers.solvers import DEFAULT_CALLS, FLOW_SOLVER, SOLVERS, default_solver
from ancestral.diffusion.samplers.transitions import (
    DDIM,
    VARIANCES,
    Ancestral,
    Planned,
    Renoised,
    Transition,
    fixedlarge,
    learned,
)
from ancestral.errors import UserError
from ancestral.runs.config import Config, DiffusionOptions
from ancestral.runs.facts import Facts
from ancestral.runs.registry import choose


class FewCalls(NamedTuple):
    """What goes with an objective that tunes a model to draw in few calls.

    Args:
        chain: that it draws by.
        grid: of a few steps.
        times: how t is drawn in training.
        only: whether it asks for these times.
        counted: whether the model is tuned for one fixed number of calls; its training times are then exactly the
            sampling times.
    """

    chain: str
    grid: str
    times: str
    only: bool = False
    counted: bool = False


FEW_CALLS = {
    "progressive": FewCalls("progressive", "trailing", "stratified", counted=True),
    "consistency": FewCalls("consistency", "trailing", "log-normal-wide"),
    "adversarial": FewCalls("consistency", "refining", "stratified", only=True),
}
_WHOLE = "the whole chain, of {every:,} steps: --steps all"


@dataclass(frozen=True)
class Chain:
    """Registry entry of a process: how to build its denoiser, draw states and step back.

    Typed for the Gaussian one; the absorbing ones duck-type the same interface.
    """

    process: Callable[[NoiseSchedule, DiffusionOptions], NoiseSchedule]
    channels: Callable[[int, DiffusionOptions], tuple[int, int]]  # of the image, to the network's input and output
    weights_of: str  # the same for chains whose networks' outputs mean the same: a run can begin with weights of these
    denoiser: Callable[[nn.Module, NoiseSchedule, Config, Facts], Denoiser]
    draw: Callable[[Streams], Draw[Any, Any]]  # how states are drawn when images are
    only_step: Any  # the only reverse step there is; None where a variance or a solver says which
    bound_step: Transition | None  # the step of previews of the bound; None where it has none
    step_name: str  # of the reverse step with {variance}, as printed
    search: Search | None  # how `tune-steps` finds the best times; None where no flow is followed
    calls: int  # of the network, an image, where nothing is said
    grid: Callable[[Config], str]  # of a few steps, where nothing is said
    more: str  # how to draw in another number of steps
    whole: str = ""  # what drawing in every step is, where it is no chain of the paper
    adds_noise: bool = True  # Gaussian noise; otherwise it masks pixels
    objectives: tuple[str, ...] = ()  # that train it; empty for all but those of FEW_CALLS

    @property
    def calibrated(self) -> bool:
        """Whether the model's own squared error is a parameter of it: where a variance follows from that."""
        return self.only_step is None

    def default_step(self, steps: int) -> Transition | Planned:
        """The step of so many, where none is named."""
        return self.only_step or SOLVERS[default_solver(steps)]


def _gaussian(network: nn.Module, process: NoiseSchedule, config: Config, facts: Facts) -> Denoiser:
    options = config.diffusion
    assert isinstance(process, Gaussian)
    for name in ("values", "levels"):
        if getattr(options, name) != getattr(DiffusionOptions(), name):
            raise UserError(
                f"diffusion.{name}: is of an absorbing chain; leave it out, or use diffusion.chain=absorbing"
            )
    target = choose(TARGETS, options.target, "diffusion.target")
    clip = choose(CLIPS, options.clip, "diffusion.clip")
    clock = choose(CLOCKS, options.clock, "diffusion.clock")
    try:
        return Denoiser(network, process, target, within(clip, options.clip_range), clock)
    except ValueError as error:
        raise UserError(f"diffusion.target: {error}") from None


def _few_calls(network: nn.Module, process: NoiseSchedule, config: Config, facts: Facts) -> Denoiser:
    options = config.diffusion
    if FEW_CALLS[options.objective].counted and options.train_steps is None:
        raise UserError(
            f"diffusion.train_steps: {options.objective} distillation is for one number of network calls; name it, "
            "such as 2 (ancestral distill --calls 2)"
        )
    return _gaussian(network, process, config, facts)


def _consistency(network: nn.Module, process: NoiseSchedule, config: Config, facts: Facts) -> Denoiser:
    options, made = config.diffusion, _few_calls(network, process, config, facts)
    if not made.target.is_identity_at_0(made.schedule):
        raise UserError(
            f"diffusion.target: at t = 0 a consistency model gives back x_t, whatever its network says, which target "
            f"'{options.target}' cannot; use v, eps, flow, edm or score"
        )
    return made


def _cheapest(
    predictor: Any, start: Tensor, every: Sequence[int], fine: Sequence[int], begun: Sequence[Sequence[int]]
) -> list[int]:
    """The times of the fine walk with which a chain that hides has the least bound."""
    return [fine[index] for index in shortest(imagined_costs(predictor, start, fine), len(begun[0]) - 1)]


def _gaussian_channels(channels: int, options: DiffusionOptions) -> tuple[int, int]:
    variance = choose(VARIANCES, options.variance, "diffusion.variance")
    return channels, channels * (2 if variance is learned else 1)


def _absorbing(name: str, kind: type[Absorbing]) -> Chain:
    def process(visible: NoiseSchedule, options: DiffusionOptions) -> Absorbing:
        try:
            return kind(visible.log_alpha_bar, options.levels)
        except ValueError as error:
            raise UserError(f"diffusion.schedule: {error}") from None

    def denoiser(network: nn.Module, process: NoiseSchedule, config: Config, facts: Facts) -> Any:
        dimensions, options = facts.shape[0] * facts.shape[1] * facts.shape[2], config.diffusion
        assert isinstance(process, Absorbing)
        if kind is Absorbing and dimensions < options.T:
            raise UserError(
                f"diffusion.T: {options.T} steps for {dimensions} values, and each step must reveal one or more; "
                f"use --set diffusion.T={dimensions}, one a step, or fewer"
            )
        clock = choose(CLOCKS, options.clock, "diffusion.clock")
        return Masked(network, process, choose(VALUES, options.values, "diffusion.values"), clock)

    def channels(image: int, options: DiffusionOptions) -> tuple[int, int]:
        family = choose(VALUES, options.values, "diffusion.values")
        return 2 * image, image * family.outputs(options.levels)

    reveal: Any = Reveal()
    return Chain(
        process=process,
        channels=channels,
        weights_of=name,
        denoiser=denoiser,
        draw=from_p,
        only_step=reveal,
        bound_step=reveal,
        step_name="positions revealed in any order",
        search=Search(_cheapest, lambda fine, steps, begun: 2 * fine),
        calls=DEFAULT_CALLS,
        grid=lambda config: "trailing",
        more=_WHOLE,
        adds_noise=False,
        objectives=("bound",),
    )


_GAUSSIAN = Chain(
    process=lambda schedule, options: schedule,
    channels=_gaussian_channels,
    weights_of="gaussian",
    denoiser=_gaussian,
    draw=from_model,
    only_step=None,
    bound_step=Ancestral(fixedlarge),
    step_name="{variance} variance",
    search=by_ends(SOLVERS[FLOW_SOLVER]),
    calls=DEFAULT_CALLS,
    grid=lambda config: "trailing",
    more=_WHOLE,
)


def _objectives_of(name: str) -> tuple[str, ...]:
    """The objectives of a chain of few calls."""
    return tuple(objective for objective, few in FEW_CALLS.items() if few.chain == name)


_FEW = replace(
    _GAUSSIAN,
    denoiser=_few_calls,
    only_step=DDIM(),
    bound_step=None,  # its last step is certain: the bound is infinite
    step_name="the step to where the model's many end",
    grid=lambda config: FEW_CALLS[config.diffusion.objective].grid,
    search=None,
    more="in another number: ancestral distill MODEL --calls N",
    whole="--steps all: the {every:,} that the model was tuned to draw in",
)

CHAINS: dict[str, Chain] = {
    "gaussian": _GAUSSIAN,
    "progressive": replace(_FEW, objectives=_objectives_of("progressive")),
    "consistency": replace(
        _FEW,
        denoiser=_consistency,
        objectives=_objectives_of("consistency"),
        only_step=Renoised(),
        step_name="the predicted image with fresh noise",
        calls=2,
        more="in one step, or in four: --steps 1, --steps 4",
        whole="--steps all predicts and renoises {every:,} times; this model was tuned for few steps: "
        "use --steps 2 or 4",
    ),
    "absorbing": _absorbing("absorbing", Absorbing),
    "absorbing-independent": _absorbing("absorbing-independent", Independent),
}


def denoiser_of(network: nn.Module, process: NoiseSchedule, config: Config, facts: Facts) -> Denoiser:
    """A network as the denoiser of a configuration's chain.

    Raises:
        UserError: for an objective that does not train the chain, and for settings that do not go with it.
    """
    kind = chain(config)
    _need_objective(kind, config.diffusion)
    return kind.denoiser(network, process, config, facts)


def _need_objective(kind: Chain, options: DiffusionOptions) -> None:
    few = FEW_CALLS.get(options.objective)
    if not kind.objectives and few is not None:
        raise UserError(
            f"diffusion.objective: {options.objective} is of diffusion.chain={few.chain}, which draws in few "
            "steps; use that, or another objective, such as simple"
        )
    if kind.objectives and options.objective not in kind.objectives:
        by = "its bound" if kind.objectives == ("bound",) else "its own"
        raise UserError(
            f"diffusion.objective: chain '{options.chain}' is trained by {by}; use {' or '.join(kind.objectives)}"
        )


def has_noise(config: Config) -> bool:
    """Whether the chain adds noise; otherwise it masks pixels."""
    return chain(config).adds_noise


def need_gaussian(config: Config, what: str) -> None:
    """Refuse a chain with a reverse step of its own, for what needs E[x0 | x_t] under Gaussian noise."""
    if chain(config).only_step is not None:
        raise UserError(
            f"{what}: needs a run with Gaussian noise that predicts the mean of x0; this one's diffusion.chain is "
            f"{config.diffusion.chain}; use one of diffusion.chain=gaussian"
            + (", such as the model that it was tuned from" if config.diffusion.objective in FEW_CALLS else "")
        )


def not_exported(config: Config) -> str | None:
    """Why a model cannot be a file of ONNX or torch.export, if it cannot."""
    if not has_noise(config):
        return f"diffusion.chain is {config.diffusion.chain}; only Gaussian noise is exported"
    return "model.embedding is true; models that take vectors are not exported" if config.model.embedding else None


def need_bound(config: Config, what: str) -> None:
    """Refuse a chain without a variational bound."""
    if chain(config).bound_step is None:
        raise UserError(
            f"{what}: has no bound, as it draws in a few certain steps (diffusion.chain={config.diffusion.chain}); "
            "measure its images with: ancestral metrics, or the bound of the model that it was tuned from"
        )


def need_every_time(config: Config, what: str) -> None:
    """Refuse a run trained at some times only, for what asks the network at all of them."""
    steps = config.diffusion.train_steps
    if steps is not None:
        raise UserError(f"{what}: was trained at {steps} times only, and the flow asks the network at all of them")


def chain(config: Config) -> Chain:
    """The chain of a configuration."""
    return choose(CHAINS, config.diffusion.chain, "diffusion.chain")
