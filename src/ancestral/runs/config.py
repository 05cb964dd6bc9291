"""Settings of a run: frozen dataclasses, presets as rows, and overrides that refuse unknown keys.

Nothing here imports torch, so that a wrong key costs no waiting. Names of schedules, targets and so on are looked up in
their own modules' tables when the run is built.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from ancestral.data.dataset import DataOptions
from ancestral.errors import OtherVersion, UserError
from ancestral.runs import config_versions
from ancestral.runs.facts import Facts
from ancestral.runs.registry import suggest

SCHEMA = 2
LATER = (  # settings that older runs lack, and how they read there
    ("data", "white", None),
    ("train", "augment", 0.0),
    ("train", "stream", "numpy"),
    ("train", "deterministic", False),
    ("model", "time_width", None),
    ("model", "activation", "silu"),
    ("model", "scale_shift", False),
    ("model", "middle_attention", True),
    ("model", "middle_groups", None),
    ("diffusion", "betas", ()),
    ("diffusion", "clip_range", 1.0),
    ("diffusion", "shift", 1.0),
)
LARGEST_SHIFT = 100.0

Count = Annotated[int, Meta(ge=1)]
Size = Annotated[int, Meta(ge=1, le=2**16)]  # of a network or an image
Fraction = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0, le=1e30)]
Width = Annotated[float, Meta(gt=0, lt=0.28)]
Multiple = Size | Annotated[float, Meta(gt=0, le=2**16)]  # one that is no integer gives a whole width still


@dataclass(frozen=True)
class ModelOptions:
    """The U-Net (see `ancestral.networks.unet.UNet`)."""

    width: Size = 128  # channels of the first level
    multipliers: Annotated[tuple[Multiple, ...], Meta(min_length=1, max_length=16)] = (
        1,
        2,
        2,
        2,
    )  # a level each
    blocks: Annotated[int, Meta(ge=1, le=64)] = 2  # residual blocks a level, one more on the way up
    attention: tuple[int, ...] = (1,)  # levels with attention, counted from 0, the finest
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.1  # share of activations left out in training
    patch: Size = 1  # side in pixels of the squares that become channels
    labels: bool = False  # conditioned on the class of each image
    embedding: bool = False  # conditioned on the vector that the data have for each image
    condition_dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0  # share that train without these: for guidance
    fourier: tuple[Annotated[int, Meta(ge=0, le=10)], ...] = ()  # sines and cosines of the input times 2^k, beside it
    group_width: Annotated[int, Meta(ge=2)] = 4  # channels of a group of the norms
    groups: Size | None = None  # number of groups instead
    norm_eps: Positive = 1e-6
    head_width: Size | None = None
    pad_end: bool = False  # pad only right and below where resolution falls, as the paper's code
    cosine_first: bool = False
    frequency_shift: Literal[0, 1] = 1
    time_width: Size | None = None
    activation: Literal["silu", "gelu", "mish", "relu"] = "silu"
    scale_shift: bool = False
    middle_attention: bool = True
    middle_groups: Annotated[int, Meta(ge=0, le=2**16)] | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(round(self.width * multiple) for multiple in self.multipliers)

    @property
    def conditional(self) -> bool:
        """Whether the network takes a condition of each image: its class, or a vector."""
        return self.labels or self.embedding


IMPORTED = {  # diffusers' only
    *("model.norm_eps", "model.head_width", "model.cosine_first", "model.frequency_shift", "model.time_width"),
    *("model.activation", "model.scale_shift", "model.middle_attention", "model.middle_groups"),
    *("diffusion.betas", "diffusion.clip_range"),
}


@dataclass(frozen=True)
class DiffusionOptions:
    """The forward process, what is predicted, and the reverse process."""

    T: Annotated[int, Meta(ge=1, le=10**6)] = 1000  # number of noise levels
    chain: str = "gaussian"  # absorbing: masked values, revealed in any order; progressive, consistency: few calls
    schedule: str = "linear"  # of the noise
    shift: Annotated[float, Meta(ge=0.01, le=LARGEST_SHIFT)] | Literal["auto"] = (
        1.0  # log SNR less twice its logarithm, for larger images; auto: a 32nd of their side, 1 at least
    )
    target: str = "eps"  # what the network's output means
    objective: str = "simple"  # the loss
    times: str = "uniform"  # how t is drawn in training
    train_steps: Count | None = None  # train only at this many evenly spaced times
    variance: str = "fixedlarge"  # of the reverse steps
    clip: str = "static"  # of each predicted x0
    clock: str = "paper"  # how t is given to the network (see `ancestral.diffusion.denoisers.denoiser.CLOCKS`)
    values: str = "logistic"  # of an absorbing chain: the family of the distributions (see `levels.VALUES`)
    betas: tuple[Annotated[float, Meta(gt=0, le=1)], ...] = ()  # beta_1..beta_T of a schedule without a name, 'betas'
    clip_range: Positive = 1.0  # of the static clip
    levels: Annotated[int, Meta(ge=2, le=256)] = 256  # of an absorbing chain: grey levels, to which bytes are rounded


@dataclass(frozen=True)
class TrainOptions:
    """The optimiser. Everything that lasts is a share of the run."""

    batch_size: Count = 128  # images an update
    micro_batch: Count | None = None  # images that meet the network at a time; None: the whole batch
    exact_shards: Count | None = None  # add gradients in a fixed tree: the same bits on 1, 2, 4, ... processes
    learning_rate: Positive = 2e-4  # its peak
    warmup: Fraction = 0.05  # share of the run with a rising learning rate
    decay: Fraction = 0.0  # share of the run, its end, with one falling to zero
    optimizer: str = "adamw"  # muon: orthogonal updates of matrices (see `ancestral.networks.muon`)
    beta2: Annotated[float, Meta(gt=0, lt=1)] = 0.999  # of Adam's second moment
    weight_decay: Annotated[float, Meta(ge=0, le=1e30)] = 0.0  # of AdamW, times the learning rate, an update
    clip_norm: Positive = 1.0  # largest norm of a gradient
    flip: bool = False  # mirror half of the training images
    augment: Fraction = 0.0  # of each kind of move, its probability (see `ancestral.data.augmentation`)
    workers: Annotated[int, Meta(ge=0)] = 0  # threads that prepare the next batches
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0  # of every draw
    stream: Literal["numpy", "philox"] = "numpy"  # of random numbers: the host's, or drawn on the device
    average_widths: tuple[Width, Width] = (0.05, 0.1)  # the two averages that are kept
    average: Literal[0, 1] = 1  # which of them is the model
    snapshots: Count = 8  # how often both are kept for rebuilding other widths
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "float32"  # auto: as it is fastest here
    parallel: Literal["auto", "all-reduce", "ddp", "fsdp"] = (
        "all-reduce"  # how processes share (see `ancestral.training.gradient_sync`)
    )
    channels_last: bool | Literal["auto"] = False  # the layout of images in memory; auto: as it is fastest here
    deterministic: bool = False  # on CUDA: only what gives the same bits each time
    compile: bool = False  # let torch compile the network: slow to begin, then faster
    recompute: bool = False  # activations anew in the backward pass instead of kept: less memory, a third more work
    not_finite: Literal["stop", "skip"] = "stop"  # what to do with an update whose loss or gradient is not finite
    spike: Positive | None = 10.0  # leave out an update whose loss is so many times the largest of the 64 before


@dataclass(frozen=True)
class Config:
    """One run."""

    source: str
    model: ModelOptions = field(default_factory=ModelOptions)
    diffusion: DiffusionOptions = field(default_factory=DiffusionOptions)
    data: DataOptions = field(default_factory=DataOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    schema: int = SCHEMA


_Preset = Mapping[str, Any]

# What gives the most in minutes on two cores.
_SMALL: _Preset = {
    "model.width": 32,
    "model.multipliers": (1, 2),
    "model.blocks": 1,
    "model.attention": (1,),
    "model.dropout": 0.0,
    "model.patch": 2,
    "model.group_width": 16,
    "diffusion.schedule": "cosine",
    "diffusion.target": "v",
    "diffusion.times": "log-normal",
    "diffusion.variance": "optimal",
    "train.batch_size": 64,
    "train.optimizer": "muon",
    "train.learning_rate": 6e-3,
    "train.decay": 0.7,
    "train.beta2": 0.99,
    "train.average": 0,
    "train.precision": "auto",
    "train.channels_last": "auto",
}

_IMAGES: _Preset = {
    **_SMALL,
    "model.width": 16,
    "model.multipliers": (1, 2, 4),
    "model.attention": (2,),
    "model.patch": 1,
    "diffusion.shift": "auto",
}

# Rows of settings. The first two are the paper's (appendix B); the others were chosen by trial (benchmarks/log.md):
# `images` for sample quality, `likelihood` for bits/dim, `absorbing` reveals pixels in any order, `tiny` is for a few.
PRESETS: dict[str, _Preset] = {
    "cifar10": {"model.pad_end": True, "train.flip": True},
    "paper-256": {
        "model.multipliers": (1, 1, 2, 2, 4, 4),
        "model.attention": (4,),
        "model.dropout": 0.0,
        "model.pad_end": True,
        "diffusion.variance": "fixedsmall",
        "train.batch_size": 64,
        "train.learning_rate": 2e-5,
        "train.flip": True,
    },
    "images": _IMAGES,
    "likelihood": {**_IMAGES, "model.fourier": (6, 7), "diffusion.shift": 1.0},
    "absorbing": {
        **_SMALL,
        "diffusion.chain": "absorbing",
        "diffusion.T": 64,
        "diffusion.schedule": "even",
        "diffusion.objective": "bound",
        "diffusion.times": "stratified",
        "diffusion.variance": "fixedlarge",
    },
    "tiny": {
        "model.width": 32,
        "model.multipliers": (1, 2),
        "model.blocks": 1,
        "model.attention": (1,),
        "model.dropout": 0.0,
        "diffusion.schedule": "cosine",
        "diffusion.target": "v",
        "diffusion.times": "stratified",
        "diffusion.variance": "optimal",
        "train.batch_size": 32,
        "train.learning_rate": 2e-3,
        "train.decay": 0.7,
        "train.beta2": 0.99,
    },
}


def known_keys() -> dict[str, Any]:
    """Every key that `--set` knows, with its type."""
    return {key: kind for key, kind in _types().items() if key not in IMPORTED}


def _types() -> dict[str, Any]:
    """The type of every setting."""
    groups = {name: kind for name, kind in get_type_hints(Config).items() if is_dataclass(kind)}
    return {
        f"{group}.{name}": kind
        for group, options in groups.items()
        for name, kind in get_type_hints(options, include_extras=True).items()
    }


def resolve(source: str, preset: str, overrides: Mapping[str, Any]) -> Config:
    """The configuration of a preset with overrides, `{'train.learning_rate': '1e-4'}`; strings are parsed by type.

    Raises:
        UserError: naming an unknown preset or key with the nearest known one, or a value that does not fit.
    """
    if preset not in PRESETS:
        raise UserError(f"--preset: unknown preset '{preset}'; {suggest(preset, PRESETS)}")
    return changed(Config(source), {**PRESETS[preset], **overrides})


def changed(config: Config, overrides: Mapping[str, Any]) -> Config:
    """The configuration with other values of some settings, as `resolve` takes them."""
    kinds, tree = known_keys(), asdict(config)
    for key, value in overrides.items():
        if key in IMPORTED:
            raise UserError(f"--set {key}: describes models imported from diffusers, not new ones; leave it out")
        if key not in kinds:
            raise UserError(f"--set {key}: unknown key; {suggest(key, kinds)}")
        group, name = key.split(".")
        single = get_origin(kinds[key]) is tuple and not isinstance(value, (list, tuple))
        tree[group][name] = [value] if single else value
    return _convert(tree, Config, "--set ")


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts as a mapping; values are read as JSON where they are JSON, '1,2,2' as a list.

    Raises:
        UserError: for a text without '='.
    """
    parsed = {}
    for text in assignments:
        key, separator, value = text.partition("=")
        if not separator:
            raise UserError(f"--set {text}: expected key=value, for example --set train.learning_rate=1e-4")
        parsed[key.strip()] = _value(value.strip())
    return parsed


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return [_value(part) for part in text.split(",")] if "," in text else text


