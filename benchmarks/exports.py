"""Exported models beside ours: images drawn where this package is not, speed, size, and 8-bit weights with their fd.

Run: .venv/bin/python benchmarks/exports.py RUN ... [--alone PYTHON] [--batch 64] [--repeats 20] [--drawn 500]. PYTHON
is of an environment of three packages: python -m venv alone && alone/bin/pip install numpy onnxruntime pillow. Each
contender makes the same call in turns; milliseconds are of the processor, all threads together, and the ratio is ours
in float32 over its own. 8 bits are those of `ancestral export --precision int8`, with other convolutions and calls left
out too, and onnxruntime's dynamic ones of everything. Images are drawn from the same noise.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import numpy as np
import onnxruntime
import torch
from common import MEASURED, Computed, Results, interleaved, options, parsed, publish, spread, table
from onnxruntime.quantization import quantize_dynamic
from torch import nn

from ancestral.data.pixels import to_bytes
from ancestral.diffusion.samplers.sample import finish, latents
from ancestral.evaluation import features
from ancestral.networks import int8
from ancestral.runs.datasets import images_for
from ancestral.runs.sampling_options import SamplingOptions
from ancestral.sampling import export, traced
from ancestral.sampling.command import conditions
from ancestral.sampling.sampler import Sampler
from ancestral.sampling.table import Row, TableSampler

Call = Callable[[np.ndarray, np.ndarray], np.ndarray]
Inputs = dict[str, np.ndarray]
Measured = tuple[str, Callable[[], list[str]]]  # a row's name, and its cells
OURS, MIXED = "ancestral, float32", "8 bits, static, but for ends and shortcuts"
AUTO, DYNAMIC = "ancestral, --precision auto", "8 bits, dynamic"
FIRST = "20 calls"
WAYS: dict[str, dict[str, Any]] = {FIRST: {}, "8 calls, eta 1": {"steps": 8, "eta": 1.0}}
LATE = (export.LAST, 5)  # calls at the end that stay in float32, of two contenders
ALONE = (
    "import sys; sys.modules['ancestral'] = None; import draw, numpy as np, pathlib\n"
    "np.save('out.npy', draw.draw(pathlib.Path(), dict(np.load('in.npz'))))"
)


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """A network for onnxruntime on so many threads."""
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = threads
    chosen.log_severity_level = 3
    return onnxruntime.InferenceSession(path, chosen, providers=["CPUExecutionProvider"])


def of_onnx(path: Path, threads: int) -> Call:
    """The network as a call."""
    found = session(path, threads)
    return lambda x, time: np.asarray(found.run(None, {"x": x, "time": time})[0])


def of_torch(network: Callable[..., torch.Tensor]) -> Call:
    """The network as a call."""

    def call(x: np.ndarray, time: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(x=torch.from_numpy(x), time=torch.from_numpy(time)).float().numpy()

    return call


class Called(nn.Module):
    """A network for the table; what it is given is kept."""

    def __init__(self, call: Call, met: list[Inputs]) -> None:
        super().__init__()
        self.call, self.met = call, met

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """The network's output."""
        self.met.append({"x": x.numpy(), "time": time.numpy()})
        return torch.from_numpy(self.call(*self.met[-1].values()))


def draw(calls: Sequence[Call], sampler: Sampler, numbers: range) -> tuple[np.ndarray, list[Inputs]]:
    """The images of these numbers by the table, a network for each call, and what each was given."""
    noise, met = latents(sampler.saved.facts.shape, 0, numbers)[None], list[Inputs]()
    whole = TableSampler(sampler.model.network, sampler)
    states = whole.start(noise)
    for call, row in zip(calls, zip(*whole.rows, strict=True), strict=True):
        states = whole.step(Called(call, met), states, Row(*row), noise)
    return states[0].numpy(), met


def elsewhere(run: Path, folder: Path, python: Path, count: int) -> Iterator[Measured]:
    """For each format and way to draw, images of an environment without this package beside ours."""
    for name, way in WAYS.items():
        for form, interpreter in (("onnx", python), ("torch", Path(sys.executable))):
            file = f"sampler.{export.FORMATS[form].suffix}"
            yield f"{file}, {name}", partial(_elsewhere, run, way, folder / name / form, file, interpreter, count)


def exported(run: Path, out: Path, way: dict[str, Any]) -> Path:
    """The run in the format that the folder is named after; exported once."""
    if not out.exists():
        export.export(run, out, SamplingOptions(**way), out.name)
    return out


def _elsewhere(run: Path, way: dict[str, Any], out: Path, file: str, python: Path, count: int) -> list[str]:
    exported(run, out, way)
    sampler = Sampler(run, SamplingOptions(**way), "cpu")
    cond = conditions(sampler.saved, None, None, count)
    images = finish(sampler.walk(range(count), cond, lambda count: None))
    draws = json.loads((out / "sampler.json").read_text())["draws"]
    np.savez(out / "in.npz", **export.given(sampler, draws, range(count)))
    subprocess.run([python.absolute(), "-c", ALONE], cwd=out, check=True)
    found = np.load(out / "out.npy")
    differ = export.apart(torch.from_numpy(found), images)
    return [
        f"{(out / file).stat().st_size / 1e6:.1f}",
        f"{np.abs(found - images.numpy()).max():.1g}",
        f"{np.count_nonzero(differ)} of {differ.size:,}, by {differ.max()} at most",
    ]


