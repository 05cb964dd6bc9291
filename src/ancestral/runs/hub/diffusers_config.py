"""The configuration files of diffusers, as settings of ours and back: UNet2DModel and its scheduler.

What the other has no field for is an error that names the file and the field.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.schedules import SCHEDULES, cosine, from_betas
from ancestral.errors import UserError
from ancestral.runs import build
from ancestral.runs.build import WITHOUT_NAME
from ancestral.runs.config import Config, DiffusionOptions, ModelOptions
from ancestral.runs.export_choices import SPACINGS
from ancestral.runs.facts import Facts
from ancestral.runtime import disk

VERSION = "0.30.0"  # of diffusers, whose fields these are
GROUPS = 32  # of the norms, where a folder leaves them out
_NO_LIMIT = 1e6  # of the quantile that dynamic thresholding divides by
_SCHEDULES: dict[str, Callable[[int, float, float], Gaussian]] = {  # by T, the first beta and the last
    "linear": lambda T, first, last: from_betas(_even(first, last, T)),
    "scaled_linear": lambda T, first, last: from_betas(_even(first**0.5, last**0.5, T) ** 2),
    "squaredcos_cap_v2": lambda T, first, last: cosine(T),
    "sigmoid": lambda T, first, last: from_betas(torch.sigmoid(_even(-6, 6, T)) * (last - first) + first),
}
_EXPORTED = {  # name here: (name there, the first and the last beta), at T = 1000
    "linear": ("linear", 1e-4, 0.02),
    "scaled-linear": ("scaled_linear", 8.5e-4, 0.012),
    "cosine": ("squaredcos_cap_v2", 1e-4, 0.02),
}
_TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
TARGETS = {ours: theirs for theirs, ours in _TARGETS.items()}
# Theirs is beta at the last step too, where they add no noise and have no decoder: the paper's name is the same chain.
_VARIANCES = {
    "fixed_small": "fixedsmall",
    "fixed_large": "fixedlarge",
    "learned_range": "learned",
    "fixed_small_log": "fixedsmall",  # its logarithm is taken, and its exponential again
}
_Side = Annotated[int, Meta(ge=1, le=4096)]
_Width = Annotated[int, Meta(ge=1, le=2**14)]
_Widths = Annotated[list[_Width], Meta(min_length=1, max_length=10)]
_Names = Annotated[list[str], Meta(min_length=1, max_length=10)]
_Blocks = Annotated[int, Meta(ge=1, le=32)]
_Channels = Annotated[int, Meta(ge=1, le=64)]
_Classes = Annotated[int, Meta(ge=1, le=2**20)] | None
_Dropout = Annotated[float, Meta(ge=0, lt=1)]
_Eps = Annotated[float, Meta(gt=0, le=1)]
_Steps = Annotated[int, Meta(ge=1, le=10**5)]
_Beta = Annotated[float, Meta(gt=0, lt=1)]
_Betas = Annotated[list[Annotated[float, Meta(gt=0, le=1)]], Meta(min_length=1, max_length=10**5)]
_Range = Annotated[float, Meta(gt=0, le=1e6)]
_Offset = Annotated[int, Meta(ge=0, le=10**5)]
# Fields of the network that have one value here; the defaults of UNet2DModel where a folder leaves them out.
_FIXED: dict[str, tuple[Any, Any]] = {
    "center_input_sample": (False, False),
    "time_embedding_type": ("positional", "positional"),
    "mid_block_scale_factor": (1, 1),
    "downsample_type": ("conv", "conv"),
    "upsample_type": ("conv", "conv"),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "mish": "mish", "relu": "relu"}
# Of the average that the training script keeps, beside those of the network whose average it is.
_AVERAGE = {"decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"}
UNET = "UNet2DModel"
_NETWORKS = {  # what else is found in such folders
    "UNet2DConditionModel": "is conditioned on text or on other sequences, mostly of a latent model",
    "AutoencoderKL": "is the autoencoder of a latent model",
    "VQModel": "is the autoencoder of a latent model",
    "AutoencoderTiny": "is the autoencoder of a latent model",
    "DiTTransformer2DModel": "is a transformer of a latent model",
    "Transformer2DModel": "is a transformer of a latent model",
    "UNet1DModel": "is of signals, not of images",
    "PriorTransformer": "predicts embeddings, not images",
}


@dataclass(frozen=True)
class _Scheduler:
    """What a class of theirs makes of its fields; the other fields say how is sampled, and that is chosen anew here."""

    # whether it clips x0 to a range where `clip_sample` is left out; None: it has no such field
    clips: bool | None = None
    thresholds: bool = False  # whether it has dynamic thresholding
    first: float = 1e-4  # the first beta where it is left out
    last: float = 0.02  # the last
    spacing: str = "linspace"  # its `timestep_spacing` where it is left out, or has no such field


_ANCESTRAL, _SOLVER = _Scheduler(clips=True, thresholds=True, spacing="leading"), _Scheduler(thresholds=True)
_SIGMAS, _SECOND_ORDER = _Scheduler(), _Scheduler(first=8.5e-4, last=0.012)
_SCHEDULERS = {
    "DDPMScheduler": _ANCESTRAL,
    "DDPMParallelScheduler": _ANCESTRAL,
    "DDIMScheduler": _ANCESTRAL,
    "DDIMParallelScheduler": _ANCESTRAL,
    "DDIMInverseScheduler": _Scheduler(clips=True, spacing="leading"),
    "DPMSolverMultistepScheduler": _SOLVER,
    "DPMSolverMultistepInverseScheduler": _SOLVER,
    "DPMSolverSinglestepScheduler": _SOLVER,
    "DEISMultistepScheduler": _SOLVER,
    "UniPCMultistepScheduler": _SOLVER,
    "SASolverScheduler": _SOLVER,
    "PNDMScheduler": _Scheduler(spacing="leading"),
    "EulerDiscreteScheduler": _SIGMAS,
    "EulerAncestralDiscreteScheduler": _SIGMAS,
    "LMSDiscreteScheduler": _SIGMAS,
    "HeunDiscreteScheduler": _Scheduler(clips=False, first=8.5e-4, last=0.012),
    "KDPM2DiscreteScheduler": _SECOND_ORDER,
    "KDPM2AncestralDiscreteScheduler": _SECOND_ORDER,
    "DPMSolverSDEScheduler": _SECOND_ORDER,
    "IPNDMScheduler": _SIGMAS,  # with times of its own, and the fields of the one that it took the place of
}
_SAMPLING = {  # fields of these classes, at any version, on which no process depends
    *("algorithm_type", "corrector_order", "disable_corrector", "euler_at_final", "final_sigmas_type", "flow_shift"),
    *("interpolation_type", "lambda_min_clipped", "lower_order_final", "noise_sampler_seed", "predict_x0"),
    *("predictor_order", "set_alpha_to_one", "shift_terminal", "sigma_max", "sigma_min", "skip_prk_steps"),
    *("solver_order", "solver_p", "solver_type", "tau_func", "time_shift_type"),
    *("use_beta_sigmas", "use_dynamic_shifting", "use_exponential_sigmas", "use_karras_sigmas", "use_lu_lambdas"),
    *("tensor_format", "num_inference_steps", "clip_sample_range"),
    *("dynamic_thresholding_ratio", "sample_max_value", "clip_sample", "thresholding", "beta_start", "beta_end"),
}


def _even(first: float, last: float, count: int) -> Tensor:
    return torch.linspace(first, last, count, dtype=torch.float64)


class Fields:
    """A configuration file, each field asked for once; those nobody asked for are errors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.values = disk.document(path, float)  # their solvers write -Infinity
        except disk.Missing as error:
            raise UserError(f"{error}; is this a diffusers folder?") from None
        if not isinstance(self.values, dict):
            raise UserError(f"{path}: is not a configuration")

    def take(self, name: str, kind: Any, default: Any = None) -> Any:
        """The value of a field, once, of a type within its bounds."""
        value = self.values.pop(name, default)
        if isinstance(value, float) and not math.isfinite(value):
            self.refuse(name, value, "is no number of JSON")
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            return self.refuse(name, value, str(error).replace("`", ""))

    def choose(self, name: str, values: Mapping[str, Any], default: str) -> Any:
        """What a field's name stands for here."""
        value = self.take(name, str, default)
        if value not in values:
            self.refuse(name, value, f"known here: {', '.join(values)}")
        return values[value]

    def need(self, name: str, only: Any, default: Any) -> None:
        """Refuse every value but one."""
        value = self.values.pop(name, default)
        if value != only or isinstance(value, bool) != isinstance(only, bool):
            self.refuse(name, value, f"only {json.dumps(only)} is known here")

    def refuse(self, name: str, value: Any, why: str) -> NoReturn:
        """Name the field and what would do."""
        text = json.dumps(value)
        raise UserError(f"{self.path}: {name} is {text if len(text) < 80 else text[:77] + '...'}; {why}")

    def end(self, harmless: set[str]) -> None:
        """Refuse what nobody asked for."""
        unknown = [name for name in self.values if not name.startswith("_") and name not in harmless]
        if unknown:
            raise UserError(f"{self.path}: unknown field {unknown[0]}; it might change what the model computes")


