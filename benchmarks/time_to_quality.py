"""Quality after the same wall time: ours, and the others by their own training code and samplers.

Run: .venv-peers/bin/python benchmarks/time_to_quality.py DATA [--minutes 15 30 60]. What is measured is kept under
benchmarks/measured and not measured again; without DATA only the table is written into benchmarks/results.md.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from common import MEASURED, WORK, Results, options, origins_of, parsed, processor, publish, quality, shown, table
from own_run import OwnRun
from peers import Edm, Lucid, Script, Small, SmallToTwenty, cropped, padded, script_network, write_pngs

from ancestral.data import load
from ancestral.data.dataset import DataOptions, Splits

SETS = ("images", "data", "threads")  # a table each
KEEP = 300.0  # seconds of training after which a peer's state is kept
KEYS = ("data", "contender", "minutes", "sampler", "images", "threads")


class Real:
    """Images that were never trained on: what a perfect model would reach."""

    samplers: ClassVar = {"none": ()}
    against = ("train",)

    def __init__(self, source: str, splits: Splits, work: Path, threads: int) -> None:
        self.images = splits.test.images

    def train(self, minutes: list[float]) -> None:
        """Nothing to do."""

    def draw(self, minutes: float, sampler: str, count: int) -> np.ndarray:
        """So many of them, evenly spread."""
        return self.images[np.linspace(0, len(self.images) - 1, min(count, len(self.images))).round().astype(int)]

    def facts(self, minutes: float) -> dict[str, object]:
        """Nothing to say."""
        return {}


class Ours:
    """`ancestral train DATA --budget`, as a user would: a run for each time, starting and saving included."""

    options: tuple[str, ...]
    samplers: ClassVar[dict[str, tuple[str, ...]]]
    against = ("train", "test")
    measured: tuple[str, ...] = ()  # options of `ancestral evaluate`

    def __init__(self, source: str, splits: Splits, work: Path, threads: int) -> None:
        self.source, self.work, self.threads = source, work, threads

    def train(self, minutes: list[float]) -> None:
        """A run of each length."""
        for budget in minutes:
            self.run(budget).train(self.source, "--budget", f"{60 * budget:g}s", *self.options)

    def draw(self, minutes: float, sampler: str, count: int) -> np.ndarray:
        """By `ancestral sample`."""
        return self.run(minutes).draw(count, sampler.replace(" ", "-"), *self.samplers[sampler])

    def facts(self, minutes: float) -> dict[str, object]:
        """What it cost, and bits/dim."""
        return {**self.run(minutes).cost(), "bits": self.bits(minutes)}

    def bits(self, minutes: float) -> list[float]:
        """The bound in bits/dim and its standard error."""
        return self.run(minutes).bits(*self.measured)

    def run(self, minutes: float) -> OwnRun:
        """Of this length."""
        return OwnRun(self.work / f"{minutes:g}", self.threads)


class Plain(Ours):
    """The paper's recipe in ours, on a network for small images: eps, linear, constant learning rate.

    In the format that is fastest here, as ours are, so that what differs is the recipe.
    """

    options = (
        *("--preset", "cifar10", "--batch-size", "64", "--set", "model.width=64", "--set", "model.multipliers=1,2,2"),
        *("--set", "model.dropout=0", "--set", "train.flip=false", "--set", "diffusion.variance=fixedsmall"),
        *("--set", "train.precision=auto", "--set", "train.channels_last=auto"),
    )
    samplers: ClassVar = {"25 DDIM": ("--steps", "25", "--eta", "0")}


class Images(Ours):
    """Ours with its preset for sample quality."""

    options = ("--preset", "images")
    samplers: ClassVar = {"25 dpm++2m-sde": ("--steps", "25", "--solver", "dpm++2m-sde")}


class Likelihood(Images):
    """Ours with its preset for bits/dim."""

    options = ("--preset", "likelihood")


class Peer:
    """One run that is looked at on its way: their learning rates do not depend on its length.

    Only their steps are timed, not starting and saving; one thread by the processor's time, of which what else the
    machine does takes none.
    """

    kind: type[Script] | type[Lucid] | type[Small]
    samplers: ClassVar = {"25 DDIM": (25,)}  # their 1000 steps would take days
    against = ("train", "test")

    def __init__(self, source: str, splits: Splits, work: Path, threads: int) -> None:
        self.work, self.shape, self.splits = work, splits.train.shape, splits

    def make(self, images: np.ndarray) -> Script | Lucid | Small:
        """Their training."""
        raise NotImplementedError

    def train(self, minutes: list[float]) -> None:
        """Until all times are there, from the last state that was kept: at each of them, and every five minutes."""
        missing = [mark for mark in sorted(minutes) if not (self.folder(mark) / "facts.json").exists()]
        if not missing:
            return
        torch.manual_seed(0)
        training, seconds = self.make(self.splits.train.images[:]), 0.0
        kept = self.work / "state.pt"
        if kept.exists():
            state = torch.load(kept, weights_only=True)
            if state["seconds"] <= 60 * missing[0]:  # a later one cannot be of an earlier time
                training.load(state["training"])
                torch.set_rng_state(state["random"])
                seconds = state["seconds"]
        clock = time.process_time if torch.get_num_threads() == 1 else time.monotonic
        for mark in missing:
            last = seconds
            while seconds < 60 * mark:
                started = clock()
                training.step()
                seconds += clock() - started
                if seconds - last > KEEP:
                    self._keep(training, seconds)
                    last = seconds
            training.save_model(self.folder(mark))
            self._keep(training, seconds)
            found = {"seen": training.images, "seconds": seconds, "weights": training.weights}
            (self.folder(mark) / "facts.json").write_text(json.dumps(found))

    def _keep(self, training: Script | Lucid | Small, seconds: float) -> None:
        temporary = self.work / "state.new"
        self.work.mkdir(parents=True, exist_ok=True)
        torch.save({"training": training.state(), "seconds": seconds, "random": torch.get_rng_state()}, temporary)
        temporary.replace(self.work / "state.pt")

    def draw(self, minutes: float, sampler: str, count: int) -> np.ndarray:
        """By their own sampler."""
        torch.manual_seed(0)
        return cropped(self.kind.draw(self.folder(minutes), count, *self.samplers[sampler]), self.shape)

    def facts(self, minutes: float) -> dict[str, object]:
        """What it cost; no bits/dim."""
        return json.loads((self.folder(minutes) / "facts.json").read_text())

    def folder(self, minutes: float) -> Path:
        """Of the run of this length."""
        return self.work / f"{minutes:g}"


class Diffusers(Peer):
    """diffusers' training script with its defaults, and its DDIMPipeline."""

    kind = Script

    def make(self, images: np.ndarray) -> Script:
        """Grey images are repeated, as the script does."""
        return Script(script_network(), padded(images))