def to_json(config: Config, facts: Facts) -> dict[str, Any]:
    """Everything that is needed to build the run again.

    Fields that came later are left out where they say nothing, so that a run from before is the same model: its
    archives know it by these bytes.
    """
    document = {"config": asdict(config), "facts": asdict(facts)}
    for group, name, nothing in LATER:
        if document["config"][group][name] == nothing:
            del document["config"][group][name]
    if not facts.untrained:
        del document["facts"]["untrained"]
    return document


def flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    named = {}
    for key, value in document.items():
        if isinstance(value, dict):
            named |= flat(value, f"{prefix}{key}.")
        else:
            named[prefix + key] = list(value) if isinstance(value, tuple) else value
    return named


def from_json(document: Any, where: str) -> tuple[Config, Facts]:
    """The inverse of `to_json`.

    Raises:
        UserError: naming the file and the field that is missing, unknown or wrong.
    """
    if not isinstance(document, dict) or set(document) != {"config", "facts"}:
        raise UserError(f"{where}: not a run's configuration (expected the keys config and facts)")
    config = document["config"]
    config = config_versions.updated(config)
    if isinstance(config, dict) and config.get("schema") != SCHEMA:
        version = config.get("schema")
        kind = OtherVersion if type(version) is int else UserError
        raise kind(f"{where}: config.schema is {version!r}, this version reads 1 to {SCHEMA}; update ancestral")
    _refuse_unknown(config, Config, f"{where}: config")
    return _convert(config, Config, f"{where}: "), _convert(document["facts"], Facts, f"{where}: ")


