"""diffusers folders, both ways: a UNet2DModel with its scheduler's configuration, and a run of ours.

Tensors are copied to the bit; attention's q, k and v are one tensor here and three there. Needs no diffusers. The
format carries no digests: what was read is known by its SHA-256, and checked where the hub's cache names files by it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from hashlib import sha1, sha256
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ancestral.errors import UserError
from ancestral.runs import build, checkpoint
from ancestral.runs.config import Config, Facts
from ancestral.runs.hub import import_checks
from ancestral.runs.hub.diffusers_config import (
    GROUPS,
    VERSION,
    Fields,
    diffusion,
    network,
    scheduler_document,
    unet_document,
)
from ancestral.runtime import disk
from ancestral.runtime.result_files import held

_WEIGHTS = "diffusion_pytorch_model.safetensors"


def read(folder: Path) -> checkpoint.Checkpoint:
    """The model in a diffusers folder, as a run of ours has it; its state holds the digests of what was read.

    Raises:
        UserError: naming the file and field that has no meaning here.
    """
    parts = [folder / "unet", folder / "scheduler"]
    network_folder, scheduler_folder = (part if part.is_dir() else folder for part in parts)
    model, shape, classes = network(Fields(network_folder / "config.json"))
    process = diffusion(Fields(scheduler_folder / "scheduler_config.json"))
    config = Config(source=f"diffusers:{folder.name}", model=model, diffusion=process)
    facts = Facts(shape, tuple(str(number) for number in range(classes)))
    weights = _to_ours(network_folder / _WEIGHTS, config, facts, network_folder / "config.json")
    files = (network_folder / "config.json", network_folder / _WEIGHTS, scheduler_folder / "scheduler_config.json")
    digests = [_digest(path) for path in files]
    state = {
        "read": {str(path.relative_to(folder)): digest for path, (digest, _) in zip(files, digests, strict=True)},
        "checked": all(checked for _, checked in digests),
    }
    return checkpoint.Checkpoint(folder, 0, config, facts, weights, {}, state, None)


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


def _to_ours(path: Path, config: Config, facts: Facts, described: Path) -> dict[str, Tensor]:
    """The weights in a file of theirs; nothing is read before their names and shapes are those of the configuration."""
    expected = import_checks.shapes(config, facts, described)
    layers = [
        (f"{mine}.{kind}", [f"{other}.{kind}" for other in others])
        for mine, others in names(config)
        for kind in ("weight", "bias")
        if f"{mine}.{kind}" in expected  # a shortcut or a label that this network does not have
    ]
    shapes = {other: _shape_there(key, expected[key], len(others)) for key, others in layers for other in others}
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such file; save the model with safe_serialization=True")
        with safe_open(path, "pt") as file:
            stored = _by_new_names(file.keys(), path)
            import_checks.need_same(
                shapes, {new: tuple(file.get_slice(old).get_shape()) for new, old in stored.items()}, path
            )
            theirs = {new: file.get_tensor(old) for new, old in stored.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    import_checks.need_numbers(theirs, path)
    import_checks.need_plausible(theirs, path)
    return {key: torch.cat([theirs[o] for o in others]).float().reshape(expected[key]) for key, others in layers}


def _shape_there(ours: str, shape: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """A tensor's shape in a file of theirs: attention's layers are matrices there, and q, k and v are apart."""
    width = shape[0] // parts
    return (width, math.prod(shape[1:])) if "attention" in ours and len(shape) == 4 else (width, *shape[1:])


def _by_new_names(stored: Iterable[str], path: Path) -> dict[str, str]:
    """Names as they are now: those in the file, each of which must mean another tensor."""
    found: dict[str, str] = {}
    for name in stored:
        now = name
        for new, old in _OLD.items():
            now = now.replace(f".{old}.", f".{new}.")
        if now in found:
            raise UserError(f"{path}: {found[now]} and {name} name the same tensor; keep one of them")
        found[now] = name
    return found


def export_run(run: Path, folder: Path) -> None:
    """Write the newest checkpoint of a run as a folder that `diffusers.DDPMPipeline.from_pretrained` opens.

    Raises:
        UserError: naming the setting that has no field there.
    """
    saved = import_checks.passed(checkpoint.open_newest(run))
    config, model, process = saved.config, saved.config.model, saved.config.diffusion
    if process.chain != "gaussian":
        raise UserError(f"{run}: diffusion.chain is {process.chain}; diffusers has no such process")
    if model.patch != 1:
        raise UserError(f"{run}: model.patch is {model.patch}; diffusers' network has no such field")
    if model.fourier:
        raise UserError(f"{run}: model.fourier is {list(model.fourier)}; diffusers' network has no such field")
    for name in ("embedding", "condition_dropout"):
        if getattr(model, name):
            raise UserError(f"{run}: model.{name} is {getattr(model, name)}; diffusers' network has no such field")
    if model.groups is None and any(
        build.variant(model).groups_of(model.width * m) != GROUPS for m in model.multipliers
    ):
        raise UserError(f"{run}: its norms have groups by width; diffusers needs one number: train with model.groups")
    if process.T != 1000:
        raise UserError(f"{run}: diffusion.T is {process.T}; diffusers' schedules are those of T = 1000")
    if process.clock != "zero-based":
        # The embedding is a function of t alone, so that no weight can make up for the step between them.
        raise UserError(
            f"{run}: the network hears t = 1..1000, those of diffusers hear 0..999; "
            "train with --set diffusion.clock=zero-based to export"
        )
    unet = unet_document(config, saved.facts)
    scheduler = scheduler_document(run, process)
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
    documents = {
        "model_index.json": index,
        "scheduler/scheduler_config.json": scheduler,
        "unet/config.json": unet,
    }
    files = {name: json.dumps(document, indent=2).encode() for name, document in documents.items()}
    files[f"unet/{_WEIGHTS}"] = safetensors.torch.save(theirs, metadata={"format": "pt"})
    with held(folder, "export") as place:
        place.need_free(files)
        place.replace(files.items())
