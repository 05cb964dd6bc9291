"""Write and read a run folder: its checkpoints, and the model in the newest whole one.

    RUN/config.json              everything needed to build the run again
    RUN/checkpoints/000012800/   config.json model.safetensors state.safetensors state.json [calibration.safetensors]
                                 or, divided among processes: config.json state.json shard-00001-... shard-00002-...
    RUN/averages/000012800/      both weight averages at that time, for rebuilding other widths
    RUN/stopped/000012800/       an update that stopped the run: its images by name, t, losses, and the state before it
    RUN/metrics.jsonl            one record a line

Folders are named by the images seen. No pickle is written or read.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import msgspec
import safetensors.torch
from torch import Tensor

from ancestral.data.source_paths import is_run
from ancestral.diffusion.denoisers.calibrated import BUCKETS
from ancestral.errors import OtherVersion, UserError
from ancestral.networks import ema
from ancestral.runs.config import Config, from_json, to_json
from ancestral.runs.facts import Facts
from ancestral.runs.plan import Leg, Seconds, from_state
from ancestral.runtime import tensor_shards, verified_folder
from ancestral.runtime.encode import json_bytes
from ancestral.runtime.tensor_files import Tensors, fitting, parsed_folder
from ancestral.runtime.text import quoted

KEEP = 2
MODEL_FILES = ("config.json", "model.safetensors")
CALIBRATION = "calibration.safetensors"
UNCHECKED = ("guard/",)  # tensors that hold what is not finite by design


class OriginState(TypedDict):
    """The model whose weights a run began with."""

    name: str  # a folder or a name on the hub
    digest: str  # see `weights_digest`
    images: int  # that it had seen
    source: str  # of them


class State(TypedDict):
    """What a checkpoint must know of its run, beside the tensors."""

    total: int
    length: str
    data: str
    seconds: Seconds
    held_out_bits: float | None
    complete: bool
    legs: NotRequired[list[Leg]]  # absent from older runs, which have one
    precision: NotRequired[Literal["float32", "bfloat16", "float16"]]  # these three: see `compute_format`
    channels_last: NotRequired[bool]
    fastest_on: NotRequired[str | None]
    origin: NotRequired[OriginState]
    read: NotRequired[dict[str, str]]  # SHA-256 of the files that an imported model was made of
    timestep_spacing: NotRequired[str]  # this and the next of its scheduler, in the words of diffusers
    steps_offset: NotRequired[int]
    # These two are said when it is imported, and not written:
    checked: NotRequired[bool]  # whether all of those files have digests of their own
    notes: NotRequired[list[str]]


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, verified."""

    folder: Path
    images: int
    config: Config
    facts: Facts
    weights: Mapping[str, Tensor]  # the averaged ones, which sampling uses
    tensors: Mapping[str, Tensor]  # what training needs to go on
    state: dict[str, Any]
    calibration: Tensor | None  # E|x0 - x0_hat|^2 at each t and bucket of x0_hat (T + 1, buckets)


def save(
    run: Path,
    images: int,
    document: dict[str, Any],
    weights: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    state: dict[str, Any],
    calibration: Tensor | None = None,
) -> Path:
    """Write a checkpoint and drop all but the last two. Returns its folder.

    Raises:
        Unwritable: when the disk refuses; older checkpoints stay.
    """
    folder = run / "checkpoints" / f"{images:09d}"
    files = _files(document, weights, calibration)
    files |= {"state.safetensors": _pack(tensors), "state.json": json_bytes(state)}
    verified_folder.clear(folder.parent)
    verified_folder.write(folder, files)
    drop_old(run, images)
    return folder


