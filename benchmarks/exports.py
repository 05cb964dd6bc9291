"""Exported models beside ours: images drawn where this package is not, speed, size, and 8-bit weights with their fd.

Run: .venv/bin/python benchmarks/exports.py RUN ... [--alone PYTHON] [--batch 64] [--repeats 20] [--drawn 500]. PYTHON
is of an environment of three packages: python -m venv alone && alone/bin/pip install numpy onnxruntime pillow. Each
contender makes the same call in turns; the ratio is ours in float32 over its time. 8 bits are onnxruntime's static
quantisation (weights by channel, and activations, calibrated on the model's own walks) and its dynamic one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from common import interleaved, options, parsed, publish, spread, table
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from ancestral.data.pixels import to_bytes
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.sample import finish, latents
from ancestral.evaluation import features
from ancestral.runs.datasets import images_for
from ancestral.runs.sampling_options import SamplingOptions
from ancestral.sampling import export
from ancestral.sampling.command import conditions
from ancestral.sampling.sampler import Sampler

Call = Callable[[np.ndarray, np.ndarray], np.ndarray]
Inputs = dict[str, np.ndarray]
OURS = "ancestral, float32"
WAYS: dict[str, dict[str, Any]] = {"20 calls": {}, "8 calls, eta 1": {"steps": 8, "eta": 1.0}}
CALIBRATED = 32  # images whose walks calibrate 8 bits
ALONE = (
    "import sys; sys.modules['ancestral'] = None\n"
    "import numpy as np, time, pathlib, importlib, draw\n"
    "given = dict(np.load('in.npz')); started = time.perf_counter(); images = draw.draw(pathlib.Path(), given)\n"
    "np.save('out.npy', images); print(time.perf_counter() - started)"
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


class States(CalibrationDataReader):
    """What a network was given on a walk, a batch at each time."""

    def __init__(self, met: Sequence[Inputs]) -> None:
        self.batches = iter(met)

    def get_next(self) -> Inputs:
        """The next batch; nothing after the last."""
        return next(self.batches, {}) or None  # pyright: ignore[reportReturnType]  # as onnxruntime's own readers do


def draw(calls: Sequence[Call], facts: dict[str, Any], numbers: range) -> tuple[np.ndarray, list[Inputs]]:
    """The images of these numbers by the table, without noise on the way, and what each call was given."""
    start, met = latents(tuple(facts["shape"]), 0, numbers).numpy(), list[Inputs]()
    states = np.stack([start] * len(facts["steps"][0]["next"]))
    for call, step in zip(calls, facts["steps"], strict=True):
        x = states[0]
        met.append({"x": x.astype(np.float32), "time": np.full(len(x), step["time"], np.float32)})
        x0 = step["x0"][0] * call(**met[-1])[:, : x.shape[1]] + step["x0"][1] * x
        x0 = x0 if facts["limit"] is None else x0.clip(-facts["limit"], facts["limit"])
        states = np.tensordot(step["next"], np.stack([*states, x0, 0 * x]), 1)
    return states[0], met


def elsewhere(run: Path, folder: Path, python: Path, count: int) -> Iterator[list[str]]:
    """A line for each format and way to draw: images of an environment without this package beside ours."""
    for name, way in WAYS.items():
        sampler = Sampler(run, SamplingOptions(**way), "cpu")
        cond = conditions(sampler.saved, None, None, count)
        images = finish(sampler.walk(range(count), cond, lambda count: None)).numpy()
        shape, noise = sampler.saved.facts.shape, Streams(0, "reverse", range(count))
        noises = torch.stack([latents(shape, 0, range(count)), *(noise.normal(shape) for _ in sampler.visits)])
        for form, interpreter in (("onnx", python), ("torch", Path(sys.executable))):
            out = folder / f"{form}-{len(name)}"
            export.export(run, out, SamplingOptions(**way), form)
            draws = json.loads((out / "sampler.json").read_text())["draws"]
            labels = {one: value.numpy() for one, value in cond.items()}
            np.savez(out / "in.npz", noise=noises[:draws].float().numpy(), **labels)
            subprocess.run([interpreter, "-c", ALONE], cwd=out, check=True, stdout=subprocess.DEVNULL)
            found = np.load(out / "out.npy")
            pixels = [to_bytes(torch.from_numpy(one)).astype(int) for one in (found, images)]
            bytes_differ = np.abs(pixels[0] - pixels[1])
            yield [
                run.name,
                f"sampler.{export.FORMATS[form].suffix}",
                name,
                f"{(out / f'sampler.{export.FORMATS[form].suffix}').stat().st_size / 1e6:.1f}",
                f"{np.abs(found - images).max():.1g}",
                f"{np.count_nonzero(bytes_differ)} of {bytes_differ.size}, by {bytes_differ.max()}",
            ]


def contenders(run: Path, folder: Path, threads: int) -> tuple[dict[str, Call], dict[str, Any], dict[str, float]]:
    """Every network by name, the table of the sampler, and megabytes of the files."""
    for form in ("onnx", "torch"):
        export.export(run, folder / form, SamplingOptions(), form)
    facts = json.loads((folder / "onnx" / "sampler.json").read_text())
    if facts["classes"]:
        raise SystemExit(f"{run}: name models without classes; networks are measured with x and time alone")
    files = {"torch.export": folder / "torch" / "network.pt2", "onnxruntime": folder / "onnx" / "network.onnx"}
    calls = {
        OURS: of_torch(Sampler(run, SamplingOptions(), "cpu").model.network),
        "ancestral, --precision auto": of_torch(Sampler(run, SamplingOptions(precision="auto"), "cpu").model.network),
        "torch.export": of_torch(torch.export.load(files["torch.export"]).module()),
        "onnxruntime": of_onnx(files["onnxruntime"], threads),
    }
    met = draw([calls["onnxruntime"]] * len(facts["steps"]), facts, range(10**6, 10**6 + CALIBRATED))[1]
    prepared = folder / "prepared.onnx"
    quant_pre_process(files["onnxruntime"], prepared, skip_symbolic_shape=True)
    convolutions = {node.name: node.input[1] for node in onnx.load(prepared).graph.node if node.op_type == "Conv"}
    ends = [*convolutions][:: len(convolutions) - 1]
    shortcuts = [name for name, weight in convolutions.items() if ".shortcut." in weight]
    for name, kept in (("8 bits, static", []), ("8 bits, static, but for ends and shortcuts", [*ends, *shortcuts])):
        files[name] = folder / f"{len(kept)}.onnx"
        quantize_static(
            prepared,
            files[name],
            States(met),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            nodes_to_exclude=kept,
        )
        calls[name] = of_onnx(files[name], threads)
    files["8 bits, dynamic"] = folder / "dynamic.onnx"
    quantize_dynamic(prepared, files["8 bits, dynamic"])
    calls["8 bits, dynamic"] = of_onnx(files["8 bits, dynamic"], threads)
    return calls, facts, {name: file.stat().st_size / 1e6 for name, file in files.items()}


def measure(run: Path, threads: int, batch: int, repeats: int, drawn: int) -> Iterator[list[str]]:
    """A line of the table for each contender."""
    sampler = Sampler(run, SamplingOptions(), "cpu")
    splits = images_for(sampler.saved, None)[1]
    count = min(drawn, len(splits.test))
    with TemporaryDirectory() as folder:
        calls, facts, sizes = contenders(run, Path(folder), threads)
        steps = len(facts["steps"])
        x, time = draw([calls[OURS]] * steps, facts, range(batch))[1][steps // 2].values()
        seconds = interleaved({name: lambda call=call: call(x, time) for name, call in calls.items()}, repeats)
        ours = calls[OURS](x, time)
        for name, call in calls.items():
            parts = [range(k, min(k + batch, count)) for k in range(0, count, batch)]
            images = np.concatenate([draw([call] * steps, facts, part)[0] for part in parts])
            quality = features.measure(to_bytes(torch.from_numpy(images)), splits.test, features.network("lite0"))
            yield [
                run.name,
                name,
                f"{sizes[name]:.1f}" if name in sizes else "",
                f"{1e3 * np.median(seconds[name]):.1f}",
                spread(seconds[OURS] / seconds[name]),
                f"{np.abs(call(x, time) - ours).max():.1g}",
                *(f"{one.value:.4g} ± {one.error:.2g}" for one in (quality["fd-lite0"], quality["kid-lite0"])),
            ]


def main() -> None:
    """Measure and print the tables."""
    parser = options(__doc__ or "")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--alone", type=Path, default=Path(sys.executable))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--drawn", type=int, default=500)
    given = parsed(parser)
    with TemporaryDirectory() as folder:
        images = [line for run in given.runs for line in elsewhere(run, Path(folder) / run.name, given.alone, 16)]
    lines = [
        line for run in given.runs for line in measure(run, given.threads, given.batch, given.repeats, given.drawn)
    ]
    found = table(["run", "file", "", "MB", "largest difference", "bytes that differ"], images)
    headings = ["run", "", "MB", f"ms for {given.batch}", "speed ratio", "largest difference", "fd-lite0", "kid-lite0"]
    publish("exports", f"{found}\n\n{table(headings, lines)}", given.docs)


if __name__ == "__main__":
    sys.exit(main())
