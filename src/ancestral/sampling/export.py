"""A run as files that draw without this package: its network, and its whole sampler, as ONNX or torch.export.

In 8 bits the network's convolutions are quantised by what they meet when the run itself draws; where images get their
last details, in the last calls, the network stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ancestral.data.pixels import to_bytes
from ancestral.diffusion.denoisers.denoiser import Denoiser, clip_dynamic
from ancestral.diffusion.samplers.sample import finish, latents
from ancestral.errors import UserError, missing
from ancestral.networks import int8
from ancestral.runs import build
from ancestral.runs.checkpoint import Checkpoint, open_newest
from ancestral.runs.export_choices import PRECISIONS
from ancestral.runs.facts import Facts
from ancestral.runs.memory_need import need_for_drawing
from ancestral.runs.process_kinds import not_exported
from ancestral.runs.sampling_options import EXPORTED, SamplingOptions
from ancestral.runtime.console import advancing
from ancestral.runtime.encode import json_bytes
from ancestral.runtime.result_files import held
from ancestral.runtime.resumable_job import pieces
from ancestral.runtime.text import quoted
from ancestral.sampling.command import conditions
from ancestral.sampling.sampler import Sampler
from ancestral.sampling.table import TableSampler
from ancestral.sampling.traced import BATCH, OnnxWriter, torch_bytes

FILES = ("sampler.json", "draw.py")  # beside the modules
CALIBRATING = ("onnxruntime",)  # packages that 8 bits need too, to be compared
IMAGES, TOGETHER = 32, 8  # drawn to calibrate 8 bits, and so many at a time
SEED = 2**32 - 1  # of these: hardly anybody's own
LAST = 2  # calls that stay in float32: fd was 0.6 % worse so, and 23 % with all 20 in 8 bits (benchmarks/results.md)


def export(run: Path, out: Path, options: SamplingOptions, form: str, precision: str = "float32") -> list[str]:
    """Write the network and the sampler of a run, and the script that draws with them; returns what to say.

    Raises:
        UserError: naming what these files cannot hold.
    """
    chosen = FORMATS[form]
    if precision not in chosen.precisions:
        raise UserError(f"--precision {precision}: is of --format onnx; leave it out with --format {form}")
    needs = {f"--format {form}": chosen.needs, "--precision int8": CALIBRATING if precision == "int8" else ()}
    for option, packages in needs.items():
        for package in packages:
            if util.find_spec(package) is None:
                raise missing(option, package, "onnx")
    for name in options.given:
        if name not in EXPORTED:
            raise UserError(f"{name}: is not exported; leave it out")
    sampler = Sampler(run, replace(options, seed=SEED), "cpu", opened)
    network, early = sampler.model.network, sampler.steps - LAST
    weights = sum(one.nbytes for one in network.state_dict().values())
    if weights * (2 if precision == "int8" else 1) > chosen.limit:  # both networks, of 8 bits only the convolutions
        raise UserError(
            f"{run}: has {weights / 1e9:.1f} GB of weights, too many for a file of --format {form}; use torch"
        )
    if sampler.model.clip is clip_dynamic:
        raise UserError(f"{run}: dynamic clipping is not exported; use --clip static or --clip none")
    made_of = ("network", *(["network-int8"] if precision == "int8" else []), "sampler")
    with held(out, "export") as results:  # refused before the work, where it cannot be written
        results.need_free([*(f"{name}.{chosen.suffix}" for name in made_of), *FILES])
    whole, inputs, images = TableSampler(network, sampler), network_inputs(sampler), None
    modules = {"network": (network, inputs)}
    if precision == "int8":
        if early < 1:
            raise UserError(
                f"--precision int8: the last {LAST} calls stay in float32, and this sampler has {sampler.steps} in "
                "all; leave it out, or give more --steps"
            )
        met, images = calibrated(sampler)
        made = int8.quantized(network, met, int8.delicate(met))
        whole = TableSampler(network, sampler, made, early)
        modules["network-int8"] = (made, inputs)
    modules["sampler"] = (whole, _inputs(sampler, whole))
    files, drawn, write = dict[str, bytes](), f"sampler.{chosen.suffix}", chosen.writer()
    steps = len(whole.phases())  # traced, each with a network of its own
    with advancing(f"{', '.join(modules)}: {form}", len(modules) - 1 + steps) as done:
        for name, (module, traced) in modules.items():
            files[f"{name}.{chosen.suffix}"] = write(module, traced)
            done(steps if module is whole else 1)
    of_all = json_bytes(facts(sampler, whole)), Path(__file__).with_name("draw.py").read_bytes()
    files |= dict(zip(FILES, of_all, strict=True))
    with held(out, "export") as results:
        results.need_free(files)
        results.replace(files.items())
    size, calls = len(files[drawn]) / 1e6, sampler.steps
    said = f"exported: {out / drawn}, {size:.1f} MB, {calls} network calls; now: python {quoted(out / 'draw.py')} 16"
    return [said] if images is None else [said, _compared(sampler, whole, files[drawn], images)]


def calibrated(sampler: Sampler) -> tuple[dict[str, int8.Met], Tensor]:
    """What the convolutions of the network meet as it draws, and the images (IMAGES, C, H, W).

    Raises:
        UserError: where they do not fit into memory.
    """
    saved, mend = sampler.saved, "free memory, or leave it out"
    need_for_drawing(saved.config, saved.facts, TOGETHER, torch.device("cpu"), option="--precision int8", mend=mend)
    cond = conditions(saved, None, None, IMAGES)
    with int8.watched(sampler.model.network) as met, advancing("calibration", IMAGES * sampler.steps) as done:
        images = [finish(sampler.walk(part, cond, done)) for part in pieces(IMAGES, TOGETHER)]
    return met, torch.cat(images)


def given(sampler: Sampler, draws: int, numbers: range) -> dict[str, np.ndarray]:
    """What the exported sampler takes to draw the images of these numbers as the run does."""
    shape, seed = sampler.saved.facts.shape, sampler.options.seed
    reverse = sampler.open_streams(seed, "reverse", numbers)
    noise = [latents(shape, seed, numbers, sampler.open_streams), *(reverse.normal(shape) for _ in range(draws - 1))]
    cond = conditions(sampler.saved, None, None, numbers.stop)
    return {"noise": torch.stack(noise).float().numpy()} | {
        name: one[numbers.start :].numpy() for name, one in cond.items()
    }


def _compared(sampler: Sampler, whole: TableSampler, content: bytes, images: Tensor) -> str:
    """How far images of a sampler in 8 bits are from these in float32, of the same noise."""
    from onnxruntime import InferenceSession

    session, found = InferenceSession(content, providers=["CPUExecutionProvider"]), list[np.ndarray]()
    with advancing("comparison", len(images)) as done:
        for part in pieces(len(images), TOGETHER):
            found.append(np.asarray(session.run(None, given(sampler, whole.draws, part))[0]))
            done(len(part))
    differ = apart(torch.from_numpy(np.concatenate(found)), images)
    return (
        f"int8 in {whole.calls} of {sampler.steps} calls: images are {differ.mean():.2f} of 255 from those in float32, "
        f"{differ.max()} at most ({len(images)} images)"
    )


def apart(images: Tensor, others: Tensor) -> np.ndarray:
    """How many steps of a byte lie between these images."""
    one, other = (to_bytes(each).astype(int) for each in (images, others))
    return np.abs(one - other)


def opened(run: Path, device: str, average_width: float | None) -> tuple[Checkpoint, Denoiser]:
    """As `open_model`, but the newest checkpoint or none, and only what can be exported."""
    saved = open_newest(run)
    if (reason := not_exported(saved.config)) is not None:
        raise UserError(f"{run}: {reason}")
    return saved, build.trained(saved, run, build.device(device), average_width)


def facts(sampler: Sampler, whole: TableSampler) -> dict[str, Any]:
    """What whoever draws must know, and the table for a loop of one's own: x0, limited, then `next` of it all."""
    columns = [column.tolist() for column in whole.rows]
    return {
        "shape": list(sampler.saved.facts.shape),
        "classes": _classes(sampler.saved.facts) if sampler.saved.config.model.labels else {},
        "draws": whole.draws,
        "limit": whole.limit,
        **({"int8_calls": whole.calls} if whole.calls else {}),
        "steps": [dict(zip(whole.rows._fields, row, strict=True)) for row in zip(*columns, strict=True)],
    }


