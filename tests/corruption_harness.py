"""Damaged run folders through every command that reads one.

Run: python tests/corruption_harness.py [CASES] [SEED]. A case damages one file of a small grey or colour run, of a
published or of a diffusers folder, and runs one command on it, in a process of its own that a clock ends. The command
must give what it gives for the undamaged folder, or name the file; with no traceback, within a time. A diffusers folder
has no digests: there a changed value may give another model, if the command says so with the SHA-256 of the file that
it read, which is counted apart. Prints each case that broke this, then the outcomes by command; `--case N` runs that
one only and shows what it said.
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from hashlib import sha256
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from click.testing import CliRunner
from PIL import Image

from ancestral.apps.cli.main import main as ancestral
from ancestral.runs import checkpoint, lock
from ancestral.runs.hub import hub
from ancestral.runtime import verified_folder
from forked import import_all

SECONDS = 20
MEMORY = 6 * 2**30  # bytes of addresses
SETTINGS = (
    "model.width=8",
    "model.multipliers=1,2",
    "model.blocks=1",
    "model.groups=4",
    "diffusion.clock=zero-based",
    "train.snapshots=3",
)
TRAIN = ("--preset", "tiny", "--device", "cpu", "--batch-size", 4)
TRAIN += tuple(word for setting in SETTINGS for word in ("--set", setting))
RUNS = {"grey": (8, 8), "colour": (8, 8, 3)}

COMMANDS = {  # in the folder of the case, where `it` is what was damaged
    "sample": ("sample", "it", "--num-images", 4, "--steps", 3),
    "sample tuned": ("sample", "it", "--num-images", 2, "--steps", 3, "--grid", "tuned", "--out", "out"),
    "sample average": ("sample", "it", "--num-images", 2, "--steps", 3, "--average-width", 0.07, "--out", "out"),
    "evaluate": ("evaluate", "it", "--num-images", 2, "--terms", 3),
    "resume": ("train", "{data}", "--out", "it", "--steps", 6, *TRAIN),
    "compress": ("compress", "it", "{data}/00.png", "--profile", "quick", "--out", "out.anc"),
    "decompress": ("decompress", "it", "{anc}", "--out", "out.png"),
    "export": ("export", "it", "--out", "out"),
    "import": ("import", "it", "--out", "out"),
}
CLOCKS = ("seconds", "time", "when", "began", "images_per_second")  # keys that two equal runs differ in


def ran(*arguments):
    """(exit code, output) of the command in this process; 1 and the traceback where it raised."""
    result = CliRunner().invoke(ancestral, [str(one) for one in arguments])
    if result.exception is None or isinstance(result.exception, SystemExit):
        return result.exit_code, result.output
    return 1, result.output + "".join(traceback.format_exception(result.exception))


def apart(work, seconds):
    """What work() returns in a child process, as JSON; None where the clock ended it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            os.close(reading)
            with os.fdopen(writing, "w") as file:
                json.dump(work(), file)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    os.set_blocking(reading, False)
    said, ends = bytearray(), time.monotonic() + seconds
    while time.monotonic() < ends:
        try:
            part = os.read(reading, 1 << 20)
        except BlockingIOError:
            time.sleep(0.002)
            continue
        if not part:
            break
        said += part
    else:
        os.killpg(child, signal.SIGKILL)
    os.close(reading)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if ended == -signal.SIGKILL:
        return None
    return json.loads(said) if ended == 0 else (1, f"Traceback: the process ended with {ended}")


def _plain(found, digests):
    """Without times, and with the names of the files whose digests are told."""
    if isinstance(found, dict):
        return {key: _plain(value, digests) for key, value in found.items() if not any(word in key for word in CLOCKS)}
    if isinstance(found, list):
        return [_plain(one, digests) for one in found]
    return digests.get(found, found) if isinstance(found, str) else found


def _digest(path, digests):
    content = path.read_bytes()
    if path.suffix == ".json":
        content = json.dumps(_plain(json.loads(content), digests), sort_keys=True).encode()
    return sha256(content).hexdigest()


