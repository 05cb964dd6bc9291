"""Which size of network is best after so many minutes: the held-out loss by size and images seen, and a law through it.

    benchmarks/model_size.py measure DATA NAME SECONDS [KEY=VALUE ...]     one trial, unless it is there
    benchmarks/model_size.py check DATA NAME RUN                           a run of the preset, unless it is there
    benchmarks/model_size.py table                                         the law, the table and the plot

A trial is the preset `images` with settings, trained for so many seconds of processor time. Of the training images a
part is kept apart, and everything is measured on it; the test images are not looked at. They are what a run is checked
by, whose seconds are those of the clock, on as many cores as it had.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from common import MEASURED, ROOT, WORK, Results, processor, publish, shown, table
from common import RESULTS as RESULTS_PAGE
from matplotlib.figure import Figure
from recipe import CPU, apart, trained
from scipy.optimize import nnls
from torch import Tensor

from ancestral.data import load, pictures
from ancestral.data.dataset import ImageSet
from ancestral.data.pixels import to_bytes, to_unit
from ancestral.diffusion.denoisers.denoiser import Denoiser
from ancestral.diffusion.objectives.statistics import mean_and_error
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.sample import sample
from ancestral.diffusion.samplers.solvers import SOLVERS
from ancestral.evaluation import features
from ancestral.runs import build, checkpoint, config
from ancestral.runs.compute_format import ComputeFormat
from ancestral.runs.conditions import conditions_of
from ancestral.runs.datasets import facts
from ancestral.runtime.distributed import Processes
from ancestral.training.model_size import FILE, IMAGES, UNIT, WIDTHS, Law
from ancestral.training.trainer import Training

KEYS = ("data", "name", "seconds")
RESULTS = Results(MEASURED / "model_size.jsonl", KEYS)
DRAWN, HELD_OUT, DRAWS = 1000, 1000, 4
OTHERS = {"grey": ("mnist",), "colour": ("emoji-32",)}  # of which no law is made
KINDS = {"grey": "fashion-mnist-28", "colour": "tiles-32"}  # the set that a law is fitted to
FOLDED = {
    "model.width": 32,
    "model.multipliers": (1, 2),
    "model.attention": (1,),
    "model.patch": 2,
}  # the preset's when trials began
# Free where trials are many; of four trials of the network of grey images on tiles (widths 16, 32 twice, 64) these
# leave no residual, and no other kind has as many.
WIDTH_POWER, IMAGES_POWER = 0.8, 0.5
BUDGETS = (2, 10, 30, 60, 480)  # minutes
PLOTTED = "AMD EPYC"  # whose time the plot has
PLOT = ROOT / "docs" / "img" / "model_size.png"


def held_out_loss(training: Training, weights, held: ImageSet) -> list[float]:
    """The objective's loss of averaged weights on held-out images, with its error; the same times and noise for all."""
    denoiser = build.ready(training.config, training.facts, weights)
    rows, totals = range(len(held)), torch.zeros(len(held), dtype=torch.float64)
    clean = to_unit(held.images[:])
    for draw in range(DRAWS):
        index, importance = training.sampler.draw(training.uniforms(draw, rows, training.streams))
        eps = Streams(draw, "held-out loss", rows).normal(clean.shape[1:]).float()
        for part in torch.arange(len(held)).split(50):
            at = index[part]
            times = training.sampler.t[at], training.earlier(1.0)[at]
            cond = conditions_of(held.take(part.tolist()), training.config, CPU)
            with torch.inference_mode(), training.autocast:
                losses = training.objective(denoiser, clean[part], *times, eps[part], **cond)
            totals[part] += losses.double() * importance[part] / DRAWS
    return list(mean_and_error(totals))


def drawn_by(training: Training, model: Denoiser) -> Tensor:
    """Images (DRAWN, C, H, W) on [-1, 1] in 20 calls of UniPC-3, in the precision of the training."""
    times, drawn = grids.trailing(model.schedule, 20), []
    for start in range(0, DRAWN, 50):
        with training.autocast:
            drawn.append(
                sample(build.predictor(model, None), training.facts.shape, 50, times, SOLVERS["unipc3"], seed=start)
            )
    return torch.cat(drawn)


