"""`ancestral metrics`: drawn images against real ones, as a table, a sheet of the nearest training images and JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ancestral.data import load, memory, pictures
from ancestral.data.dataset import DataOptions, ImageSet, Splits, joined, spread
from ancestral.data.decode import adapt
from ancestral.data.inventory import counted
from ancestral.data.pixels import to_bytes
from ancestral.data.source_paths import is_run
from ancestral.diffusion.objectives.statistics import Estimate
from ancestral.diffusion.processes.streams import permutation
from ancestral.diffusion.samplers.sample import finish
from ancestral.errors import UserError
from ancestral.evaluation import features
from ancestral.evaluation.features import Network, TrainedOn, features_of, on_sides, unlabelled
from ancestral.evaluation.measurement import write
from ancestral.evaluation.sample_metrics import GROUPS, copies, few, imbalance_by_chance, nearest, repeats
from ancestral.runs import build
from ancestral.runs.conditions import all_of, for_model
from ancestral.runs.datasets import facts, images_for, warn_of_untrained
from ancestral.runs.open import Opener, open_model
from ancestral.runs.sampling_options import SamplingOptions
from ancestral.runtime import user_cache
from ancestral.runtime.console import Progress, screen, table
from ancestral.runtime.distributed import LONG, Processes, process_group
from ancestral.runtime.encode import json_bytes
from ancestral.runtime.launch import on_several_machines
from ancestral.runtime.result_files import held
from ancestral.runtime.resumable_job import Job, cache_folder
from ancestral.runtime.text import quoted
from ancestral.sampling.sampler import Sampler

LEAST = 2 * GROUPS  # images on each side
ADVISED = 2000  # images on each side
DIGITS = 6  # after the point, at most
COLUMNS, SHOWN = 12, 24  # samples beside their nearest training images

Found = dict[str, dict[str, Estimate]]  # by metric, then by what is compared


@dataclass(frozen=True)
class _Samples:
    """Samples to measure: how to get them, and the data to compare them with."""

    source: Path  # the run or the images, as named
    splits: Splits
    data: str  # the name of the splits
    available: int | None  # None: any number can be drawn
    take: Callable[[int, Path, Processes, Progress], ImageSet]
    settings: dict[str, Any]  # of the drawing, for the record


class _Sides(NamedTuple):
    """The sets that are compared."""

    samples: ImageSet
    held_out: ImageSet  # as many
    searched: ImageSet  # training images in which each sample's nearest one is looked for; as many of them are compared


class _ByNetwork(NamedTuple):
    """What is found by the features of one network."""

    found: Found
    document: dict[str, Any]  # the record, as JSON
    sheet: np.ndarray  # the samples nearest to a training image, beside it


def metrics(
    source: Path,
    options: SamplingOptions,
    *,
    data_source: str | None,
    num_images: int,
    networks: Sequence[str],
    train_images: int | None,
    out: Path | None,
    cache: Path | None,
    no_cache: bool = False,
    device: str,
    images: Splits | None = None,
    opener: Opener = open_model,
) -> Found:
    """Compare samples with the train and with the test images, and these with each other, at one number of images.

    `images` are those to compare with where they are in memory. With `no_cache` nothing is read that an earlier command
    has kept, and nothing kept. `opener` opens a run. What was found is the first process's.
    """
    for name in networks:
        features.need_name(name)
    from_run = is_run(source)
    compared = (
        _of_run(source, options, data_source, device, images, opener)
        if from_run
        else _of_images(source, options, data_source)
    )
    train, test = compared.splits.train, compared.splits.test
    samples = num_images if compared.available is None else compared.available
    count = min(num_images, len(train), len(test), samples)
    if count < LEAST:
        raise _too_few(compared, from_run, num_images)
    searched = train if train_images is None else train.spread(max(train_images, count))
    out, found = source if out is None and from_run else out, Found()
    with process_group(build.device(device), LONG) as processes, _cache(cache, no_cache, processes) as cache_root:
        warn_of_untrained(facts(train).untrained, test.spread(count))
        training = TrainedOn(train, cache_root, processes)
        judges = [features.network(name, build.device(device), training) for name in dict.fromkeys(networks)]
        with Progress() as bar:
            samples = compared.take(count, cache_root, processes, bar)
        sides = _Sides(samples, test.spread(count), searched)
        for by in judges:
            measured = _by_network(by, sides, compared, cache_root, no_cache, processes)
            if measured is None:
                continue
            _write(*measured, by, out)
            found |= measured.found
        return found


def _by_network(
    by: Network, sides: _Sides, compared: _Samples, cache_root: Path, no_cache: bool, processes: Processes
) -> _ByNetwork | None:
    """What the features of one network say, measured in all processes; None in all but the first."""
    count = len(sides.held_out)
    with Progress() as bar:
        missing = sum(features.count_missing(one, by, cache_root) for one in sides)
        task = bar.add_task(f"{by.name} features", total=max(1, processes.most(missing)))
        drawn, held_out, trained = (
            features_of(one, by, cache_root, processes, partial(bar.advance, task)) for one in sides
        )
        bar.remove_task(task)
        if not processes.first:
            return None
        reference = trained[spread(len(trained), count)]
        found, pairs, repeated = _measured(drawn, held_out, trained, reference, by, bar)
    screen.print(_kept_features(by, sum(map(len, sides)), missing, None if no_cache else cache_root))
    document = {
        "source": str(compared.source),
        "data": compared.data,
        "images": count,
        "searched": len(trained),
        "network": by.key,
        "repeated_held_out": repeated,
        "few": few(found, count, drawn.shape[1], by.name),
        **_of_own_classes(by, reference, held_out, sides.held_out),
        "drawing": compared.settings,
        "metrics": {
            name: {side: {"value": one.value, "standard_error": one.error} for side, one in estimates.items()}
            for name, estimates in found.items()
        },
    }
    return _ByNetwork(found, document, _sheet(sides.samples, sides.searched, pairs))


def _of_own_classes(by: Network, reference: Tensor, held_out: Tensor, images: ImageSet) -> dict[str, float]:
    """How well a network of the set's classes knows them, and the imbalance of chance alone."""
    if not by.own_classes:
        return {}
    found = {"tv_by_chance": imbalance_by_chance(features.predicted(reference, by), len(reference))}
    if images.labels is not None:
        right = features.predicted(held_out, by) == torch.from_numpy(images.labels)
        found["held_out_accuracy"] = float(right.double().mean())
    return found


