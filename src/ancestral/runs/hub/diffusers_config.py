"""The configuration files of diffusers, as settings of ours and back: UNet2DModel and its scheduler.

What the other has no field for is an error that names the file and the field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import msgspec
from msgspec import Meta

from ancestral.errors import UserError
from ancestral.runs.config import Config, DiffusionOptions, Facts, ModelOptions
from ancestral.runtime import disk

VERSION = "0.30.0"  # of diffusers, whose fields these are
GROUPS = 32  # of the norms, where a folder leaves them out
_NO_LIMIT = 1e6  # of the quantile that dynamic thresholding divides by
_SCHEDULES = {  # name there: (name here, the other values that it stands for)
    "linear": ("linear", {"beta_start": 1e-4, "beta_end": 0.02}),
    "scaled_linear": ("scaled-linear", {"beta_start": 8.5e-4, "beta_end": 0.012}),
    "squaredcos_cap_v2": ("cosine", {}),
}
_TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
# Theirs is beta at the last step too, where they add no noise and have no decoder: the paper's name is the same chain.
_VARIANCES = {"fixed_small": "fixedsmall", "fixed_large": "fixedlarge", "learned_range": "learned"}
_Side = Annotated[int, Meta(ge=1, le=4096)]
_Width = Annotated[int, Meta(ge=1, le=2**14)]
_Widths = Annotated[list[_Width], Meta(min_length=1, max_length=10)]
_Names = Annotated[list[str], Meta(min_length=1, max_length=10)]
_Blocks = Annotated[int, Meta(ge=1, le=32)]
_Channels = Annotated[int, Meta(ge=1, le=64)]
_Classes = Annotated[int, Meta(ge=1, le=2**20)] | None
_Dropout = Annotated[float, Meta(ge=0, lt=1)]
_Eps = Annotated[float, Meta(gt=0, le=1)]
# Fields of the network that have one value here; the defaults of UNet2DModel where a folder leaves them out.
_FIXED: dict[str, tuple[Any, Any]] = {
    "center_input_sample": (False, False),
    "time_embedding_type": ("positional", "positional"),
    "time_embedding_dim": (None, None),
    "mid_block_scale_factor": (1, 1),
    "downsample_type": ("conv", "conv"),
    "upsample_type": ("conv", "conv"),
    "act_fn": ("silu", "silu"),
    "attn_norm_num_groups": (None, None),
    "resnet_time_scale_shift": ("default", "default"),
    "add_attention": (True, True),
    "class_embed_type": (None, None),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
}


class Fields:
    """A configuration file, each field asked for once; those nobody asked for are errors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.values = disk.document(path)
        except disk.Missing as error:
            raise UserError(f"{error}; is this a diffusers folder?") from None
        if not isinstance(self.values, dict):
            raise UserError(f"{path}: is not a configuration")

    def take(self, name: str, kind: Any, default: Any = None) -> Any:
        """The value of a field, once, of a type within its bounds."""
        value = self.values.pop(name, default)
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


