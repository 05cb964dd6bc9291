"""Section 1, what diffusion models are: beside other generators, as `benchmarks/generators.py` measured them."""

from __future__ import annotations

import io
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ancestral.apps.report import plots
from ancestral.apps.report.part import Number, Part
from ancestral.apps.report.subject import Subject

_MEASURED = files("ancestral.apps.report") / "generators"


def part(subject: Subject) -> Part:
    """The measurements on the user's data where these were measured, otherwise on the first that were."""
    documents = json.loads((_MEASURED / "generators.json").read_text("utf-8"))
    stem = Path(subject.source).stem
    own = next((one for one in documents if re.fullmatch(rf"{one['data']}(-\d+)?", stem)), None)
    document = own or documents[0]
    again, models = document["command"], document["models"]
    grids = np.stack([_pixels(one["grid"]) for one in models])
    names = [one["name"] for one in models]
    return Part(
        numbers={
            "minutes": Number(document["minutes"], "minutes", again),
            "threads": Number(document["threads"], "", again),
            "drawn": Number(document["images_drawn"], "images", again),
            "held_out": Number(document["images_held_out"], "images", again),
            "floor": _estimate(document["floor"]["fd"], again),
            "floor_kid": _estimate(document["floor"]["kid"], again),
        },
        figures={
            "samples": lambda words: plots.sheet(grids[None], [words["generators"][name] for name in names], cell=118)
        },
        tables={"quality": [_quality(one, again) for one in models], "cost": [_cost(one, again) for one in models]},
        facts={"machine": document["machine"], "data": document["data"], "date": document["date"]}
        | {"commit": document["commit"], "own": own is not None, "best": _best(models)},
    )


def _best(models: list[dict[str, Any]]) -> dict[str, str]:
    """Who is first: by the distances of samples, by how much of the data they cover, by bits."""
    by = {
        "near": min(models, key=lambda one: one["kid"]["value"]),
        "wide": max(models, key=lambda one: one["recall"]),
        "bits": min(
            (one for one in models if one["bits_per_dim"]["value"]), key=lambda one: one["bits_per_dim"]["value"]
        ),
    }
    return {name: one["name"] for name, one in by.items()}


def _quality(model: dict[str, Any], again: str) -> list[Number | str]:
    bits = model["bits_per_dim"]
    shares = [Number(model[name], "", again, model[f"{name}_error"]) for name in ("precision", "recall")]
    likelihood = "no bits" if bits["value"] is None else _estimate(bits, again)
    return [
        f"generator {model['name']}",
        *(_estimate(model[name], again) for name in ("fd", "kid")),
        *shares,
        likelihood,
    ]


def _cost(model: dict[str, Any], again: str) -> list[Number | str]:
    counts = [Number(model[name], "", again) for name in ("images_seen", "parameters", "parameters_to_draw", "calls")]
    return [f"generator {model['name']}", *counts, Number(model["seconds_64"], "s", again)]


def _estimate(measured: dict[str, float], again: str) -> Number:
    return Number(measured["value"], "", again, measured["error"])


def _pixels(name: str) -> np.ndarray:
    """The samples of one model in a grid, (H, W, channels)."""
    pixels = np.asarray(Image.open(io.BytesIO((_MEASURED / name).read_bytes())))
    return pixels[..., None] if pixels.ndim == 2 else pixels