@contextmanager
def _cache(folder: Path | None, no_cache: bool, processes: Processes) -> Iterator[Path]:
    """Context manager: the cache, kept within its bound; one that is gone afterwards where nothing is to be kept."""
    if not no_cache:
        yield folder or user_cache.default()
        if processes.first:
            user_cache.trim(folder or user_cache.default())
        return
    if on_several_machines():
        raise UserError(
            "--no-cache: machines hand each other their features through the cache; name a folder that all of them see "
            "by --cache, and remove it afterwards"
        )
    with TemporaryDirectory() as own:
        yield Path(processes.text_of(0, own))
        processes.wait()


def _kept_features(by: Network, count: int, missing: int, cache: Path | None) -> str:
    """What was computed, and what was there."""
    kept_before = f"; those of {count - missing:,} were there" if count > missing else ""
    kept = "and not kept" if cache is None else f"in {cache}, at most {user_cache.LIMIT / 1e9:g} GB (--no-cache)"
    return f"{by.name} features of {missing:,} images computed{kept_before}, {kept}"


def _of_run(
    folder: Path, options: SamplingOptions, data_source: str | None, device: str, images: Splits | None, opener: Opener
) -> _Samples:
    if options.label is not None:
        raise UserError("label: the classes are drawn in the proportions of the data; leave it out")
    sampler = Sampler(folder, options, device, opener)
    for note in sampler.notes:
        screen.print(note)
    saved = sampler.saved
    if images is None:
        data_source, images = images_for(saved, data_source)
    splits = images
    pools = {name: pool.numpy() for name, pool in for_model(all_of(splits.train), saved.config).items()}
    digests = {name: sha256(pool.tobytes()).hexdigest() for name, pool in pools.items()}
    settings = {**sampler.settings, "labels": None, **digests}

    def take(count: int, cache: Path, processes: Processes, bar: Progress) -> ImageSet:
        cond = {name: like(pool, count, options.seed) for name, pool in pools.items()}
        kept = cache_folder(cache / "samples", settings)
        user_cache.used(kept)
        job = Job(kept, settings, processes)
        work = sampler.pieces(count)
        task = bar.add_task(f"{sampler.steps} steps", total=processes.most(count) * sampler.steps)

        def draw(numbers: range) -> dict[str, Tensor]:
            images = to_bytes(finish(sampler.walk(numbers, cond, partial(bar.advance, task))))
            return {"images": torch.from_numpy(images)}

        return unlabelled(torch.cat([one["images"] for one in job.tensors(work, draw)]).numpy())

    return _Samples(folder, splits, data_source or memory.NAME, None, take, settings)


