"""Damaged, cut, random and foreign files of the codec and of archives: an image, or one clear error, and nothing else.

Run: python tests/codec_fuzz_harness.py [FILES] [SEED]. Each file is read in a process that ends it after `SECONDS` and
has `MEGABYTES` more than the imports took; a process that dies is a failure. Prints one JSON line with the outcomes by
kind of file; the files that break the promise are named by their number, which makes them again.
"""

import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
import time
import zlib
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from ancestral.compression import archive_command
from ancestral.compression.archive_format import Archive, Block, Setting
from ancestral.compression.block_coder import Coder, canary
from ancestral.compression.file_header import MAGIC, MOST_PIXELS, VERSION, Exact, Header, parse
from ancestral.diffusion.denoisers.analytic import gaussian
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.samplers import grids
from ancestral.errors import UserError
from ancestral.runtime import file_names
from codec_toy import codec, image
from fuzz_harness import mutate

SECONDS = 20
MEGABYTES = 600
PIXELS = 2**14  # of the largest image that a small file claims here; `MOST_PIXELS` takes minutes
SHAPE, COUNT, BLOCK, NAMES = (1, 4, 4), 8, 3, tuple(f"a/é{number}.png" for number in range(8))


class Flat:
    """An exact denoiser of vectors as one of images."""

    def __init__(self):
        forward = schedules.linear_log_snr(20, log_snr_max=9.0)
        self.oracle = gaussian(forward, torch.zeros(16, dtype=torch.float64), 0.09)
        self.schedule = forward

    def __call__(self, x_t, t):
        said = self.oracle(x_t.flatten(1), t)
        return said._make(None if part is None else part.reshape(x_t.shape) for part in said)


@dataclass(frozen=True)
class Whole:
    """What is damaged: files and the pixels that they give."""

    images: list[np.ndarray]
    files: list[bytes]
    pixels: np.ndarray  # of the archive, (N, H, W, C)
    archive: Archive
    denoiser: Flat


@cache
def whole():
    """Both channels, an image of several tiles, stored pixels, and an archive of three blocks."""
    images = [image(number) for number in range(8)] + [image(8, 11, 17), image(9, 1, 1)]
    files = codec().encode(images[:4], 0) + codec().encode(images[4:], 1)
    denoiser = Flat()
    setting = Setting(b"model-id", tuple(grids.log_snr(denoiser.schedule, 4)), 20, SHAPE, 1)
    coder = Coder(denoiser, setting)
    raw = np.random.Philox(key=1).random_raw(COUNT * 16).astype(np.int64) % 80 + 88
    pixels = torch.from_numpy(raw.reshape(COUNT, *SHAPE))
    blocks = tuple(coder.encode(pixels[first : first + BLOCK])[0] for first in range(0, COUNT, BLOCK))
    held = Archive(coder.setting, COUNT, BLOCK, NAMES, blocks)
    return Whole(images, files, pixels.permute(0, 2, 3, 1).numpy().astype(np.uint8), held, denoiser)


def damaged(draw):
    return mutate(draw.choice(whole().files), draw)


def cut(draw):
    content = draw.choice(whole().files)
    return content[: draw.randrange(len(content))]