def _classes(facts: Facts) -> dict[str, int]:
    """The number of each class that was trained on."""
    return {name: facts.class_names.index(name) for name in facts.trained}


def network_inputs(sampler: Sampler) -> dict[str, Tensor]:
    """What the network of a sampler is traced with."""
    options, shape = sampler.saved.config.model, sampler.saved.facts.shape
    inputs = {"x": torch.zeros(BATCH, *shape), "time": torch.ones(BATCH)}
    if options.labels:
        inputs["labels"] = torch.zeros(BATCH, dtype=torch.int64)
    if options.condition_dropout:
        inputs["dropped"] = torch.zeros(BATCH, dtype=torch.bool)
    return inputs


def _inputs(sampler: Sampler, whole: TableSampler) -> dict[str, Tensor]:
    of_network = network_inputs(sampler)
    labels = {"labels": of_network["labels"]} if "labels" in of_network else {}
    return {"noise": torch.zeros(whole.draws, *of_network["x"].shape), **labels}


@dataclass(frozen=True)
class Format:
    """A form of a module.

    Args:
        suffix: of its files.
        writer: what makes bytes of modules, networks first, traced with these inputs.
        needs: packages that an extra brings.
        limit: of the weights, in bytes.
        precisions: of the network.
    """

    suffix: str
    writer: Callable[[], Callable[[nn.Module, dict[str, Tensor]], bytes]]
    needs: tuple[str, ...] = ()
    limit: float = math.inf
    precisions: tuple[str, ...] = ("float32",)


FORMATS = {
    "onnx": Format("onnx", OnnxWriter, ("onnxscript",), 2e9, PRECISIONS),
    "torch": Format("pt2", lambda: torch_bytes),
}
