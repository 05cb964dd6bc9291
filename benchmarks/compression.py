"""Files of the codec: exact round trips, bytes beside the model's bound and beside PNG, WebP and JPEG XL, time.

Run: .venv-peers/bin/python benchmarks/compression.py RUN [RUN ...]. Writes its tables into benchmarks/results.md. What
--results holds is not measured again. In .venv JPEG XL is left out: it comes with imagecodecs.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import MEASURED, Results, options, parsed, publish, table
from PIL import Image

from ancestral.compression import compress_command
from ancestral.compression.archive_command import compressed, expanded, open_coder
from ancestral.compression.archive_format import Archive
from ancestral.compression.bit_io import Reader, read_varint
from ancestral.compression.choices import PROFILES
from ancestral.compression.codebook import Codebook, Profile
from ancestral.compression.codec import Codec
from ancestral.compression.file_header import Exact, parse
from ancestral.compression.progressive import LEVEL_BITS, checked, skip
from ancestral.data import load
from ancestral.data.pixels import to_unit
from ancestral.diffusion.denoisers.calibrated import Calibrated
from ancestral.diffusion.denoisers.denoiser import Denoiser
from ancestral.diffusion.objectives.elbo import elbo
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.transitions import Ancestral, optimal
from ancestral.runs import build, checkpoint

WRITTEN = (64, 1)  # images a call, threads
READ = ((64, 1), (64, 2), (1, 1), (1, 2))
FIRST = 200  # held-out images before this one have served for choices while the codec was made
TERMS = 30  # of the bound of all steps
PARTS = ("header", "side information", "checks", "channel", "exact pixels", "length, CRC-32, filling")


@dataclass(frozen=True)
class Subject:
    """A run that is measured, and held-out images of its data, uint8 (N, H, W, C)."""

    run: Path
    saved: checkpoint.Checkpoint
    model: Denoiser
    codebook: Codebook
    images: np.ndarray

    @property
    def codec(self) -> Codec:
        """As `ancestral compress` has it."""
        return compress_command.codec_of(self.model, self.model, self.saved, self.codebook)


def opened(run: Path, count: int) -> Subject:
    """The run with its codebook, measured now if it never was."""
    saved, model, codebook = compress_command.opened(run, "cpu")
    test = load.load(saved.config.source, saved.config.data).test
    return Subject(run, saved, model, codebook, np.asarray(test.images[FIRST : FIRST + count]))


def in_calls(do: Callable[[list], list], items: Sequence, setting: tuple[int, int]) -> tuple[list, float]:
    """(what `do` makes of all, so many a call; seconds of processor time)."""
    size, threads = setting
    torch.set_num_threads(threads)
    started = time.process_time()
    made = [one for start in range(0, len(items), size) for one in do(list(items[start : start + size]))]
    seconds = time.process_time() - started
    torch.set_num_threads(1)
    return made, seconds


def files(subject: Subject, profile: int) -> dict:
    """Sizes and parts of the files, and whether each gives its image back, in each way of reading it."""
    codec, count = subject.codec, len(subject.images)
    made, seconds = in_calls(lambda images: codec.encode(images, profile), subject.images, WRITTEN)
    found: dict[str, object] = {
        "bytes": [len(file) for file in made],
        "split": np.array([split(file, subject.codebook.profiles[profile]) for file in made]).mean(0).tolist(),
        "stored": sum(parse(file)[0].exact is Exact.STORED for file in made),
        "encode": seconds / count,
        "calls": len(subject.codebook.profiles[profile].times),
    }
    exact, decode = {}, {}
    for setting in READ:
        again, seconds = in_calls(codec.decode, made, setting)
        name = f"{setting[0]}, {setting[1]}"
        exact[name] = sum(
            one.lossless and np.array_equal(one.pixels, image) for one, image in zip(again, subject.images, strict=True)
        )
        decode[name] = seconds / count
    return found | {"exact": exact, "decode": decode}


def written_otherwise(subject: Subject, profile: int, count: int) -> dict:
    """Files written one image a call on two threads, read 64 a call on one."""
    codec, images = subject.codec, subject.images[:count]
    made, _ = in_calls(lambda some: codec.encode(some, profile), images, (1, 2))
    again, _ = in_calls(codec.decode, made, (64, 1))
    exact = sum(one.lossless and np.array_equal(one.pixels, image) for one, image in zip(again, images, strict=True))
    return {"exact": {"written 1, 2; read 64, 1": exact}, "bytes": [len(file) for file in made]}


def split(file: bytes, profile: Profile) -> list[float]:
    """Bytes of each of PARTS."""
    _, begin = parse(file)
    reader = Reader(file[begin:])
    skip(reader, profile, 1)
    bits, side = reader.position, LEVEL_BITS * len(profile.counts)
    checks = 8 * sum(checked(profile, place) for place in range(len(profile.counts)))
    end = begin + reader.align()
    length, after = read_varint(file[end:], 0, 1 << 24) or (0, 0)
    filling = 8 * (end - begin) - bits
    parts = [8 * begin, side, checks, bits - side - checks, 8 * length, 8 * (after + 4) + filling]
    assert sum(parts) == 8 * len(file)
    return [part / 8 for part in parts]


@torch.no_grad()
def bounds(subject: Subject) -> dict:
    """Bits/dim of each image: on each profile's times with the codec's own variance, and on all T times.

    And the mean bytes of the steps' KL, which is what the channel has to carry.
    """
    x0, count = to_unit(subject.images).double(), len(subject.images)
    wide, found = Calibrated(subject.model, subject.codebook.x0_var), {}
    for name, number in PROFILES.items():
        grid = [*subject.codebook.profiles[number].times, 0]
        one = elbo(wide, x0, grid, Ancestral(optimal), Streams(0, name, range(count)))
        found[name] = one.bits_per_dim.tolist()
        found[f"{name}, KL"] = float(one.parts["L_1:T-1"].mean()) * one.dimensions / 8
    _, narrow = open_coder(subject.run)
    grid, noise = list(range(narrow.schedule.T, -1, -1)), Streams(0, "all", range(count))
    found["all"] = elbo(narrow, x0, grid, Ancestral(optimal), noise, terms=TERMS).bits_per_dim.tolist()
    return found


@torch.no_grad()
def fine(subject: Subject, steps: int) -> dict:
    """Bits/dim of each image on a grid of so many steps, by all their terms."""
    saved, model = open_coder(subject.run)
    x0, grid = to_unit(subject.images).double(), build.sampling_grid(saved.config, "quadratic", steps)
    noise = Streams(0, "fine", range(len(x0)))
    return {"steps": steps, "bits": elbo(model, x0, grid, Ancestral(optimal), noise).bits_per_dim.tolist()}


def archive(subject: Subject, steps: int) -> dict:
    """An archive of the images, read back and compared."""
    saved, predictor = open_coder(subject.run)
    times, started = build.sampling_grid(saved.config, "quadratic", steps), time.process_time()
    made = compressed(saved, predictor, subject.images, (), times, 256, subject.run / ".compression.job")
    seconds, content = time.process_time() - started, made.content.to_bytes()
    again = expanded(saved, predictor, Archive.of_bytes(content), range(len(subject.images)))
    made.job.forget()  # or the next measures nothing
    return {
        "bytes": len(content),
        "exact": int((again == subject.images).all((1, 2, 3)).sum()),
        "ideal": float(made.nats.sum()) / math.log(2) / 8,
        "one_off": made.one_off,
        "seconds": seconds / len(subject.images),
    }


def rivals(images: np.ndarray) -> dict:
    """Bytes of each image by each rival, of an image of one tone, and of all images side by side in one."""
    rows = math.isqrt(len(images))
    assert rows * rows == len(images)
    height, width, channels = images.shape[1:]
    grid = images.reshape(rows, rows, height, width, channels).swapaxes(1, 2)
    mosaic, flat = grid.reshape(rows * height, rows * width, channels), np.zeros_like(images[0])
    return {
        name: {"each": [size(one) for one in images], "flat": size(flat), "mosaic": size(mosaic)}
        for name, size in known_rivals().items()
    }


def known_rivals() -> dict[str, Callable[[np.ndarray], int]]:
    """Bytes that each takes for an image."""
    known: dict[str, Callable[[np.ndarray], int]] = {"PNG": png, "WebP": webp}
    try:
        import imagecodecs  # pyright: ignore[reportMissingImports]
    except ImportError:
        return known
    return known | {
        "JPEG XL": lambda image: len(
            imagecodecs.jpegxl_encode(image.squeeze(), lossless=True, effort=10, usecontainer=False)
        )
    }


def png(image: np.ndarray) -> int:
    """The smallest of zlib's strategies, and with a palette where that is exact."""
    plain = Image.fromarray(image.squeeze())
    tried = [plain]
    if plain.mode == "RGB" and (colours := plain.getcolors(256)):
        palette = plain.quantize(max(2, len(colours)))
        tried += [palette] if np.array_equal(np.asarray(palette.convert("RGB")), image) else []
    ways = [{"optimize": True}, *({"compress_level": 9, "compress_type": kind} for kind in range(4))]
    return min(saved_size(one, "PNG", **way) for one in tried for way in ways)


