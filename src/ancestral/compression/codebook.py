"""All that the two sides of the codec share besides the weights, kept beside the checkpoint that it belongs to.

RUN/codec/<digest of the checkpoint, 16 digits>/   codebook.json  codebook.safetensors
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TypedDict

import msgspec
import safetensors.torch
import torch
from torch import Tensor

from ancestral.compression import residual_tables
from ancestral.compression.errors import CodecError
from ancestral.compression.residual_tables import ResidualTable
from ancestral.diffusion.denoisers.denoiser import Denoiser, with_network
from ancestral.diffusion.processes.levels import HALF_RANGE
from ancestral.diffusion.processes.streams import Streams
from ancestral.errors import UserError
from ancestral.runs import checkpoint
from ancestral.runs.open import device_of
from ancestral.runtime import disk, verified_folder
from ancestral.runtime.encode import json_bytes
from ancestral.runtime.tensor_files import finite, unpacked

FILES = ("codebook.json", "codebook.safetensors")


@dataclass(frozen=True)
class Profile:
    """A walk that files can be written with."""

    id: int  # its number in a file
    # strictly falling; the pixels are coded given the prediction at the last, which is at least 1
    times: tuple[int, ...]
    # for each step the bits of the channel at q = 0..15, for errors 2^((q - 8) / 4) times those measured
    counts: tuple[tuple[int, ...], ...]
    channel: int  # 0 best of 2^12, 1 trellis
    guard: float  # grey levels that another machine's prediction may be off


@dataclass(frozen=True)
class Canary:
    """What the network said when it was measured: x0 (K, C, H, W), unclipped, from x_t at each t (K,)."""

    x_t: Tensor
    t: Tensor
    labels: Tensor  # (K,), or empty where the network takes none
    x0: Tensor

    def __post_init__(self) -> None:
        t, labels = self.t, self.labels
        if self.x0.shape != self.x_t.shape or t.shape != self.x0.shape[:1] or labels.shape not in (t.shape, (0,)):
            raise CodecError("the canary's tensors are not of one number of images")
        if {t.dtype, labels.dtype} != {torch.int64} or not self.x0.is_floating_point():
            raise CodecError("the canary's tensors are not of its kinds of numbers")


@dataclass(frozen=True)
class Codebook:
    """All that two sides must share besides the weights."""

    x0_var: Tensor  # float64 (T + 1, buckets), as `Calibrated` takes it
    profiles: dict[int, Profile]  # by their numbers
    residual: ResidualTable  # tables for the exact pixels
    model_id: bytes  # 8 bytes of the SHA-256 of the weights, the configuration and all tables
    canary: Canary  # for comparing another machine's network with this one's
    # what was found when it was measured; no part of the format
    report: Mapping[str, float] = field(default_factory=dict)


def save(run: Path, saved: checkpoint.Checkpoint, codebook: Codebook) -> Path:
    """Keep a codebook in its run. Returns the folder.

    Raises:
        Unwritable: when the disk refuses.
    """
    document = {
        "profiles": [asdict(profile) for profile in codebook.profiles.values()],
        "model_id": codebook.model_id.hex(),
        "report": dict(codebook.report),
    }
    tensors = {
        "x0_var": codebook.x0_var,
        **{
            f"residual.{name}": torch.from_numpy(value)
            for name, value in residual_tables.to_tensors(codebook.residual).items()
        },
        **{f"canary.{name}": value for name, value in vars(codebook.canary).items()},
    }
    content = {name: value.contiguous() for name, value in tensors.items()}
    folder = _folder(run, saved)
    verified_folder.write(
        folder,
        {
            "codebook.json": json_bytes(document),
            "codebook.safetensors": safetensors.torch.save(content),
        },
    )
    return folder


def load(run: Path, saved: checkpoint.Checkpoint) -> Codebook | None:
    """The codebook of this checkpoint, or None where it was not measured.

    Raises:
        Damaged: when what is there is not what was written, or was measured on another model.
    """
    folder = _folder(run, saved)
    if not os.path.lexists(folder):
        return None
    try:
        found = _read(folder)
        if found.model_id != identity(saved, found.x0_var, found.profiles, found.residual):
            raise verified_folder.Damaged(
                f"{folder / FILES[0]}: its model_id is not that of this model with the tables of {FILES[1]}"
            )
    except verified_folder.Damaged as error:
        raise verified_folder.Damaged(
            f"{error}; put it back from a copy of the run, as files made before are read with it; for new files alone "
            f"delete {folder}, and it is measured again"
        ) from None
    return found


class _Document(TypedDict):
    profiles: list[Profile]
    model_id: str
    report: dict[str, float]


def _read(folder: Path) -> Codebook:
    files = verified_folder.read(folder, FILES)
    where, measured = (str(folder / name) for name in FILES)
    document = disk.parsed(files[FILES[0]], where, float)
    tensors = finite(unpacked(files[FILES[1]], measured), measured)
    try:
        read = msgspec.convert(document, _Document)
        model_id = bytes.fromhex(read["model_id"])
        where = measured
        return Codebook(
            x0_var=tensors["x0_var"],
            profiles={one.id: one for one in read["profiles"]},
            residual=residual_tables.of_tensors(
                {name: tensors[f"residual.{name}"].numpy() for name in ("frequencies", "leaving", "weights")}
            ),
            model_id=model_id,
            canary=Canary(*(tensors[f"canary.{name}"] for name in ("x_t", "t", "labels", "x0"))),
            report=read["report"],
        )
    except KeyError as error:
        raise verified_folder.Damaged(f"{where}: damaged (has no {error.args[0]})") from None
    except (ValueError, TypeError, AttributeError, IndexError, RuntimeError, CodecError) as error:
        raise verified_folder.Damaged(f"{where}: damaged or not a codebook ({error})") from None


def widened(model: Denoiser) -> Denoiser:
    """The model with its network in float64, as the codec runs it: what other machines compute differs by 1e-12 or so.

    Measured on a network of 0.7 million weights: 1.5 times the time of float32 for one image, 3 times in batches.
    """
    return with_network(model, copy.deepcopy(model.network).double())


@torch.no_grad()
def drift(model: Denoiser, canary: Canary) -> float:
    """By how many grey levels the predictions of a `widened` model differ from those when it was measured, at most."""
    return float((_answers(model, canary.x_t, canary.t, canary.labels) - canary.x0).abs().max()) * HALF_RANGE


def check(model: Denoiser, codebook: Codebook, profile: Profile) -> None:
    """See that files of this profile are safe from the drift of a `widened` model.

    Raises:
        UserError: when it is above the profile's guard.
    """
    found = drift(model, codebook.canary)
    if not found <= profile.guard:
        raise UserError(
            f"profile {profile.id}: the network's predictions here are {found:.2g} grey levels from those it was "
            f"calibrated with, and {profile.guard:.2g} are allowed; use a profile with a wider guard"
        )


def canary_of(model: Denoiser, saved: checkpoint.Checkpoint, times: tuple[int, ...]) -> Canary:
    """What the widened model says of three noisy images of one tone each, at three times."""
    shape, t = saved.facts.shape, torch.tensor(times)
    x0 = torch.tensor([-0.5, 0.0, 0.5]).reshape(3, 1, 1, 1).expand(3, *shape).double()
    x_t = model.schedule.marginal(x0, t).sample(Streams(0, "canary", range(3)).normal(shape))
    labels = torch.zeros(3 * saved.config.model.labels, dtype=torch.int64)
    return Canary(x_t, t, labels, _answers(widened(model), x_t, t, labels))


def identity(saved: checkpoint.Checkpoint, x0_var: Tensor, profiles: dict[int, Profile], table: ResidualTable) -> bytes:
    """8 bytes that stand for everything that both sides must share, the configuration as it was written."""
    document = json.loads(verified_folder.read(saved.folder, ["config.json"])["config.json"])
    kept = {name: document["config"][name] for name in ("model", "diffusion")} | {"facts": document["facts"]}
    digest = sha256(json.dumps([kept, [asdict(one) for one in profiles.values()]], sort_keys=True).encode())
    arrays = {name: torch.from_numpy(value) for name, value in residual_tables.to_tensors(table).items()}
    for name, tensor in sorted({**saved.weights, "x0_var": x0_var, **arrays}.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.digest()[:8]


def _folder(run: Path, saved: checkpoint.Checkpoint) -> Path:
    return run / "codec" / checkpoint.digest(saved)[:16]


def _answers(model: Denoiser, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    device = device_of(model)
    x_t, labels = x_t.to(device), labels.to(device)
    given = {"labels": labels} if len(labels) else {}
    return model.predict_unclipped(x_t, t, **given).x0.cpu().double()
