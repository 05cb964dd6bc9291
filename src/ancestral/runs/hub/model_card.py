"""The card of a published model: what it is, how to use it, and the numbers that were measured on it, no others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ancestral.data.source_paths import same_place
from ancestral.errors import UserError
from ancestral.runs import checkpoint
from ancestral.runs.checkpoint import Checkpoint
from ancestral.runtime import disk, verified_folder
from ancestral.runtime.text import markdown, markdown_code, shown

_GUIDANCE = ("guidance", "guidance_rescale", "guidance_interval", "guide")
_SHOWN = ("images", "terms", "network", "searched", "steps", "solver", "eta", "variance", *_GUIDANCE)
_BESIDE = ("standard_error", "largest_share")
_TEXT = """# {heading}

Images of {channels}x{height}x{width} on [-1, 1] by denoising diffusion, made with Ancestral: {parameters:,} parameters,
T = {T}, schedule {schedule}{target}. Data: {source}{seen}.{classes}

```sh
ancestral import hf:{name} --out {title}
ancestral sample {title} --num-images 64
```

```python
import ancestral

model = ancestral.load("{name}")
images = model.sample(16{told}){comment}
```

## Measured

{measured}
"""
_HIDING = {  # what is said otherwise of a chain that hides places
    "by denoising diffusion": "by revealing places in any order",
}


class Measured:
    """What was measured on one checkpoint: rows of (name, value, standard error, largest image's share), and what with.

    Errors and shares are None where there are none.
    """

    def __init__(self, path: Path, document: dict[str, Any]) -> None:
        self.few = frozenset(
            map(str, document.get("few") or ())
        )  # metrics of too few images to be compared with others
        self.rows = list(_numbers(document, ""))
        self.title = path.stem
        made = _made(document)
        self.how = ", ".join(markdown(f"{name} {made[name]}") for name in _SHOWN if made.get(name) is not None)

    def table(self) -> str:
        """The rows as Markdown."""
        how = f" ({self.how})" if self.how else ""
        lines = [f"From {markdown_code(f'{self.title}.json')}{how}:", ""]
        shared = any(share is not None for *_, share in self.rows)
        lines += ["| | value | standard error |" + shared * " largest image |", "|---|---|---|" + shared * "---|"]
        for name, value, error, share in self.rows:
            few = " (few images)" if name.partition(": ")[0] in self.few else ""
            lines.append(f"| {markdown(name)}{few} | {value:.4g} | {'' if error is None else f'{error:.2g}'} |")
            lines[-1] += f" {'' if share is None else f'{share:.1%}'} |" if shared else ""
        return "\n".join(lines)


def measured(run: Path, saved: Checkpoint) -> list[Measured]:
    """What `evaluate` and `metrics` have left in the run, if it is of this checkpoint, its own average and its data.

    Args:
        run: the folder.
        saved: the checkpoint, its configuration as it is in the run.

    Raises:
        UserError: naming a file that is damaged.
    """
    found = []
    for path in sorted([*run.glob("evaluation.json"), *run.glob("metrics-*.json")]):
        try:
            document = disk.document(path, float)
        except disk.Damaged as error:
            raise UserError(f"{error}; delete it, or measure again") from None
        if isinstance(document, dict) and _is_of(saved, document, path) and (one := Measured(path, document)).rows:
            found.append(one)
    return found


def card(name: str, saved: Checkpoint, found: list[Measured], license_name: str) -> str:
    """README.md: the hub's metadata and the text.

    Args:
        name: USER/NAME on the hub.
        saved: the model, its configuration as it is published.
        found: what was measured on it.
        license_name: an identifier that the hub knows.
    """
    from huggingface_hub import ModelCardData

    diffusion, (channels, height, width) = saved.config.diffusion, saved.facts.shape
    data = ModelCardData(
        library_name="ancestral",
        license=shown(license_name),
        pipeline_tag="unconditional-image-generation",
        tags=["ddpm", "diffusion", "denoising-diffusion"],
        metrics=sorted({shown(row).partition(": ")[0] for one in found for row, *_ in one.rows}) or None,
    )
    classes = ", ".join(map(markdown, saved.facts.trained)) if saved.config.model.labels else ""
    told = saved.config.model.embedding
    text = _TEXT.format(
        name=shown(name),
        title=shown(name.rpartition("/")[2]),
        heading=markdown(name.rpartition("/")[2]),
        channels=channels,
        height=height,
        width=width,
        parameters=sum(tensor.numel() for tensor in saved.weights.values()),
        source=markdown_code(saved.config.source),
        seen=f", {saved.images:,} images seen" if saved.images else "",
        T=diffusion.T,
        schedule=markdown(diffusion.schedule),
        target=f", target {diffusion.target}" if diffusion.chain == "gaussian" else "",
        classes=f" Classes: {classes}." if classes else "",
        told=', embeddings="vectors.npy"' if told else "",
        comment=f"  # vectors of {saved.facts.embedding} numbers" if told else "",
        measured="\n\n".join(one.table() for one in found) or "Not measured.",
    )
    if diffusion.chain != "gaussian":
        for gaussian, hiding in _HIDING.items():
            text = text.replace(gaussian, hiding)
    return f"---\n{data.to_yaml().strip()}\n---\n\n{text}"


def _made(document: dict[str, Any]) -> dict[str, Any]:
    """What a measurement was made with, each by its name."""
    drawing, network = document.get("drawing"), document.get("network")
    made = {**document, **(drawing if isinstance(drawing, dict) else {})}
    if isinstance(network, dict):
        made["network"] = network.get("network")
    if isinstance(made.get("times"), list):
        made["steps"] = len(made["times"]) - 1
    if made.get("solver") is not None or made.get("eta") is not None:
        made["variance"] = None  # the run's own, which nothing was drawn with
    if made.get("guidance") is None:
        made |= dict.fromkeys(_GUIDANCE)
    made["guidance_rescale"] = made.get("guidance_rescale") or None
    return made


def _is_of(saved: Checkpoint, document: dict[str, Any], path: Path) -> bool:
    """Whether it is on the model's own data and names this checkpoint; where it names none, whether it is younger."""
    made = _made(document)
    if not same_place(made.get("data", saved.config.source), saved.config.source):
        return False
    if "model" in made:
        return made["model"] == checkpoint.digest(saved) and made.get("average_width") is None
    return path.stat().st_mtime >= (saved.folder / verified_folder.MANIFEST).stat().st_mtime


def _numbers(node: Any, name: str) -> Iterator[tuple[str, float, float | None, float | None]]:
    """Every {"value" or "mean": number, ...} in a document with what stands beside it, named by the way to it."""
    if not isinstance(node, dict):
        return
    value = node.get("value", node.get("mean"))
    if isinstance(value, (int, float)) and math.isfinite(value) and name:
        error, share = (float(one) if isinstance(one, (int, float)) else None for one in map(node.get, _BESIDE))
        yield name, float(value), error, share
        return
    for key, child in node.items():
        yield from _numbers(child, key if name in ("", "metrics") else f"{name}: {key}")