def webp(image: np.ndarray) -> int:
    """Lossless, at its slowest."""
    return saved_size(Image.fromarray(image.squeeze()), "WEBP", lossless=True, quality=100, method=6, exact=True)


def saved_size(image: Image.Image, kind: str, **how: object) -> int:
    """Bytes of the file."""
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getbuffer().nbytes


def main() -> None:
    """Measure each run, then write the tables of all that is known."""
    parser = options(__doc__ or "")
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--images", type=int, default=64, help="that are made files")
    parser.add_argument("--archived", type=int, default=256, help="that are archived, a square number")
    parser.add_argument("--otherwise", type=int, default=16, help="that are written one a call on two threads, too")
    parser.add_argument("--steps", type=int, default=20, help="of the archive")
    parser.add_argument("--results", type=Path, default=MEASURED / "compression.jsonl")
    parser.add_argument("--parts", nargs="*", default=["rivals", "bounds", "fine", "files", "archive", "otherwise"])
    given = parsed(parser)
    torch.set_num_threads(1)
    results = Results(given.results, ("run", "what", "profile"))
    for run in given.runs:
        subject = opened(run, given.archived)
        few = Subject(run, subject.saved, subject.model, subject.codebook, subject.images[: given.images])
        for part in given.parts:
            measure_part(results, part, subject, few, given)
    known = list(dict.fromkeys(line["run"] for line in results.lines))
    publish("compression", "\n\n".join(tables(results, known)), given.docs, results.lines)