def contenders(run: Path, folder: Path, threads: int, sampler: Sampler) -> tuple[dict[str, Call], dict[str, float]]:
    """Every network by name, and megabytes of the files."""
    if sampler.saved.config.model.labels:
        raise SystemExit(f"{run}: name models without classes; networks are measured with x and time alone")
    files = {
        "torch.export": exported(run, folder / "torch", {}) / "network.pt2",
        "onnxruntime": exported(run, folder / "onnx", {}) / "network.onnx",
    }
    auto = Sampler(run, SamplingOptions(precision="auto"), "cpu")
    calls = {
        OURS: of_torch(sampler.model.network),
        AUTO: of_torch(Computed(auto.model.network, auto.format)),
        "torch.export": of_torch(torch.export.load(files["torch.export"]).module()),
        "onnxruntime": of_onnx(files["onnxruntime"], threads),
    }
    network, met = sampler.model.network, export.calibrated(Sampler(run, SamplingOptions(seed=export.SEED), "cpu"))[0]
    for name, left_out in (("8 bits, static", []), (MIXED, int8.delicate(met))):
        files[name] = folder / f"{len(left_out)}.onnx"
        made = int8.quantized(network, met, left_out)
        files[name].write_bytes(traced.OnnxWriter()(made, export.network_inputs(sampler)))
        calls[name] = of_onnx(files[name], threads)
    files[DYNAMIC] = folder / "dynamic.onnx"
    quantize_dynamic(files["onnxruntime"], files[DYNAMIC])
    calls[DYNAMIC] = of_onnx(files[DYNAMIC], threads)
    return calls, {name: file.stat().st_size / 1e6 for name, file in files.items()}


def measure(run: Path, folder: Path, threads: int, batch: int, repeats: int, drawn: int) -> Iterator[Measured]:
    """For each contender, its speed, and samples drawn with it."""
    sampler = Sampler(run, SamplingOptions(), "cpu")
    splits, steps = images_for(sampler.saved, None)[1], sampler.steps
    count = min(drawn, len(splits.test))
    walks = {name: [name] * steps for name in (OURS, AUTO, "torch.export", "onnxruntime", "8 bits, static", MIXED)}
    for late in LATE:
        walks[f"{MIXED}, and the last {late} calls"] = [MIXED] * (steps - late) + ["onnxruntime"] * late
    walks[DYNAMIC] = [DYNAMIC] * steps

    @cache
    def made() -> tuple[dict[str, Call], dict[str, float]]:
        return contenders(run, folder, threads, sampler)

    @cache
    def seconds() -> dict[str, np.ndarray]:
        x, time = draw([made()[0][OURS]] * steps, sampler, range(batch))[1][steps // 2].values()
        calls = {name: partial(call, x, time) for name, call in made()[0].items()}
        return interleaved(calls, repeats, clock=process_time)

    @cache
    def images(name: str) -> np.ndarray:
        calls, parts = made()[0], [range(k, min(k + batch, count)) for k in range(0, count, batch)]
        return np.concatenate([draw([calls[one] for one in walks[name]], sampler, part)[0] for part in parts])

    def cells(name: str) -> list[str]:
        quality = features.measure(to_bytes(torch.from_numpy(images(name))), splits.test, features.network("lite0"))
        taken = np.mean([seconds()[one] for one in walks[name]], axis=0)
        return [
            f"{sum(made()[1][one] for one in dict.fromkeys(walks[name])):.1f}" if walks[name][0] in made()[1] else "",
            f"{1e3 * np.median(taken):.1f}",
            spread(seconds()[OURS] / taken),
            f"{export.apart(*(torch.from_numpy(images(one)) for one in (name, OURS))).mean():.2g}",
            *(f"{one.value:.4g} ± {one.error:.2g}" for one in (quality["fd-lite0"], quality["kid-lite0"])),
        ]

    for name in walks:
        yield name, partial(cells, name)


def main() -> None:
    """Measure and print the tables."""
    parser = options(__doc__ or "")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--alone", type=Path, default=Path(sys.executable))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--drawn", type=int, default=500)
    given = parsed(parser)
    results = Results(MEASURED / "exports.jsonl", ("run", "what"))
    tables: list[list[dict]] = [[], []]
    sized = (given.threads, given.batch, given.repeats, given.drawn)
    for run in given.runs:
        with TemporaryDirectory() as folder:
            drawn = elsewhere(run, Path(folder), given.alone, 16)
            for lines, rows in zip(tables, (drawn, measure(run, Path(folder) / FIRST, *sized)), strict=True):
                for what, cells in rows:
                    found = results.once(lambda cells=cells: {"cells": cells()}, run=run.name, what=what)
                    lines.append(found)
    headings = (
        ["MB", "largest difference", "bytes that differ"],
        ["MB", f"ms for {given.batch}", "speed ratio", "bytes apart", "fd-lite0", "kid-lite0"],
    )
    publish(
        "exports",
        "\n\n".join(
            table(["run", "", *names], ([line["run"], line["what"], *line["cells"]] for line in lines))
            for names, lines in zip(headings, tables, strict=True)
        ),
        given.docs,
        [line for lines in tables for line in lines],
    )


if __name__ == "__main__":
    sys.exit(main())