def trial(source: str, settings: dict[str, object], seconds: float, sheet: Path) -> dict[str, object]:
    """Train for so long and measure."""
    chosen = config.resolve(source, "images", {**FOLDED, **settings})
    splits = apart(load.load(source, chosen.data).train)
    training, spending, spent = trained(chosen, splits.train, seconds)
    weights = training.model_weights(training.tensors())
    return {
        "settings": settings,
        "spent": round(spent, 1),
        "images": training.images,
        "parameters": spending.parameters,
        "gflop_an_image": spending.flops / chosen.train.batch_size / 1e9,
        "images_per_second": training.images / spent,
        **measured(training, weights, splits.test.spread(HELD_OUT), sheet),
    }


def of_run(source: str, run: Path, sheet: Path) -> dict[str, object]:
    """Measure a run that was trained on all training images."""
    saved, _ = checkpoint.open_run(run)
    splits, spent = load.load(source, saved.config.data), saved.state["seconds"]
    used = ComputeFormat(saved.state["precision"], saved.state["channels_last"])
    training = Training(saved.config, facts(splits.train), CPU, Processes(), used)
    return {
        "settings": {key: getattr(saved.config.model, key.partition(".")[2]) for key in FOLDED},
        "spent": round(spent, 1),
        "images": saved.images,
        "parameters": sum(value.numel() for value in training.network.parameters()),
        "images_per_second": saved.images / spent,
        **measured(training, saved.weights, splits.test.spread(HELD_OUT), sheet),
    }


def measured(training: Training, weights: Mapping[str, Tensor], held: ImageSet, sheet: Path) -> dict[str, object]:
    """The loss of weights on held-out images, and how near to these what they draw is."""
    loss = held_out_loss(training, weights, held)
    images = to_bytes(drawn_by(training, build.ready(training.config, training.facts, weights)))
    sheet.parent.mkdir(parents=True, exist_ok=True)
    pictures.save_sheet(sheet, images[:64])
    quality = features.measure(images, held, features.network("lite0"))
    return {"loss": loss, **{name: [round(one.value, 4), round(one.error, 4)] for name, one in quality.items()}}


def fitted(lines: Sequence[dict]) -> Law:
    """The law through trials of several widths, with the exponents given: least squares of relative errors."""
    width = np.array([line["settings"]["model.width"] / UNIT for line in lines])
    seen = np.array([line["images"] / IMAGES for line in lines])
    loss = np.array([line["loss"][0] for line in lines])
    terms = np.stack([np.ones_like(loss), width**-WIDTH_POWER, seen**-IMAGES_POWER], 1)
    floor, a, b = (round(float(one), 5) for one in nnls(terms / loss[:, None], np.ones_like(loss))[0])
    powers = [speeds_of(found)[1] for found in by_machine(lines).values()]
    return Law(floor, (a, WIDTH_POWER), (b, IMAGES_POWER), round(float(np.mean(powers)), 3))


def write() -> None:
    """Fit the laws, keep them with the package, and write the table and the plot."""
    rows, found, parts = [], {}, []
    for kind, data in KINDS.items():
        lines = [line for line in RESULTS.lines if line["data"] == data]
        found[kind] = law = fitted(fits(kind))
        lines.sort(key=lambda line: (of_law(line), width_of(line), line["spent"]))
        for line in [*lines, *(line for line in RESULTS.lines if line["data"] in OTHERS[kind])]:
            width = width_of(line)
            plain = of_law(line) and line in lines
            rows.append(
                [
                    line["data"],
                    ", ".join(f"{key.partition('.')[2]} {value}" for key, value in line["settings"].items()),
                    f"{line['spent']:.0f}",
                    f"{line['images']:,}",
                    f"{line['images_per_second']:.0f}",
                    processor(line),
                    shown(line["loss"], 4),
                    f"{law.loss(width, line['images']):.4f}" if plain else "",
                    ("checked" if checks(line) else "fitted") if plain else "",
                    shown(line["fd-lite0"], 1),
                    shown(line["kid-lite0"], 4),
                ]
            )
        (a, p), (b, q) = law.width, law.images
        part = f"{kind}: loss(w, n) = {law.floor:.4f} + {a:.4f} (w / 32)^-{p:.2f} + {b:.4f} (n / 10^5)^-{q:.2f}."
        for machine, trials in by_machine(fits(kind)).items():
            speed, power = speeds_of(trials)
            widths = (replace(law, seconds=power).best(60 * minutes, speed) for minutes in BUDGETS)
            part += (
                f" On {machine} width 32 sees {speed:.0f} images/s, and an image takes (w / 32)^{power:.2f} of its "
                f"time: widths after {', '.join(map(str, BUDGETS))} minutes: {', '.join(map(str, widths))}."
            )
        parts.append(part)
    FILE.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    head = ["data", "settings", "s", "images", "images/s", "on", "held-out loss", "law", "", "fd-lite0", "kid-lite0"]
    publish("model-size", "\n\n".join([*parts, table(head, rows)]), RESULTS_PAGE, RESULTS.lines)
    PLOT.write_bytes(plot(found))


