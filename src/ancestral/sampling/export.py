"""A run as files that draw without this package: the network as ONNX or torch.export, the sampler as a table.

Each solver is linear in the states and in the x0 predicted at them. What it does is read off the loop itself, walked
once over unit vectors in place of images, so that no solver is written twice.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ancestral.diffusion.denoisers.denoiser import Prediction, clip_dynamic, predict, unclipped
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.types import Time
from ancestral.diffusion.samplers.loop import Move, walk
from ancestral.errors import UserError, missing
from ancestral.runs.open import open_gaussian
from ancestral.runs.sampling_options import SamplingOptions
from ancestral.runtime.encode import json_bytes
from ancestral.runtime.result_files import held
from ancestral.sampling.sampler import Sampler

BATCH = 2  # of the images that a network is traced with; any other works as well


def export(run: Path, out: Path, options: SamplingOptions, form: str) -> str:
    """Write the network and the sampler of a run, and the script that draws with them; returns what to say.

    Raises:
        UserError: naming what these files cannot hold.
    """
    chosen = FORMATS[form]
    if chosen.needs is not None and util.find_spec(chosen.needs) is None:
        raise missing(f"--format {form}", chosen.needs, "onnx")
    sampler = Sampler(run, options, "cpu", open_gaussian)
    if sampler.saved.config.model.embedding:
        raise UserError(f"{run}: model.embedding is true; models that take vectors are not exported")
    if sampler.model.clip is clip_dynamic:
        raise UserError(f"{run}: dynamic clipping is not exported; use --clip static or --clip none")
    files = {
        chosen.file: chosen.write(sampler.model.network, _example(sampler)),
        "sampler.json": json_bytes(plan(sampler)),
        "draw.py": Path(__file__).with_name(f"draw_{form}.py").read_bytes(),
    }
    with held(out, "export") as results:
        results.need_free(files)
        results.replace(files.items())
    size, calls = len(files[chosen.file]) / 1e6, sampler.steps
    return f"exported: {out / chosen.file}, {size:.1f} MB, {calls} network calls; now: python {out / 'draw.py'} 16"


def plan(sampler: Sampler) -> dict[str, Any]:
    """The sampler as JSON: the network's time, x0 = a output + b x, and the next state, for each network call.

    States and predictions are numbered as they come, x at 2 k and its x0 at 2 k + 1 for step k.
    """
    model, schedule, times = sampler.model, sampler.model.schedule, torch.tensor(sampler.visits[:-1])
    one, zero = torch.ones(len(times), 1, dtype=torch.float64), torch.zeros(len(times), 1, dtype=torch.float64)
    of_output, of_x = model.target.x0(one, zero, schedule, times), model.target.x0(zero, one, schedule, times)
    rows = list(_rows(sampler))
    last = {index: number for number, row in enumerate(rows) for index, _ in row.terms}
    steps = [
        {
            "time": float(model.clock(times[k : k + 1], schedule.T)),
            "x0": [float(of_output[k]), float(of_x[k])],
            "guidance": sampler.guidance.scale_at(int(times[k])),
            "next": row.terms,
            "noise": row.noise,
            "done": [i for i in range(2 * k + 2) if last.get(i, i // 2) == k],
        }
        for k, row in enumerate(rows)
    ]
    return {
        "shape": list(sampler.saved.facts.shape),
        "classes": list(sampler.saved.facts.class_names) if sampler.saved.config.model.labels else [],
        "null": sampler.saved.config.model.condition_dropout > 0,
        "clip": None if model.clip is unclipped else float(model.clip(torch.tensor(torch.inf))),
        "steps": steps,
    }


class _Row(NamedTuple):
    """The next state: weights of the states and predictions so far, by number, and of new noise."""

    terms: list[tuple[int, float]]
    noise: float


class _Units:
    """A predictor over unit vectors: the k-th x0 is the (2 k + 1)-th."""

    def __init__(self, schedule: Gaussian, calls: int) -> None:
        self.schedule, self.units, self.calls = schedule, torch.eye(2 * calls + 1, dtype=torch.float64), 0

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        self.calls += 1
        return predict(self.units[None, 2 * self.calls - 1], x_t, self.schedule, t)


def _rows(sampler: Sampler) -> Iterator[_Row]:
    predictor = _Units(sampler.model.schedule, len(sampler.visits) - 1)

    def draw(move: Move[Prediction, Normal]) -> Tensor:
        return predictor.units[None, 2 * predictor.calls]

    try:
        for step in walk(predictor, predictor.units[None, 0], sampler.times, sampler.move, draw):
            weights = step.p.mean[0]
            terms = [(int(index), float(weights[index])) for index in weights.nonzero()]
            yield _Row(terms, float(step.p.var.max().sqrt()) if step.s else 0.0)
    except ValueError:  # a variance asks for what is known of the image
        raise UserError(
            "--variance: a learned or optimal one differs from pixel to pixel and is not exported; "
            "name another (fixedsmall, fixedlarge), a --solver, or fewer --steps"
        ) from None


def _example(sampler: Sampler) -> dict[str, Tensor]:
    """Inputs of the network by name."""
    options, shape = sampler.saved.config.model, sampler.saved.facts.shape
    inputs = {"x": torch.zeros(BATCH, *shape), "time": torch.ones(BATCH)}
    if options.labels:
        inputs["labels"] = torch.zeros(BATCH, dtype=torch.int64)
    if options.condition_dropout:
        inputs["dropped"] = torch.zeros(BATCH, dtype=torch.bool)
    return inputs


def _traced(network: nn.Module, inputs: dict[str, Tensor]) -> torch.export.ExportedProgram:
    batch = {0: torch.export.Dim("batch")}
    return torch.export.export(network, (), inputs, dynamic_shapes=dict.fromkeys(inputs, batch))


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn of their own insides."""
    logger, level = logging.getLogger("torch.onnx"), logging.getLogger("torch.onnx").level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def torch_bytes(network: nn.Module, inputs: dict[str, Tensor]) -> bytes:
    """The network as torch.export has it, a .pt2 file."""
    file = io.BytesIO()
    with _quiet():
        torch.export.save(_traced(network, inputs), file)
    return file.getvalue()


def onnx_bytes(network: nn.Module, inputs: dict[str, Tensor]) -> bytes:
    """The network as ONNX, its weights inside."""
    with _quiet():
        traced, names = _traced(network, inputs), list(inputs)
        program = torch.onnx.export(traced, input_names=names, output_names=["output"], dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


@dataclass(frozen=True)
class Format:
    """A form of the network.

    Args:
        file: its name.
        write: the network, traced with these inputs, as bytes.
        needs: the package that an extra brings.
    """

    file: str
    write: Callable[[nn.Module, dict[str, Tensor]], bytes]
    needs: str | None = None


FORMATS = {
    "onnx": Format("network.onnx", onnx_bytes, "onnxscript"),
    "torch": Format("network.pt2", torch_bytes),
}
