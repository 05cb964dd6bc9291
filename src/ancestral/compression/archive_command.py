"""What `ancestral archive` and `ancestral unarchive` do, once their options are known to be right."""

from __future__ import annotations

import io
import math
import os
import time
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ancestral.compression.archive_format import MOST, MOST_THREADS, Archive, Block, Setting, rows_of
from ancestral.compression.block_coder import Coder
from ancestral.compression.errors import CodecError
from ancestral.data import load, pictures
from ancestral.data.dataset import DataOptions, ImageSet, joined
from ancestral.data.decode import SUFFIXES, adapt_all, exact
from ancestral.data.folder_listing import listed_below
from ancestral.data.inventory import counted, listed
from ancestral.diffusion.denoisers.denoiser import Predictor
from ancestral.errors import UserError
from ancestral.runs import build
from ancestral.runs.checkpoint import CALIBRATION, Checkpoint
from ancestral.runs.conditions import need_none
from ancestral.runs.config import Config
from ancestral.runs.datasets import facts
from ancestral.runs.memory_need import need_for_drawing
from ancestral.runs.open import device_of, open_gaussian
from ancestral.runtime import disk, verified_folder
from ancestral.runtime.console import advancing, screen
from ancestral.runtime.distributed import process_group
from ancestral.runtime.file_names import as_png, need_other, need_writable_names
from ancestral.runtime.result_files import held
from ancestral.runtime.resumable_job import Job, pieces
from ancestral.runtime.text import quoted

ARCHIVE_CALLS = 20  # of the network an image, where there are so many times


@dataclass(frozen=True)
class Archived:
    """An archive and what it has cost."""

    content: Archive
    nats: Tensor  # (N,) of each image along its own chain
    one_off: int  # bytes: sum over the blocks
    seconds: float  # an image, to encode it and to decode it again; of blocks made by an earlier command too
    job: Job  # the blocks, kept until they are forgotten: once the archive is written


def open_coder(run: Path) -> tuple[Checkpoint, Predictor]:
    """The model of a run as the coder wants it: on the CPU, its own error known.

    Raises:
        UserError: for a model with labels, one whose error was not measured, or one too large for this machine.
    """
    saved, model = open_gaussian(run, "cpu", None)
    need_none(saved.config, str(run))
    if saved.calibration is None:
        mend = f"train on from it, with --from {quoted(run)}" if saved.state.get("complete") else "finish the training"
        raise UserError(f"{run}: its error was not measured, as is done when a training ends; {mend}")
    mend = "an archive is coded so many at a time: free memory, or code it on a larger machine"
    need_for_drawing(saved.config, saved.facts, MOST, device_of(model), option=str(run), mend=mend)
    return saved, build.predictor(model, saved.calibration)


def model_id(saved: Checkpoint) -> bytes:
    """8 bytes: which weights, configuration and table, as they were written, wherever the run lies."""
    digest, names = sha256(), (CALIBRATION, "config.json", "model.safetensors")
    for name, content in sorted(verified_folder.read(saved.folder, names).items()):
        digest.update(sha256(content).digest() + name.encode())
    return digest.digest()[:8]