def _refuse_unknown(document: Any, kind: type, where: str) -> None:
    if not isinstance(document, dict):
        raise UserError(f"{where} must be an object")
    hints = get_type_hints(kind)
    for key, value in document.items():
        if key not in hints:
            raise UserError(f"{where}.{key}: unknown field; {suggest(key, hints)}")
        if is_dataclass(hints[key]):
            _refuse_unknown(value, hints[key], f"{where}.{key}")


_T = TypeVar("_T")
_BOTH = {bool: ("true", "false")}
_NUMBER = {Annotated: ("a number",)}


def _convert(document: Any, kind: type[_T], where: str) -> _T:
    try:
        return msgspec.convert(document, kind, strict=False)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at ")
        key = path.strip("`").removeprefix("$.")
        if problem.startswith("Invalid enum value"):
            kinds = get_args(_types().get(key))  # the values, or a Literal of them and None
            values = [
                value
                for kind in kinds
                for value in _BOTH.get(kind) or _NUMBER.get(get_origin(kind)) or get_args(kind) or [kind]
                if not isinstance(value, type)
            ]
            problem += f"; choose from: {', '.join(map(str, values))}"
        raise UserError(f"{where}{key}: {problem}") from None
    except UnicodeError as error:
        raise UserError(f"{where}not Unicode text ({error})") from None