@dataclass(frozen=True)
class Network:
    """A UNet2DModel in our words."""

    options: ModelOptions  # its settings
    shape: tuple[int, int, int]  # (C, H, W) of its images
    outputs: int  # its channels
    classes: int = 0  # how many rows its class embedding has; 0: none
    numbers: bool = False  # whether theirs embeds the class's number as it embeds a time, and not by a table
    vector: int = 0  # length of the vector that it is conditioned on; 0: none


def network(fields: Fields) -> Network:
    """The network of a configuration."""
    kind = fields.values.get("_class_name", UNET)
    if kind != UNET:
        why = _NETWORKS.get(kind, "is not known here") if isinstance(kind, str) else "is no name"
        fields.refuse("_class_name", kind, f"it {why}; a {UNET} of pixels is read")
    for name, (only, default) in _FIXED.items():
        fields.need(name, only, default)
    widths = fields.take("block_out_channels", _Widths, [224, 448, 672, 896])
    down = fields.take("down_block_types", _Names, ["DownBlock2D"] + ["AttnDownBlock2D"] * 3)
    up = fields.take("up_block_types", _Names, ["AttnUpBlock2D"] * 3 + ["UpBlock2D"])
    down, up = ([kind.removeprefix("UNetRes") for kind in kinds] for kinds in (down, up))  # names before 2023
    for name, kinds, plain, attending in (
        ("down_block_types", down, "DownBlock2D", "AttnDownBlock2D"),
        ("up_block_types", up, "UpBlock2D", "AttnUpBlock2D"),
    ):
        if len(kinds) != len(widths) or not set(kinds) <= {plain, attending}:
            fields.refuse(name, kinds, f"needs {plain} or {attending} for each of block_out_channels = {widths}")
    attention = tuple(level for level, kind in enumerate(down) if kind.startswith("Attn"))
    if attention != tuple(level for level, kind in enumerate(reversed(up)) if kind.startswith("Attn")):
        fields.refuse("up_block_types", up, "attention must be at the same levels on the way up as on the way down")
    padding = fields.take("downsample_padding", Literal[0, 1], 1)
    channels = fields.take("in_channels", _Channels, 3)
    height, width = _sides(fields, 2 ** (len(widths) - 1))
    out = fields.take("out_channels", int, 3)
    if out not in (channels, 2 * channels):
        fields.refuse("out_channels", out, f"must be in_channels = {channels}, or twice as many")
    groups, head = fields.take("norm_num_groups", _Width, GROUPS), fields.take("attention_head_dim", _Width | None, 8)
    if any(w % groups for w in widths):
        fields.refuse("norm_num_groups", groups, f"must divide each of block_out_channels = {widths}")
    middle = fields.take("add_attention", bool, True)
    if any(widths[level] % (head or 1) for level in (*attention, *([-1] if middle else []))):
        fields.refuse("attention_head_dim", head, f"must divide each of block_out_channels = {widths} with attention")
    shift = fields.choose("resnet_time_scale_shift", {"default": False, "scale_shift": True}, "default")
    middle_groups = fields.take("attn_norm_num_groups", _Width | None, None)
    if middle_groups and widths[-1] % middle_groups:
        fields.refuse("attn_norm_num_groups", middle_groups, f"must divide the last of block_out_channels = {widths}")
    if shift and middle_groups is None:
        middle_groups = 0  # theirs has no norm there
    time_width = fields.take("time_embedding_dim", _Width | None, None)
    conditions = _conditions(fields, time_width or 4 * widths[0])
    options = ModelOptions(
        width=widths[0],
        multipliers=tuple(w // widths[0] if w % widths[0] == 0 else w / widths[0] for w in widths),
        blocks=fields.take("layers_per_block", _Blocks, 2),
        attention=attention,
        dropout=fields.take("dropout", _Dropout, 0.0),
        labels=bool(conditions.get("classes")),
        embedding=bool(conditions.get("vector")),
        groups=groups,
        norm_eps=fields.take("norm_eps", _Eps, 1e-5),
        head_width=head,
        pad_end=padding == 0,
        cosine_first=fields.take("flip_sin_to_cos", bool, True),
        frequency_shift=fields.take("freq_shift", Literal[0, 1], 0),
        time_width=None if time_width == 4 * widths[0] else time_width,
        activation=fields.choose("act_fn", _ACTIVATIONS, "silu"),
        scale_shift=shift,
        middle_attention=middle,
        middle_groups=middle_groups if middle and middle_groups != groups else None,
    )
    fields.end({"num_train_timesteps", *_AVERAGE})
    return Network(options, (channels, height, width), out, **conditions)


def _conditions(fields: Fields, time_width: int) -> dict[str, Any]:
    """What the network is conditioned on beside the time."""
    kind = fields.take("class_embed_type", Literal["timestep", "identity"] | None, None)
    classes = fields.take("num_class_embeds", _Classes)
    if kind == "timestep" and classes is None:
        fields.refuse("num_class_embeds", None, "with class_embed_type timestep, say how many classes there are")
    if kind == "identity":
        return {"vector": time_width}
    return {"classes": classes or 0, "numbers": kind == "timestep"}


def _sides(fields: Fields, divisor: int) -> tuple[int, int]:
    """(height, width) of the images: two sides, or one for both."""
    size = fields.values.pop("sample_size", None)
    sides = size if isinstance(size, list) else [size, size]
    try:
        height, width = msgspec.convert(sides, tuple[_Side, _Side])
    except msgspec.ValidationError as error:
        fields.refuse(
            "sample_size", size, f"the side of the images is needed, or [height, width]: {error}".replace("`", "")
        )
    if height % divisor or width % divisor:
        fields.refuse("sample_size", size, f"must divide by {divisor} = 2^(levels-1)")
    return height, width


class FewTimes(NamedTuple):
    """How a scheduler of theirs chooses fewer times than all; nothing else depends on it."""

    timestep_spacing: str
    steps_offset: int  # added to the times of `leading`


def few_times(fields: Fields) -> FewTimes:
    """What the scheduler has, or what is exported in its place where it is a word not known here."""
    kind = fields.values.get("_class_name", "DDPMScheduler")
    scheduler = _SCHEDULERS.get(kind, _ANCESTRAL) if isinstance(kind, str) else _ANCESTRAL
    spacing = fields.values.pop("timestep_spacing", scheduler.spacing)
    offset = fields.take("steps_offset", _Offset, 0)
    return FewTimes(spacing if spacing in SPACINGS else "leading", offset)


def diffusion(fields: Fields, learned: bool = False) -> DiffusionOptions:
    """The forward process, the target and the reverse process.

    Args:
        fields: of the scheduler.
        learned: whether the network has outputs for the variance.
    """
    kind = fields.values.get("_class_name", "DDPMScheduler")
    if not isinstance(kind, str) or kind not in _SCHEDULERS:
        fields.refuse("_class_name", kind, f"is not of a process known here, which {', '.join(_SCHEDULERS)} are of")
    scheduler = _SCHEDULERS[kind]
    if kind == "IPNDMScheduler" and "beta_schedule" not in fields.values and not fields.values.get("trained_betas"):
        fields.refuse("_class_name", kind, "without beta_schedule it says nothing of the process that was trained")
    betas = _betas(fields, scheduler)
    zero_snr = fields.take("rescale_betas_zero_snr", bool, False)
    if zero_snr:
        try:
            betas = betas.zero_terminal_snr()
        except ValueError as error:
            fields.refuse("rescale_betas_zero_snr", True, str(error))
    elif betas.T == 1 and not bool(betas.log_alpha_bar.isfinite().all()):
        fields.refuse("trained_betas", [1.0], "with one step of nothing but noise no image would be seen")
    fields.need("use_flow_sigmas", False, False)  # another process
    fields.need("timestep_type", "discrete", "discrete")  # otherwise the network takes the logarithm of sigma
    clip, clip_range = _clip(fields, scheduler)
    old = fields.take("predict_epsilon", bool, True)  # before 0.8
    target = fields.choose("prediction_type", _TARGETS, "epsilon" if old else "sample")
    if target == "eps" and not bool(betas.log_alpha_bar.isfinite().all()):
        name = "rescale_betas_zero_snr" if zero_snr else "trained_betas"
        fields.refuse(name, True, "where nothing but noise is left, prediction_type epsilon says nothing")
    if fields.values.get("variance_type", "") is None:
        del fields.values["variance_type"]  # solvers have it for models that learned one
    given = "variance_type" in fields.values or kind.startswith("DDPM")
    default = "learned_range" if learned and not given else "fixed_small"
    written = fields.values.get("variance_type", default)
    variance = fields.choose("variance_type", _VARIANCES, default)
    if (variance == "learned") != learned:
        fields.refuse(
            "variance_type",
            written,
            f"the network has {'twice as many output channels as' if learned else 'as many output channels as'} "
            f"input channels, which is {'learned_range' if learned else 'a fixed variance'}",
        )
    names = _NAMED if betas.T > 1 else ()  # of one step zero terminal SNR has none
    name = next((name for name in names if _same(betas, SCHEDULES[name](betas.T))), WITHOUT_NAME)
    options = DiffusionOptions(
        T=betas.T,
        schedule=name,
        target=target,
        variance=variance,
        clip=clip,
        clock="zero-based",
        betas=tuple(betas.beta.tolist()) if name == WITHOUT_NAME else (),
        clip_range=clip_range,
    )
    fields.end(_SAMPLING)
    return options


_NAMED = ("linear", "cosine", "scaled-linear", "linear-zero-snr", "cosine-zero-snr")


def _same(one: Gaussian, other: Gaussian) -> bool:
    return torch.allclose(one.log_alpha_bar, other.log_alpha_bar, rtol=1e-12, atol=1e-15)


def _betas(fields: Fields, scheduler: _Scheduler) -> Gaussian:
    """The forward process: the betas that are given, or those of a name."""
    steps = fields.take("num_train_timesteps", _Steps, 1000)
    given = fields.take("trained_betas", _Betas | None)
    if given is not None:
        fields.values.pop("beta_schedule", None)
        if len(given) != steps:
            fields.refuse("trained_betas", given, f"has {len(given)} entries, num_train_timesteps is {steps}")
        try:
            return from_betas(torch.tensor(given, dtype=torch.float64))
        except ValueError as error:
            fields.refuse("trained_betas", given, str(error))
    name = fields.values.get("beta_schedule", "linear")
    make = fields.choose("beta_schedule", _SCHEDULES, "linear")
    ends = [
        fields.take(field, _Beta, default)
        for field, default in (("beta_start", scheduler.first), ("beta_end", scheduler.last))
    ]
    try:
        return make(steps, *ends)
    except ValueError as error:
        fields.refuse("beta_schedule", name, str(error))


def _clip(fields: Fields, scheduler: _Scheduler) -> tuple[str, float]:
    """(the clip, its range)."""
    if scheduler.thresholds and fields.take("thresholding", bool, False):
        limit = fields.take("sample_max_value", float, 1.0)
        if limit not in (1.0, _NO_LIMIT):
            fields.refuse("sample_max_value", limit, f"1.0 and {_NO_LIMIT} are known here")
        fields.need("dynamic_thresholding_ratio", 0.995, 0.995)
        return ("static" if limit == 1.0 else "dynamic"), 1.0  # theirs never divides by more than this limit
    if scheduler.clips is not None and fields.take("clip_sample", bool, scheduler.clips):
        return "static", fields.take("clip_sample_range", _Range, 1.0)
    return "none", 1.0


def unet_document(config: Config, facts: Facts) -> dict[str, Any]:
    """The configuration of UNet2DModel."""
    model, (channels, height, width) = config.model, facts.shape
    down = ["AttnDownBlock2D" if level in model.attention else "DownBlock2D" for level in range(len(model.multipliers))]
    learned = config.diffusion.variance == "learned"
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": VERSION,
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": channels * (2 if learned else 1),
        "block_out_channels": list(model.widths),
        "layers_per_block": model.blocks,
        "down_block_types": down,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(down)],
        "dropout": model.dropout,
        "norm_num_groups": model.groups or GROUPS,
        "norm_eps": model.norm_eps,
        "attention_head_dim": model.head_width,
        "downsample_padding": 0 if model.pad_end else 1,
        "flip_sin_to_cos": model.cosine_first,
        "freq_shift": model.frequency_shift,
        "num_class_embeds": len(facts.class_names) + (model.condition_dropout > 0) if model.labels else None,
        "time_embedding_dim": model.time_width,
        "act_fn": model.activation,
        "resnet_time_scale_shift": "scale_shift" if model.scale_shift else "default",
        "add_attention": model.middle_attention,
        "attn_norm_num_groups": _middle_groups(model),
        "class_embed_type": None,
        **{name: only for name, (only, _) in _FIXED.items()},
    }


