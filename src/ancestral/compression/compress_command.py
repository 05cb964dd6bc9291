"""What `ancestral compress` and `ancestral decompress` do, once their options are known to be right."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from ancestral.compression import calibration, tiles
from ancestral.compression.choices import PROFILES
from ancestral.compression.codebook import Codebook, drift, save, widened
from ancestral.compression.codebook import check as check_drift
from ancestral.compression.codebook import load as load_codebook
from ancestral.compression.codec import Codec, Decoded, named
from ancestral.compression.completion import FINISHES
from ancestral.compression.file_header import SUFFIX, parse
from ancestral.data import decode, pictures
from ancestral.data.dataset import Splits
from ancestral.data.inventory import counted
from ancestral.diffusion.denoisers.calibrated import Calibrated
from ancestral.diffusion.denoisers.denoiser import Denoiser, InParts, Predictor, Watched, images_per_call
from ancestral.errors import UserError
from ancestral.runs import build, checkpoint
from ancestral.runs.conditions import need_none
from ancestral.runs.datasets import images_for
from ancestral.runs.open import device_of, open_gaussian, state_type
from ancestral.runtime import disk, verified_folder
from ancestral.runtime.console import Progress, screen
from ancestral.runtime.file_names import as_png, need_other, need_writable_names
from ancestral.runtime.result_files import held

NO_FLOAT64 = "the codec computes in float64, which mps does not have"


def compress(
    run: Path,
    sources: Sequence[Path],
    *,
    out: Path,
    profile: str,
    size: int | None,
    device: str,
    images: Callable[[], Splits] | None = None,
) -> None:
    """Write a file of each image that gives back its exact pixels, or the first `size` bytes of it.

    `images` gives those that the model is measured on the first time, the run's own when left out.
    """
    saved, model = open_codable(run, device)
    pixels = [decode.exact(source, saved.facts.shape[0], saved.config.data.max_pixels) for source in sources]
    with _targets(sources, out, _file_names(sources)) as (targets, write):
        model, codebook = with_codebook(run, saved, model, images)
        check_drift(model, codebook, codebook.profiles[PROFILES[profile]])
        started = time.monotonic()
        with Progress() as bar:
            task = bar.add_task(f"compress, {counted(len(pixels), 'image')}")
            predictor = Watched(model, lambda images: bar.advance(task))
            codec = codec_of(predictor, model, saved, codebook)
            for source, image in zip(sources, pixels, strict=True):
                least = len(codec.header((image.shape[0], image.shape[1]), PROFILES[profile]).content())
                if size is not None and size < least:
                    raise UserError(f"--bytes {size}: {source} needs {least} bytes for its header; ask for more")
            bar.update(task, total=codec.encoding_calls(pixels, PROFILES[profile], [str(source) for source in sources]))
            files = codec.encode(pixels, PROFILES[profile])
        seconds = time.monotonic() - started
        write([file[:size] for file in files])
    for source, target, file, image in zip(sources, targets, files, pixels, strict=True):
        kept, before = file[:size], source.stat().st_size
        what = "lossless" if len(kept) == len(file) else "lossy, cut"
        more = f"; {source} has fewer, {before}" if before < len(kept) else ""
        screen.print(f"{target}: {len(kept)} bytes, {8 * len(kept) / image.size:.3f} bits/dim, {what}{more}")
    calls = counted(predictor.calls, "network call")
    screen.print(f"{counted(len(files), 'image')}, {calls} with the check, {seconds:.1f} s")


def decompress(
    run: Path,
    sources: Sequence[Path],
    *,
    out: Path,
    finish: str,
    upto: int | None,
    lossy: bool,
    device: str,
    images: Callable[[], Splits] | None = None,
) -> list[Decoded]:
    """Write the image of each file, or what its first bytes give, and return them; `images` as of `compress`."""
    saved, model = open_codable(run, device)
    sources = _files(sources)
    with _targets(sources, out, [as_png(source.stem) for source in sources]) as (targets, write):
        contents = [disk.read(source)[:upto] for source in sources]
        for source, content in zip(sources, contents, strict=True):
            named(str(source), parse, content)
        model, codebook = with_codebook(run, saved, model, images)
        off, guards = drift(model, codebook.canary), [profile.guard for profile in codebook.profiles.values()]
        if off > min(guards):
            screen.print(f"warning: the network here is {off:.2g} grey levels off; exact pixels may not come out")
        started = time.monotonic()
        with Progress() as bar:
            task = bar.add_task(f"decompress, {counted(len(contents), 'image')}")
            predictor = Watched(model, lambda images: bar.advance(task))
            codec = codec_of(predictor, model, saved, codebook)
            names = [str(source) for source in sources]
            if lossy:
                contents = [codec.picture(content, name) for content, name in zip(contents, names, strict=True)]
            bar.update(task, total=codec.decoding_calls(contents, names))
            decoded = codec.decode(contents, FINISHES[finish], names)
            bar.update(task, total=predictor.calls)
        seconds = time.monotonic() - started
        write([pictures.png(one.pixels) for one in decoded])
    for target, one, content in zip(targets, decoded, contents, strict=True):
        what = "lossless" if one.lossless else f"lossy: {one.steps} steps, finished by {finish}"
        screen.print(f"{target}: from {len(content)} bytes, {8 * len(content) / one.pixels.size:.3f} bits/dim, {what}")
    screen.print(f"{counted(len(decoded), 'image')}, {counted(predictor.calls, 'network call')}, {seconds:.1f} s")
    return decoded


def need_float64(device: str) -> None:
    """Refuse a device without it."""
    if build.device(device).type == "mps":
        raise UserError(f"--device: {NO_FLOAT64}; use --device cpu")


def opened(run: Path, device: str) -> tuple[checkpoint.Checkpoint, Denoiser, Codebook]:
    """A run, its model as the codec runs it, and what was measured of it: now, the first time.

    Raises:
        UserError: for a model that takes conditions.
    """
    saved, model = open_codable(run, device)
    return saved, *with_codebook(run, saved, model)


def open_codable(run: Path, device: str) -> tuple[checkpoint.Checkpoint, Denoiser]:
    """A run and its model, where the codec can use it; nothing is measured yet."""
    need_float64(device)
    saved, model = open_gaussian(run, device, None)
    need_none(saved.config, str(run))
    return saved, model


def with_codebook(
    run: Path, saved: checkpoint.Checkpoint, model: Denoiser, images: Callable[[], Splits] | None = None
) -> tuple[Denoiser, Codebook]:
    """The model as the codec runs it, and what was measured of it: now, the first time."""
    with Progress() as bar:
        task = bar.add_task("measuring the model, once", total=1.0)
        codebook = codebook_of(run, saved, model, lambda share: bar.update(task, completed=share), images)
    return widened(model), codebook


def codebook_of(
    run: Path,
    saved: checkpoint.Checkpoint,
    model: Denoiser,
    tell: calibration.Progress = calibration.silent,
    images: Callable[[], Splits] | None = None,
) -> Codebook:
    """The codebook of this checkpoint, measured now and kept in the run if it never was.

    Only then are `images` asked for; the run's own training images when left out.
    """
    codebook = load_codebook(run, saved)
    if codebook is None:
        splits = images_for(saved, None, "put them back there for this, once")[1] if images is None else images()
        codebook = calibration.measure(model, saved, splits, tell)
        save(run, saved, codebook)
    return codebook


def codec_of(predictor: Predictor, model: Denoiser, saved: checkpoint.Checkpoint, codebook: Codebook) -> Codec:
    """The codec of what `opened` returns; `predictor` is the model, perhaps watched."""
    like = torch.zeros((), device=device_of(model), dtype=state_type(model))
    channels, height, width = saved.facts.shape
    parts = InParts(predictor, images_per_call(tiles.MOST_TILES, height, width))
    calibrated, trained = Calibrated(parts, codebook.x0_var), build.training_grid(saved.config)
    return Codec(calibrated, (channels, height, width), codebook, like, trained)


def _file_names(sources: Sequence[Path]) -> list[str]:
    """Of the files of images: their own without the suffix, which stays where two would be the same without it."""
    stems = [source.stem.casefold() for source in sources]
    return [
        (source.name if stems.count(stem) > 1 else source.stem) + SUFFIX
        for source, stem in zip(sources, stems, strict=True)
    ]


def _files(sources: Sequence[Path]) -> list[Path]:
    """The files, and those in folders."""
    found: list[Path] = []
    for source in sources:
        inside = sorted(source.glob(f"*{SUFFIX}")) if source.is_dir() else [source]
        if not inside:
            raise UserError(f"{source}: has no {SUFFIX} files")
        found += inside
    return found


@contextmanager
def _targets(
    sources: Sequence[Path], out: Path, names: Sequence[str]
) -> Iterator[tuple[list[Path], Callable[[Sequence[bytes]], None]]]:
    """(where the files go, what writes them): `out` itself for one, unless it is a folder; otherwise all of them in it.

    Raises:
        UserError: before any work, when two would be the same, one is there already, or the folder cannot be written.
    """
    if len(sources) == 1 and not out.is_dir() and out.suffix != "":
        need_other(out, sources[0])
        kind = Path(names[0]).suffix
        if out.suffix.lower() != kind:
            raise UserError(f"--out: {out} ends with {out.suffix}, and what is written is {kind}; name it so")
        verified_folder.need_writable(out)
        yield [out], lambda contents: verified_folder.write_file(out, contents[0])
    else:
        need_writable_names(names, out, out, "do them one by one, with their own --out")
        with held(out, "files") as results:
            results.need_free(names)
            yield [out / name for name in names], lambda contents: results.add(zip(names, contents, strict=True))
