"""A run of ours that a benchmark makes by the commands, as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ancestral.runs import checkpoint
from ancestral.runs.build import network


@dataclass(frozen=True)
class OwnRun:
    """A run in a folder; what is there is not made again."""

    folder: Path
    threads: int

    def train(self, source: str, *options: str) -> None:
        """By `ancestral train`: a run that is complete stays."""
        self.command("train", source, "--out", str(self.folder), *options)

    def draw(self, count: int, name: str, *options: str) -> np.ndarray:
        """So many images, uint8 (N, H, W, C), by `ancestral sample` into a folder of this name in the run."""
        out = self.folder / name
        self.command("sample", str(self.folder), "--num-images", str(count), "--out", str(out), *options)
        files = sorted(path for path in out.glob("*.png") if path.stem.isdigit())[:count]
        channels, height, width = checkpoint.open_run(self.folder)[0].facts.shape
        return np.stack([np.asarray(Image.open(file)) for file in files]).reshape(count, height, width, channels)

    def cost(self) -> dict[str, object]:
        """Images seen, seconds of training, weights."""
        saved, _ = checkpoint.open_run(self.folder)
        weights = sum(value.numel() for value in network(saved.config, saved.facts).parameters())
        return {"seen": saved.images, "seconds": saved.state["seconds"], "weights": weights}

    def bits(self, *options: str) -> list[float]:
        """The bound by `ancestral evaluate`, in bits/dim, and its standard error."""
        if not (self.folder / "evaluation.json").exists():
            self.command("evaluate", str(self.folder), *options)
        found = json.loads((self.folder / "evaluation.json").read_text())["bits_per_dim"]["bound, bits/dim"]
        return [found["mean"], found["standard_error"]]

    def command(self, *words: str) -> None:
        """`ancestral WORDS`."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        subprocess.run([sys.executable, "-m", "ancestral", *words], env=environment, check=True)
