"""Images that one core can feed to a training, with the network replaced by a trivial one.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/host_ceiling.py   # writes its table into results.md

Processor time is counted, of all threads and workers, so that other work on the machine matters little. The images lie
in a folder of PNGs: ours are decoded once into a cache that is mapped, diffusers' script decodes each every time. Its
data path is HF datasets and the transforms by stubs/torchvision (the same operations by PIL and torch).
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from common import ROOT, interleaved, options, parsed, publish, silence, table
from peers import STUBS, write_pngs
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ancestral.data.dataset import DataOptions, ImageSet
from ancestral.data.load import load
from ancestral.diffusion.objectives.time_sampling import independent
from ancestral.runs import build, config
from ancestral.runs.datasets import facts
from ancestral.runs.facts import Facts
from ancestral.training.prefetch import Prefetcher, batch
from ancestral.training.trainer import Training

SIDES = {32: (128, 1024), 64: (128, 1024), 256: (64, 256)}  # side: (batch, images in the folder)
CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")  # the latter stands for an accelerator: nothing is computed
WORKERS = 4
ROUND = 8  # batches in a row, with workers
Step = Callable[[], object]


class Trivial(nn.Module):
    """A network of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, *others: Any, **more: Any) -> Tensor:
        """A multiple of x."""
        return x * self.weight


def pictures(side: int, count: int) -> np.ndarray:
    """Coloured clouds with grain, uint8 (N, H, W, 3): their PNGs are about as large as those of photographs."""
    random = np.random.default_rng(side)
    clouds = random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    large = [np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in clouds]
    return (np.stack(large) + random.normal(0, 4, (count, side, side, 3))).clip(0, 255).astype(np.uint8)


def on_one_core(step: Step, images: int, repeats: int) -> float:
    """Images a second of processor time: the quickest of some turns, as other work slows caches down."""
    return images / float(interleaved({"": step}, repeats, clock=time.process_time)[""].min())


def used() -> float:
    """Seconds of processor time so far, with those of workers that have ended."""
    return sum(os.times()[:4])


class Ours:
    """What `ancestral train` does for a batch, and for an update."""

    def __init__(self, images: ImageSet, size: int, stream: str, workers: int = 0) -> None:
        choices = {"train.stream": stream, "train.batch_size": size, "train.workers": workers, "model.dropout": 0.0}
        self.images, self.size, self.config = images, size, config.resolve("folder", "cifar10", choices)
        self.host = stream == "numpy"
        self.streams = build.streams(self.config)
        noise = build.streams(self.config, CPU if self.host else ELSEWHERE)
        make = partial(batch, seed=0, flip=True, streams=self.streams, noise=noise)
        self.make = Prefetcher(lambda images, numbers: self._sent(make(images, numbers=numbers)), workers)
        self.start = 0

    def _sent(self, made: Any) -> Any:
        """Where all is the host's: floats and noise; otherwise bytes, copied as pinning them would."""
        return (made.x0(), made.eps()) if self.host else made._replace(images=made.images.clone())

    def feed(self) -> None:
        """The next batch, as far as it is the host's, and its times."""
        numbers = range(self.start, self.start + self.size)
        self.make(self.images, numbers, self.size)
        independent(0, numbers, self.streams)
        self.start += self.size

    def updates(self) -> Step:
        """Whole updates of the trivial network, all of it on this core."""
        with mock.patch.object(build, "network", return_value=Trivial()):
            training = Training(self.config, facts(self.images), CPU)
        return lambda: training.step(self.images)


class Script:
    """What diffusers' unconditional training script does, with its default transforms and a flip."""

    def __init__(self, folder: Path, side: int, size: int, workers: int = 0) -> None:
        from datasets import load_dataset

        sys.path.insert(0, str(STUBS))
        from torchvision import transforms  # pyright: ignore[reportMissingImports]

        sys.path.remove(str(STUBS))
        steps = (transforms.Resize((side, side)), transforms.CenterCrop((side, side)))
        change = transforms.Compose([*steps, transforms.RandomHorizontalFlip(), transforms.ToTensor()])

        def transformed(examples: dict[str, list[Image.Image]]) -> dict[str, list[Tensor]]:
            return {"input": [(change(one.convert("RGB")) - 0.5) / 0.5 for one in examples["image"]]}

        with silence():
            images: Any = load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=f"{folder}-cache")
        images.set_transform(transformed)
        self.loader = DataLoader(images, size, shuffle=True, num_workers=workers, drop_last=True)
        self.batches: Iterator[dict[str, Tensor]] = iter(())

    def feed(self) -> Tensor:
        """The next batch."""
        made = next(self.batches, None)
        if made is None:
            self.batches = iter(self.loader)
            made = next(self.batches)
        return made["input"]

    def noised(self) -> tuple[Tensor, Tensor]:
        """With noise of the host, as earlier versions of the script draw it."""
        clean = self.feed()
        return clean, torch.randn(clean.shape)

    def updates(self) -> Step:
        """Whole updates of the trivial network, all of it on this core."""
        from diffusers import DDPMScheduler

        network, scheduler = Trivial(), DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        optimizer = torch.optim.AdamW(network.parameters(), 1e-4)

        def step() -> None:
            clean, noise = self.noised()
            times: Any = torch.randint(0, 1000, (len(clean),))
            nn.functional.mse_loss(network(scheduler.add_noise(clean, noise, times)), noise).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return step


