"""What benchmarks/generators.py shows of its results: a table, a figure, and what the report needs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, WORK, Results, publish, shown, table
from matplotlib.figure import Figure

from ancestral.data.pictures import contact_sheet
from ancestral.runtime.plots import INK

REPORT = ROOT / "src" / "ancestral" / "apps" / "report" / "generators"
FIGURES = ROOT / "docs" / "img"
SIDE = 6  # of a grid in the report, in images
ACROSS = 14  # images of each in the figure
COMMAND = "python benchmarks/generators.py {data} --minutes {minutes:g} --threads {threads}"
TITLES = {
    "gan": "GAN",
    "vae": "VAE, samples",
    "vae-mean": "VAE, means",
    "flow": "normalizing flow",
    "absorbing": "absorbing chain",
    "diffusion": "diffusion, 50 calls",
    "diffusion-10": "diffusion, 10 calls",
}
QUALITY = {"fd": "fd-lite0", "kid": "kid-lite0", "precision": "precision-lite0", "recall": "recall-lite0"}

Lines = Mapping[tuple[str, str], dict[str, Any]]  # by (name, what)


def published(results: Results, models: Mapping[str, str], page: Path) -> None:
    """Write the tables, and of every data set that is complete the numbers and pictures for the report."""
    parts, documents = [], []
    for data, minutes in dict.fromkeys((line["data"], line["minutes"]) for line in results.lines):
        lines = {(one["name"], one["what"]): one for one in results.find(data=data, minutes=minutes)}
        parts.append(f"{heading(data, minutes, lines)}\n\n{table(HEADINGS, rows(lines, models))}")
        if all((row, "quality") in lines and (model, "bits") in lines for row, model in models.items()):
            documents.append(document(data, minutes, lines, models))
            if (work := WORK / "generators" / f"{data}-{minutes:g}" / "shown").is_dir():  # drawn on this machine
                pictures(data, work, models)
    if documents:
        REPORT.mkdir(exist_ok=True)
        (REPORT / "generators.json").write_text(json.dumps(documents, indent=1) + "\n")
    publish("generators", "\n\n".join(parts), page, results.lines)


HEADINGS = ("", "images seen", "million weights", "to draw", "calls", "s for 64 images", "fd-lite0", "kid-lite0")
HEADINGS += ("precision", "recall", "bits/dim, at most")


def short(data: str) -> str:
    """The name of a data set without its side."""
    return data.removesuffix("-28")


def heading(data: str, minutes: float, lines: Lines) -> str:
    """What the table below is of."""
    drawn, held = (lines.get(("real", what), {}).get("images", "no") for what in ("quality", "bits"))
    lossless = lines.get(("real", "bits"), {}).get("lossless", {})
    needed = ", ".join(f"{name} {value:.3f}" for name, value in lossless.items() if "without" in name)
    return (
        f"`{data}`, {minutes:g} minutes of training each; {drawn} images drawn by each, against as many for training; "
        f"bits/dim of {held} held-out images ({needed}):"
    )


def rows(lines: Lines, models: Mapping[str, str]) -> Iterator[list[str]]:
    """Of the table, those that were measured; the first is what real images reach."""
    real = lines.get(("real", "quality"), {}).get("train", {})
    yield ["held-out images", *[""] * 5, *(shown(real.get(name), digits) for name, digits in _digits()), ""]
    for row, model in models.items():
        training, speed = (lines.get((name, what), {}) for name, what in ((model, "training"), (row, "speed")))
        found, bits = lines.get((row, "quality"), {}).get("train", {}), lines.get((model, "bits"), {})
        if not found:
            continue
        yield [
            TITLES[row],
            f"{training['seen']:,}" if training else "",
            *(f"{training[name] / 1e6:.2f}" if training else "" for name in ("weights", "drawing_weights")),
            str(speed.get("calls", "")),
            f"{speed['seconds_64']:.3f}" if speed else "",
            *(shown(found.get(name), digits) for name, digits in _digits()),
            (shown(bits["bits"], 3) or "not defined") if bits and row == model else "",
        ]


def _digits() -> Iterator[tuple[str, int]]:
    yield from zip(QUALITY.values(), (1, 4, 3, 3), strict=True)


def document(data: str, minutes: float, lines: Lines, models: Mapping[str, str]) -> dict[str, Any]:
    """One data set's numbers, as the report reads them."""
    origins = list(lines.values())
    stamp = {key: ", ".join(dict.fromkeys(one[key] for one in origins)) for key in ("machine", "commit", "date")}
    threads = int(lines[("gan", "training")]["machine"].split(" threads")[0].split()[-1])
    source = data if data == "mnist" else f"{data}.npz"
    real = lines[("real", "quality")]
    return {
        "data": short(data),
        "minutes": minutes,
        "threads": threads,
        **stamp,
        "command": COMMAND.format(data=source, minutes=minutes, threads=threads),
        "images_drawn": real["images"],
        "images_held_out": lines[("real", "bits")]["images"],
        "units": {
            "fd": "squared distance of features, against training images",
            "kid": "squared MMD of features, against training images",
            "precision": "share of drawn images",
            "recall": "share of training images",
            "bits_per_dim": "bits per dimension of held-out images",
            "seconds_64": "s for 64 images at a time",
            "calls": "network calls an image",
            "training_seconds": "s",
        },
        "error": "one standard error",
        "floor": _quality(real["train"]),
        "lossless_bits_per_dim": lines[("real", "bits")]["lossless"],
        "models": [_model(data, row, model, lines) for row, model in models.items()],
    }