def drop_old(run: Path, images: int) -> None:
    """Remove all but the last checkpoints up to that of so many images: a later one was damaged, and passed over."""
    for old in [folder for folder in folders(run) if int(folder.name) <= images][:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def load(folder: Path) -> Checkpoint:
    """Read one checkpoint.

    Raises:
        Damaged: naming the file, when a digest or a format is wrong.
        UserError: when its configuration is of another version.
    """
    parsed, divided = tensor_shards.parsed_divided_folder(
        folder, (*MODEL_FILES, "state.safetensors", "state.json"), ("config.json", "state.json"), UNCHECKED
    )
    config, facts, calibration = description(parsed, folder)
    if divided is None:
        tensors, weights = parsed["state.safetensors"], parsed["model.safetensors"]
    else:
        tensors = divided
        weights = divided.under(f"average-{config.train.average_widths[config.train.average]:g}/")
    state = parsed["state.json"]
    try:
        msgspec.convert(state, State)
    except msgspec.ValidationError as error:
        raise verified_folder.Damaged(f"{folder / 'state.json'}: damaged ({error})") from None
    plan = from_state(state, str(folder / "state.json"))
    if not plan.legs[-1].start <= int(folder.name) <= plan.end:
        raise verified_folder.Damaged(f"{folder / 'state.json'}: damaged (its last leg is not under way)")
    return Checkpoint(folder, int(folder.name), config, facts, weights, tensors, state, calibration)


def model_files(saved: Checkpoint) -> dict[str, bytes]:
    """The files that hold the model and nothing of its training."""
    return _files(to_json(saved.config, saved.facts), saved.weights, saved.calibration)


def shared_files(document: dict[str, Any], state: dict[str, Any], calibration: Tensor | None) -> dict[str, bytes]:
    """The files of a divided checkpoint that one process writes for all."""
    return _calibrated({"config.json": json_bytes(document), "state.json": json_bytes(state)}, calibration)


def _files(document: dict[str, Any], weights: Mapping[str, Tensor], calibration: Tensor | None) -> dict[str, bytes]:
    return _calibrated({"config.json": json_bytes(document), "model.safetensors": _pack(weights)}, calibration)


def _calibrated(files: dict[str, bytes], calibration: Tensor | None) -> dict[str, bytes]:
    return files if calibration is None else {**files, CALIBRATION: _pack({"x0_var": calibration})}


def description(parsed: Mapping[str, Any], folder: Path) -> tuple[Config, Facts, Tensor | None]:
    """(configuration, facts, calibration) from what the files of a folder hold.

    Raises:
        Damaged, UserError: as `load`.
    """
    try:
        config, facts = from_json(parsed["config.json"], str(folder / "config.json"))
    except OtherVersion:
        raise
    except UserError as error:
        raise verified_folder.Damaged(str(error)) from None
    if CALIBRATION not in parsed:
        return config, facts, None
    table = parsed[CALIBRATION].get("x0_var")
    if table is None or table.shape != (config.diffusion.T + 1, BUCKETS):
        wrong = f"x0_var is not of a model with diffusion.T = {config.diffusion.T}"
        raise verified_folder.Damaged(f"{folder / CALIBRATION}: {wrong}")
    return config, facts, table


def save_imported(run: Path, saved: Checkpoint) -> Path:
    """Make a run of a model from elsewhere, to sample and evaluate. Returns the checkpoint's folder."""
    state = {"length": "imported", "data": "", "seconds": 0.0, "held_out_bits": None, "complete": True}
    kept = ("read", "origin", "timestep_spacing", "steps_offset")
    state |= {name: saved.state[name] for name in kept if name in saved.state}
    document = to_json(saved.config, saved.facts)
    return save(run, saved.images, document, saved.weights, {}, {"total": saved.images, **state}, saved.calibration)


def digest(saved: Checkpoint) -> str:
    """Which model this is: SHA-256 of its manifest, which names the digest of every file."""
    return verified_folder.digest(saved.folder)


def weights_digest(saved: Checkpoint) -> str:
    """Which weights these are, wherever they are from: SHA-256 of the model.safetensors that holds them here."""
    return sha256(_pack(saved.weights)).hexdigest()


def latest(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of a run, or None, and one line for each damaged one that was passed over.

    Raises:
        UserError: when there are checkpoints and every one is damaged.
    """
    problems: list[str] = []
    for folder in reversed(folders(run)):
        try:
            return load(folder), problems
        except verified_folder.Damaged as error:
            problems.append(str(error))
    if problems:
        raise UserError(f"{run}: no whole checkpoint is left: {'; '.join(problems)}; train again with --fresh")
    return None, problems


def open_run(run: Path) -> tuple[Checkpoint, list[str]]:
    """The newest whole checkpoint of a run that must have one.

    Raises:
        UserError: when the folder is absent or holds no checkpoint.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run; train one with: ancestral train DATA --out {quoted(run)}")
    checkpoint, problems = latest(run)
    if checkpoint is None:
        raise UserError(f"{run}: holds no checkpoint; train it with: ancestral train DATA --out {quoted(run)}")
    return checkpoint, problems


def open_newest(run: Path) -> Checkpoint:
    """The newest checkpoint, for what leaves the run and must not be an older one unnoticed.

    Raises:
        UserError: as `open_run`, and when the newest is damaged.
    """
    saved, problems = open_run(run)
    if problems:
        raise UserError(f"{problems[0]}; move that checkpoint away to take the one before it")
    return saved


def open_average(folder: Path) -> Checkpoint:
    """A kept average, RUN/averages/IMAGES, of the width that is the model's, as a checkpoint.

    Raises:
        UserError: as `open_run`, and when the average is absent or damaged.
    """
    saved, _ = open_run(folder.parent.parent)
    width = saved.config.train.average_widths[saved.config.train.average]
    weights = _average(folder, f"{width:g}.safetensors", saved.weights)
    return replace(saved, folder=folder, images=int(folder.name), weights=weights, calibration=None)


def is_average(folder: Path) -> bool:
    """Whether a folder lies where the kept averages of a run do."""
    return folder.parent.name == "averages" and is_run(folder.parent.parent)


def early_average(saved: Checkpoint, share: float) -> Path:
    """The kept average of the same run whose images are nearest to this share of the checkpoint's.

    Raises:
        UserError: when none of an earlier time is kept.
    """
    kept = saved.folder.parent.parent / "averages"
    earlier = [folder for folder in _folders(kept) if int(folder.name) < saved.images]
    if not earlier:
        raise UserError(f"{kept}: holds no average of an earlier time; train one that does, or name a weaker model")
    return min(earlier, key=lambda folder: abs(int(folder.name) - share * saved.images))


def save_snapshot(run: Path, images: int, averages: list[ema.PowerAverage]) -> None:
    """Write both averages as they are now."""
    files = {f"{average.width:g}.safetensors": _pack(average.weights) for average in averages}
    verified_folder.write(run / "averages" / f"{images:09d}", files)


def save_for_inspection(run: Path, images: int, batch: dict[str, Any], tensors: Tensors) -> Path:
    """Write the batch and state of an update that stopped the run. Returns the folder."""
    folder = run / "stopped" / f"{images:09d}"
    verified_folder.write(folder, {"batch.json": json_bytes(batch), "state.safetensors": _pack(tensors)})
    return folder


def load_snapshots(run: Path, saved: Checkpoint) -> list[ema.Snapshot]:
    """Every average that was written up to a checkpoint.

    Raises:
        UserError: when there is none, or one is damaged: without it the average would be another.
    """
    widths = {f"{width:g}.safetensors": width for width in saved.config.train.average_widths}
    within = [folder for folder in _folders(run / "averages") if int(folder.name) <= saved.images]
    snapshots = [
        ema.Snapshot(int(folder.name), width, _average(folder, name, saved.weights))
        for folder in within
        for name, width in widths.items()
    ]
    if not snapshots:
        raise UserError(
            f"{run / 'averages'}: no kept averages, so no other width can be rebuilt; leave out --average-width"
        )
    return snapshots


def _average(folder: Path, name: str, weights: Mapping[str, Tensor]) -> Tensors:
    """A kept average of these weights."""
    return fitting(parsed_folder(folder, [name], names=[name])[name], weights, str(folder / name))


def folders(run: Path) -> list[Path]:
    """The checkpoints of a run, whole or damaged, oldest first."""
    return _folders(run / "checkpoints")


def _folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    found = (folder for folder in parent.iterdir() if re.fullmatch("[0-9]{1,18}", folder.name))
    return sorted(found, key=lambda folder: int(folder.name))


def _pack(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