class Lucidrains(Peer):
    """lucidrains' Trainer with its defaults, and its DDIM."""

    kind = Lucid

    def make(self, images: np.ndarray) -> Lucid:
        """Images become files, from which their Trainer reads."""
        if not (self.work / "images").exists():  # under this name all of them are
            write_pngs(padded(images), self.work / "images.new").replace(self.work / "images")
        return Lucid(self.work, images.shape[3])


class Narrow(Peer):
    """smalldiffusion's recipe at width 32 on the images' own side, and its accelerated sampler."""

    kind: type[Small] = Small
    samplers: ClassVar = {"20 accelerated": (20,)}
    width = 32

    def make(self, images: np.ndarray) -> Small:
        """Images as they are."""
        return self.kind(images, self.width)


class NarrowToTwenty(Narrow):
    """The same with the sigmas of its own example of this network."""

    kind = SmallToTwenty


class Wide(Narrow):
    """The same at its own width."""

    width = 64


class Karras(Narrow):
    """EDM's recipe on that network at width 64, and Heun's method: 35 calls."""

    kind = Edm
    samplers: ClassVar = {"18 Heun": (18,)}
    width = 64


class KarrasNarrow(Karras):
    """The same at width 32."""

    width = 32


CONTENDERS = {
    "held-out images": Real,
    "ancestral, images": Images,
    "ancestral, likelihood": Likelihood,
    "ancestral, the paper's recipe": Plain,
    "lucidrains": Lucidrains,
    "diffusers": Diffusers,
    "smalldiffusion, width 32": Narrow,
    "smalldiffusion, width 32, sigmas to 20": NarrowToTwenty,
    "smalldiffusion, width 64": Wide,
    "EDM's recipe, width 32": KarrasNarrow,
    "EDM's recipe, width 64": Karras,
}