def width_of(line: dict) -> int:
    """Of a trial's network."""
    return line["settings"].get("model.width", UNIT)


def of_law(line: dict) -> bool:
    """Whether a trial is of the preset's network, whatever its width."""
    preset, trial = ({"model.width": width_of(line)}, {**FOLDED, **line["settings"]})
    return config.resolve("", "images", preset).model == config.resolve("", "images", trial).model


def checks(line: dict) -> bool:
    """Whether a trial is kept from the fit."""
    return line["name"].startswith("check")


def fits(kind: str) -> list[dict]:
    """The trials that the law of a kind of images is fitted to."""
    return [line for line in RESULTS.lines if line["data"] == KINDS[kind] and of_law(line) and not checks(line)]


def by_machine(lines: Sequence[dict]) -> dict[str, list[dict]]:
    """Trials by the processor that they ran on."""
    found: dict[str, list[dict]] = {}
    for line in lines:
        found.setdefault(processor(line), []).append(line)
    return found


def speeds_of(lines: Sequence[dict]) -> tuple[float, float]:
    """(images per second of width 32, power of the width that an image's time grows with) of trials on one machine."""
    widths, speeds = zip(*((width_of(line) / UNIT, line["images_per_second"]) for line in lines), strict=True)
    power, at_unit = np.polyfit(np.log(widths), np.log(speeds), 1)
    return float(np.exp(at_unit)), -float(power)


def plot(found: Mapping[str, Law]) -> bytes:
    """As PNG: the loss by the law against time, a line a width, for each kind of data."""
    figure = Figure(figsize=(9, 3.6), dpi=130, layout="constrained")
    minutes = np.geomspace(1, 480, 100)
    for axes, (kind, law) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        speed, power = speeds_of(by_machine(fits(kind))[PLOTTED])
        law = replace(law, seconds=power)
        for width in WIDTHS:
            losses = [law.loss(width, law.seen(width, 60 * one, speed)) for one in minutes]
            axes.plot(minutes, losses, label=f"width {width}", linewidth=1.3)
        for line in RESULTS.lines:
            if line["data"] == KINDS[kind] and of_law(line):
                taken = line["images"] / law.seen(width_of(line), 60, speed)  # on this machine
                axes.plot(taken, line["loss"][0], "o", color=f"C{WIDTHS.index(width_of(line))}", markersize=4)
        axes.set_xscale("log")
        axes.set_title(f"{kind}, 28 to 32 px", loc="left", fontsize=10)
        axes.set_xlabel(f"minutes of one core, {PLOTTED}")
        axes.set_xticks([1, 2, 5, 10, 30, 60, 120, 480], ["1", "2", "5", "10", "30", "60", "120", "480"])
        axes.minorticks_off()
        axes.set_ylabel("held-out loss per dimension")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(top=law.loss(32, law.seen(32, 60, speed)))
    axes.legend(frameon=False, fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def main() -> None:
    """Measure one trial, or write what was measured."""
    torch.set_num_threads(1)
    if sys.argv[1] == "table":
        write()
        return
    _, verb, source, name, what, *assignments = sys.argv
    data = Path(source).stem
    sheet = WORK / "model_size" / f"{data}-{name}-{Path(what).name}.png"
    if verb == "check":
        RESULTS.once(lambda: of_run(source, Path(what), sheet), data=data, name=f"check {name}", seconds=0.0)
        return
    settings = config.parse_assignments(assignments)
    RESULTS.once(lambda: trial(source, settings, float(what), sheet), data=data, name=name, seconds=float(what))


if __name__ == "__main__":
    main()
