"""A run as files that draw without this package: its network, and its whole sampler, as ONNX or torch.export."""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ancestral.diffusion.denoisers.denoiser import Denoiser, clip_dynamic
from ancestral.errors import UserError, missing
from ancestral.runs.checkpoint import Checkpoint
from ancestral.runs.open import open_model
from ancestral.runs.process_kinds import not_exported
from ancestral.runs.sampling_options import EXPORTED, SamplingOptions
from ancestral.runtime.console import advancing
from ancestral.runtime.encode import json_bytes
from ancestral.runtime.result_files import held
from ancestral.runtime.text import quoted
from ancestral.sampling.sampler import Sampler
from ancestral.sampling.table import TableSampler

SAMPLER = 2  # times as long as its network alone the sampler takes to write, about
BATCH = 2  # of the images that a network is traced with; any other works as well


def export(run: Path, out: Path, options: SamplingOptions, form: str) -> str:
    """Write the network and the sampler of a run, and the script that draws with them; returns what to say.

    Raises:
        UserError: naming what these files cannot hold.
    """
    chosen = FORMATS[form]
    if chosen.needs is not None and util.find_spec(chosen.needs) is None:
        raise missing(f"--format {form}", chosen.needs, "onnx")
    for name in options.given:
        if name not in EXPORTED:
            raise UserError(f"{name}: is not exported; leave it out")
    sampler = Sampler(run, options, "cpu", opened)
    weights = sum(one.nbytes for one in sampler.model.network.state_dict().values())
    if weights > chosen.limit:
        raise UserError(
            f"{run}: has {weights / 1e9:.1f} GB of weights, too many for a file of --format {form}; use torch"
        )
    if sampler.model.clip is clip_dynamic:
        raise UserError(f"{run}: dynamic clipping is not exported; use --clip static or --clip none")
    whole = TableSampler(sampler.model.network, sampler)
    network, drawn = f"network.{chosen.suffix}", f"sampler.{chosen.suffix}"
    with advancing(f"{network} and {drawn}", 1 + SAMPLER) as done:
        files = {network: chosen.write(sampler.model.network, _network_inputs(sampler))}
        done(1)
        files[drawn] = chosen.write(whole, _inputs(sampler, whole))
    files["sampler.json"] = json_bytes(facts(sampler, whole))
    files["draw.py"] = Path(__file__).with_name("draw.py").read_bytes()
    with held(out, "export") as results:
        results.need_free(files)
        results.replace(files.items())
    size, calls = len(files[drawn]) / 1e6, sampler.steps
    return f"exported: {out / drawn}, {size:.1f} MB, {calls} network calls; now: python {quoted(out / 'draw.py')} 16"


def opened(run: Path, device: str, average_width: float | None) -> tuple[Checkpoint, Denoiser]:
    """As `open_model`, but only what can be exported."""
    saved, model = open_model(run, device, average_width)
    if (reason := not_exported(saved.config)) is not None:
        raise UserError(f"{run}: {reason}")
    return saved, model


def facts(sampler: Sampler, whole: TableSampler) -> dict[str, Any]:
    """What whoever draws must know, and the table for a loop of one's own: x0, limited, then `next` of it all."""
    columns = [column.tolist() for column in whole.rows]
    return {
        "shape": list(sampler.saved.facts.shape),
        "classes": list(sampler.saved.facts.class_names) if sampler.saved.config.model.labels else [],
        "draws": whole.draws,
        "limit": whole.limit,
        "steps": [dict(zip(whole.rows._fields, row, strict=True)) for row in zip(*columns, strict=True)],
    }


def _network_inputs(sampler: Sampler) -> dict[str, Tensor]:
    options, shape = sampler.saved.config.model, sampler.saved.facts.shape
    inputs = {"x": torch.zeros(BATCH, *shape), "time": torch.ones(BATCH)}
    if options.labels:
        inputs["labels"] = torch.zeros(BATCH, dtype=torch.int64)
    if options.condition_dropout:
        inputs["dropped"] = torch.zeros(BATCH, dtype=torch.bool)
    return inputs


def _inputs(sampler: Sampler, whole: TableSampler) -> dict[str, Tensor]:
    of_network = _network_inputs(sampler)
    labels = {"labels": of_network["labels"]} if "labels" in of_network else {}
    return {"noise": torch.zeros(whole.draws, *of_network["x"].shape), **labels}


def _traced(module: nn.Module, inputs: dict[str, Tensor]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    shapes = {name: {1 if name == "noise" else 0: batch} for name in inputs}
    program = torch.export.export(module, (), inputs, dynamic_shapes=shapes)
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # larger than the weights, with paths of this machine
    return program


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


def torch_bytes(module: nn.Module, inputs: dict[str, Tensor]) -> bytes:
    """A module as torch.export has it, a .pt2 file."""
    file = io.BytesIO()
    with _quiet():
        torch.export.save(_traced(module, inputs), file)
    return file.getvalue()


def onnx_bytes(module: nn.Module, inputs: dict[str, Tensor]) -> bytes:
    """A module as ONNX, its weights inside."""
    from onnxscript import optimizer

    with _quiet():
        traced, names = _traced(module, inputs), list(inputs)
        program = torch.onnx.export(traced, input_names=names, output_names=["output"], dynamo=True, verbose=False)
    assert program is not None
    optimizer.remove_unused_nodes(program.model)  # onnxruntime warns of those that the exporter leaves
    return program.model_proto.SerializeToString()


@dataclass(frozen=True)
class Format:
    """A form of a module.

    Args:
        suffix: of its files.
        write: the module, traced with these inputs, as bytes.
        needs: the package that an extra brings.
        limit: of the weights, in bytes.
    """

    suffix: str
    write: Callable[[nn.Module, dict[str, Tensor]], bytes]
    needs: str | None = None
    limit: float = math.inf


FORMATS = {"onnx": Format("onnx", onnx_bytes, "onnxscript", 2e9), "torch": Format("pt2", torch_bytes)}
