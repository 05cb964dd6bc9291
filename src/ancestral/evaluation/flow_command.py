"""`ancestral likelihood`: bits per dimension by the probability flow, on screen and as JSON."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Predictor
from ancestral.diffusion.objectives.probability_flow import DEQUANTISATIONS, Adaptive, flow_bound
from ancestral.diffusion.objectives.statistics import in_json
from ancestral.diffusion.processes.types import Advance
from ancestral.errors import UserError
from ancestral.evaluation.measurement import HeldOut, Tensors
from ancestral.runs import build, calibration
from ancestral.runs.open import open_gaussian
from ancestral.runs.process_kinds import need_every_time
from ancestral.runs.registry import choose
from ancestral.runtime.console import screen
from ancestral.runtime.distributed import Processes
from ancestral.runtime.encode import json_bytes


def likelihood(
    folder: Path,
    held_out: HeldOut,
    *,
    probes: int,
    dequantisation: str,
    solver: str,
    rtol: float,
    atol: float,
    variance: str | None,
) -> None:
    """Measure the flow's bound on held-out images; print it and write RUN/likelihood.json."""
    make = choose(DEQUANTISATIONS, dequantisation, "--dequantisation")
    method = Adaptive(solver, rtol, atol)
    saved, model = held_out.open(folder, open_gaussian)
    need_every_time(saved.config, str(folder))
    data_source, images = held_out.images(saved)
    saved = calibration.calibrated(saved, model, images.train)
    dequantise = make(build.transition(saved, variance), build.training_grid(saved.config)[-2])
    measurement = held_out.measurement(saved, model, images)
    settings = {
        **measurement.settings,
        "data": data_source,
        "variance": variance or saved.config.diffusion.variance,
        **{"probes": probes, "dequantisation": dequantisation, "solver": solver, "rtol": rtol, "atol": atol},
    }

    def measure(predictor: Predictor, x0: Tensor, numbers: range, advance: Advance) -> Tensors:
        started = time.monotonic()
        try:
            found = flow_bound(predictor, x0, measurement.streams("likelihood", numbers), dequantise, probes, method)
        except ArithmeticError as error:
            raise UserError(f"--rtol, --atol: {error}; use larger ones") from None
        advance(len(numbers))
        cost = torch.tensor([found.calls, time.monotonic() - started], dtype=torch.float64)
        return {"nats": found.nats.contiguous(), "cost": cost}

    def files(parts: list[Tensors], processes: Processes) -> dict[str, bytes]:
        nats = torch.cat([one["nats"] for one in parts])
        calls, seconds = torch.stack([one["cost"] for one in parts]).unbind(1)
        dimensions = measurement.images.images[0].size
        document = _document(settings, nats, dimensions, [int(count) for count in calls], float(seconds.sum()))
        return {"likelihood.json": json_bytes(document)}

    measurement.run(folder, "likelihood", settings, measure, files, "flow")


def _document(
    settings: dict[str, Any], nats: Tensor, dimensions: int, calls: list[int], seconds: float
) -> dict[str, Any]:
    """Print the result; returns it as JSON."""
    bits = nats / dimensions / math.log(2)
    flow = in_json(bits.mean(1))
    error, share = flow["standard_error"], flow["largest_share"]
    document: dict[str, Any] = {
        **settings,
        "images": len(nats),
        "nats_per_image": float(nats.mean()),
        "bits_per_dim": {"flow": flow},
        "network_calls": calls,  # of each batch; beside each there are as many backward passes as probes
        "seconds": seconds,
    }
    spread = f" ± {error:.4f}" if error is not None else ""
    if nats.shape[1] > 1:
        # Of the mean over images: what of its error is the probes', and not the images'.
        of_trace = float((bits.var(1) / bits.shape[1]).mean() / len(bits)) ** 0.5
        document["standard_error_of_trace"] = of_trace
        spread += f" (of the trace: {of_trace:.4f})"
    largest = f", the largest {share:.1%} of the sum" if share is not None else ""
    screen.print(f"at most {flow['mean']:.4f}{spread} bits/dim in expectation, {len(nats)} held-out images{largest}")
    screen.print(f"{min(calls)} to {max(calls)} network calls a batch, {seconds:.1f} s")
    return document