def flipped(draw):
    content = bytearray(draw.choice(whole().files))
    for _ in range(draw.randint(1, 3)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


def random_bytes(draw):
    start = draw.choice([b"", MAGIC, MAGIC + bytes([VERSION << 4]), b"ANCB", b"\x89PNG\r\n\x1a\n"])
    return start + draw.randbytes(draw.choice([0, 1, 3, 8, 30, 300, 5000]))


def any_header(draw):
    """Fields of the header by chance, its CRC right, before a whole file's bits, random ones or none."""
    size = None
    if draw.random() < 0.7:
        height = int(2 ** draw.uniform(0, 24))
        most = PIXELS if draw.random() < 0.8 else 2**30
        size = (height, max(1, min(int(2 ** draw.uniform(0, 24)), most // height)))
        size = size if size[0] * size[1] <= PIXELS or size[0] * size[1] > MOST_PIXELS else (2**24, 2**24)
    model = b"\x01\x23\x45\x67\x89\xab\xcd\xef" if draw.random() < 0.9 else draw.randbytes(8)
    header = Header(draw.choice([0, 1, 1, draw.randrange(256)]), model, draw.choice(list(Exact)), size)
    old = draw.choice(whole().files)
    bits = draw.choice([b"", old[parse(old)[1] :], draw.randbytes(draw.randrange(400))])
    return header.content() + bits


def raw_header(draw):
    """Any bits in the header's place with a CRC that is right."""
    tail = draw.choice([draw.randbytes(draw.randrange(12)), b"\xff" * 12, b"\x80" * draw.randrange(12), bytes(8)])
    start = MAGIC + bytes([VERSION << 4 | draw.randrange(16), draw.randrange(3)])
    start += b"\x01\x23\x45\x67\x89\xab\xcd\xef" + tail
    return start + zlib.crc32(start).to_bytes(4, "little") + draw.randbytes(draw.randrange(40))


def spliced(draw):
    """The start of one file and the rest of another."""
    one, other = draw.choice(whole().files), draw.choice(whole().files)
    return one[: draw.randrange(len(one) + 1)] + other[draw.randrange(len(other) + 1) :]


def other_model(draw):
    """Whole, but of another model; or of this one with other channels."""
    old = draw.choice(whole().files)
    header, begin = parse(old)
    return Header(header.profile, draw.randbytes(8), header.exact, header.size).content() + old[begin:]


def archive_damaged(draw):
    return mutate(whole().archive.to_bytes(), draw)


def archive_fields(draw):
    """An archive that was changed with all its checksums: hostile."""
    held = whole().archive
    one = dict(vars(held.setting))
    values = {
        "model": lambda: draw.randbytes(8),
        "times": lambda: tuple(draw.randrange(2**32) for _ in range(draw.randrange(6))),
        "T": lambda: draw.choice([0, 1, 1000, 2**32 - 1]),
        "shape": lambda: tuple(draw.choice([0, 1, 4, 65535]) for _ in range(3)),
        "threads": lambda: draw.choice([0, 2, 4096, 65535]),
        "canary": lambda: draw.randbytes(8),
        "bins": lambda: draw.choice([0.0, 1e-30, 1e-3, 2.0, 900.0, 999.0, 1e9, float("nan"), float("inf"), -1.0]),
    }
    for name in draw.sample(sorted(values), draw.choice([0, 1, 1, 2])):
        one[name] = values[name]()
    if draw.random() < 0.3:
        one["times"] = (20, draw.randrange(1, 20), 0)
    count, block = draw.choice([(COUNT, BLOCK)] * 3 + [(2**32 - 1, 2**32 - 1), (0, 1), (9, 3), (7, 3), (2**31, 2**30)])
    names = draw.choice(
        [NAMES] * 3 + [(), ("",) * 50, tuple(draw.choice(["../x", "a\n", "x" * 999]) for _ in range(8))]
    )
    blocks = draw.choice([held.blocks] * 2 + [[_changed(each, draw) for each in held.blocks], held.blocks[:1], []])
    try:
        if draw.random() < 0.7:
            one["canary"] = canary(whole().denoiser, Setting(**one))
    except Exception:  # times that the model has not, and the like
        pass
    try:
        return Archive(Setting(**one), count, block, names, tuple(blocks)).to_bytes()
    except struct.error:  # what no header can say
        return held.to_bytes()[:-1]


def _changed(block, draw):
    if draw.random() < 0.5:
        return block
    payload = draw.choice([mutate(block.payload, draw), b"", draw.randbytes(30), block.payload[:3]])
    return Block(payload, draw.choice([block.pixels_crc, draw.randrange(2**32)]))


def archive_bomb(draw):
    """A deflated header of megabytes, or of any bits."""
    fixed = draw.choice(
        [bytes(48), draw.randbytes(48), zlib.decompressobj().decompress(whole().archive.to_bytes()[13:])]
    )
    body = zlib.compress(fixed + draw.choice([bytes(2**24), b"ab\0" * 10**6, draw.randbytes(300)]), 1)
    return struct.pack("<4sBII", b"ANCB", 1, len(body), zlib.crc32(body)) + body


KINDS = [damaged, cut, flipped, random_bytes, any_header, raw_header, spliced, other_model]
KINDS += [archive_damaged, archive_fields]


def read(content, archive):
    """What comes of a file: 'refused', 'exact' or 'lossy'.

    Raises:
        AssertionError: for pixels that claim to be exact and are not, and for an error of more than a line.
    """
    try:
        return _archive(content) if archive else _file(content)
    except UserError as error:
        text = str(error)
        if not text.strip() or "\n" in text or len(text) > 400:
            raise AssertionError(f"the error is no line: {text!r}") from None
        return "refused"


def _file(content):
    coder = codec()
    (one,) = coder.decode([content])
    if one.pixels.dtype != np.uint8 or one.pixels.ndim != 3:
        raise AssertionError("no image")
    if one.lossless:
        if not any(np.array_equal(one.pixels, original) for original in whole().images):
            raise AssertionError("a wrong image that says it is exact")
        return "exact"
    right = any(old.startswith(coder.picture(content)) for old in whole().files)
    return "lossy, as cut" if right else "lossy, of other bits"


def _archive(content):
    held = Archive.of_bytes(content)
    file_names.need_writable_names([file_names.as_png(name) for name in held.names], Path("out"), Path("x"), "")
    saved = SimpleNamespace(facts=SimpleNamespace(shape=SHAPE))
    pixels = archive_command.expanded(saved, whole().denoiser, held, range(held.count))
    if not np.array_equal(pixels, whole().pixels[: len(pixels)]):
        raise AssertionError("wrong images that say they are exact")
    return "exact"


def case(number, seed):
    """(kind, content) of a file by its number."""
    draw = random.Random(f"{seed}/{number}")
    kind = archive_bomb if number % 500 == 499 else KINDS[number % len(KINDS)]
    return kind.__name__, kind(draw)


def main(files=20_000, seed=0):
    """Outcomes by kind, and what broke the promise."""
    whole()
    archive_command.model_id = lambda saved: b"model-id"
    began, shared = time.monotonic(), mmap.mmap(-1, 8)
    outcomes, slowest, broken, first = Counter(), (0.0, 0), [], 0
    while first < files:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            _work(range(first, files), seed, shared, os.fdopen(writing, "w", buffering=1))
        os.close(writing)
        with os.fdopen(reading) as lines:
            for line in lines:
                kind, outcome, seconds, number = json.loads(line)
                slowest = max(slowest, (seconds, number))
                outcomes[f"{kind}: {outcome}"] += 1
                if outcome.startswith("BROKEN"):
                    broken.append((number, kind, outcome))
        _, status = os.waitpid(child, 0)
        first = files
        if status:  # ended by the clock or by a library
            number = struct.unpack("<q", shared[:8])[0]
            kind, _ = case(number, seed)
            outcomes[f"{kind}: BROKEN"] += 1
            broken.append((number, kind, f"the process ended: {os.waitstatus_to_exitcode(status)}"))
            first = number + 1
    seconds = round(time.monotonic() - began, 1)
    return {"files": files, "outcomes": dict(sorted(outcomes.items())), "slowest": slowest, "seconds": seconds,
            "broken": broken}  # fmt: skip


def _work(numbers, seed, shared, out):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEGABYTES * 2**20,) * 2)
    for number in numbers:
        shared[:8] = struct.pack("<q", number)
        kind, content = case(number, seed)
        signal.alarm(SECONDS)
        started = time.monotonic()
        try:
            outcome = read(content, kind.startswith("archive") or content[:4] == b"ANCB")
        except BaseException as error:
            outcome = f"BROKEN: {type(error).__name__}: {str(error)[:200]}"
        signal.alarm(0)
        print(json.dumps([kind, outcome, round(time.monotonic() - started, 3), number]), file=out)
    out.flush()
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(*map(int, sys.argv[1:3])), indent=1))