def _model(data: str, row: str, model: str, lines: Lines) -> dict[str, Any]:
    training, speed, found = lines[(model, "training")], lines[(row, "speed")], lines[(row, "quality")]["train"]
    bits = lines[(model, "bits")]["bits"]
    return {
        "name": row,
        "model": model,
        "title": TITLES[row],
        **_quality(found),
        "bits_per_dim": {**_estimate(bits or (None, None)), "kind": "bound" if bits else None},
        "parameters": training["weights"],
        "parameters_to_draw": training["drawing_weights"],
        "images_seen": training["seen"],
        "training_seconds": training["seconds"],
        "seconds_64": speed["seconds_64"],
        "calls": speed["calls"],
        "grid": f"generators-{short(data)}-{row}.png",
    }


def _quality(found: Mapping[str, Any]) -> dict[str, Any]:
    shares = {key: found[QUALITY[key]] for key in ("precision", "recall")}
    return {
        **{key: _estimate(found[QUALITY[key]]) for key in ("fd", "kid")},
        **{key: value for key, (value, _) in shares.items()},
        **{f"{key}_error": error for key, (_, error) in shares.items()},
    }


def _estimate(pair: Any) -> dict[str, float | None]:
    value, error = pair
    return {"value": value, "error": error}


def pictures(data: str, work: Path, models: Mapping[str, str]) -> None:
    """A grid of each row for the report, a larger one beside the results, and one figure of all."""
    images = {row: np.load(work / f"{row}.npy") for row in models}
    REPORT.mkdir(exist_ok=True)
    for row, some in images.items():
        contact_sheet(some, 8).save(work / f"{row}.png")
        side = max(some.shape[1:3])
        grid = contact_sheet(some[: SIDE * SIDE], SIDE, side, gap=1)
        grid.save(REPORT / f"generators-{short(data)}-{row}.png", optimize=True)
    figure = Figure(figsize=(9, 0.62 * len(images)), dpi=130)
    figure.subplots_adjust(0.17, 0.01, 0.995, 0.99, hspace=0.06)
    for axes, (row, some) in zip(figure.subplots(len(images), 1), images.items(), strict=True):
        axes.imshow(np.asarray(contact_sheet(some[:ACROSS], ACROSS, gap=1)), cmap="gray", vmin=0, vmax=255)
        axes.set_axis_off()
        axes.text(-0.01, 0.5, TITLES[row], transform=axes.transAxes, ha="right", va="center", color=INK, fontsize=9)
    figure.savefig(FIGURES / f"generators-{short(data)}.png")
