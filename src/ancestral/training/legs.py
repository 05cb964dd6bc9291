"""Whether a run may go on: within a leg as the leg began; once it is complete with a new leg, also on further images.

A new leg keeps the network, the optimiser's moments and the averages. Its learning rate rises and falls once more.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from ancestral.data.source_paths import same_source
from ancestral.errors import UserError
from ancestral.runs.checkpoint import Checkpoint
from ancestral.runs.config import Config, flat
from ancestral.runs.facts import Facts
from ancestral.runs.length import as_written_now, typed
from ancestral.runs.plan import Leg, from_state
from ancestral.runtime import disk
from ancestral.runtime.text import quoted

# Settings of the computation may change when a run is resumed. Older runs lack the untrained classes and the white
# level; that the images are the same is checked by their digest.
_COMPUTATION = (
    "data.cache train.micro_batch train.workers train.parallel train.compile train.channels_last train.recompute "
    "train.deterministic"
)
MAY_CHANGE = {f"config.{name}" for name in _COMPUTATION.split()} | {"facts.untrained", "config.data.white"}
# With a new leg more images of the same source may be used, and the rate may rise to another peak.
LEG_MAY_CHANGE = {f"config.{name}" for name in ("data.limit", "train.learning_rate", "train.warmup", "train.decay")}


def own_settings(chosen: Config, given: Collection[str], own: Config) -> Config:
    """A run's own settings, with those of `chosen` that were set one by one."""
    groups = {
        group.name: replace(
            getattr(own, group.name),
            **{
                field.name: getattr(getattr(chosen, group.name), field.name)
                for field in fields(getattr(own, group.name))
                if f"{group.name}.{field.name}" in given
            },
        )
        for group in fields(Config)
        if is_dataclass(getattr(own, group.name))
    }
    return replace(own, source=chosen.source, **groups)


def begins_leg(
    folder: Path, saved: Checkpoint, config: Config, facts: Facts, digest: str, length: str, *, further: bool
) -> bool:
    """Whether going on from a checkpoint begins a new leg.

    Args:
        folder: of the run.
        saved: its newest checkpoint.
        config: as it is to go on.
        facts: of the images to go on with.
        digest: of these.
        length: that is asked for.
        further: whether it is in addition to what the run has seen.

    Raises:
        UserError: when the run cannot go on so, saying with what it can.
    """
    if not saved.tensors:
        raise UserError(
            f"{folder}: was imported, without the state of an optimiser to go on with; begin a new run with its "
            f"weights: ancestral train DATA --out NEW --from {quoted(folder)}"
        )
    legs, complete = _legs(saved), saved.state["complete"]
    new = complete and further
    _need_length(folder, saved, length, further=further)
    before, now = (
        flat({"config": asdict(settings), "facts": asdict(about)})
        for settings, about in ((saved.config, saved.facts), (config, facts))
    )
    same = {"config.source"} if same_source(before["config.source"], now["config.source"]) else set()
    allowed = MAY_CHANGE | same | (LEG_MAY_CHANGE if new else set())
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key) and key not in allowed]
    changed = "; ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in differing)
    if changed and new:
        raise UserError(
            f"{folder}: goes on with the network, classes and settings that it has ({changed}); with others a new run "
            f"can begin with its weights: ancestral train DATA --out NEW --from {quoted(folder)}"
        )
    if changed:
        raise UserError(f"{folder}: holds a run with other settings ({changed}); use those, another --out, or --fresh")
    if saved.state["data"] != digest and not new:
        when = "was begun with" if len(legs) == 1 else f"began its leg {len(legs)} with"
        raise UserError(f"{config.source}: not the images that {folder} {when}; use --fresh")
    return new


def _need_length(folder: Path, saved: Checkpoint, length: str, *, further: bool) -> None:
    lengths, complete = [as_written_now(leg.length) for leg in _legs(saved)], saved.state["complete"]
    seen = f"{saved.images:,} of {saved.state['total']:,} images"
    if not complete and lengths[-1] != length and (further or len(lengths) > 1):
        raise UserError(f"{folder}: is not finished ({seen}); finish it first, with {typed(lengths[-1])}")
    if not further and length not in (lengths if complete else lengths[-1:]):
        longer = "--budget +10m trains it longer; or " if complete else ""
        raise UserError(
            f"{folder}: the run was planned for another length ({typed(lengths[-1])}, "
            f"{saved.state['total']:,} images); {longer}use that, another --out, or --fresh"
        )


def _legs(saved: Checkpoint) -> list[Leg]:
    return list(from_state(saved.state, str(saved.folder / "state.json")).legs)


def described(folder: Path, saved: Checkpoint, config: Config, digest: str, count: int) -> list[str]:
    """What a new leg of a run is, a line each; `count` images with this digest are those to train on."""
    legs = _legs(saved)
    lines = [
        f"leg {len(legs) + 1} of {folder}, which goes on from {saved.images:,} images seen with its own settings; the "
        f"learning rate rises to {config.train.learning_rate:g} and falls once more"
    ]
    if digest != saved.state["data"]:
        try:
            before: Any = disk.document(folder / "data.json").get("train")
        except (disk.Missing, disk.Damaged, AttributeError):  # older runs have none
            before = None
        was = f"{before:,} and are" if isinstance(before, int) else "others and are"
        lines.append(
            f"the images to train on have changed since leg {len(legs)}: they were {was} {count:,} "
            f"({saved.state['data'][:12]}, now {digest[:12]})"
        )
    return lines
