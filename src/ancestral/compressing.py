"""What `ancestral compress` and `ancestral decompress` do, once their options are known to be right."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import Progress, TaskID
from torch import Tensor

from ancestral import build, checkpoint, data, disk, figures, images, sealed
from ancestral.codec import calibration
from ancestral.codec.codebook import Codebook, check, drift, widened
from ancestral.codec.container import SUFFIX
from ancestral.codec.finish import FINISHES
from ancestral.codec.image import Codec
from ancestral.console import device_of, open_gaussian, screen, state_type
from ancestral.denoiser import Calibrated, Denoiser, Prediction, Predictor
from ancestral.errors import UserError
from ancestral.imageset import Splits
from ancestral.schedule import Time

NO_FLOAT64 = "the codec computes in float64, which mps does not have"
TOLD = "this model is told conditions, which files do not hold; train one without"
PROFILES = {"chunks": 0, "quick": 1, "small": 2, "smallest": 3}


class Counted:
    """A model that moves a bar and counts its calls."""

    def __init__(self, model: Denoiser, bar: Progress, task: TaskID) -> None:
        self.model, self.schedule, self.bar, self.task, self.calls = model, model.schedule, bar, task, 0

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        """As the model."""
        self.calls += 1
        self.bar.advance(self.task)
        return self.model(x_t, t)


def compress(run: Path, sources: Sequence[Path], *, out: Path, profile: str, size: int | None, device: str) -> None:
    """Write a file of each image that gives back its exact pixels, or the first `size` bytes of it."""
    saved, model, codebook = opened(run, device)
    check(model, codebook, codebook.profiles[PROFILES[profile]])
    pixels = [images.exact(source, saved.facts.shape[0], saved.config.data.max_pixels) for source in sources]
    targets = _targets(sources, out, SUFFIX)
    started = time.monotonic()
    with Progress(console=screen, disable=not screen.is_terminal) as bar:
        predictor = Counted(model, bar, task := bar.add_task(f"compress, {len(pixels)} images"))
        codec = codec_of(predictor, model, saved, codebook)
        for source, image in zip(sources, pixels, strict=True):
            least = len(codec.header((image.shape[0], image.shape[1]), PROFILES[profile]).content())
            if size is not None and size < least:
                raise UserError(f"--bytes {size}: {source} needs {least} bytes for its header; ask for more")
        bar.update(task, total=codec.encoding_calls(pixels, PROFILES[profile], [str(source) for source in sources]))
        files = codec.encode(pixels, PROFILES[profile])
    seconds = time.monotonic() - started
    targets[0].parent.mkdir(parents=True, exist_ok=True)
    for target, file, image in zip(targets, files, pixels, strict=True):
        kept = file[:size]
        sealed.write_file(target, kept)
        what = "lossless" if len(kept) == len(file) else "lossy, cut"
        screen.print(f"{target}: {len(kept)} bytes, {8 * len(kept) / image.size:.3f} bits/dim, {what}")
    screen.print(f"{len(files)} images, {predictor.calls} network calls with the check, {seconds:.1f} s")


def decompress(
    run: Path, sources: Sequence[Path], *, out: Path, finish: str, upto: int | None, lossy: bool, device: str
) -> None:
    """Write the image of each file, or what its first bytes give."""
    saved, model, codebook = opened(run, device)
    targets = _targets(sources, out, ".png")
    contents = [disk.read(source)[:upto] for source in sources]
    off, guards = drift(model, codebook.canary), [profile.guard for profile in codebook.profiles.values()]
    if off > min(guards):
        screen.print(f"warning: the network here is {off:.2g} grey levels off; exact pixels may not come out")
    started = time.monotonic()
    with Progress(console=screen, disable=not screen.is_terminal) as bar:
        predictor = Counted(model, bar, task := bar.add_task(f"decompress, {len(contents)} images"))
        codec = codec_of(predictor, model, saved, codebook)
        names = [str(source) for source in sources]
        if lossy:
            contents = [codec.picture(content, name) for content, name in zip(contents, names, strict=True)]
        bar.update(task, total=codec.decoding_calls(contents, names))
        decoded = codec.decode(contents, FINISHES[finish], names)
        bar.update(task, total=predictor.calls)
    seconds = time.monotonic() - started
    targets[0].parent.mkdir(parents=True, exist_ok=True)
    for target, one, content in zip(targets, decoded, contents, strict=True):
        sealed.write_file(target, figures.png(one.pixels))
        what = "lossless" if one.lossless else f"lossy: {one.steps} steps, finished by {finish}"
        screen.print(f"{target}: from {len(content)} bytes, {8 * len(content) / one.pixels.size:.3f} bits/dim, {what}")
    screen.print(f"{len(decoded)} images, {predictor.calls} network calls, {seconds:.1f} s")


def opened(run: Path, device: str) -> tuple[checkpoint.Checkpoint, Denoiser, Codebook]:
    """A run, its model as the codec runs it, and what was measured of it: now, the first time.

    Raises:
        UserError: for a model that is told conditions.
    """
    if build.device(device).type == "mps":
        raise UserError(f"--device: {NO_FLOAT64}; use --device cpu")
    saved, model = open_gaussian(run, device, None)
    if saved.config.model.labels or saved.config.model.embedding:
        raise UserError(f"{run}: {TOLD}")
    with Progress(console=screen, disable=not screen.is_terminal) as bar:
        task = bar.add_task("measuring the model, once", total=1.0)
        codebook = measured(run, saved, model, lambda share: bar.update(task, completed=share))
    return saved, widened(model), codebook


def measured(
    run: Path, saved: checkpoint.Checkpoint, model: Denoiser, tell: calibration.Tell = calibration.silent
) -> Codebook:
    """What was measured of a run's model: now, the first time, on its training images."""

    def images() -> Splits:
        source = data.source_of(saved.config.source, mend="put them back there for this, once")
        return data.load(source, saved.config.data)

    return calibration.ready(run, saved, model, images, tell)


def codec_of(predictor: Predictor, model: Denoiser, saved: checkpoint.Checkpoint, codebook: Codebook) -> Codec:
    """The codec of what `opened` returns; `predictor` is the model, perhaps watched."""
    like = torch.zeros((), device=device_of(model), dtype=state_type(model))
    channels, height, width = saved.facts.shape
    return Codec(Calibrated(predictor, codebook.x0_var), (channels, height, width), codebook, like)


def _targets(sources: Sequence[Path], out: Path, suffix: str) -> list[Path]:
    """`out` itself for one source, unless it is a folder; otherwise files in it by the sources' names.

    Raises:
        UserError: before any work, when two would be the same or the folder cannot be made; nothing is made here.
    """
    alone = len(sources) == 1 and not out.is_dir() and out.suffix != ""
    targets = [out] if alone else [out / f"{source.stem}{suffix}" for source in sources]
    for target in targets:
        if targets.count(target) > 1:
            raise UserError(f"{target}: two files would be written there; do them one by one with their own --out")
        if target.resolve() in {source.resolve() for source in sources}:
            raise UserError(f"--out: {target} is one of the files to be read; choose another name")
    folder = targets[0].parent
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"{there}: is no folder that can be written; choose another --out")
    return targets
