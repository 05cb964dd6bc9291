"""What the codec knows of a model: its error over time, the walks worth taking, the tables of the residual, a canary.

    RUN/codec/<digest of the checkpoint, 16 digits>/   codebook.json  codebook.safetensors

Measured once, on training images, and kept. A file names the codebook by `model_id`; another one cannot read it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ancestral import build, checkpoint, sealed
from ancestral.bound import interpolated
from ancestral.codec import residual
from ancestral.codec.errors import CodecError
from ancestral.codec.planning import Costs, Errors, bucket_sums, channel_bits, move_costs, plan, step_bits
from ancestral.codec.residual import ResidualTable
from ancestral.config import Config, to_json
from ancestral.denoiser import Denoiser
from ancestral.errors import UserError
from ancestral.feed import facts, to_unit
from ancestral.gaussian import standard_normal_like
from ancestral.grids import log_snr
from ancestral.imageset import ImageSet, Splits
from ancestral.monitor import labels_of
from ancestral.rng import Streams

NODES = 100  # times that the error is measured at
IMAGES, AT_THE_END, HELD_OUT = 256, 512, 64  # training images a time, more where a walk may end; held-out ones
ENDS = (0.3, 10.0)  # noise in grey levels at which a walk may end
OVERHEAD = 1.15  # bits that a channel takes for a bit of KL
LEVEL_BITS = 4  # of a step, for its q
MOST_CALLS = 64
SETS = 6  # of the residual's tables
GUARD = 1e-3  # grey levels that a float32 network may be off
EFFICIENCY = {0: 0.79, 1: 0.9}  # bits of KL that a channel's bit carries: best of 2^12, trellis
# A walk is as short as its bytes allow: at most so much more than the best number of predictions.
SHIPPED = {0: (0, 0.015), 1: (1, 0.06), 2: (1, 0.015), 3: (1, 0.0)}  # id: (channel, share more)
DEFAULT = 2


@dataclass(frozen=True)
class Profile:
    """A walk that files can be written with.

    Args:
        id: its number in a file.
        times: strictly falling; the pixels are coded given the prediction at the last, which is at least 1.
        counts: for each step the bits of the channel at q = 0..15, for errors 2^((q - 8) / 4) times those measured.
        channel: 0 best of 2^12, 1 trellis.
        guard: grey levels that another machine's prediction may be off.
    """

    id: int
    times: tuple[int, ...]
    counts: tuple[tuple[int, ...], ...]
    channel: int
    guard: float


@dataclass(frozen=True)
class Canary:
    """What the network said when it was measured: x0 (K, C, H, W), unclipped, from x_t at each t (K,)."""

    x_t: Tensor
    t: Tensor
    labels: Tensor  # (K,), or empty where the network takes none
    x0: Tensor


@dataclass(frozen=True)
class Codebook:
    """All that two sides must share besides the weights.

    Args:
        x0_var: float64 (T + 1, buckets), as `Calibrated` takes it.
        profiles: by their numbers.
        residual: tables for the exact pixels.
        model_id: 8 bytes of the SHA-256 of the weights, the configuration and all tables.
        canary: for comparing another machine's network with this one's.
        report: what was found when it was measured; no part of the format.
    """

    x0_var: Tensor
    profiles: dict[int, Profile]
    residual: ResidualTable
    model_id: bytes
    canary: Canary
    report: Mapping[str, float] = field(default_factory=dict)


Tell = Callable[[float], None]  # is told the share that is done


def silent(share: float) -> None:
    """Tells nobody."""


@torch.no_grad()
def measure(model: Denoiser, saved: checkpoint.Checkpoint, images: Splits, tell: Tell = silent) -> Codebook:
    """Measure a model on its training images.

    Raises:
        UserError: when they are of another shape than the model's.
    """
    if facts(images.train).shape != saved.facts.shape:
        raise UserError(f"images of {facts(images.train).shape} cannot calibrate a model of {saved.facts.shape}")
    schedule = model.schedule
    times = _nodes(saved.config)
    noise_levels = (-schedule.log_snr(torch.tensor(times)) / 2).exp() * 127.5
    ends = [place for place, level in enumerate(noise_levels.tolist()) if ENDS[0] <= level <= ENDS[1]] or [-1]
    ends = [place % len(times) for place in ends]
    train, held_out = images.train.spread(AT_THE_END), images.test.spread(HELD_OUT)
    few = train.spread(IMAGES)
    measured, tested, predicted = [], [], {}
    for place, t in enumerate(times):
        chosen = train if place in ends else few
        x0_hat = _predicted(model, saved.config, chosen, t, "codec")
        measured.append(bucket_sums(x0_hat, to_unit(chosen.images)))
        seen = _predicted(model, saved.config, held_out, t, "held out")
        tested.append(bucket_sums(seen, to_unit(held_out.images)))
        if place in ends:
            predicted[place] = x0_hat.permute(0, 2, 3, 1).numpy()
        tell((place + 1) / len(times))
    errors, tested_errors = _errors(times, measured), _errors(times, tested)
    pixels = np.asarray(train.images[:])
    costs = _costs(model, errors, to_unit(few.images), pixels, predicted)
    dimensions = pixels[0].size
    plans = plan(times, costs, MOST_CALLS)
    totals = {len(walk): total + LEVEL_BITS * (len(walk) - 1) / dimensions for walk, total in plans}
    profiles = {}
    for number, (channel, more) in SHIPPED.items():
        calls = min(k for k, total in totals.items() if total <= (1 + more) * min(totals.values()))
        walk = next(walk for walk, _ in plans if len(walk) == calls)
        counts = channel_bits(schedule, errors, walk, dimensions, EFFICIENCY[channel])
        profiles[number] = Profile(number, walk, counts, channel, GUARD)
    stops = _sets([times.index(one.times[-1]) for one in profiles.values()], sorted(predicted))
    table = residual.fit(pixels, [predicted[place] for place in stops])
    x0_var = interpolated(schedule, times, errors.x0_var)
    canary = _canary(model, saved, (times[0], times[len(times) // 2], profiles[DEFAULT].times[-1]))
    report = {f"bits/dim, {calls} predictions": total for calls, total in totals.items()}
    report |= _gap(model, errors, tested_errors, profiles[DEFAULT])
    return Codebook(x0_var, profiles, table, _identity(saved, x0_var, profiles, table), canary, report)


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
            for name, value in residual.to_tensors(codebook.residual).items()
        },
        **{f"canary.{name}": value for name, value in vars(codebook.canary).items()},
    }
    content = {name: value.contiguous() for name, value in tensors.items()}
    folder = _folder(run, saved)
    sealed.write(
        folder,
        {
            "codebook.json": (json.dumps(document, indent=1) + "\n").encode(),
            "codebook.safetensors": safetensors.torch.save(content),
        },
    )
    return folder


def load(run: Path, saved: checkpoint.Checkpoint) -> Codebook | None:
    """The codebook of this checkpoint, or None where it was not measured.

    Raises:
        Damaged: when what is there is not what was written.
    """
    folder = _folder(run, saved)
    if not folder.is_dir():
        return None
    files = sealed.read(folder)
    try:
        document = json.loads(files["codebook.json"])
        tensors = safetensors.torch.load(files["codebook.safetensors"])
        profiles = {
            one["id"]: Profile(
                one["id"], tuple(one["times"]), tuple(map(tuple, one["counts"])), one["channel"], one["guard"]
            )
            for one in document["profiles"]
        }
        kept = {name: tensors[f"residual.{name}"].numpy() for name in ("frequencies", "leaving")}
        canary = Canary(*(tensors[f"canary.{name}"] for name in ("x_t", "t", "labels", "x0")))
        return Codebook(
            x0_var=tensors["x0_var"],
            profiles=profiles,
            residual=residual.of_tensors(kept),
            model_id=bytes.fromhex(document["model_id"]),
            canary=canary,
            report=document["report"],
        )
    except (KeyError, ValueError, TypeError, SafetensorError, CodecError) as error:
        raise sealed.Damaged(f"{folder}: damaged or not a codebook ({error}); delete it to measure again") from None


def ready(
    run: Path,
    saved: checkpoint.Checkpoint,
    model: Denoiser,
    images: Callable[[], Splits],
    tell: Tell = silent,
) -> Codebook:
    """The codebook of this checkpoint, measured now and kept if it never was; only then are the images asked for."""
    codebook = load(run, saved)
    if codebook is None:
        codebook = measure(model, saved, images(), tell)
        save(run, saved, codebook)
    return codebook


@torch.no_grad()
def drift(model: Denoiser, canary: Canary) -> float:
    """By how many grey levels the network here differs from the one that was measured, at most."""
    return float((_answers(model, canary.x_t, canary.t, canary.labels) - canary.x0).abs().max()) * 127.5


def check(model: Denoiser, codebook: Codebook, profile: Profile) -> float:
    """The drift in grey levels, if a file of this profile is safe from it.

    Raises:
        UserError: when it is above the profile's guard.
    """
    found = drift(model, codebook.canary)
    if not found <= profile.guard:
        raise UserError(
            f"profile {profile.id}: the network's predictions here are {found:.2g} grey levels from those it was "
            f"calibrated with, and {profile.guard:.2g} are allowed; use a profile with a wider guard"
        )
    return found


def _folder(run: Path, saved: checkpoint.Checkpoint) -> Path:
    return run / "codec" / checkpoint.digest(saved)[:16]


def _nodes(config: Config) -> list[int]:
    """Times evenly spaced in log SNR, or those trained at if these are fewer."""
    trained = build.training_grid(config)[:-1]
    schedule = build.schedule(config)
    return trained if len(trained) <= NODES else log_snr(schedule, NODES)[:-1]


def _predicted(model: Denoiser, config: Config, images: ImageSet, t: int, purpose: str) -> Tensor:
    """x0 predicted of each image from an x_t of its own, float32 on the CPU, in batches."""
    device = next(model.parameters()).device
    noise, parts = Streams(t, purpose, range(len(images))), []
    x0 = to_unit(images.images)
    x_t = model.schedule.marginal(x0.double(), t).sample(noise.normal(x0.shape[1:])).float()
    labels = labels_of(images, config, device)
    for start in range(0, len(x0), 32):
        part = slice(start, start + 32)
        predictor = build.predictor(model, None, None if labels is None else labels[part])
        parts.append(predictor(x_t[part].to(device), t).x0.float().cpu())
    return torch.cat(parts)


def _errors(times: list[int], sums: list[tuple[Tensor, Tensor]]) -> Errors:
    """A bucket with few values leans on the mean of all, by the weight of 50."""
    squared, count = (torch.stack(column) for column in zip(*sums, strict=True))
    mean = squared.sum(1, keepdim=True) / count.sum(1, keepdim=True)
    return Errors(tuple(times), (squared + 50 * mean) / (count + 50), count / count.sum(1, keepdim=True))


def _costs(model: Denoiser, errors: Errors, x0: Tensor, pixels: np.ndarray, predicted: dict[int, np.ndarray]) -> Costs:
    """Of the residual: with tables of the one half of the images, on the other half."""
    schedule, dimensions = model.schedule, pixels[0].size
    start = [
        float(schedule.marginal(x0, t).kl(standard_normal_like(x0)).flatten(1).sum(1).mean()) / dimensions / np.log(2)
        for t in errors.times
    ]
    end = np.full(len(errors.times), np.inf)
    for place, x0_hat in predicted.items():
        table = residual.fit(pixels[::2], [x0_hat[::2]])
        end[place] = residual.unguarded_bits(pixels[1::2], x0_hat[1::2], table).mean() / dimensions
    return Costs(np.array(start), move_costs(schedule, errors, OVERHEAD), end)


def _sets(stops: list[int], known: list[int]) -> list[int]:
    """Where the residual's tables are from: each walk's end and the times around it, SETS at most."""
    distance = {place: min(abs(place - stop) for stop in stops) for place in known}
    return sorted(sorted(known, key=lambda place: (distance[place], place))[:SETS])


def _gap(model: Denoiser, errors: Errors, tested: Errors, profile: Profile) -> dict[str, float]:
    """KL of the profile's steps in bits a dimension under the table, for the errors of both kinds of images."""
    found = {"steps, bits/dim on training images": 0.0, "steps, bits/dim on held-out images": 0.0}
    for t, s in pairwise(profile.times):
        place = errors.times.index(t)
        gain = float(model.schedule.snr(s) - model.schedule.snr(t))
        r = errors.x0_var[place] * gain
        for name, one in zip(found, (errors, tested), strict=True):
            excess = (one.x0_var[place] * gain - r) / (1 + r) / (2 * np.log(2))
            found[name] += float((one.share[place] * (step_bits(r) + excess)).sum())
    return found