def estimated(side: int) -> float:
    """Images a second of an H100, by the page on scale: `cifar10` at 32 and 64 px, `paper-256` at 256."""
    spec = importlib.util.spec_from_file_location("scale_estimates", ROOT / "scripts" / "scale_estimates.py")
    assert spec is not None
    assert spec.loader is not None
    made = sys.modules["scale_estimates"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    case = replace(made.CASES[side == 256], facts=Facts((3, side, side)))
    return made.UTILISATION * made.PEAK / made.counted(case).flops


def with_workers(ours: Ours, repeats: int) -> tuple[float, float]:
    """Images a second of processor time of all threads, and of the training's own: of the quickest of some rounds."""
    found = []
    for _ in range(1 + max(1, repeats // ROUND)):  # the first warms up
        all_threads, own = time.process_time(), time.thread_time()
        for _ in range(ROUND):
            ours.feed()
        found.append((time.process_time() - all_threads, time.thread_time() - own))
    assert ours.make._pool is not None
    ours.make._pool.shutdown()  # they are ahead, and would be counted with what comes next
    together, alone = (ROUND * ours.size / min(spent) for spent in zip(*found[1:], strict=True))
    return together, alone


def script_with_workers(folder: Path, side: int, size: int) -> float:
    """Images a second of processor time of all processes, over some epochs."""
    script = Script(folder, side, size, WORKERS)
    started = used()
    fed = sum(len(made["input"]) for _ in range(2) for made in script.loader)
    return fed / (used() - started)


def rows(side: int, folder: Path, repeats: int) -> list[list[object]]:
    """The lines of one side."""
    size, count = SIDES[side]
    write_pngs(pictures(side, count), folder)
    started = time.process_time()
    images = load(str(folder), DataOptions(cache=f"{folder}-decoded", holdout=0.01)).train
    read = count / (time.process_time() - started)
    fastest, lines = estimated(side), []

    def line(name: str, serial: float, workers: float, own: float | None, whole: float | None) -> None:
        shares = [f"{fastest / serial:.1%}", "" if own is None else f"{fastest / own:.1%}"]
        shown = ["" if one is None else f"{one:,.0f}" for one in (serial, workers, whole)]
        lines.append([side, name, *shown, *shares])

    for stream, name in (("numpy", "ours, floats and noise on the host"), ("philox", "ours, bytes to a device")):
        serial = Ours(images, size, stream)
        fed, whole = on_one_core(serial.feed, size, repeats), on_one_core(serial.updates(), size, repeats)
        line(name, fed, *with_workers(Ours(images, size, stream, WORKERS), repeats), whole)
    script, workers = Script(folder, side, size), script_with_workers(folder, side, size)
    fed = on_one_core(script.feed, size, repeats)
    line("diffusers' script, noise on a device", fed, workers, None, None)
    whole = on_one_core(script.updates(), size, repeats)
    line("diffusers' script, noise on the host", on_one_core(script.noised, size, repeats), workers, None, whole)
    print(f"{side} px: decoded once, {read:,.0f} images/s; an H100 takes {fastest:,.0f} by the estimate", flush=True)
    return lines


def rest(fastest: float) -> str:
    """What the host does for a whole update but for the network, on images so small that arithmetic is little."""
    size, images = SIDES[32][0], pictures(4, 1024)
    data = ImageSet(images, None, (), tuple(map(str, range(len(images)))))
    spent = {name: size / on_one_core(Ours(data, size, name).updates(), size, 50) for name in ("numpy", "philox")}
    took = ", ".join(f"{1000 * one:.2f} ms with `{name}`" for name, one in spent.items())
    return (
        f"An update of {size} images of 4 px, all but the network, noise and optimiser included: {took}; the latter is "
        f"{spent['philox'] * fastest / size:.1%} of an H100's estimated step at 32 px."
    )


def main() -> None:
    """Write the table."""
    parser = options(__doc__ or "")
    parser.add_argument("--repeats", type=int, default=24)
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES))
    given = parsed(parser)
    with tempfile.TemporaryDirectory() as temporary:
        lines = [one for side in given.sides for one in rows(side, Path(temporary) / f"{side}", given.repeats)]
    headings = ["px", "path", "images/s", f"{WORKERS} workers", "whole update", "of an H100's step", "with workers"]
    publish("host-ceiling", f"{table(headings, lines)}\n\n{rest(estimated(32))}", given.docs)


if __name__ == "__main__":
    main()
