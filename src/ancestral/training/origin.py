"""Begin a run with the weights of another model: which settings come with it, and what of its weights is carried over.

Before its first update the new network computes what the model computes, up to rounding, wherever that has a meaning:
for classes of the same name, at times of the same noise, at any size. What no weights can make up for is refused.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ancestral.data.inventory import listed
from ancestral.data.source_paths import HUB_PREFIX
from ancestral.diffusion.denoisers.denoiser import CLOCKS
from ancestral.errors import UserError
from ancestral.runs import build
from ancestral.runs.checkpoint import Checkpoint, OriginState, weights_digest
from ancestral.runs.config import Config
from ancestral.runs.facts import Facts
from ancestral.runs.hub import hub
from ancestral.runs.process_kinds import chain
from ancestral.runs.registry import choose
from ancestral.runtime.tensor_files import Tensors
from ancestral.runtime.text import quoted, utf8

# What may change: conditions are carried over below; the rest says how is trained or drawn, not what an output means.
_FREE = {f"model.{name}" for name in ("labels", "embedding", "condition_dropout", "dropout")} | {
    f"diffusion.{name}" for name in ("objective", "times", "train_steps", "variance", "clip")
}
_TIMES = ("diffusion.T", "diffusion.schedule", "diffusion.shift", "diffusion.clock")
_CONDITIONS = ("labels", "embedding")


class Origin:
    """The model that a run begins with.

    Args:
        name: a run, RUN/averages/N, a published or a diffusers folder, or a name on the hub, as `hub.load` takes them.
    """

    def __init__(self, name: str) -> None:
        if not name:
            raise UserError(f"--from: no model is named to begin with; name a run, a folder or {HUB_PREFIX}USER/NAME")
        self.given = name
        here = Path(name).is_dir()
        self.name = utf8(os.path.abspath(name), "its path") if here else HUB_PREFIX + name.removeprefix(HUB_PREFIX)

    @cached_property
    def model(self) -> Checkpoint:
        """Loaded when it is asked for: a run that goes on needs no more than the name."""
        return hub.load(self.given)

    @cached_property
    def state(self) -> OriginState:
        """What the run keeps of it."""
        saved = self.model
        digest = weights_digest(saved)
        return {"name": self.name, "digest": digest, "images": saved.images, "source": saved.config.source}

    def need_other_than(self, run: Path) -> None:
        """Refuse to begin a run with itself.

        Its own first checkpoint would overwrite the model it records as its origin.
        """
        own, folder = Path(os.path.realpath(self.name)), Path(os.path.realpath(run))
        if own.is_relative_to(folder):
            raise UserError(
                f"{self.given}: is the run of --out itself; choose another --out, or train it longer: ancestral train "
                f"DATA --out {quoted(run)} --budget +10m"
            )

    def check(self, config: Config, facts: Facts, given: Collection[str]) -> list[str]:
        """What beginning with this model means for these images, a line each; `given` are the keys set one by one.

        Raises:
            UserError: for images or settings that its weights mean nothing for.
        """
        saved, (channels, height, width) = self.model, facts.shape
        old_channels, old_height, old_width = saved.facts.shape
        if channels != old_channels:
            raise UserError(
                f"{config.source}: {_channels(channels)}, the images of {self.name} have {_channels(old_channels)}; "
                f"a folder is read so with --set data.channels={old_channels}"
            )
        _need_same_meaning(self.name, saved.config, config)
        divisor = config.model.patch * 2 ** (len(config.model.multipliers) - 1)
        if height % divisor or width % divisor:
            raise UserError(
                f"{config.source}: images of {height}x{width} do not divide by {divisor}, as the network of "
                f"{self.name} needs; give a multiple with --size"
            )
        rule = "" if "train.learning_rate" in given else ", the preset's (--learning-rate sets another)"
        lines = [
            f"begins with the weights of {self.name} ({saved.images:,} images seen of {saved.config.source}; "
            f"{self.state['digest'][:12]}), its network, and a new optimiser; "
            f"diffusion.chain={config.diffusion.chain}, train.learning_rate={config.train.learning_rate:g}{rule}"
        ]
        if (height, width) != (old_height, old_width):
            lines.append(
                f"images of {height}x{width}, the model's are {old_height}x{old_width}: its convolutions go on as they "
                f"are, its coarsest attention looks over {height // divisor}x{width // divisor} positions and no more "
                f"{old_height // divisor}x{old_width // divisor}"
            )
        return [*lines, *_classes(saved, config, facts)]

    def weights(self, config: Config, facts: Facts, new: Mapping[str, Tensor]) -> Tensors:
        """The model's weights for the network of this configuration.

        Args:
            config: of the run, as `check` has allowed it.
            facts: of its images.
            new: the network's own weights, as it would begin without a model.
        """
        saved, weights = self.model, dict(self.model.weights)
        null = weights.pop("null", None)
        if null is not None and not _conditions(config):  # what was added to the time then, always is
            weights["time.2.bias"] = weights["time.2.bias"] + null
        if "null" in new:
            weights["null"] = new["null"] if null is None else null
        for name in ("embed.weight", "embed.bias", "augmentation.weight"):
            old = weights.pop(name, None)
            if name in new:
                weights[name] = torch.zeros_like(new[name]) if old is None else old
        rows = weights.pop("label.weight", None)
        if "label.weight" in new:
            weights["label.weight"] = _rows(rows, null, saved, facts, new["label.weight"])
        for name in ("head.2.weight", "head.2.bias"):  # the second half places a learned variance: 0 is the middle
            missing = new[name].shape[0] - weights[name].shape[0]
            if missing > 0:
                weights[name] = torch.cat([weights[name], weights[name].new_zeros(missing, *weights[name].shape[1:])])
            weights[name] = weights[name][: new[name].shape[0]]
        return weights


def settings(chosen: Config, given: Collection[str], model: Config) -> Config:
    """The settings of a run that begins with a model: its network and process, and how to train from `chosen`.

    Args:
        chosen: as they would be without the model.
        given: keys that were set one by one, which are taken as they are.
        model: the model's.
    """

    def of_model(group: str) -> dict[str, object]:
        kept = asdict(getattr(model, group))
        return {name: value for name, value in kept.items() if f"{group}.{name}" not in given}

    network = replace(chosen.model, **of_model("model"))
    if not network.conditional and "model.condition_dropout" not in given:
        network = replace(network, condition_dropout=0.0)  # nothing is left to drop
    return replace(chosen, model=network, diffusion=replace(chosen.diffusion, **of_model("diffusion")))


def _need_same_meaning(name: str, model: Config, config: Config) -> None:
    """Refuse settings under which the same weights would compute something else."""
    free = _FREE | ({"diffusion.chain"} if chain(model).weights_of == chain(config).weights_of else set())
    differing = {
        f"{group}.{field}": (old, new)
        for group in ("model", "diffusion")
        for (field, old), new in zip(
            asdict(getattr(model, group)).items(), asdict(getattr(config, group)).values(), strict=True
        )
        if old != new and f"{group}.{field}" not in free
    }
    for key, (old, new) in differing.items():
        if key == "diffusion.target":
            raise UserError(
                f"{key}: the network of {name} predicts {old}; what that says of {new} depends on x_t and t, which no "
                "weights can make up for; leave it out"
            )
        if key not in _TIMES:
            raise UserError(f"{key}: is {old} in {name}, and its weights mean nothing with {new}; leave it out")
    if differing and not _times_carry_over(model, config):
        keys = " and ".join(differing)
        raise UserError(
            f"{keys}: at some time the network of {name} would get another t than it was trained to see with that "
            "noise; leave it out (fewer steps of the same schedule, such as half of diffusion.T, can be exact)"
        )


def _times_carry_over(model: Config, config: Config) -> bool:
    """Whether at each time the network gets the clock that it got at the same noise."""
    (old_clock, was), (clock, now) = (
        (choose(CLOCKS, one.diffusion.clock, "diffusion.clock")(torch.arange(1, made.T + 1).double(), made.T), made)
        for one, made in ((model, build.schedule(model)), (config, build.schedule(config)))
    )
    index = (torch.searchsorted(old_clock, clock - 1e-9 * clock.abs() - 1e-9)).clamp(max=was.T - 1)
    same_clock = torch.isclose(old_clock[index], clock, rtol=1e-9, atol=1e-9)
    same_noise = torch.isclose(was.log_alpha_bar[1:][index], now.log_alpha_bar[1:], rtol=1e-9, atol=1e-12)
    return bool((same_clock & same_noise).all())


def _conditions(config: Config) -> list[str]:
    return [name for name in _CONDITIONS if getattr(config.model, name)]


def _classes(saved: Checkpoint, config: Config, facts: Facts) -> list[str]:
    """What becomes of the model's conditions, a line each.

    Raises:
        UserError: where the network without them, or with others, is not known.
    """
    old, new = _conditions(saved.config), _conditions(config)
    lost = [name for name in old if name not in new]
    never = not saved.config.model.condition_dropout
    if lost and (new or never):
        why = "was never trained without" if never else "was trained without them only together"
        raise UserError(
            f"model.{lost[0]}: the model {why}, so that what it computes without is not known; "
            f"leave out --set model.{lost[0]}=false, and give images that have them"
        )
    if "embedding" in old and "embedding" in new and saved.facts.embedding != facts.embedding:
        raise UserError(
            f"{config.source}: its embeddings have length {facts.embedding}, the model's {saved.facts.embedding}"
        )
    lines = [f"model.{name}: begins with no effect, and is learned" for name in new if name not in old]
    if lost:
        lines.append("goes on as it was without conditions")
    if "labels" in old and "labels" in new:
        matched = [name for name in facts.class_names if name in saved.facts.trained]
        fresh = [name for name in facts.class_names if name not in matched]
        gone = [name for name in saved.facts.trained if name not in matched]
        parts = (("carried over by name", matched), ("begun anew", fresh), ("left behind", gone))
        lines.append("classes " + "; ".join(f"{what}: {listed(names)}" for what, names in parts if names))
    if config.model.condition_dropout and never and old:
        lines.append("model.condition_dropout: the model without conditions begins anew")
    return lines


def _rows(rows: Tensor | None, null: Tensor | None, saved: Checkpoint, facts: Facts, new: Tensor) -> Tensor:
    """The embedding of the classes: those that the model knows by name; the others as its network without conditions.

    Where it has none, or where that is without a vector too, they begin as in a new network.
    """
    if rows is None:
        return torch.zeros_like(new)
    alone = null is not None and not saved.config.model.embedding
    made = null.expand_as(new).clone() if alone and null is not None else new.clone()
    for number, name in enumerate(facts.class_names):
        if name in saved.facts.trained:
            made[number] = rows[saved.facts.class_names.index(name)]
    return made


def _channels(count: int) -> str:
    return {1: "1 channel (grey)", 3: "3 channels (colour)"}.get(count, f"{count} channels")