def results(command, folder):
    """{name: digest} of what a command has made."""
    newest = sorted((folder / "it" / "checkpoints").glob("0*"))[-1:]
    made = {
        "sample": lambda: sorted((folder / "it" / "samples").glob("*.png")),
        "evaluate": lambda: [folder / "it" / "evaluation.json", folder / "it" / "bound.csv"],
        "resume": lambda: [newest[0] / name for name in ("model.safetensors", "state.safetensors", "config.json")],
        "compress": lambda: [folder / "out.anc"],
        "decompress": lambda: [folder / "out.png"],
        "import": lambda: [
            one for one in sorted((folder / "out").rglob("*")) if one.suffix in (".json", ".safetensors")
            and one.name != verified_folder.MANIFEST and lock.FOLDER not in one.parts
        ],
    }.get(command, lambda: sorted(one for one in (folder / "out").rglob("*")
                                  if one.is_file() and not {".job", ".results"} & {*one.parts}))()  # fmt: skip
    # What a result says of its source is compared with that source: each digest must be that of a file there now.
    digests = {sha256(one.read_bytes()).hexdigest(): str(one.relative_to(folder)) for one in files(folder / "it")}
    found = {str(one.relative_to(folder)): _digest(one, digests) for one in made}
    if command == "resume":
        lines = (folder / "it" / "metrics.jsonl").read_bytes().splitlines()[-3:]
        found["metrics.jsonl"] = sha256(json.dumps([_plain(json.loads(one), {}) for one in lines]).encode()).hexdigest()
    return found


# What is done to a file. Each takes (path, draw), and is for files that `FITS` says.


def _flip(path, draw, count=1):
    content = bytearray(path.read_bytes())
    for _ in range(count):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def _zero(path, draw):
    content = bytearray(path.read_bytes())
    start = draw.choice([0, draw.randrange(len(content))])
    end = draw.choice([len(content), min(len(content), start + draw.choice([1, 8, 512]))])
    content[start:end] = bytes(end - start)
    path.write_bytes(content)


def _swap(path, draw):
    others = [one for one in files(path.parents[len(path.parts) - path.parts.index("it") - 2]) if one != path]
    same = [one for one in others if one.suffix == path.suffix]
    other = draw.choice(same if same and draw.random() < 0.7 else others)
    first, second = path.read_bytes(), other.read_bytes()
    path.write_bytes(second)
    other.write_bytes(first)
    return other


def _instead(make):
    def damage(path, draw):
        path.unlink()
        make(path)

    return damage


def _tensors(path, draw, change):
    tensors = safetensors.torch.load_file(path)
    names = sorted(name for name, one in tensors.items() if one.is_floating_point() and one.numel())
    if not names:
        return
    name = draw.choice(names)
    changed = change(tensors[name].clone())
    del tensors[name]
    safetensors.torch.save_file(tensors if changed is None else {**tensors, name: changed.contiguous()}, path)


def _not_finite(path, draw):
    def change(tensor):
        tensor.view(-1)[draw.randrange(tensor.numel())] = draw.choice([torch.nan, torch.inf, -torch.inf])
        return tensor

    _tensors(path, draw, change)


def _other_shape(path, draw):
    if path.suffix == ".png":
        Image.new("L", (5, 3)).save(path)
        return
    longer = lambda one: torch.cat([one.flatten(), one.new_zeros(1)])  # noqa: E731
    _tensors(path, draw, draw.choice([longer, lambda one: one[None], lambda one: None]))


def _other_type(path, draw):
    document = json.loads(path.read_text())
    entries = []

    def visit(node):
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            if value is not None:
                entries.append((node, key))
            if isinstance(value, (dict, list)):
                visit(value)

    visit(document)
    node, key = draw.choice(entries)
    kinds = [kind for kind in ("x", True, [[1]], {"x": 1}) if type(kind) is not type(node[key])]
    node[key] = draw.choice(kinds)
    path.write_text(json.dumps(document))