def measure_part(results: Results, part: str, subject: Subject, few: Subject, given) -> None:
    """One kind of measurement of a run; files of each profile by themselves."""
    run, profiles = subject.run.name, PROFILES
    if part == "rivals":
        results.once(lambda: rivals(subject.images), run=run, what=part, profile="")
    elif part == "bounds":
        results.once(lambda: bounds(few) | {"size": sizes(subject)}, run=run, what=part, profile="")
    elif part == "fine":
        results.once(lambda: fine(few, 100), run=run, what=part, profile="")
    elif part == "archive":
        results.once(lambda: archive(subject, given.steps), run=run, what=part, profile="")
    elif part == "files":
        for name, number in profiles.items():
            results.once(lambda number=number: files(few, number), run=run, what=part, profile=name)
    else:
        for name, number in profiles.items():
            measured = lambda number=number: written_otherwise(few, number, given.otherwise)  # noqa: E731
            results.once(measured, run=run, what=part, profile=name)


def sizes(subject: Subject) -> dict[str, int]:
    """Bytes of what a reader needs besides the file, and values an image."""
    codebook = next((subject.run / "codec").glob("*/codebook.safetensors"))
    weights = checkpoint.model_files(subject.saved)["model.safetensors"]
    return {"model": len(weights), "codebook": codebook.stat().st_size, "values": subject.images[0].size}


def tables(results: Results, runs: Sequence[str]) -> list[str]:
    """Of all runs."""
    return [one(results, runs) for one in (sizes_table, split_table, rivals_table, archive_table)]


def one_of(results: Results, run: str, what: str, profile: str = "") -> dict:
    """The line, or nothing."""
    return next(iter(results.find(run=run, what=what, profile=profile)), {})


def sizes_table(results: Results, runs: Sequence[str]) -> str:
    """Bytes beside the bound, round trips, time."""
    rows = []
    for run in runs:
        known, fine_bound = one_of(results, run, "bounds"), one_of(results, run, "fine")
        for profile in PROFILES:
            line, other = (one_of(results, run, what, profile) for what in ("files", "otherwise"))
            if not line or not known or not fine_bound:
                continue
            bits = 8 * np.array(line["bytes"]) / known["size"]["values"]
            own, whole = np.array(known[profile]), np.array(fine_bound["bits"])
            ratio = bits.mean() / whole.mean()
            ratio_error = np.std(bits - ratio * whole) / len(bits) ** 0.5 / whole.mean()
            ideal = known[f"{profile}, KL"] + line["split"][PARTS.index("exact pixels")]
            exact = sum(line["exact"].values()) + sum(other.get("exact", {}).values())
            tried = len(bits) * len(line["exact"]) + len(other.get("bytes", []))
            lengths, error = np.array(line["bytes"]), np.std(line["bytes"]) / len(bits) ** 0.5
            rows.append([
                run, profile, len(bits), f"{lengths.mean():.1f} ± {error:.1f}", f"{bits.mean():.3f}",
                f"{lengths.mean() / ideal:.3f}", f"{own.mean():.3f}", f"{bits.mean() / own.mean():.3f}",
                f"{whole.mean():.3f}", f"{ratio:.3f} ± {ratio_error:.3f}", f"{exact} of {tried}", line["calls"],
                f"{line['encode']:.2f}", f"{line['decode']['64, 1']:.2f}", f"{line['decode']['1, 1']:.2f}",
            ])  # fmt: skip
    headings = [
        "run", "profile", "images", "bytes an image", "bits/dim", "ratio to KL and pixels", "bound, same steps",
        "ratio", "bound, 100 steps", "ratio", "exact round trips", "network calls", "s to write",
        "s to read, 64 a call", "s to read, one a call",
    ]  # fmt: skip
    note = (
        "Seconds are of one core, an image; writing includes its check. KL and pixels: the KL of the steps and the part"
        " of the exact pixels, as they are.\n\n"
    )
    return note + table(headings, rows)


