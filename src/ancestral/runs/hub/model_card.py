"""The card of a published model: what it is, how to use it, and the numbers that were measured on it, no others."""

from __future__ import annotations

from ancestral.runs.checkpoint import Checkpoint
from ancestral.runs.measurements import Measured
from ancestral.runs.sampling_options import OPTIONS
from ancestral.runtime.text import markdown, markdown_code, shown

_SHOWN = ("images", "terms", "network", "searched", *(name for name, option in OPTIONS.items() if option.card))
_TEXT = """# {heading}

Images of {channels}x{height}x{width} on [-1, 1] {how}, made with Ancestral: {parameters:,} parameters,
T = {T}, schedule {schedule}{target}. Data: {source}{seen}.{classes}{origin}

```sh
ancestral import hf:{name} --out {title}
ancestral sample {title} --num-images 64
```

```python
import ancestral

model = ancestral.load("{name}")
images = model.sample(16{vectors}){comment}
```

## Measured

{measured}
"""
_MADE = {
    "gaussian": "by denoising diffusion",
    "progressive": "in few network calls by progressive distillation",
    "consistency": "in 1, 2 or 4 network calls by a consistency model",
}


def table(one: Measured) -> str:
    """What was measured as Markdown."""
    made = one.made
    how = ", ".join(markdown(f"{name} {made[name]}") for name in _SHOWN if made.get(name) is not None)
    lines = [f"From {markdown_code(f'{one.title}.json')}{f' ({how})' if how else ''}:", ""]
    shared = any(share is not None for *_, share in one.rows)
    lines += ["| | value | standard error |" + shared * " largest image |", "|---|---|---|" + shared * "---|"]
    for name, value, error, share in one.rows:
        few = " (few images)" if name.partition(": ")[0] in one.few else ""
        lines.append(f"| {markdown(name)}{few} | {value:.4g} | {'' if error is None else f'{error:.2g}'} |")
        lines[-1] += f" {'' if share is None else f'{share:.1%}'} |" if shared else ""
    return "\n".join(lines)


def _origin(saved: Checkpoint) -> str:
    """The sentence on the model that the run began with."""
    origin = saved.state.get("origin")
    if origin is None:
        return ""
    seen = f", {origin['images']:,} images seen of {markdown_code(origin['source'])}" if origin["images"] else ""
    return f" Begun from {markdown_code(origin['name'])}{seen} (weights {origin['digest'][:12]})."


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
    embedding = saved.config.model.embedding
    text = _TEXT.format(
        name=shown(name),
        title=shown(name.rpartition("/")[2]),
        heading=markdown(name.rpartition("/")[2]),
        how=_MADE.get(diffusion.chain, "by revealing positions in any order"),
        channels=channels,
        height=height,
        width=width,
        parameters=sum(tensor.numel() for tensor in saved.weights.values()),
        source=markdown_code(saved.config.source),
        seen=f", {saved.images:,} images seen" if saved.images else "",
        T=diffusion.T,
        schedule=markdown(diffusion.schedule) + ("" if diffusion.shift == 1 else f" (shift {diffusion.shift:g})"),
        target=f", target {diffusion.target}" if diffusion.chain in _MADE else "",
        classes=f" Classes: {classes}." if classes else "",
        origin=_origin(saved),
        vectors=', embeddings="vectors.npy"' if embedding else "",
        comment=f"  # vectors of {saved.facts.embedding} numbers" if embedding else "",
        measured="\n\n".join(map(table, found)) or "Not measured.",
    )
    return f"---\n{data.to_yaml().strip()}\n---\n\n{text}"
