"""Quality by number of steps: every solver of ours on a run, and diffusers' schedulers on the same weights.

Run: .venv-peers/bin/python benchmarks/steps.py RUN. Of a run that `ancestral export` cannot write only ours are
measured; one that it can is trained with --preset tiny --set diffusion.clock=zero-based --set model.groups=8. What is
measured is kept under benchmarks/measured and not measured again. Each kind of run has its table in
benchmarks/results.md.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import MEASURED, Results, options, parsed, publish, quality, shown, steps_of, table
from torch import Tensor

from ancestral.data import load
from ancestral.data.pixels import to_bytes
from ancestral.diffusion.samplers.sample import latents, sample
from ancestral.diffusion.samplers.solvers import SOLVERS
from ancestral.errors import UserError
from ancestral.runs import build, checkpoint
from ancestral.runs.hub import diffusers as interop

CALLS = (5, 8, 10, 20, 50)
ROUND = 64  # images at a time
THEIRS = {  # name: (class, its fields)
    "DDIM": ("DDIMScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "DPM++ 3M": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "UniPC 2": ("UniPCMultistepScheduler", {"solver_order": 2}),
    "UniPC 3": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "DEIS": ("DEISMultistepScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
}
SLOW = ("langevin", "pc")  # several calls a level: not for few
SPACINGS = {"trailing": {"timestep_spacing": "trailing"}, "its default": {}}
Draw = Callable[[int], Tensor]  # from network calls to images on [-1, 1]


def ours(saved: checkpoint.Checkpoint, run: Path, count: int) -> dict[str, Draw]:
    """By solver; the ancestral chain takes every step whatever it is told."""
    model = build.trained(saved, run, torch.device("cpu"))
    predictor = build.predictor(model, saved.calibration)

    def drawn(move, steps: int | None) -> Tensor:
        grid = build.sampling_grid(saved.config, "trailing", steps)
        with torch.inference_mode():
            return sample(predictor, saved.facts.shape, count, grid, move, batch_size=ROUND)

    draws = {
        f"ancestral {name}": lambda calls, name=name: drawn(SOLVERS[name], steps_of(name, calls))
        for name in SOLVERS
        if name not in SLOW
    }
    return {"ancestral, every step": lambda calls: drawn(build.transition(saved, None), None), **draws}


def theirs(saved: checkpoint.Checkpoint, run: Path, count: int) -> dict[str, Draw]:
    """By scheduler and spacing of times, from the same latents.

    Raises:
        UserError: when the run cannot be exported.
    """
    import diffusers

    with tempfile.TemporaryDirectory() as folder:
        interop.export_run(run, Path(folder))
        network = diffusers.UNet2DModel.from_pretrained(Path(folder) / "unet").eval()
        fields = json.loads((Path(folder) / "scheduler" / "scheduler_config.json").read_text())
    fields.pop("timestep_spacing")

    def drawn(kind: str, changes: dict, steps: int) -> Tensor:
        batches = []
        for first in range(0, count, ROUND):
            scheduler = getattr(diffusers, kind).from_config(fields, **changes)
            scheduler.set_timesteps(steps)
            start = latents(saved.facts.shape, 0, range(first, min(first + ROUND, count))).float()
            x = start * scheduler.init_noise_sigma
            with torch.inference_mode():
                for t in scheduler.timesteps:
                    x = scheduler.step(network(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
            batches.append(x)
        return torch.cat(batches)

    return {
        f"diffusers {name}, {spacing}": lambda calls, name=name, kind=kind, changes={**own, **how}: drawn(
            kind, changes, steps_of(name, calls)
        )
        for name, (kind, own) in THEIRS.items()
        for spacing, how in SPACINGS.items()
    }


def main() -> None:
    """Measure what is missing, then write both tables."""
    parser = options(__doc__ or "")
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--calls", type=int, nargs="+", default=CALLS)
    given = parsed(parser)
    saved, _ = checkpoint.open_run(given.run)
    train = load.load(saved.config.source, saved.config.data).train
    draws, block = ours(saved, given.run, given.images), "steps-beside"
    try:
        draws |= theirs(saved, given.run, given.images)
    except UserError:  # it has what diffusers' network has not
        block = "steps"
    results = Results(MEASURED / "steps.jsonl", ("model", "name", "calls", "images"))
    every = len(build.training_grid(saved.config)) - 1
    found: dict[str, list[dict]] = {}
    for name, draw in draws.items():
        counts = [every] if name == "ancestral, every step" else given.calls
        for calls in counts:
            key = {"model": checkpoint.digest(saved)[:16], "name": name, "calls": calls, "images": given.images}

            def measure(draw: Draw = draw, calls: int = calls) -> dict[str, object]:
                images = draw(calls)
                finite = images.isfinite().flatten(1).all(1)
                return {**quality(to_bytes(images.nan_to_num()), train), "not_finite": int((~finite).sum())}

            found.setdefault(name, []).append(results.once(measure, **key))
    parts = [f"`{given.run.name}`, {Path(saved.config.source).name}, {given.images} images, the same latents."]
    chain = found.pop("ancestral, every step")[0]
    for metric, digits in (("fd-lite0", 2), ("kid-lite0", 4)):
        rows = [[name, *(shown(one[metric], digits) for one in lines)] for name, lines in found.items()]
        title = f"{metric}; {every} ancestral steps: {shown(chain[metric], digits)}"
        parts.append(table([title, *(f"{calls} calls" for calls in given.calls)], rows))
    publish(block, "\n\n".join(parts), given.docs, [chain, *(one for lines in found.values() for one in lines)])


if __name__ == "__main__":
    main()