def split_table(results: Results, runs: Sequence[str]) -> str:
    """Where the bytes are."""
    lines = [(run, name, one_of(results, run, "files", name)) for run in runs for name in PROFILES]
    rows = [
        [
            run,
            name,
            *(f"{part:.1f}" for part in line["split"]),
            f"{sum(line['split']):.1f}",
            f"{one_of(results, run, 'bounds')[f'{name}, KL']:.1f}",
        ]
        for run, name, line in lines
        if line
    ]
    return "Bytes an image, by part:\n\n" + table(["run", "profile", *PARTS, "sum", "KL of the steps"], rows)


def rivals_table(results: Results, runs: Sequence[str]) -> str:
    """The same images by the others, whole and less what an image of one tone takes."""
    rows = []
    for run in runs:
        known, bare = one_of(results, run, "rivals"), PARTS.index("channel")
        names = [name for name in ("PNG", "WebP", "JPEG XL") if name in known]
        lines = {name: one_of(results, run, "files", name) for name in PROFILES}
        lines = {name: line for name, line in lines.items() if line}
        if not known or not lines:
            continue
        count = len(next(iter(lines.values()))["bytes"])
        whole = {name: float(np.mean(known[name]["each"][:count])) for name in names}
        best = min(whole.values())
        best_name = min(whole, key=lambda name: whole[name])
        rows += [
            [run, name, f"{mean:.1f}", f"{mean / best:.2f}", f"{mean - known[name]['flat']:.1f}", ""]
            for name, mean in whole.items()
        ]
        size = one_of(results, run, "bounds")["size"]
        for name, line in lines.items():
            mean, gain = float(np.mean(line["bytes"])), best - float(np.mean(line["bytes"]))
            pays = f"{(size['model'] + size['codebook']) / gain:,.0f} images" if gain > 0 else "never"
            own = line["split"][bare] + line["split"][bare + 1] + line["split"][1]
            won = np.array(known[best_name]["each"][:count]) > np.array(line["bytes"])
            rows.append([
                run, f"ancestral, {name}", f"{mean:.1f}", f"{mean / best:.2f}", f"{own:.1f}",
                f"{pays}; smaller for {won.sum()} of {count}",
            ])  # fmt: skip
    headings = ["run", "", "bytes an image", "of the best rival", "without container", "paid after"]
    note = (
        "Rivals: the smallest PNG of Pillow's compressions, with a palette where that is exact; lossless WebP, method"
        " 6; lossless JPEG XL, effort 10. Without container: less the file of an image of one tone; ours without"
        " header, checks, length and CRC-32. Paid after: so many images save the bytes of weights and codebook; how"
        " often the file is smaller than the best rival's.\n\n"
    )
    return note + table(headings, rows)


def archive_table(results: Results, runs: Sequence[str]) -> str:
    """Archives beside their bound and beside the rivals' files of all images side by side."""
    rows = []
    for run in runs:
        line, known = one_of(results, run, "archive"), one_of(results, run, "rivals")
        if not line or not known:
            continue
        names = [name for name in ("PNG", "WebP", "JPEG XL") if name in known]
        count, values = len(known["PNG"]["each"]), one_of(results, run, "bounds")["size"]["values"]
        rows.append([
            run, count, line["bytes"], f"{8 * line['bytes'] / count / values:.3f}", f"{line['ideal']:.0f}",
            f"{line['bytes'] / line['ideal']:.3f}", line["one_off"],
            f"{line['bytes'] / (line['ideal'] + line['one_off']):.4f}", f"{line['exact']} of {count}",
            f"{line['seconds']:.2f}",
            "; ".join(f"{name} {sum(known[name]['each'])}, {known[name]['mosaic']}" for name in names),
        ])  # fmt: skip
    headings = [
        "run", "images", "archive, bytes", "bits/dim", "bound along its chains, bytes", "ratio", "one-off, bytes",
        "ratio to bound + one-off", "exact", "s an image, both ways", "rivals, bytes: files, one mosaic",
    ]  # fmt: skip
    return "Archives, 20 steps:\n\n" + table(headings, rows)


if __name__ == "__main__":
    main()
