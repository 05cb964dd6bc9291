"""`ancestral likelihood`: bits per dimension by the probability flow, on screen and as JSON."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ancestral.data import load
from ancestral.data.pixels import to_unit
from ancestral.diffusion.objectives.probability_flow import LIFTS, Adaptive, flow_bound
from ancestral.diffusion.objectives.statistics import in_json
from ancestral.diffusion.processes.streams import Streams
from ancestral.errors import UserError
from ancestral.runs import build, calibration, checkpoint
from ancestral.runs.conditions import conditions_of
from ancestral.runs.datasets import images_for
from ancestral.runs.open import device_of, open_gaussian, state_type
from ancestral.runs.process_kinds import need_every_time
from ancestral.runtime.console import Progress, screen, together, write_text
from ancestral.runtime.result_files import held
from ancestral.runtime.resumable_job import PATIENCE, Job, pieces


def likelihood(
    folder: Path,
    *,
    data_source: str | None,
    num_images: int,
    probes: int,
    lift: str,
    solver: str,
    rtol: float,
    atol: float,
    variance: str | None,
    batch_size: int,
    average_width: float | None,
    seed: int,
    device: str,
) -> None:
    """Measure the flow's bound on held-out images; print it and write RUN/likelihood.json."""
    make = build.choose(LIFTS, lift, "--lift")
    method = Adaptive(solver, rtol, atol)
    saved, model = open_gaussian(folder, device, average_width)
    need_every_time(saved.config, str(folder))
    data_source = load.source_of(saved.config.source, data_source)
    images = images_for(saved, data_source)
    test, train = images.test.spread(num_images), images.train
    saved = calibration.calibrated(saved, model, train)
    lifted = make(build.transition(saved, variance), build.training_grid(saved.config)[-2])
    settings = {
        "model": checkpoint.digest(saved),
        "average_width": average_width,
        "data": data_source,
        "variance": variance or saved.config.diffusion.variance,
        **{"probes": probes, "lift": lift, "solver": solver, "rtol": rtol, "atol": atol},
        "seed": seed,
        "batch_size": batch_size,
    }
    with together(device_of(model), PATIENCE) as processes, held(folder, "likelihood", processes):
        job = Job(folder / ".likelihood", {**settings, "images": test.digest()}, processes)
        work = pieces(len(test), batch_size)
        with Progress() as bar:
            task = bar.add_task("flow", total=-(-len(test) // processes.size))

            def measure(part: range) -> dict[str, bytes]:
                started, shown = time.monotonic(), test.take(part)
                x0 = to_unit(shown.images).to(device_of(model), state_type(model))
                cond = conditions_of(shown, saved.config, device_of(model))
                predictor = build.predictor(model, saved.calibration, **cond)
                try:
                    found = flow_bound(predictor, x0, Streams(seed, "likelihood", part), lifted, probes, method)
                except ArithmeticError as error:
                    raise UserError(f"--rtol, --atol: {error}; use larger ones") from None
                bar.advance(task, len(part))
                cost = torch.tensor([found.calls, time.monotonic() - started], dtype=torch.float64)
                return {"flow.safetensors": safetensors.torch.save({"nats": found.nats.contiguous(), "cost": cost})}

            job.run(work, measure, lambda kept: "flow.safetensors" in kept)
        if processes.first:
            parts = [safetensors.torch.load(files["flow.safetensors"]) for files in job.results(work)]
            nats = torch.cat([one["nats"] for one in parts])
            calls, seconds = torch.stack([one["cost"] for one in parts]).unbind(1)
            _write(folder, settings, nats, test.images[0].size, [int(count) for count in calls], float(seconds.sum()))
            job.forget()


def _write(
    folder: Path, settings: dict[str, Any], nats: torch.Tensor, dimensions: int, calls: list[int], seconds: float
) -> None:
    bits = nats / dimensions / math.log(2)
    flow = in_json(bits.mean(1))
    error, share = flow["standard_error"], flow["largest_share"]
    document: dict[str, Any] = {
        "images": len(nats),
        **settings,
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
    write_text(folder / "likelihood.json", json.dumps(document, indent=1) + "\n")
    largest = f", the largest {share:.1%} of the sum" if share is not None else ""
    screen.print(f"at most {flow['mean']:.4f}{spread} bits/dim in expectation, {len(nats)} held-out images{largest}")
    screen.print(f"{min(calls)} to {max(calls)} network calls a batch, {seconds:.1f} s: {folder / 'likelihood.json'}")