def _middle_groups(model: ModelOptions) -> int | None:
    """Where the field is left out theirs has the groups of all norms, or none at all with `scale_shift`."""
    all_alike = model.groups if model.scale_shift else None
    return all_alike if model.middle_groups is None else model.middle_groups or None


def scheduler_document(diffusion: DiffusionOptions, spacing: str, offset: int = 0) -> dict[str, Any]:
    """The configuration of DDPMScheduler, which chooses fewer times by this `timestep_spacing` and `steps_offset`."""
    name = diffusion.schedule.removesuffix("-zero-snr")
    plain = diffusion.shift == 1
    betas, kind, ends = diffusion.betas if plain else (), "linear", (1e-4, 0.02)
    if plain and not betas and name in _EXPORTED and (diffusion.T == 1000 or name == "cosine"):
        kind, *ends = _EXPORTED[name]
    elif not betas:
        betas = build.gaussian(Config("", diffusion=diffusion)).beta.tolist()
    variances = {ours: theirs for theirs, ours in reversed(_VARIANCES.items())}
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": diffusion.T,
        "beta_schedule": kind,
        "beta_start": ends[0],
        "beta_end": ends[1],
        "trained_betas": list(betas) or None,
        "rescale_betas_zero_snr": not betas and name != diffusion.schedule,
        "prediction_type": TARGETS[diffusion.target],
        # The optimal variance is a measured table, which they have no field for.
        "variance_type": {**variances, "beta": "fixed_large"}.get(diffusion.variance, "fixed_small"),
        "clip_sample": diffusion.clip == "static",
        "clip_sample_range": diffusion.clip_range,
        "thresholding": diffusion.clip == "dynamic",
        "sample_max_value": _NO_LIMIT,
        "timestep_spacing": spacing,
        "steps_offset": offset,
    }
