"""What each package costs before it does anything: imports, help, memory of a training step, a checkpoint.

Run: .venv-peers/bin/python benchmarks/footprint.py. Writes its tables into benchmarks/results.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import interleaved, options, parsed, publish, spread, table
from peers import STUBS

BATCH, SIDE, SAVES = 16, 32, 3
WIDTHS = (64, 128, 256)
BIN = Path(sys.executable).parent
# What a program needs that trains and samples.
IMPORTS = {
    "torch alone": "import torch",
    "ancestral": "import ancestral.training.trainer, ancestral.diffusion.samplers.sample",
    "diffusers": "from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel",
    "lucidrains": f"import sys; sys.path.insert(0, {str(STUBS)!r})\n"
    "from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet",
}
HELP = {
    "ancestral --help": [str(BIN / "ancestral"), "--help"],
    "ancestral train --help": [str(BIN / "ancestral"), "train", "--help"],
    "diffusers-cli --help": [str(BIN / "diffusers-cli"), "--help"],
    "accelerate launch --help": [str(BIN / "accelerate"), "launch", "--help"],
}


def megabytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def prepare(folder: Path) -> None:
    """One network as a diffusers folder, and images as files."""
    from diffusers import DDPMPipeline, DDPMScheduler
    from peers import write_pngs
    from training_speed import diffusers_network

    DDPMPipeline(diffusers_network(WIDTHS), DDPMScheduler()).save_pretrained(folder / "model")
    write_pngs(pictures(), folder / "images")


def pictures() -> np.ndarray:
    """Any bytes (N, H, W, 3)."""
    return np.random.default_rng(0).integers(0, 256, (8 * BATCH, SIDE, SIDE, 3), np.uint8)


def ancestral(folder: Path) -> tuple[Callable[[], object], Callable[[Path], object]]:
    """An update, and saving a checkpoint."""
    import torch

    from ancestral.data.dataset import ImageSet
    from ancestral.runs import checkpoint, config
    from ancestral.runs.hub import diffusers as interop
    from ancestral.training.trainer import Training

    imported = interop.read(folder / "model")
    settings, facts = imported.config, imported.facts
    settings = replace(settings, train=replace(settings.train, batch_size=BATCH))
    training, images = Training(settings, facts, torch.device("cpu")), pictures()
    data = ImageSet(images, None, (), ("",) * len(images))

    def save(out: Path) -> None:
        tensors = training.tensors()
        state: checkpoint.State = {
            "total": BATCH, "length": "", "data": "", "seconds": 0.0, "held_out_bits": None, "complete": False,
        }  # fmt: skip
        document = config.to_json(settings, facts)
        checkpoint.save(out, 1, document, training.model_weights(tensors), tensors, dict(state))

    return lambda: training.step(data), save


def diffusers(folder: Path) -> tuple[Callable[[], object], Callable[[Path], object]]:
    """An update, and saving a checkpoint."""
    from diffusers import UNet2DModel
    from peers import Script

    training = Script(UNet2DModel.from_pretrained(folder / "model" / "unet"), pictures(), BATCH)
    return training.step, training.save


def lucidrains(folder: Path) -> tuple[Callable[[], object], Callable[[Path], object]]:
    """An update, and saving a checkpoint."""
    from peers import Lucid

    training = Lucid(folder, 3, (1, 2, 4))
    return training.step, training.save


TRAININGS = {"ancestral": ancestral, "diffusers": diffusers, "lucidrains": lucidrains}


def child(name: str, folder: Path) -> None:
    """Make three updates, then save a few times; tells what that took as JSON."""
    step, save = TRAININGS[name](folder)
    for _ in range(3):
        step()
    found: dict[str, float] = {"peak": megabytes()}
    seconds = []
    for number in range(SAVES):
        out = folder / f"{name}-{number}"
        out.mkdir()
        started = time.perf_counter()
        save(out)
        seconds.append(time.perf_counter() - started)
        found["bytes"] = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(json.dumps({**found, "seconds": float(np.median(seconds))}))


def run(command: list[str]) -> str:
    """What it prints, in a fresh process."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def beginnings(repeats: int) -> str:
    """The table of imports and of help."""
    programs = {
        name: [sys.executable, "-c", f"{code}\nimport sys; print(len(sys.modules))"] for name, code in IMPORTS.items()
    }
    seconds = interleaved(
        {name: lambda command=command: run(command) for name, command in {**programs, **HELP}.items()}, repeats, 1
    )
    rows = []
    for name, taken in seconds.items():
        base = seconds["ancestral" if name in programs else "ancestral --help"]
        modules = run(programs[name]).strip() if name in programs else ""
        rows.append(
            [f"import {name}" if name in programs else f"`{name}`", spread(taken), spread(taken / base), modules]
        )
    return table(["in a fresh process", "seconds", "times ancestral's", "modules"], rows)


def trainings(repeats: int) -> str:
    """The table of memory and checkpoints."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in TRAININGS}
    for _ in range(repeats):
        for name, lines in found.items():
            with tempfile.TemporaryDirectory() as folder:
                run([sys.executable, __file__, "--prepare", folder])
                lines.append(json.loads(run([sys.executable, __file__, "--child", name, folder]).splitlines()[-1]))

    def values(name: str, what: str) -> np.ndarray:
        return np.array([line[what] for line in found[name]])

    columns = {"peak": (1, 0), "bytes": (1e-6, 1), "seconds": (1, 2)}
    rows = []
    for name in TRAININGS:
        cells = [name]
        for what, (unit, digits) in columns.items():
            own = values(name, what)
            cells += [spread(own * unit, digits), spread(own / values("ancestral", what))]
        rows.append(cells)
    headings = ["", "peak memory, MB", "ratio", "checkpoint, MB", "ratio", "seconds to write", "ratio"]
    return table(headings, rows)


def main() -> None:
    """Both tables."""
    parser = options(__doc__ or "")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parsed(parser)
    if given.prepare:
        prepare(given.prepare)
    elif given.child:
        child(given.child[0], Path(given.child[1]))
    else:
        text = f"Median [quartiles] of {given.repeats} in turns.\n\n{beginnings(given.repeats)}\n\n"
        text += f"Three updates of {BATCH} images of {SIDE}x{SIDE}, then a checkpoint. Ancestral and diffusers have "
        text += f"the same network {WIDTHS}; lucidrains has its own of these widths. "
        text += "Ours keeps two averages of the weights, lucidrains one and a second copy of the weights, "
        text += "diffusers' script none unless told to.\n\n"
        text += trainings(max(1, given.repeats // 2))
        publish("footprint", text, given.docs)


if __name__ == "__main__":
    main()