def _seal(path):
    """Make the folder's manifest agree with the file. Returns the manifest, where it has changed."""
    manifest = path.parent / verified_folder.MANIFEST
    if manifest.exists() and path != manifest:
        entries = json.loads(manifest.read_text())
        content = path.read_bytes()
        entries[path.name] = {"sha256": sha256(content).hexdigest(), "bytes": len(content)}
        manifest.write_text(json.dumps(entries))
        return [manifest]
    return []


DAMAGE = {
    "a bit": _flip,
    "bits": lambda path, draw: _flip(path, draw, 8),
    "cut": lambda path, draw: path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)]),
    "zeroed": _zero,
    "emptied": lambda path, draw: path.write_bytes(b""),
    "missing": lambda path, draw: path.unlink(),
    "swapped": _swap,
    "random": lambda path, draw: path.write_bytes(draw.randbytes(path.stat().st_size)),
    "deep": lambda path, draw: path.write_bytes(b"[" * 100_000),
    "fifo": _instead(os.mkfifo),
    "dangling": _instead(lambda path: path.symlink_to("nowhere")),
    "endless": _instead(lambda path: path.symlink_to("/dev/zero")),
    "loop": _instead(lambda path: path.symlink_to(path.name)),
    "folder": _instead(lambda path: path.mkdir()),
    "not finite": _not_finite,
    "shape": _other_shape,
    "type": _other_type,
}
ONLY = {
    "not finite": (".safetensors",),
    "shape": (".safetensors", ".png"),
    "type": (".json",),
    "deep": (".json", ".jsonl"),
}
UNSEEN = ("a bit", "bits", "zeroed", "random", "swapped")  # what may go unseen where there is no digest
FORBIDDEN = ("TRACEBACK", "SLOW", "REFUSED UNNAMED", "SILENTLY WRONG")
VERIFIED = ("not finite", "shape", "type")


def files(folder):
    """The files of a folder, sorted."""
    return sorted(one for one in folder.rglob("*") if one.is_file() and not one.is_symlink())


def originals(root):
    """The undamaged folders."""
    import_all()
    checkpoint.KEEP = 3
    lock.PATIENCE = 2.0  # the watch over an owner whose record cannot be read, which says so
    for name, shape in RUNS.items():
        (root / name).mkdir()
        pixels = np.random.default_rng(0).integers(0, 256, (24, *shape), dtype=np.uint8)
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(root / name / f"{number:02d}.png")
        data, run = root / name, root / f"{name} run"
        lines = [("train", data, "--out", run, "--steps", 6, *TRAIN), ("tune-steps", run, "--steps", 3)]
        lines += [[str(one).replace("it", str(run)) if one == "it" else one for one in COMMANDS["sample"]]]
        lines += [[str(run) if one == "it" else one for one in COMMANDS["evaluate"]]]
        lines += [
            ("compress", run, data / "00.png", "--out", root / f"{name}.anc"),
            ("export", run, "--out", root / f"{name} diffusers"),
        ]
        for number, line in enumerate(lines):  # in this process all but the training: what they import is warm after
            code, said = ran(*line) if number else apart(lambda line=line: ran(*line), 120)
            assert code == 0, said
        hub.write(checkpoint.open_newest(run), root / f"{name} published", "card")
        shutil.copytree(run, root / f"{name} unfinished")
        shutil.rmtree(sorted((root / f"{name} unfinished" / "checkpoints").iterdir())[-1])


def kinds():
    """(folder, command) of every kind of case."""
    runs = [
        (f"{name} {'unfinished' if command == 'resume' else 'run'}", command) for name in RUNS for command in COMMANDS
    ]
    return runs + [(f"{name} {kind}", "import") for name in RUNS for kind in ("published", "diffusers")]


def line_of(root, name, command):
    colour = name.split()[0]
    words = {"{data}": root / colour, "{data}/00.png": root / colour / "00.png", "{anc}": root / f"{colour}.anc"}
    return [words.get(one, one) if isinstance(one, str) else one for one in COMMANDS[command]]