def like(pool: np.ndarray, count: int, seed: int) -> Tensor:
    """Conditions for images 0..count-1 in the proportions of these; those of image i are a function of (seed, i)."""
    order = permutation(len(pool), seed, "labels", 0)
    return torch.from_numpy(pool[order[np.arange(count) % len(pool)]])


def _of_images(path: Path, options: SamplingOptions, data_source: str | None) -> _Samples:
    if options.given:
        given = options.given[0].replace("_", "-")
        raise UserError(f"--{given}: {path} is no run but images, of which nothing is drawn; leave it out")
    if data_source is None:
        raise UserError(
            f"{path}: is no run but images; name what to compare them with: ancestral metrics {quoted(path)} DATA"
        )
    samples = joined(load.load(str(path), DataOptions()))
    height, width, channels = samples.shape
    splits = load.load(data_source, DataOptions(size=height if height == width else None))
    if splits.train.shape[:2] != (height, width):
        raise UserError(f"{data_source}: images of {splits.train.shape[:2]}, those of {path} are {(height, width)}")
    data_channels, sizes = splits.train.shape[2], splits.reading.sizes
    scaled = sizes not in ("", f"{height}x{width}")  # "" where they were not looked at
    if scaled:
        screen.print(
            f"{data_source}: images of {sizes} are cut to squares and scaled to {height}x{width}, as {path} has"
        )

    def take(count: int, cache: Path, processes: Processes, bar: Progress) -> ImageSet:
        chosen = samples.spread(count)
        if data_channels == channels:
            return chosen
        return replace(chosen, images=np.stack([adapt(one, data_channels, None, "white") for one in chosen.images[:]]))

    return _Samples(path, splits, data_source, len(samples), take, {"data_scaled_from": sizes} if scaled else {})


def _too_few(compared: _Samples, from_run: bool, num_images: int) -> UserError:
    """What is said where there are too few images on a side."""
    train, test, available = compared.splits.train, compared.splits.test, compared.available
    samples = f"{num_images} samples to be drawn" if available is None else counted(available, "sample")
    return UserError(
        f"--num-images: at least {LEAST} are needed on each side; there are {len(train)} training and {len(test)} "
        f"test images, and {samples}; {_advice(compared, from_run, num_images)}"
    )


def _advice(compared: _Samples, from_run: bool, num_images: int) -> str:
    """What to do where there are too few images."""
    train, test = len(compared.splits.train), len(compared.splits.test)
    if num_images < LEAST:
        return f"ask for {LEAST} or more"
    if compared.available is not None and compared.available < LEAST:
        return "draw more"
    advice = f"name DATA with more {'test' if test < LEAST else 'training'} images"
    share = holdout(train + test) if from_run and "data.holdout" in compared.splits.reading.split else None
    return advice if share is None else f"{advice}, or train anew with --set data.holdout={share:g}"


def holdout(count: int) -> float | None:
    """The least share, in hundredths, that leaves `LEAST` of so many images on each side; None where there is none.

    Images are held out by name: N p of N, give or take (N p (1 - p))^(1/2), of which two are left as a margin.
    """
    shares = (percent / 100 for percent in range(1, 100))
    fits = (p for p in shares if count * min(p, 1 - p) - 2 * (count * p * (1 - p)) ** 0.5 >= LEAST)
    return next(fits, None)


