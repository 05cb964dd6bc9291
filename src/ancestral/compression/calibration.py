"""What the codec knows of a model, measured once on training images: its error, good walks, tables, a canary."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ancestral.compression import residual_tables
from ancestral.compression.codebook import Codebook, Profile, canary_of, identity
from ancestral.compression.progressive import LEVEL_BITS
from ancestral.compression.step_planning import Costs, Errors, channel_bits, move_costs, plan, step_bits
from ancestral.compression.trellis import CHANNELS
from ancestral.data.dataset import ImageSet, Splits
from ancestral.data.pixels import to_unit
from ancestral.diffusion.denoisers.calibrated import bucket_sums, mean_errors
from ancestral.diffusion.denoisers.denoiser import Denoiser, InParts, images_per_call
from ancestral.diffusion.objectives.calibration import interpolated
from ancestral.diffusion.processes.levels import HALF_RANGE
from ancestral.diffusion.processes.streams import Streams
from ancestral.runs import build, checkpoint
from ancestral.runs.calibration import MOST_IMAGES
from ancestral.runs.conditions import conditions_of
from ancestral.runs.config import Config
from ancestral.runs.open import device_of

NODES = 64  # times that the error is measured at
IMAGES, AT_THE_END, HELD_OUT = 128, 512, 32  # training images a time, more where a walk may end; held-out ones
ENDS = (0.7, 14.0)  # noise in grey levels at which a walk may end
PRIOR_WEIGHT = 5  # values that the mean of all counts for in a bucket
OVERHEAD = 1.15  # bits that a channel takes for a bit of KL
MOST_CALLS = 64
SETS = 6  # of the residual's tables
GUARD = 1e-6  # grey levels that a float64 network may be off, after all steps of a walk
# A walk is as short as its bytes allow: at most so much more than the best number of predictions.
SHIPPED = {0: (0, 0.015), 1: (1, 0.06), 2: (1, 0.015), 3: (1, 0.0)}  # id: (channel, share more)
DEFAULT = 2


Progress = Callable[[float], None]  # takes the share that is done


def silent(share: float) -> None:
    """Tells nobody."""


@torch.no_grad()
def measure(model: Denoiser, saved: checkpoint.Checkpoint, images: Splits, tell: Progress = silent) -> Codebook:
    """Measure a model on its training images, of its own shape."""
    schedule = model.schedule
    times = build.spread_times(saved.config, NODES)
    noise_levels = (-schedule.log_snr(torch.tensor(times)) / 2).exp() * HALF_RANGE
    ends = [index for index, level in enumerate(noise_levels.tolist()) if ENDS[0] <= level <= ENDS[1]] or [-1]
    ends = [index % len(times) for index in ends]
    train, held_out = images.train.spread(AT_THE_END), images.test.spread(HELD_OUT)
    few = train.spread(IMAGES)
    measured, tested, predicted = [], [], {}
    for index, t in enumerate(times):
        chosen = train if index in ends else few
        x0_hat = _predicted(model, saved.config, chosen, t, "codec")
        measured.append(bucket_sums(x0_hat, to_unit(chosen.images)))
        seen = _predicted(model, saved.config, held_out, t, "held out")
        tested.append(bucket_sums(seen, to_unit(held_out.images)))
        if index in ends:
            predicted[index] = x0_hat.permute(0, 2, 3, 1).numpy()
        tell((index + 1) / len(times))
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
        counts = channel_bits(schedule, errors, walk, dimensions, CHANNELS[channel].efficiency)
        profiles[number] = Profile(number, walk, counts, channel, GUARD)
    stops = _sets([times.index(one.times[-1]) for one in profiles.values()], sorted(predicted))
    table = residual_tables.fit(pixels, [predicted[index] for index in stops])
    x0_var = interpolated(schedule, times, errors.x0_var)
    canary = canary_of(model, saved, (times[0], times[len(times) // 2], profiles[DEFAULT].times[-1]))
    report = {f"bits/dim, {calls} predictions": total for calls, total in totals.items()}
    report |= _gap(model, errors, tested_errors, profiles[DEFAULT])
    return Codebook(x0_var, profiles, table, identity(saved, x0_var, profiles, table), canary, report)


def _predicted(model: Denoiser, config: Config, images: ImageSet, t: int, purpose: str) -> Tensor:
    """x0 predicted of each image from an x_t of its own, float32 on the CPU, in batches."""
    device, noise = device_of(model), Streams(t, purpose, range(len(images)))
    x0 = to_unit(images.images)
    x_t = model.schedule.marginal(x0.double(), t).sample(noise.normal(x0.shape[1:])).float()
    predictor = InParts(model, images_per_call(MOST_IMAGES, *images.shape[:2]), **conditions_of(images, config, device))
    return predictor(x_t.to(device), t).x0.float().cpu()


def _errors(times: list[int], sums: list[tuple[Tensor, Tensor]]) -> Errors:
    squared, count = (torch.stack(column) for column in zip(*sums, strict=True))
    mean = squared.sum(1, keepdim=True) / count.sum(1, keepdim=True)
    return Errors(tuple(times), mean_errors(squared, count, mean, PRIOR_WEIGHT), count / count.sum(1, keepdim=True))


def _costs(model: Denoiser, errors: Errors, x0: Tensor, pixels: np.ndarray, predicted: dict[int, np.ndarray]) -> Costs:
    """Of the residual: with tables of the one half of the images, on the other half; of a single one, on itself."""
    coded, others = (slice(1, None, 2), slice(0, None, 2)) if len(pixels) > 1 else (slice(None), slice(None))
    schedule, dimensions = model.schedule, pixels[0].size
    start = [float(schedule.prior(x0, t).mean()) / dimensions / np.log(2) for t in errors.times]
    end = np.full(len(errors.times), np.inf)
    for index, x0_hat in predicted.items():
        table = residual_tables.fit(pixels[others], [x0_hat[others]])
        end[index] = residual_tables.unguarded_bits(pixels[coded], x0_hat[coded], table).mean() / dimensions
    return Costs(np.array(start), move_costs(schedule, errors, OVERHEAD), end)


def _sets(stops: list[int], candidates: list[int]) -> list[int]:
    """Where the residual's tables are from: each walk's end and the times around it, SETS at most."""
    distance = {index: min(abs(index - stop) for stop in stops) for index in candidates}
    return sorted(sorted(candidates, key=lambda index: (distance[index], index))[:SETS])


def _gap(model: Denoiser, errors: Errors, tested: Errors, profile: Profile) -> dict[str, float]:
    """KL of the profile's steps in bits a dimension under the table, for the errors of both kinds of images."""
    found = {"steps, bits/dim on training images": 0.0, "steps, bits/dim on held-out images": 0.0}
    for t, s in pairwise(profile.times):
        index = errors.times.index(t)
        gain = float(model.schedule.snr(s) - model.schedule.snr(t))
        r = errors.x0_var[index] * gain
        for name, one in zip(found, (errors, tested), strict=True):
            excess = (one.x0_var[index] * gain - r) / (1 + r) / (2 * np.log(2))
            found[name] += float((one.share[index] * (step_bits(r) + excess)).sum())
    return found
