"""Exported networks beside ours: speed of a call, file size, difference from ours, and 8-bit weights with their fd.

Run: .venv/bin/python benchmarks/exports.py RUN ... [--batch 64] [--repeats 20] [--drawn 500]. Each contender makes the
same call in turns; the ratio is ours in float32 over its time. 8 bits are onnxruntime's static quantisation (weights
and activations, calibrated on states along walks of the model) and its dynamic one (weights alone).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
import torch
from common import interleaved, options, parsed, publish, spread, table
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from ancestral.data.pixels import to_bytes
from ancestral.diffusion.samplers.sample import latents
from ancestral.evaluation import features
from ancestral.runs import build, checkpoint
from ancestral.runs.compute_format import computed_in, for_drawing
from ancestral.runs.datasets import images_for
from ancestral.runs.sampling_options import SamplingOptions
from ancestral.sampling import export

Call = Callable[[np.ndarray, np.ndarray], np.ndarray]
CPU = torch.device("cpu")
CALIBRATED = 8  # batches of states along walks


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
    """States of the model's own walks, at every time of the sampler."""

    def __init__(self, call: Call, plan: dict, batch: int) -> None:
        self.batches = iter(list(self._met(call, plan, batch)))

    @staticmethod
    def _met(call: Call, plan: dict, batch: int) -> Iterator[dict[str, np.ndarray]]:
        for number in range(CALIBRATED):
            met: list[dict[str, np.ndarray]] = []
            draw(call, plan, range(number * batch, (number + 1) * batch), met)
            yield met[number * (len(met) - 1) // (CALIBRATED - 1)]

    def get_next(self) -> dict[str, np.ndarray]:
        """The next batch; nothing after the last."""
        return next(self.batches, {}) or None  # pyright: ignore[reportReturnType]  # as onnxruntime's own readers do


def draw(call: Call, plan: dict, numbers: range, met: list[dict[str, np.ndarray]] | None = None) -> np.ndarray:
    """The images of these numbers as the exported script walks, on [-1, 1]."""
    x = latents(tuple(plan["shape"]), 0, numbers).numpy()
    kept: dict[int, np.ndarray] = {}
    for number, step in enumerate(plan["steps"]):
        given = {"x": x.astype(np.float32), "time": np.full(len(x), step["time"], np.float32)}
        if met is not None:
            met.append(given)
        x0 = step["x0"][0] * call(**given)[:, : x.shape[1]] + step["x0"][1] * x
        kept |= {2 * number: x, 2 * number + 1: x0.clip(-1, 1) if plan["clip"] else x0}
        x = sum((factor * kept[index] for index, factor in step["next"]), 0 * x)
    return x


def contenders(run: Path, folder: Path, threads: int, batch: int) -> tuple[dict[str, Call], dict, dict[str, float]]:
    """Every network by name, the plan of the sampler, and megabytes of the files."""
    for form in ("onnx", "torch"):
        export.export(run, folder / form, SamplingOptions(), form)
    plan = json.loads((folder / "onnx" / "sampler.json").read_text())
    saved, _ = checkpoint.open_run(run)
    plain = build.trained(saved, run, CPU).network
    quick = computed_in(build.trained(saved, run, CPU), for_drawing("auto", saved, CPU))
    files = {"torch.export": folder / "torch" / "network.pt2", "onnxruntime": folder / "onnx" / "network.onnx"}
    calls = {
        "ancestral, float32": of_torch(plain),
        "ancestral, as it draws": of_torch(quick.network),
        "torch.export": of_torch(torch.export.load(files["torch.export"]).module()),
        "onnxruntime": of_onnx(files["onnxruntime"], threads),
    }
    prepared, static, dynamic = (folder / f"{name}.onnx" for name in ("prepared", "static", "dynamic"))
    quant_pre_process(files["onnxruntime"], prepared, skip_symbolic_shape=True)
    met = States(calls["onnxruntime"], plan, batch)
    quantize_static(
        prepared, static, met, quant_format=QuantFormat.QDQ, op_types_to_quantize=["Conv"], per_channel=True
    )
    quantize_dynamic(prepared, dynamic)
    for name, file in (("onnxruntime, 8 bits static", static), ("onnxruntime, 8 bits dynamic", dynamic)):
        files[name] = file
        calls[name] = of_onnx(file, threads)
    return calls, plan, {name: file.stat().st_size / 1e6 for name, file in files.items()}


def measure(run: Path, threads: int, batch: int, repeats: int, drawn: int) -> Iterator[list[str]]:
    """A line of the table for each contender."""
    saved, _ = checkpoint.open_run(run)
    splits = images_for(saved, None)[1]
    count = min(drawn, len(splits.test))
    with TemporaryDirectory() as folder:
        calls, plan, sizes = contenders(run, Path(folder), threads, batch)
        x, time = latents(saved.facts.shape, 0, range(batch)).float().numpy(), np.full(batch, 500.0, np.float32)
        seconds = interleaved({name: lambda call=call: call(x, time) for name, call in calls.items()}, repeats)
        ours = calls["ancestral, float32"](x, time)
        for name, call in calls.items():
            images = np.concatenate([draw(call, plan, range(k, min(k + batch, count))) for k in range(0, count, batch)])
            quality = features.measure(to_bytes(torch.from_numpy(images)), splits.test, features.network("lite0"))
            yield [
                run.name,
                name,
                f"{sizes[name]:.1f}" if name in sizes else "",
                f"{1e3 * np.median(seconds[name]):.1f}",
                spread(seconds["ancestral, float32"] / seconds[name]),
                f"{np.abs(call(x, time) - ours).max():.1g}",
                *(f"{one.value:.4g} ± {one.error:.2g}" for one in (quality["fd-lite0"], quality["kid-lite0"])),
            ]


def main() -> None:
    """Measure and print the table."""
    parser = options(__doc__ or "")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--drawn", type=int, default=500)
    given = parsed(parser)
    lines = [
        line for run in given.runs for line in measure(run, given.threads, given.batch, given.repeats, given.drawn)
    ]
    headings = ["run", "", "MB", f"ms for {given.batch}", "speed ratio", "largest difference", "fd-lite0", "kid-lite0"]
    publish("exports", table(headings, lines), given.docs)


if __name__ == "__main__":
    sys.exit(main())
