"""Damaged, hostile and random input: checkpoints, configurations, pictures, metadata, arrays, shards.

Run: python tests/fuzz_harness.py [CASES] [SEED]. Each case must end in a result or in a UserError, within a time and a
memory bound, with nothing executed, unpickled, connected to or written outside the folder of the case. Prints one JSON
line; the case that breaks the promise is left where the last line says.
"""

import io
import json
import os
import random
import resource
import shutil
import sys
import tarfile
import tempfile
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ancestral.data import load
from ancestral.errors import UserError
from ancestral.runs import build, checkpoint, config
from ancestral.runtime import verified_folder

SECONDS = 10.0
MEGABYTES = 600  # above what the process has after its imports
FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect"}
events = []


def watch(event, arguments):
    """An audit hook: what the interpreter is about to do."""
    if event in FORBIDDEN:
        events.append((event, str(arguments)[:200]))


VALUES = [None, True, -1, 0, 1, 10**30, 1e308, float("nan"), "", "x" * 10_000, "../..", [], {}, [[]] * 100, "\ud800"]


def mutate_json(document, draw):
    """Another value, a missing or an unknown key, somewhere in the tree."""
    entries = []

    def visit(node):
        if isinstance(node, dict):
            entries.extend((node, key) for key in node)
            for child in node.values():
                visit(child)
        elif isinstance(node, list):
            entries.extend((node, index) for index in range(len(node)))
            for child in node:
                visit(child)

    visit(document)
    node, key = draw.choice(entries)
    action = draw.randrange(4)
    if action == 0:
        del node[key]
    elif action == 1 and isinstance(node, dict):
        node[draw.choice(["", "x", "__class__", "width"])] = draw.choice(VALUES)
    else:
        node[key] = draw.choice(VALUES)
    return document


def mutate(content, draw):
    """A few bytes changed, cut, doubled, zeroed or made up."""
    content = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        size = len(content)
        start, length = draw.randrange(size + 1), draw.choice([1, 1, 2, 4, 8, 64, 1000])
        action = draw.randrange(6)
        if action == 0 and size:
            content[start % size] ^= 1 << draw.randrange(8)
        elif action == 1:
            del content[start:]
        elif action == 2:
            content[start : start + length] = draw.randbytes(length)
        elif action == 3:
            content[start:start] = content[start : start + length]
        elif action == 4:
            content[start : start + length] = bytes(length)
        else:
            content[start : start + length] = b"\xff" * length
    return bytes(content)


def checkpoints(root, originals, draw):
    """A checkpoint with a changed file; half of the time under a manifest that agrees with it."""
    shutil.copytree(originals["run"], root / "run")
    folder = sorted((root / "run" / "checkpoints").iterdir())[-1]
    target = draw.choice(sorted(folder.iterdir()))
    if target.suffix == ".json" and draw.random() < 0.7:
        document = mutate_json(json.loads(target.read_text()), draw)
        target.write_bytes(json.dumps(document).encode(errors="surrogatepass"))
    else:
        target.write_bytes(mutate(target.read_bytes(), draw))
    if draw.random() < 0.5 and target.name != verified_folder.MANIFEST:
        manifest = json.loads((folder / verified_folder.MANIFEST).read_text())
        content = target.read_bytes()
        manifest[target.name] = {"sha256": sha256(content).hexdigest(), "bytes": len(content)}
        (folder / verified_folder.MANIFEST).write_text(json.dumps(manifest))
    else:
        # A changed file under the old manifest must never be taken for whole.
        for other in folder.parent.iterdir():
            if other != folder:
                shutil.rmtree(other)
        unchanged = target.read_bytes() == (originals["run"] / "checkpoints" / folder.name / target.name).read_bytes()
        saved, _ = checkpoint.open_run(root / "run")
        if not unchanged and target.name != verified_folder.MANIFEST:
            raise AssertionError(f"damage in {target.name} was not noticed")
    saved, _ = checkpoint.open_run(root / "run")
    model = build.trained(saved, root / "run", torch.device("cpu"))
    model(torch.zeros(1, *saved.facts.shape), 1)


def configurations(root, originals, draw):
    """A configuration document, and assignments of `--set`."""
    document = mutate_json(json.loads(originals["config"]), draw)
    if draw.random() < 0.5:
        config.from_json(document, "config.json")
    keys = [*config.known_keys(), "train.", "x.y", "."]
    text = draw.choice(keys) + draw.choice(["=", "", "=="]) + str(draw.choice([*VALUES, "1,2", "{", "[1,", "nan"]))
    config.resolve("digits", "tiny", config.parse_assignments([text]))