def case(root, number, seed, chosen, show=False):
    """(command, outcome, what it was) of one case."""
    draw = random.Random(f"{seed}/{number}")
    name, command = kinds()[number % len(kinds())]
    folder = root / "case"
    shutil.copytree(root / name, folder / "it")
    choice = files(folder / "it")
    weights = [
        4 if "checkpoints/0" in str(one) or "codec" in one.parts or one.parent.name == "it" else 1 for one in choice
    ]
    path = draw.choices(choice, weights)[0]
    if path.stat().st_size == 0:
        path = folder / "it" / "checkpoints"
    fitting = [kind for kind in DAMAGE if path.suffix in ONLY.get(kind, (path.suffix,))]
    kind = draw.choice(fitting)
    other = DAMAGE[kind](path, draw)
    damaged = [one for one in (path, other) if isinstance(one, Path)]
    if kind in VERIFIED:
        damaged += _seal(path)
    began = time.monotonic()

    def work():
        os.chdir(folder)
        code, said = ran(*line_of(root, name, command))
        return code, said, results(command, folder) if code == 0 else {}

    ended = apart(work, SECONDS)
    read = all(f"{sha256(one.read_bytes()).hexdigest()}  {one.relative_to(folder / 'it')}" in str(ended)
               for one in damaged if one.is_file() and "diffusers" in name)  # fmt: skip
    seconds = time.monotonic() - began
    about = f"{number}: {command}, {name}: {path.relative_to(folder)} {kind}, {seconds:.1f} s"
    shutil.rmtree(folder)
    if ended is None:
        return command, "SLOW", about
    code, said, *made = ended
    if show:
        print(about, said, sep="\n")
    named = any(one.name in said for one in damaged)
    # A manifest speaks of the files beside it.
    named |= any(one.name == verified_folder.MANIFEST and one.parent.name in said for one in damaged)
    if code not in (0, 2) or "Traceback" in said:
        outcome = "TRACEBACK"
    elif code == 2:
        outcome = "refused" if named else "REFUSED UNNAMED"
    elif "diffusers" in name:  # which names every file that it reads
        same = made[0] == chosen[name, command]
        seen = hub.UNCHECKED in said and (same or (kind in UNSEEN and read))
        outcome = "SILENTLY WRONG" if not seen else "the same" if same else "another, no digest, said"
    elif made[0] == chosen[name, command]:
        outcome = "the same, said" if named else "the same"
    else:
        outcome = "another, said" if named else "SILENTLY WRONG"
    tail = "" if outcome.islower() else " | " + " / ".join(said.strip().splitlines()[-3:])
    return command, outcome, about + tail


def main(cases=2000, seed=0, only=None):
    """Returns {command: {outcome: count}} and what was wrong, for a test to judge."""
    root = Path(tempfile.mkdtemp())
    torch.set_num_threads(1)
    originals(root)
    chosen = {}
    for name, command in kinds():
        folder = root / "case"
        shutil.copytree(root / name, folder / "it")

        def work(name=name, command=command, folder=folder):
            os.chdir(folder)
            code, said = ran(*line_of(root, name, command))
            assert code == 0, said
            return results(command, folder)

        chosen[name, command] = apart(work, 60)
        assert isinstance(chosen[name, command], dict), (name, command, chosen[name, command])
        shutil.rmtree(folder)
    table, wrong = {command: {} for command in COMMANDS}, []
    for number in range(cases) if only is None else [only]:
        command, outcome, about = case(root, number, seed, chosen, only is not None)
        table[command][outcome] = table[command].get(outcome, 0) + 1
        if not outcome.islower():
            wrong.append(f"{outcome} {about}")
            print(wrong[-1], file=sys.stderr, flush=True)
        if number % 100 == 99:
            print(number + 1, json.dumps(table), file=sys.stderr, flush=True)
    shutil.rmtree(root)
    return table, wrong


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    arguments = sys.argv[1:]
    only = int(arguments.pop(arguments.index("--case") + 1)) if "--case" in arguments else None
    numbers = [int(one) for one in arguments if one != "--case"]
    table, wrong = main(*numbers, **({} if only is None else {"only": only}))
    print(json.dumps(table, indent=1))
    totals = {name: sum(one.get(name, 0) for one in table.values()) for name in FORBIDDEN}
    print(", ".join(f"{name} {count}" for name, count in totals.items()))
    print(f"{len(wrong)} wrong")