def compressed(
    saved: Checkpoint, predictor: Predictor, images: np.ndarray, names: tuple[str, ...], times: list[int], block: int,
    job_folder: Path,
) -> Archived:  # fmt: skip
    """Images, bytes (N, H, W, C), as an archive; blocks that an earlier, interrupted command has made are kept."""
    threads, block = torch.get_num_threads(), min(block, len(images))
    if threads > MOST_THREADS:
        raise UserError(
            f"torch has {threads} threads, and an archive is made with {MOST_THREADS} at most: set OMP_NUM_THREADS"
        )
    setting = Setting(model_id(saved), tuple(times), predictor.schedule.T, saved.facts.shape, threads)
    coder = Coder(predictor, setting)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    work = pieces(len(images), block)
    described = {
        name: value.hex() if isinstance(value, bytes) else value for name, value in vars(coder.setting).items()
    }
    described |= {
        "times": times,
        "shape": list(setting.shape),
        "images": sha256(pixels.numpy().tobytes()).hexdigest(),
        "block": block,
    }
    bar = advancing(f"{len(times) - 1} steps, both ways", 2 * len(images))
    with process_group(torch.device("cpu")) as processes, bar as advance:
        if processes.size > 1:  # each would write the file, and remove the blocks that another still reads
            raise UserError("an archive is made by one process; start the command without torchrun")
        job = Job(job_folder, described, processes)

        def make(part: range) -> dict[str, bytes]:
            started = time.monotonic()
            made, cost = coder.encode(pixels[part.start : part.stop].long(), advance)
            seconds = torch.tensor(time.monotonic() - started, dtype=torch.float64)
            numbers = {"nats": cost.nats, "one_off": torch.tensor(cost.one_off), "seconds": seconds}
            crc = made.pixels_crc.to_bytes(4, "little")
            return {"block": made.payload, "crc": crc, "cost.safetensors": safetensors.torch.save(numbers)}

        job.run(work, make, lambda _, kept: {"block", "crc", "cost.safetensors"} <= set(kept))
        results = list(job.results(work))
    blocks = tuple(Block(kept["block"], int.from_bytes(kept["crc"], "little")) for kept in results)
    costs = [safetensors.torch.load(kept["cost.safetensors"]) for kept in results]
    return Archived(
        Archive(coder.setting, len(images), block, names, blocks),
        torch.cat([one["nats"] for one in costs]),
        sum(int(one["one_off"]) for one in costs),
        sum(float(one["seconds"]) for one in costs) / len(images),
        job,
    )


def calls(config: Config) -> int:
    """Network calls an image, where no number is named."""
    return min(ARCHIVE_CALLS, build.most_steps(config))


def archive(run: Path, images: Path, *, out: Path, steps: int | None, grid: str, block: int) -> None:
    """Compress all images of a source into a file, and say what it has cost."""
    need_other(out, images)
    verified_folder.need_writable(out)
    saved, predictor = open_coder(run)
    pixels, names = _pictures(images, saved.facts.shape)
    mend = "rename it, or archive a .npz file, which has no names"
    need_writable_names(list(map(as_png, names)), out.parent, images, mend)
    times = build.sampling_grid(saved.config, grid, steps or calls(saved.config))
    with held(out.parent, f"archive-{sha256(os.fsencode(out.name)).hexdigest()[:16]}"):
        made = compressed(saved, predictor, pixels, names, times, block, out.with_name(f".{out.name}.job"))
        content = made.content.to_bytes()
        verified_folder.write_file(out, content)
        made.job.forget()
    values = pixels.size
    bits, ideal = 8 * len(content) / values, float(made.nats.sum()) / math.log(2) / values
    screen.print(
        f"{counted(len(pixels), 'image')} in {len(content)} bytes, {bits:.4f} bits/dim; the bound along the same "
        f"chains is {ideal:.4f}, ratio {bits / ideal:.4f}; of the bytes {made.one_off} were needed to begin the "
        f"blocks and {len(content) - sum(len(one.payload) for one in made.content.blocks)} are header; "
        f"{1000 * made.seconds:.0f} ms an image, checked; written: {out}"
    )