def _canary(model: Denoiser, saved: checkpoint.Checkpoint, times: tuple[int, ...]) -> Canary:
    """Three noisy images of one tone each, at three times."""
    shape, t = saved.facts.shape, torch.tensor(times)
    x0 = torch.tensor([-0.5, 0.0, 0.5]).reshape(3, 1, 1, 1).expand(3, *shape).double()
    x_t = model.schedule.marginal(x0, t).sample(Streams(0, "canary", range(3)).normal(shape))
    labels = torch.zeros(3 * saved.config.model.labels, dtype=torch.int64)
    return Canary(x_t, t, labels, _answers(model, x_t, t, labels))


def _answers(model: Denoiser, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    given = {"labels": labels} if len(labels) else {}
    return model.interpret(model.output(x_t, t, **given), x_t, t).x0.cpu().double()


def _identity(
    saved: checkpoint.Checkpoint, x0_var: Tensor, profiles: dict[int, Profile], table: ResidualTable
) -> bytes:
    """8 bytes that stand for everything that both sides must share."""
    document = to_json(saved.config, saved.facts)
    kept = {name: document["config"][name] for name in ("model", "diffusion")} | {"facts": document["facts"]}
    digest = sha256(json.dumps([kept, [asdict(one) for one in profiles.values()]], sort_keys=True).encode())
    tables = {name: torch.from_numpy(value) for name, value in residual.to_tensors(table).items()}
    for name, tensor in sorted({**saved.weights, "x0_var": x0_var, **tables}.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.digest()[:8]
