"""What to try next: rules about measured numbers. Each quotes what it rests on, and names a command or a setting."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ancestral.apps.report.part import Number
from ancestral.apps.report.quality_training import SETTLED
from ancestral.data.source_paths import typed
from ancestral.runs.config import Config, known_keys, resolve
from ancestral.runtime.text import quoted
from ancestral.training.trackers import flat

Numbers = Mapping[str, Number]


@dataclass(frozen=True)
class Case:
    """What rules look at.

    Args:
        run: how the commands name it.
        config: of the run.
        seen: images seen in training; None without a training.
        numbers: what was measured, by name.
    """

    run: str
    config: Config
    seen: int | None
    numbers: Numbers

    def again(self, *changes: str, seen: float = 1.0) -> str:
        """The command that trains anew: all settings as they are, but the changes, and so many times the length."""
        length = round((self.seen or 0) * seen)
        sets = [*settings(self.config, changes), *changes]
        words = ["ancestral", "train", typed(self.config.source), "--out", f"{quoted(self.run)}-next"]
        return " ".join([*words, "--images", str(length), *(f"--set {quoted(one)}" for one in sets)])


@dataclass(frozen=True)
class Rule:
    """A piece of advice.

    Args:
        name: of its text in the words' table `advice`.
        quotes: the numbers that it rests on; without one of them it does not hold.
        holds: whether these numbers call for it.
        do: the command to try.
    """

    name: str
    quotes: tuple[str, ...]
    holds: Callable[[Case], bool]
    do: Callable[[Case], str]


def applies(rule: Rule, case: Case) -> bool:
    """Whether all its numbers were measured and call for it."""
    return all(name in case.numbers for name in rule.quotes) and rule.holds(case)


def advise(case: Case) -> list[Rule]:
    """The rules that hold, those that weigh most first."""
    return [rule for rule in RULES if applies(rule, case)]


def _value(case: Case, name: str) -> float:
    return case.numbers[name].value


def _surely(case: Case, name: str, above: float) -> bool:
    """Whether a number is more than three of its errors above something."""
    number = case.numbers[name]
    return number.value - 3 * (number.error or 0.0) > above


def _holds(name: str, case: Case) -> bool:
    return any(applies(rule, case) for rule in RULES if rule.name == name)


def _trained(case: Case) -> bool:
    return bool(case.seen)


def _copies(case: Case) -> bool:
    return _trained(case) and _surely(case, "copied", 3 * _value(case, "copied_usual"))


def _overfits(case: Case) -> bool:
    return _trained(case) and _surely(case, "gap", 0.01 * _value(case, "bound_train"))


def _falls(case: Case) -> bool:
    return _trained(case) and _surely(case, "fell", 1.0) and not _holds("overfits", case)


def _likeness_is_lacking(case: Case) -> bool:
    return _surely(case, "kid", 2 * max(_value(case, "kid_floor"), 0.0))


def _varied(case: Case) -> bool:
    """Whether what is drawn covers the data as far as held-out images do, within three errors."""
    recall = case.numbers["recall"]
    return recall.value + 3 * (recall.error or 0.0) >= _value(case, "recall_floor")


def _regularised(case: Case) -> str:
    return case.again(f"model.dropout={min(case.config.model.dropout + 0.1, 0.5):g}")


RULES: tuple[Rule, ...] = (
    Rule("memorises", ("copied", "copied_usual"), _copies, lambda case: case.again("model.dropout=0.2", seen=0.5)),
    Rule("overfits", ("gap", "bound_train"), _overfits, _regularised),
    Rule(
        "spikes",
        ("spike", "left_out"),
        lambda case: _trained(case) and (_value(case, "spike") > 10 or _value(case, "left_out") > 0),
        lambda case: case.again(f"train.learning_rate={case.config.train.learning_rate / 2:g}"),
    ),
    Rule("unfinished", ("fell",), _falls, lambda case: case.again(seen=2)),
    Rule(
        "few-images",
        ("train_images",),
        lambda case: _trained(case) and _value(case, "train_images") < 2000 and not case.config.train.flip,
        lambda case: case.again("train.flip=true"),
    ),
    Rule(
        "prior",
        ("L_T", "bound"),
        lambda case: (
            _trained(case)
            and _value(case, "L_T") > 1e-3 * _value(case, "bound")
            and not case.config.diffusion.schedule.endswith("zero-snr")
        ),
        lambda case: case.again("diffusion.schedule=cosine-zero-snr", "diffusion.target=v"),
    ),
    Rule(
        "variance",
        ("variance_costs", "bound"),
        lambda case: _surely(case, "variance_costs", 0.005 * _value(case, "bound")),
        lambda case: f"ancestral evaluate {quoted(case.run)} --variance optimal",
    ),
    Rule(
        "capacity",
        ("kid", "kid_floor", "parameters", "fell", "gap"),
        lambda case: (
            _trained(case)
            and _value(case, "parameters") < 2e6
            and abs(_value(case, "fell")) + 3 * (case.numbers["fell"].error or 0.0) < 100 * SETTLED
            and _likeness_is_lacking(case)
            and not any(_holds(name, case) for name in ("memorises", "overfits", "unfinished"))
        ),
        lambda case: case.again(f"model.width={2 * case.config.model.width}"),
    ),
    Rule(
        "late-bits",
        ("late",),
        lambda case: (
            _trained(case)
            and _value(case, "late") > 90
            and case.config.diffusion.schedule in ("linear", "scaled-linear")
        ),
        lambda case: case.again("diffusion.schedule=cosine"),
    ),
    Rule(
        "few-steps",
        ("missed", "missed_share"),
        lambda case: _value(case, "missed_share") > 15,
        lambda case: f"ancestral tune-steps {quoted(case.run)} --steps 10",
    ),
    Rule(
        "bits",
        ("bound", "lossless", "excess"),
        lambda case: _trained(case) and not case.config.model.fourier and _surely(case, "excess", 0.0),
        lambda case: case.again("model.fourier=[6,7]"),
    ),
    Rule(
        "at-the-floor",
        ("kid", "kid_floor", "recall", "recall_floor"),
        lambda case: not _surely(case, "kid", max(_value(case, "kid_floor"), 0.0)) and _varied(case),
        lambda case: f"ancestral metrics {quoted(case.run)} --num-images 10000",
    ),
)


def settings(config: Config, changed: tuple[str, ...] = ()) -> list[str]:
    """The assignments by which a configuration differs from the preset `images`, which training starts from."""
    keys, taken = known_keys(), {one.partition("=")[0] for one in changed}
    usual, own = (flat(asdict(one)) for one in (resolve(config.source, "images", {}), config))
    return [
        f"{name}={_text(value)}"
        for name, value in own.items()
        if name in keys and name not in taken and usual[name] != value
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