def pictures(root, originals, draw):
    """A folder with a changed picture."""
    name = draw.choice(sorted(originals["pictures"]))
    (root / name).write_bytes(mutate(originals["pictures"][name], draw))
    (root / "good.png").write_bytes(originals["pictures"]["a.png"])
    options = load.DataOptions(
        size=draw.choice([None, 5]), channels=draw.choice([None, 1, 3, 4]), bad_images=draw.choice(["skip", "refuse"])
    )
    load.load(str(root), options)


def metadata(root, originals, draw):
    """A folder with changed metadata."""
    for name in ("00.png", "01.png", "02.png"):
        (root / name).write_bytes(originals["pictures"]["a.png"])
    rows = [{"file_name": f"{n:02d}.png", "label": "even"} for n in range(3)]
    if draw.random() < 0.5:
        text = "file_name,label\n" + "".join(f"{row['file_name']},{row['label']}\n" for row in rows)
        (root / "metadata.csv").write_bytes(mutate(text.encode(), draw))
    else:
        rows = mutate_json(rows, draw) if draw.random() < 0.5 else rows
        text = "".join(json.dumps(row) + "\n" for row in rows).encode(errors="surrogatepass")
        (root / "metadata.jsonl").write_bytes(mutate(text, draw) if draw.random() < 0.5 else text)
    load.load(str(root), load.DataOptions())


def arrays(root, originals, draw):
    """A changed .npy or .npz file."""
    name = draw.choice(["x.npy", "x.npz"])
    (root / name).write_bytes(mutate(originals[name], draw))
    splits = load.load(str(root / name), load.DataOptions())
    splits.train.spread(4).images[:]


def shards(root, originals, draw):
    """A changed tar file."""
    (root / "x.tar").write_bytes(mutate(originals["x.tar"], draw))
    load.load(str(root / "x.tar"), load.DataOptions(cache=draw.choice([None, str(root / "cache")])))


TARGETS = [checkpoints, configurations, pictures, metadata, arrays, shards]


def originals(root):
    """Whole files of every kind."""
    from click.testing import CliRunner

    from ancestral.apps.cli.main import main as command

    line = "train digits --preset tiny --steps 3 --device cpu --set model.width=8 --set train.batch_size=8"
    result = CliRunner().invoke(command, [*line.split(), "--set", "train.snapshots=2", "--out", str(root / "run")])
    if result.exit_code:
        raise AssertionError(result.output)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    made = {"run": root / "run", "config": (root / "run" / "config.json").read_text(), "pictures": {}}
    for suffix, form in [
        ("png", "PNG"),
        ("jpg", "JPEG"),
        ("webp", "WEBP"),
        ("bmp", "BMP"),
        ("tiff", "TIFF"),
        ("gif", "GIF"),
    ]:
        file = io.BytesIO()
        Image.fromarray(pixels[0]).save(file, form)
        made["pictures"][f"a.{suffix}"] = file.getvalue()
    for name, save in (("x.npy", np.save), ("x.npz", lambda file, array: np.savez(file, images=array))):
        file = io.BytesIO()
        save(file, pixels)
        made[name] = file.getvalue()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for n in range(3):
            for suffix, content in (("png", made["pictures"]["a.png"]), ("cls", b"1")):
                info = tarfile.TarInfo(f"{n}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    made["x.tar"] = file.getvalue()
    return made


def main(cases=10_000, seed=0):
    """Returns what happened, for a test to judge."""
    root = Path(tempfile.mkdtemp())
    made = originals(root)
    sys.addaudithook(watch)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEGABYTES * 2**20, hard))
    refused, slowest, began = dict.fromkeys((one.__name__ for one in TARGETS), 0), 0.0, time.monotonic()
    for number in range(cases):
        target, draw = TARGETS[number % len(TARGETS)], random.Random(f"{seed}/{number}")
        folder = root / "case"
        folder.mkdir()
        started = time.monotonic()
        try:
            target(folder, made, draw)
        except UserError as error:
            refused[target.__name__] += 1
            if not str(error).strip():
                raise AssertionError("an error without words") from None
        except BaseException:
            print(f"case {number} of {target.__name__}, seed {seed}: left in {folder}", file=sys.stderr)
            raise
        slowest = max(slowest, time.monotonic() - started)
        outside = [path.name for path in root.iterdir() if path.name not in ("run", "case")]
        if events or outside or slowest > SECONDS:
            raise AssertionError(f"case {number} of {target.__name__}: {events} {outside} {slowest:.1f} s")
        shutil.rmtree(folder)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    shutil.rmtree(root)
    seconds = round(time.monotonic() - began, 1)
    return {"cases": cases, "refused": refused, "slowest": round(slowest, 2), "seconds": seconds}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(json.dumps(main(*map(int, sys.argv[1:3]))))