def network(fields: Fields) -> tuple[ModelOptions, tuple[int, int, int], int]:
    """(the network's settings, the shape of its images, how many classes it has or 0)."""
    fields.need("_class_name", "UNet2DModel", "UNet2DModel")
    for name, (only, default) in _FIXED.items():
        fields.need(name, only, default)
    widths = fields.take("block_out_channels", _Widths, [224, 448, 672, 896])
    if any(w % widths[0] for w in widths):
        fields.refuse("block_out_channels", widths, "each must be a multiple of the first")
    down = fields.take("down_block_types", _Names, ["DownBlock2D"] + ["AttnDownBlock2D"] * 3)
    up = fields.take("up_block_types", _Names, ["AttnUpBlock2D"] * 3 + ["UpBlock2D"])
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
    classes, channels = fields.take("num_class_embeds", _Classes), fields.take("in_channels", _Channels, 3)
    height, width = _sides(fields, 2 ** (len(widths) - 1))
    out = fields.take("out_channels", int, 3)
    if out not in (channels, 2 * channels):
        fields.refuse("out_channels", out, f"must be in_channels = {channels}, or twice as many")
    groups, head = fields.take("norm_num_groups", _Width, GROUPS), fields.take("attention_head_dim", _Width | None, 8)
    if any(w % groups for w in widths):
        fields.refuse("norm_num_groups", groups, f"must divide each of block_out_channels = {widths}")
    if any(widths[level] % (head or 1) for level in (*attention, -1)):
        fields.refuse("attention_head_dim", head, f"must divide each of block_out_channels = {widths} with attention")
    options = ModelOptions(
        width=widths[0],
        multipliers=tuple(w // widths[0] for w in widths),
        blocks=fields.take("layers_per_block", _Blocks, 2),
        attention=attention,
        dropout=fields.take("dropout", _Dropout, 0.0),
        labels=bool(classes),
        groups=groups,
        norm_eps=fields.take("norm_eps", _Eps, 1e-5),
        head_width=head,
        pad_end=padding == 0,
        cosine_first=fields.take("flip_sin_to_cos", bool, True),
        frequency_shift=fields.take("freq_shift", Literal[0, 1], 0),
    )
    fields.end({"num_train_timesteps"})
    return options, (channels, height, width), classes or 0


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


def diffusion(fields: Fields) -> DiffusionOptions:
    """The forward process, the target and the reverse process."""
    fields.need("num_train_timesteps", 1000, 1000)
    fields.need("trained_betas", None, None)
    name, values = fields.choose("beta_schedule", _SCHEDULES, "linear")
    for field, default in (("beta_start", 1e-4), ("beta_end", 0.02)):
        if field in values:
            fields.need(field, values[field], default)
    if fields.take("rescale_betas_zero_snr", bool, False):
        name += "-zero-snr"
        if name == "scaled-linear-zero-snr":
            fields.refuse("rescale_betas_zero_snr", True, "known for linear and squaredcos_cap_v2")
    clip = "none"
    if fields.take("thresholding", bool, False):
        limit = fields.take("sample_max_value", float, 1.0)
        clip = "static" if limit == 1.0 else "dynamic"  # theirs never divides by more than this limit
        if limit not in (1.0, _NO_LIMIT):
            fields.refuse("sample_max_value", limit, f"1.0 and {_NO_LIMIT} are known here")
        fields.need("dynamic_thresholding_ratio", 0.995, 0.995)
    elif fields.take("clip_sample", bool, True):
        clip = "static"
        fields.need("clip_sample_range", 1.0, 1.0)
    target = fields.choose("prediction_type", _TARGETS, "epsilon")
    if target == "eps" and name.endswith("-zero-snr"):
        fields.refuse(
            "rescale_betas_zero_snr", True, "where nothing but noise is left, prediction_type epsilon says nothing"
        )
    options = DiffusionOptions(
        schedule=name,
        target=target,
        variance=fields.choose("variance_type", _VARIANCES, "fixed_small"),
        clip=clip,
        clock="zero-based",
    )
    # How it is sampled, and what only says how clipping would be done: chosen anew by every `ancestral sample`.
    sampling = {"timestep_spacing", "steps_offset", "set_alpha_to_one", "beta_start", "beta_end"}
    fields.end(sampling | {"clip_sample", "clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value"})
    return options


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
        "block_out_channels": [model.width * multiplier for multiplier in model.multipliers],
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
        "num_class_embeds": len(facts.class_names) if model.labels else None,
        **{name: only for name, (only, _) in _FIXED.items()},
    }


def scheduler_document(run: Path, diffusion: DiffusionOptions) -> dict[str, Any]:
    """The configuration of DDPMScheduler."""
    kinds = {ours: kind for kind, (ours, _) in _SCHEDULES.items()}
    name = diffusion.schedule.removesuffix("-zero-snr")
    if name not in kinds:
        raise UserError(f"{run}: diffusion.schedule is {diffusion.schedule}; diffusers has {', '.join(kinds)}")
    targets, variances = ({ours: theirs for theirs, ours in table.items()} for table in (_TARGETS, _VARIANCES))
    if diffusion.target not in targets:
        raise UserError(f"{run}: diffusion.target is {diffusion.target}; diffusers has {', '.join(targets)}")
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": 1000,
        "beta_schedule": kinds[name],
        **{"beta_start": 1e-4, "beta_end": 0.02, **_SCHEDULES[kinds[name]][1]},
        "rescale_betas_zero_snr": name != diffusion.schedule,
        "prediction_type": targets[diffusion.target],
        # The optimal variance is a measured table, which they have no field for.
        "variance_type": {**variances, "beta": "fixed_large"}.get(diffusion.variance, "fixed_small"),
        "clip_sample": diffusion.clip == "static",
        "clip_sample_range": 1.0,
        "thresholding": diffusion.clip == "dynamic",
        "sample_max_value": _NO_LIMIT,
        "timestep_spacing": "trailing",
    }
