"""diffusers folders, both ways: a UNet2DModel with its scheduler's configuration, and a run of ours.

Tensors are copied as float32, to the bit where they were no wider; attention's q, k and v are one tensor here and
three there. Needs no diffusers. The format carries no digests: what was read is known by its SHA-256, and checked where
the hub's cache names files by it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha1, sha256
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional

from ancestral.errors import UserError
from ancestral.networks.unet_layers import time_embedding
from ancestral.runs import build, checkpoint
from ancestral.runs.config import Config
from ancestral.runs.facts import Facts
from ancestral.runs.hub import import_checks
from ancestral.runs.hub.diffusers_config import (
    GROUPS,
    TARGETS,
    VERSION,
    Fields,
    Network,
    diffusion,
    few_times,
    network,
    scheduler_document,
    unet_document,
)
from ancestral.runs.process_kinds import not_exported
from ancestral.runtime import disk
from ancestral.runtime.result_files import held
from ancestral.runtime.tensor_files import finite, need_shapes
from ancestral.runtime.text import quoted

_WEIGHTS = "diffusion_pytorch_model.safetensors"
# With these variances theirs adds noise after its last step, unless that is of t = 0.
_NOISY = ("fixedlarge", "beta", "learned")
SPACING_WITHOUT_NOISE = ("trailing", "leading")
_DROPPED = 0.1  # the usual share of images without a class in training; how large it was says no file


_PIPELINES = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline")  # of pixels: a network and a scheduler
_OTHER_PARTS = ("vae", "vqvae", "movq", "transformer", "prior", "text_encoder")
_ADDED = ("*lora*.safetensors", "*lora*.bin", "adapter_model.safetensors")


def read(folder: Path, scheduler: Path | None = None, null_class: int | None = None) -> checkpoint.Checkpoint:
    """The model in a diffusers folder, as a run of ours has it; its state holds the digests of what was read.

    Args:
        folder: a pipeline's, or a network's own with its scheduler's file, or a checkpoint of the training script.
        scheduler: its configuration, or the folder of that; where none is in the folder.
        null_class: the number of its unconditional (null) class.

    Raises:
        UserError: naming the file and field that has no meaning here.
    """
    parts = [folder / name for name in ("unet_ema", "unet")]
    network_folder = next((part for part in parts if part.is_dir()), folder)
    notes = _identified(folder, network_folder)
    if network_folder.name == "unet_ema":
        last = network_folder.with_name("unet")
        more = f"; those of the last update are in {last}" if last.is_dir() else ""
        notes.append(f"the averaged weights are taken, of unet_ema{more}")
    found = network(described := Fields(network_folder / "config.json"))
    process_file = _scheduler_file(folder, network_folder, scheduler)
    fields = Fields(process_file)
    times = few_times(fields)
    process = diffusion(fields, learned=found.outputs != found.shape[0])
    model, names_of_classes = found.options, [str(number) for number in range(found.classes)]
    if null_class is not None:
        if not 0 <= null_class < found.classes or found.classes < 2:
            raise UserError(f"--null-class {null_class}: the network has {found.classes} classes, from 0")
        del names_of_classes[null_class]
        model = replace(model, condition_dropout=_DROPPED)
        notes.append(f"class {null_class} is none of the others, the null class: --guidance goes from it")
    elif found.classes:
        notes.append("if one of its classes is the unconditional (null) class, name it for guidance: --null-class N")
    config = Config(source=f"diffusers:{folder.name}", model=model, diffusion=process)
    facts = Facts(found.shape, tuple(names_of_classes), found.vector)
    stored = _weight_files(network_folder)
    weights, rounded = _to_ours(stored, config, facts, found, null_class, described.path)
    if rounded:
        notes.append("its float64 weights were rounded to float32")
    files = (described.path, *stored, process_file)
    digests = [_digest(path) for path in files]
    state = {
        "read": {_within(path, folder): digest for path, (digest, _) in zip(files, digests, strict=True)},
        "checked": all(checked for _, checked in digests),
        "notes": notes,
        **times._asdict(),
    }
    return checkpoint.Checkpoint(folder, 0, config, facts, weights, {}, state, None)


def _within(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _identified(folder: Path, network_folder: Path) -> list[str]:
    """What lies beside the model and is no part of it, a line each.

    Raises:
        UserError: for a folder that holds something else than a model of pixels.
    """
    index = folder / "model_index.json"
    if index.is_file():
        document = Fields(index).values
        kind = document.get("_class_name")
        if kind not in _PIPELINES:
            raise UserError(f"{index}: _class_name is {json.dumps(kind)}; of pixels are read: {', '.join(_PIPELINES)}")
        more = [name for name in document if name[:1] != "_" and name not in ("unet", "scheduler") and document[name]]
        if more:
            raise UserError(f"{index}: has a {more[0]}; a network of pixels and its scheduler are read")
    for name in _OTHER_PARTS:
        if (folder / name).is_dir():
            raise UserError(f"{folder / name}: is a part of a latent or conditioned model; models of pixels are read")
    added = sorted({path for where in (folder, network_folder) for name in _ADDED for path in where.glob(name)})
    if added and not (network_folder / "config.json").is_file():
        raise UserError(
            f"{added[0]}: is a LoRA, which changes a network that is not here; fuse it into the network with diffusers "
            "(fuse_lora), and save that"
        )
    return [f"{path}: a LoRA beside the weights, left out; fuse it into them with diffusers first" for path in added]


def _scheduler_file(folder: Path, network_folder: Path, given: Path | None) -> Path:
    """The scheduler's configuration.

    Raises:
        UserError: when there is none.
    """
    name = "scheduler_config.json"
    if given is not None:
        return given / name if given.is_dir() else given
    own = folder / "scheduler" if (folder / "scheduler").is_dir() else folder
    if (network_folder / "config.json").is_file() and not (own / name).is_file():
        above = folder.parent / "scheduler" / name  # the training script's, once it has ended
        where = above if above.is_file() else f"{name} of its training"
        raise UserError(f"{own / name}: no such file; `import` takes another as --scheduler {where}")
    return own / name


def _weight_files(folder: Path) -> list[Path]:
    """The files of a network's weights: whole, in shards, or of one variant such as fp16.

    Raises:
        UserError: when there are none, or it cannot be said which.
    """
    whole, stem = folder / _WEIGHTS, _WEIGHTS.removesuffix(".safetensors")
    if whole.is_file():
        return [whole]
    indices = sorted({*folder.glob(f"{_WEIGHTS}.index.json"), *folder.glob(f"{_WEIGHTS}.index.*.json")})
    variants = sorted(path for path in folder.glob(f"{stem}.*.safetensors") if "-of-" not in path.name)
    if len(found := [*indices, *variants]) > 1 and indices[:1] != [folder / f"{_WEIGHTS}.index.json"]:
        raise UserError(f"{found[0]}: and {found[1].name} hold the same weights; keep one of them")
    if variants and not indices:
        return variants
    if not indices:
        pickled = any(folder.glob(f"{stem}*.bin"))
        why = "pickled weights are not opened; " if pickled else ""
        raise UserError(f"{whole}: no such file; {why}save the model with safe_serialization=True")
    names = Fields(indices[0]).take("weight_map", dict[str, str], {})
    shards = sorted(set(names.values()))
    if not shards or any(Path(name).name != name for name in shards):
        raise UserError(f"{indices[0]}: weight_map names no files of this folder")
    return [folder / name for name in shards]


def _digest(path: Path) -> tuple[str, bool]:
    """(SHA-256, whether it was compared) of a file; one in the hub's cache links to blobs/<SHA-256, or git's SHA-1>.

    Raises:
        Damaged: when the file is not the one that this name stands for.
    """
    content, blob = disk.read(path), path.resolve()
    found = sha256(content).hexdigest()
    named = blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}|[0-9a-f]{40}", blob.name) is not None
    git = sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if named and blob.name not in (found, git):
        raise disk.Damaged(f"{path}: damaged (its digest is not {blob.name}); delete {blob} to load it again")
    return found, named


def names(config: Config) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(our module, theirs) for every layer with weights; three of theirs for a joined q, k and v."""
    model = config.model
    levels = len(model.multipliers)

    def stage(ours: str, theirs: str, number: int, attends: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
        block = {"norm1": "norm1", "conv1": "conv1", "time": "time_emb_proj", "norm2": "norm2", "conv2": "conv2"}
        for mine, other in {**block, "shortcut": "conv_shortcut"}.items():
            yield f"{ours}.block.{mine}", (f"{theirs}.resnets.{number}.{other}",)
        if attends:
            prefix = f"{theirs}.attentions.{number}"
            yield f"{ours}.attention.norm", (f"{prefix}.group_norm",)
            yield f"{ours}.attention.qkv", (f"{prefix}.to_q", f"{prefix}.to_k", f"{prefix}.to_v")
            yield f"{ours}.attention.out", (f"{prefix}.to_out.0",)

    yield from (("time.0", ("time_embedding.linear_1",)), ("time.2", ("time_embedding.linear_2",)))
    yield from (("label", ("class_embedding",)), ("stem", ("conv_in",)))
    index = 0
    for level in range(levels):
        for number in range(model.blocks):
            yield from stage(f"down.{index}", f"down_blocks.{level}", number, level in model.attention)
            index += 1
        if level < levels - 1:
            yield f"down.{index}", (f"down_blocks.{level}.downsamplers.0.conv",)
            index += 1
    yield from stage("middle.0", "mid_block", 0, attends=True)
    yield from stage("middle.1", "mid_block", 1, attends=False)
    index = 0
    for turn, level in enumerate(reversed(range(levels))):
        for number in range(model.blocks + 1):
            yield from stage(f"up.{index}", f"up_blocks.{turn}", number, level in model.attention)
            index += 1
        if level > 0:
            yield f"up.{index}.conv", (f"up_blocks.{turn}.upsamplers.0.conv",)
            index += 1
    yield from (("head.0", ("conv_norm_out",)), ("head.2", ("conv_out",)))


_OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # names of attention before 2023


def _to_ours(
    files: Sequence[Path], config: Config, facts: Facts, found: Network, null_class: int | None, described: Path
) -> tuple[dict[str, Tensor], bool]:
    """(the weights in files of theirs, whether they were rounded).

    Nothing is read before their names and shapes are those of the configuration.
    """
    expected = {name: tuple(one.shape) for name, one in import_checks.tensors_of(config, facts, described).items()}
    conditions = {name: expected.pop(name) for name in _CONDITIONS if name in expected}
    layers = [
        (f"{mine}.{kind}", [f"{other}.{kind}" for other in others])
        for mine, others in names(config)
        for kind in ("weight", "bias")
        if f"{mine}.{kind}" in expected  # a shortcut that this network does not have
    ]
    shapes = {other: _shape_there(key, expected[key], len(others)) for key, others in layers for other in others}
    shapes |= _condition_shapes(found, expected["time.2.bias"][0])
    where = files[0]
    try:
        with ExitStack() as opened:
            readers: dict[str, tuple[Any, str]] = {}
            for where in files:
                if not where.is_file():
                    raise UserError(f"{where}: no such file")
                file = opened.enter_context(safe_open(where, "pt"))
                for new, old in _by_new_names(file.keys(), where, readers).items():
                    readers[new] = (file, old)
            where = files[0]
            there = {new: tuple(file.get_slice(old).get_shape()) for new, (file, old) in readers.items()}
            need_shapes(there, shapes, str(where))
            theirs = {new: file.get_tensor(old) for new, (file, old) in readers.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{where}: cannot be read ({error})") from None
    finite(theirs, str(where))
    import_checks.need_plausible(theirs, where)
    weights = {key: torch.cat([theirs[o].float() for o in others]).reshape(expected[key]) for key, others in layers}
    if "embed.weight" in conditions:  # theirs adds the vector as it is
        weights |= {"embed.weight": torch.eye(found.vector), "embed.bias": torch.zeros(found.vector)}
    if found.classes:
        rows = list(_class_rows(found, theirs))
        if null_class is not None:
            weights["null"] = rows.pop(null_class)
        weights["label.weight"] = torch.stack(rows)
    rounded = any(one.dtype == torch.float64 and not torch.equal(one.float().double(), one) for one in theirs.values())
    return weights, rounded


_CONDITIONS = ("label.weight", "embed.weight", "embed.bias", "null")


def _condition_shapes(found: Network, time_width: int) -> dict[str, tuple[int, ...]]:
    """The tensors of theirs that hold what a class adds to the time."""
    if found.numbers:
        square, width = (time_width, time_width), found.options.width
        ends = {"linear_1.weight": (time_width, width), "linear_1.bias": square[:1], "linear_2.weight": square}
        return {f"class_embedding.{name}": shape for name, shape in {**ends, "linear_2.bias": square[:1]}.items()}
    return {"class_embedding.weight": (found.classes, time_width)} if found.classes else {}


def _class_rows(found: Network, theirs: Mapping[str, Tensor]) -> Tensor:
    """What each class adds to the time, (classes, time width); a number is embedded as a time is."""
    if not found.numbers:
        return theirs["class_embedding.weight"].float()
    part = {name.removeprefix("class_embedding."): value.float() for name, value in theirs.items()}
    waves = time_embedding(torch.arange(found.classes).float(), found.options.width, build.variant(found.options))
    hidden = functional.silu(functional.linear(waves, part["linear_1.weight"], part["linear_1.bias"]))
    return functional.linear(hidden, part["linear_2.weight"], part["linear_2.bias"])


def _shape_there(ours: str, shape: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """A tensor's shape in a file of theirs: attention's layers are matrices there, and q, k and v are apart."""
    width = shape[0] // parts
    return (width, math.prod(shape[1:])) if "attention" in ours and len(shape) == 4 else (width, *shape[1:])


def _by_new_names(stored: Iterable[str], path: Path, before: Collection[str]) -> dict[str, str]:
    """Names as they are now: those in the file, each of which must mean another tensor than these `before`."""
    found: dict[str, str] = {}
    for name in stored:
        now = name
        for new, old in _OLD.items():
            now = now.replace(f".{old}.", f".{new}.")
        if now in found or now in before:
            raise UserError(
                f"{path}: {found.get(now, 'another file')} and {name} name the same tensor; keep one of them"
            )
        found[now] = name
    return found


def export_run(run: Path, folder: Path, spacing: str | None = None) -> list[str]:
    """Write the newest checkpoint of a run as a folder that `diffusers.DDPMPipeline.from_pretrained` opens.

    Args:
        run: the run.
        folder: to write.
        spacing: of `export_choices.SPACINGS`, how that pipeline chooses fewer times; None: as an imported model had
            it, and as leaves no noise for others.

    Returns:
        Lines to print.

    Raises:
        UserError: naming the setting that has no field there.
    """
    saved = import_checks.passed(checkpoint.open_newest(run))
    config, model, process = saved.config, saved.config.model, saved.config.diffusion
    _need_fields(run, config)
    by_rule = SPACING_WITHOUT_NOISE[process.variance in _NOISY]
    spacing = spacing or str(saved.state.get("timestep_spacing", by_rule))
    steps_offset = saved.state.get("steps_offset", 0) if spacing == "leading" else 0  # no other asks for it
    unet = unet_document(config, saved.facts)
    scheduler = scheduler_document(process, spacing, steps_offset)
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": VERSION,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    theirs = {}
    for mine, others in names(config):
        for kind in ("weight", "bias"):
            if f"{mine}.{kind}" in saved.weights:
                value = saved.weights[f"{mine}.{kind}"]
                flat = value.flatten(1) if "attention" in mine and value.ndim == 4 else value
                for other, part in zip(others, flat.chunk(len(others)), strict=True):
                    theirs[f"{other}.{kind}"] = part.contiguous()
    lines = []
    if model.labels and "null" in saved.weights:
        rows = torch.cat([theirs["class_embedding.weight"], saved.weights["null"][None]])
        theirs["class_embedding.weight"] = rows
        lines = [f"class {len(rows) - 1} is none of the others, the null class: guidance goes from it"]
    documents = {
        "model_index.json": index,
        "scheduler/scheduler_config.json": scheduler,
        "unet/config.json": unet,
    }
    files = {name: json.dumps(document, indent=2).encode() for name, document in documents.items()}
    files[f"unet/{_WEIGHTS}"] = safetensors.torch.save(theirs, metadata={"format": "pt"})
    with held(folder, "export") as results:
        results.need_free(files)
        results.replace(files.items())
    if process.variance == "optimal":  # a measured table, which they have no field for; "beta" is their fixed_large
        lines.append("variance_type is fixed_small: diffusers has no field for the optimal one, a measured table")
    fewer = f", so that the pipeline takes fewer than all {process.T:,} steps"
    offset = f", steps_offset {steps_offset}{fewer}" if steps_offset else ""
    return [*lines, f"timestep_spacing is {spacing}{offset} (--timestep-spacing chooses another)"]


def _need_fields(run: Path, config: Config) -> None:
    """Refuse what their classes have no field for."""
    model, process = config.model, config.diffusion
    if process.chain != "gaussian":
        problem = f"diffusion.chain is {process.chain}, and diffusers has no such process"
    elif model.patch != 1:
        problem = f"model.patch is {model.patch}, and diffusers' network has no such field"
    elif model.fourier:
        problem = f"model.fourier is {list(model.fourier)}, and diffusers' network has no such field"
    elif model.embedding:
        problem = "model.embedding is true, and diffusers' network has no such field"
    elif model.groups is None and any(build.variant(model).groups_of(width) != GROUPS for width in model.widths):
        problem = "its norms have groups by width, and diffusers needs one number (train with model.groups)"
    elif process.train_steps is not None:
        problem = (
            f"diffusion.train_steps is {process.train_steps}, and a scheduler of diffusers asks the network at all "
            f"{process.T} times"
        )
    elif process.target not in TARGETS:
        problem = f"diffusion.target is {process.target}, and diffusers has {', '.join(TARGETS)}"
    elif process.clock != "zero-based":
        # The embedding is a function of t alone, so that no weight can make up for the step between them.
        problem = (
            f"the network takes t = 1..{process.T}, those of diffusers take 0..{process.T - 1} (train with --set "
            "diffusion.clock=zero-based)"
        )
    else:
        return
    other = f"any network leaves with: ancestral export {quoted(run)} --format onnx (or torch)"
    raise UserError(f"{run}: {problem}; {not_exported(config) or other}")