def _measured(
    drawn: Tensor, held_out: Tensor, trained: Tensor, reference: Tensor, by: Network, bar: Progress
) -> tuple[Found, tuple[Tensor, Tensor], int]:
    """Each metric of the samples against train and test, its floor; each sample's nearest training image; and how many
    held-out images repeat one. Where all do, nothing says how near a copy is.
    """
    task = bar.add_task(f"{by.name} metrics", total=5)
    advance = partial(bar.advance, task)
    found = on_sides(drawn, held_out, reference, by, advance)
    pairs = nearest(drawn, trained)
    advance(1)
    limits = nearest(held_out, trained)[0]
    advance(1)
    repeated = repeats(limits)
    if not repeated.all():
        sides = {"train": pairs[0], "floor": limits}
        found[f"copies-{by.name}"] = {side: copies(one, limits[~repeated]) for side, one in sides.items()}
    return found, pairs, int(repeated.sum())


def _sheet(samples: ImageSet, trained: ImageSet, pairs: tuple[Tensor, Tensor]) -> np.ndarray:
    """The samples nearest to a training image, nearest first: rows of samples, each above a row of these images."""
    shown = min(SHOWN, len(samples) // COLUMNS * COLUMNS)
    order = pairs[0].argsort(stable=True)[:shown].numpy()
    rows = zip(order.reshape(-1, COLUMNS), pairs[1].numpy()[order].reshape(-1, COLUMNS), strict=True)
    return np.concatenate([part for own, beside in rows for part in (samples.images[own], trained.images[beside])])


def _write(found: Found, document: dict[str, Any], sheet: np.ndarray, by: Network, out: Path | None) -> None:
    title = f"{document['images']} images on each side, network {by.name}"
    shown = table(title, "", "samples : train", "samples : test", "floor, test : train")
    for name, sides in found.items():
        named = f"{name}*" if name in document["few"] else name
        shown.add_row(named, *(_shown(sides[side]) if side in sides else "" for side in ("train", "test", "floor")))
    screen.print(shown)
    for line in _notes(document):
        screen.print(line)
    if out is None:
        return
    nearest_labels = pictures.Labels(rows=["sample", "training"] * (len(sheet) // COLUMNS // 2))
    files = {
        f"metrics-{by.name}.json": json_bytes(document),
        f"nearest-{by.name}.png": pictures.sheet(sheet, COLUMNS, nearest_labels),
    }
    with held(out, f"metrics-{by.name}") as results:
        write(results, files)


def _notes(document: dict[str, Any]) -> list[str]:
    """Warnings about these numbers."""
    count, repeated, lines = document["images"], document["repeated_held_out"], []
    if document["few"]:
        lines.append(
            f"* of few images, {count}, and comparable within this table alone; read kid, whose mean does not depend "
            "on their number, or compare more"
        )
    if count < ADVISED:
        lines.append(f"{count:,} images: at least {ADVISED:,} on each side are advised; twice the error is chance")
    if "tv_by_chance" in document:
        right = document.get("held_out_accuracy")
        knows = "" if right is None else f", which is right of {100 * right:.1f} % of the held-out images"
        lines.append(
            f"tv: by the classes that the classifier predicts{knows}; chance alone gives {document['tv_by_chance']:.3f}"
        )
    if repeated == count:
        lines.append("copies: not measured, as every held-out image repeats a training image")
    elif repeated:
        lines.append(f"{repeated} of {count} held-out images repeat training images; they set no limit for copies")
    return lines


def _shown(estimate: Estimate) -> str:
    """The value to two digits of its error, and to `DIGITS` where that is nothing but rounding."""
    digits = 1 - math.floor(math.log10(estimate.error)) if estimate.error > 0 else 3
    digits = min(max(0, digits), DIGITS)
    return f"{estimate.value:.{digits}f} ± {estimate.error:.{digits}f}"