def _pictures(source: Path, shape: tuple[int, int, int]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Bytes (N, H, W, C) of a source's images and the names of its files, of an array none; says what is left out.

    Raises:
        UserError: when they are not of the model's shape, or hold more than would be kept.
    """
    if source.is_dir():
        found = listed_below(source)
        files = found.images
        if not files:
            raise UserError(f"{source}: no images below it")
        for reason, others in found.others.items():
            screen.print(f"left out, {reason}: {listed(others)}")
        root = source
    elif source.is_file() and source.suffix.lower() in SUFFIXES:
        root, files = source.parent, [source.name]
    elif source.suffix.lower() == ".tar":  # whose images are read as for a training, which rounds and converts
        raise UserError(f"{source}: unpack it first; a folder, an image, a .npz or a .npy file is archived")
    else:
        return np.asarray(everything(source, shape).images[:]), ()
    pixels = [exact(root / name, shape[0], DataOptions().max_pixels) for name in files]
    for name, image in zip(files, pixels, strict=True):
        if image.shape != (*shape[1:], shape[0]):
            height, width, _ = image.shape
            raise UserError(f"{root / name}: {height}x{width} pixels, the model's images are {shape[1]}x{shape[2]}")
    return np.stack(pixels), tuple(files)


def everything(source: Path, shape: tuple[int, int, int]) -> ImageSet:
    """All images of a source, in its own order, as they are: nothing is resized, and colour is not dropped.

    Raises:
        UserError: when they are not of the model's shape.
    """
    whole = _all_of(source, DataOptions(holdout=0))
    if facts(whole).shape[0] == 1 and shape[0] == 3:
        whole = replace(whole, images=adapt_all(whole.images, DataOptions(channels=3)))
    if facts(whole).shape != shape:
        raise UserError(f"{source}: images of {facts(whole).shape} (channels, height, width), the model's are {shape}")
    return whole.take(sorted(range(len(whole)), key=lambda row: _natural(whole.names[row])))


def _all_of(source: Path, options: DataOptions) -> ImageSet:
    splits = load.load(str(source), options)
    if splits.reading.white not in (None, 255):
        raise UserError(f"{source}: more than 8 bits a value; save it with 8 bits, as that is what is kept")
    return joined(splits)


def _natural(name: str) -> tuple[str, int, str]:
    """Arrays name their images NAME[row]: rows count as numbers."""
    stem, bracket, row = name.rpartition("[")
    number = row.removesuffix("]")
    return (stem, int(number), "") if bracket and number.isdigit() else (name, 0, "")


def unarchive(run: Path, file: Path, *, out: Path, only: tuple[int, int] | None) -> None:
    """Write the images of a file as PNGs under their names, or as one .npz file."""
    need_other(out, file)
    saved, predictor = open_coder(run)
    content = disk.read(file)
    try:
        packed_images = Archive.of_bytes(content)
        selected = range(*only) if only else range(packed_images.count)
        if selected.stop > packed_images.count:
            raise UserError(f"--only: the file holds {packed_images.count} images, numbered from 0")
        names = packed_images.names or tuple(f"{row:06d}" for row in range(packed_images.count))
        if out.suffix.lower() == ".npz":
            verified_folder.need_writable(out)
            pixels, packed = expanded(saved, predictor, packed_images, selected), io.BytesIO()
            np.savez(packed, images=pixels, names=np.array([names[row] for row in selected]))
            verified_folder.write_file(out, packed.getvalue())
        else:
            targets = [as_png(names[row]) for row in selected]
            need_writable_names(targets, out, file, "give --out FILE.npz")
            with held(out, "unarchive") as results:
                results.need_free(targets)
                pixels = expanded(saved, predictor, packed_images, selected)
                results.add(zip(targets, map(pictures.png, pixels), strict=True))
    except CodecError as error:
        raise CodecError(f"{file}: {error}") from None
    screen.print(f"{counted(len(pixels), 'image')}: {out}")


def expanded(saved: Checkpoint, predictor: Predictor, held: Archive, selected: range) -> np.ndarray:
    """These images of an archive, bytes (N, H, W, C); only their blocks are decoded.

    Raises:
        CodecError: when the archive is of another model or environment, or damaged.
    """
    if held.setting.model != model_id(saved):
        raise CodecError(f"made with the model {held.setting.model.hex()}, this run's is {model_id(saved).hex()}")
    if held.setting.shape != saved.facts.shape or held.setting.T != predictor.schedule.T:
        raise CodecError("the header is damaged: its shape or T is not the model's")
    coder, parts = Coder(predictor, held.setting), []
    chosen = list(rows_of(held, selected))
    counts = {number: min(held.block, held.count - number * held.block) for number, _ in chosen}
    with advancing(f"{len(held.setting.times) - 1} steps", sum(counts.values())) as advance:
        for number, rows in chosen:
            whole = coder.decode(held.blocks[number], counts[number], advance)
            start = number * held.block
            parts.append(whole[rows.start - start : rows.stop - start])
    return torch.cat(parts).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