def measure(given, splits: Splits, name: str, results: Results) -> None:
    """Every line of one contender that is not there yet."""
    minutes = [0.0] if CONTENDERS[name] is Real else given.minutes
    cores = "" if given.threads == 1 else f"-{given.threads}-threads"
    folder = WORK / Path(given.data).stem / (re.sub("[^a-z0-9]+", "-", name.lower()) + cores)
    contender = CONTENDERS[name](given.data, splits, folder, given.threads)
    of_all = {"data": Path(given.data).stem, "contender": name, "images": given.images, "threads": given.threads}
    keys = [{**of_all, "minutes": mark, "sampler": sampler} for mark in minutes for sampler in contender.samplers]
    if all(results.find(**key) for key in keys):
        return
    contender.train(minutes)

    def look(mark: float, sampler: str) -> dict[str, object]:
        started = time.monotonic()
        drawn = contender.draw(mark, sampler, given.images)
        seconds = time.monotonic() - started
        against = {part: quality(drawn, getattr(splits, part), splits.train) for part in contender.against}
        return {**against, "drawing": seconds, **contender.facts(mark)}

    for key in keys:
        results.once(lambda key=key: look(key["minutes"], key["sampler"]), **key)


JUDGED_TOO = {"precision-lite0": 3, "recall-lite0": 3, "fd-classifier": 3, "kid-classifier": 4, "tv-classifier": 3}


def lines(found: list[dict]) -> Iterator[list[str]]:
    """Of the table: by time, best first."""
    for one in sorted(found, key=lambda one: (one["minutes"], one["train"]["fd-lite0"][0])):
        yield [
            f"{one['minutes']:g}" if one["minutes"] else "",
            one["contender"],
            processor(one),
            f"{one['weights'] / 1e6:.1f}" if "weights" in one else "",
            f"{one['seen']:,}" if "seen" in one else "",
            one["sampler"],
            *(
                shown(one.get(part, {}).get(name), digits)
                for name, digits in (("fd-lite0", 2), ("kid-lite0", 4))
                for part in ("train", "test")
            ),
            *(shown(one["train"].get(name), digits) for name, digits in JUDGED_TOO.items()),
            shown(one.get("bits"), 3),
            f"{one['drawing']:.0f}",
        ]


def main() -> None:
    """Measure what is missing, then write the table."""
    parser = options(__doc__ or "")
    parser.add_argument("data", nargs="?", help="as `ancestral train` takes it: mnist, or a .npz file")
    parser.add_argument("--minutes", type=float, nargs="+", default=[15.0, 30.0, 60.0])
    parser.add_argument("--images", type=int, default=1000, help="to draw and to compare")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    given = parsed(parser)
    results = Results(MEASURED / "time_to_quality.jsonl", KEYS)
    if given.data is not None:
        if given.data not in load.BUILT_IN and not Path(given.data).exists():
            sys.exit(f"{given.data}: not here, so it is left out")
        splits = load.load(given.data, DataOptions())
        for name in given.contenders:
            measure(given, splits, name, results)
    headings = ["minutes", "", "on", "million weights", "images seen", "sampler", "fd-lite0, train", "test"]
    headings += ["kid-lite0, train", "test", *JUDGED_TOO, "bits/dim", "seconds to draw"]
    parts = []
    for images, name, threads in sorted({tuple(line[key] for key in SETS) for line in results.lines}, reverse=True):
        found = results.find(data=name, images=images, threads=threads)
        said = f"{name}, {threads} thread{'s' if threads > 1 else ''}, {images} images drawn by each"
        parts.append(f"{said} ({origins_of(found, 'date')}):\n\n{table(headings, lines(found))}")
    publish("time-to-quality", "\n\n".join(parts), given.docs, results.lines)


if __name__ == "__main__":
    main()
