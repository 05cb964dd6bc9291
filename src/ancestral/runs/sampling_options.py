"""The options of drawing images from a run: names, types, defaults, ranges and help, for whatever takes them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from types import NoneType
from typing import Any, get_args, get_type_hints

from ancestral.errors import UserError

EDIT_CALLS = {"inpaint": 50, "interpolate": 100, "vary": 100, "restore": 50}  # where no other number is named
JUMP, RESAMPLES = 5, 5  # of inpainting: steps gone up again at a time, and times that each stretch is walked

WAYS_TO_STEP = ("solver", "eta", "variance")
OWN = "own"  # --clip: the run's
# What a sampler in a file of its own heeds.
EXPORTED = ("steps", "grid", "solver", "eta", "variance", "clip", "guidance", "guidance_interval", "average_width")


def steps_of(text: str) -> int | str:
    """A number of steps, or "all"."""
    try:
        steps = text if text == "all" else int(text)
    except ValueError:
        steps = 0
    if steps != "all" and int(steps) < 1:
        raise ValueError(f"'{text}' is neither a number of steps, 1 or more, nor all")
    return steps


def interval_of(text: str) -> tuple[float, float]:
    """(LO, HI) of LO:HI."""
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        low, high = 1.0, 0.0
    if not low <= high:
        raise ValueError(f"'{text}' is not LO:HI, two numbers with LO at most HI")
    return low, high


@dataclass(frozen=True)
class Option:
    """What is declared of an option."""

    help: str  # one line
    low: float | None = None  # least value
    high: float | None = None  # largest value
    choices: tuple[str, ...] = ()  # all values
    read: Callable[[str], Any] | None = None  # the value of a text, where the type alone does not say how
    metavar: str | None = None  # of the value, in help
    needs: str | None = None  # the option without which this one says nothing
    page: bool = False  # whether a request to the server may name it
    card: bool = False  # whether the model card shows it
    type: Any = str  # of a value that is not None
    default: Any = None  # when it is left out

    def checked(self, name: str, value: Any) -> Any:
        """The value as plain Python has it, if it is one of those declared; what has a reader is read.

        Raises:
            UserError: naming it.
        """
        if value is None and self.default is None:
            return None
        if self.read is not None:
            try:
                return self.read(":".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value))
            except (UserError, ValueError) as error:
                raise UserError(f"{name}: {error}") from None
        if self.choices and value not in self.choices:
            raise UserError(f"{name}: unknown {value!r}; choose from: {', '.join(self.choices)}")
        if self.type not in (int, float):
            if not isinstance(value, (str, os.PathLike)):
                raise UserError(f"{name}: must be a text, got {value!r}")
            return os.fspath(value)
        low, high = -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high
        kind, what = (Integral, "a whole number") if self.type is int else (Real, "a number")
        number: Any = value if isinstance(value, kind) and not isinstance(value, bool) else math.nan
        if not (math.isfinite(number) and low <= number <= high):
            raise UserError(f"{name}: must be {what} between {low} and {high}, got {value!r}")
        return self.type(number)


def _option(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"option": Option(text, **more)})


@dataclass(frozen=True)
class SamplingOptions:
    """How images are drawn, and of which class."""

    steps: int | str | None = _option(
        None,
        "Steps from T to clean images, of one network call (heun, langevin, pc: of more), 20 when left out (of a "
        "distilled run its own); all: the whole chain, as --variance.",
        read=steps_of,
        metavar="N",
        card=True,
    )
    grid: str | None = _option(
        None,
        "trailing, uniform, quadratic, log-snr, karras, leading, refining, tuned; trailing when left out (of a "
        "distilled run its own).",
    )
    solver: str | None = _option(
        None,
        "dpm++3m, ipndm4, heun, ... (docs/how-to/solvers.md); left out: dpm++2m-sde from 20 steps on, or 10 "
        "tuned ones, unipc3 below, none of them for --steps all.",
        page=True,
        card=True,
    )
    eta: float | None = _option(
        None,
        "DDIM with this share of the paper's noise, 0: none; another solver when left out.",
        low=0,
        high=1,
        page=True,
        card=True,
    )
    variance: str | None = _option(
        None, "Ancestral steps with fixedsmall, fixedlarge, beta, learned or optimal variance.", card=True
    )
    batch_size: int = _option(64, "Images at a time; changes no image.", low=1)
    precision: str = _option(
        "device",
        "What the network computes in, the last calls (a tenth of them, and one) in float32; auto: as its layers are "
        "fastest here; device: float32 on a CPU, auto elsewhere.",
        choices=("device", "float32", "bfloat16", "auto"),
    )
    average_width: float | None = _option(
        None,
        "Rebuild the weights' average as wide as this share of the run; the run's own when left out.",
        low=0.001,
        high=0.279,
    )
    seed: int = _option(0, "Seed of every draw, a whole number.", low=0, high=2**32 - 1)
    guidance: float | None = _option(
        None,
        "Scale, 0: unconditional, 1: conditional, above: more so; two calls a step. No guidance when left out.",
        low=0,
        high=100,
        page=True,
        card=True,
    )
    guidance_rescale: float | None = _option(
        None, "Share of the contrast gained to take back; 0 when left out.", low=0, high=1, needs="guidance", card=True
    )
    guidance_interval: tuple[float, float] | None = _option(
        None,
        "Guide only at natural log SNRs from LO to HI; at all when left out.",
        read=interval_of,
        metavar="LO:HI",
        needs="guidance",
        card=True,
    )
    clip: str | None = _option(
        None,
        "Of each predicted x0: none, static, dynamic or own, the run's; left out: own in steps of the paper's chain "
        "and where eps, the score or the mean is predicted, otherwise none.",
    )
    guide: str | None = _option(
        None,
        "Guide by this weaker model, a run or RUN/averages/IMAGES of one; early: by the run's own at a quarter of it.",
        metavar="RUN|early",
        needs="guidance",
        card=True,
    )
    label: str | None = _option(
        None, "Class to draw, by name, of a model with labels; all in turn when left out.", page=True
    )

    def __post_init__(self) -> None:
        try:
            one_way_to_step(asdict(self))
        except ValueError as error:
            raise UserError(str(error)) from None
        for name, option in OPTIONS.items():
            object.__setattr__(self, name, option.checked(name, getattr(self, name)))

    @property
    def step_named(self) -> bool:
        """Whether a way to take steps is named."""
        return any(name in WAYS_TO_STEP for name in self.given)

    @property
    def given(self) -> list[str]:
        """Names of the options that are left out unless they matter, and are there."""
        return [name for name, one in OPTIONS.items() if one.default is None and getattr(self, name) is not None]


OPTIONS: dict[str, Option] = {
    one.name: replace(
        one.metadata["option"],
        type=next(kind for kind in (*get_args(hint), hint) if kind is not NoneType),
        default=one.default,
    )
    for one in fields(SamplingOptions)
    for hint in [get_type_hints(SamplingOptions)[one.name]]
}


def one_way_to_step(options: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse two ways to step at once."""
    given = [f"{prefix}{name}" for name in WAYS_TO_STEP if options.get(name) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other: each is a way to step; leave one out")
