"""What to try next: rules about measured numbers. Each quotes what it rests on, and names a command or a setting."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ancestral.apps.report.part import Number
from ancestral.apps.report.quality_samples import LEAST
from ancestral.apps.report.quality_training import SETTLED
from ancestral.data.source_paths import typed
from ancestral.runs.config import IMPORTED, Config, flat, known_keys, resolve
from ancestral.runs.current_settings import for_images
from ancestral.runs.facts import Facts
from ancestral.runtime.text import quoted

Numbers = Mapping[str, Number]


@dataclass(frozen=True)
class Case:
    """What rules look at.

    Args:
        run: how the commands name it.
        config: of the run.
        facts: of its images.
        source: its data, as the commands name them.
        seen: images seen in training; None without a training.
        numbers: what was measured, by name.
    """

    run: str
    config: Config
    facts: Facts
    source: str
    seen: int | None
    numbers: Numbers

    @property
    def imported(self) -> bool:
        """Whether it has settings that only models from elsewhere have."""
        usual, own = (flat(asdict(one)) for one in (Config(self.config.source), self.config))
        return any(own[key] != usual[key] for key in IMPORTED)

    def again(self, *changes: str, seen: float = 1.0) -> str:
        """The command that trains anew: all settings as they are, but the changes, and so many times the length."""
        length = round((self.seen or 0) * seen)
        kept = settings(self.config, self.facts, changes)
        words = ["ancestral", "train", typed(self.source), "--out", f"{quoted(self.run)}-next"]
        if self.imported:  # no option describes its network or its betas: they come with the model
            words += ["--from", quoted(self.run)]
            kept = [one for one in kept if one.startswith(("train.", "data."))]
        sets = [*kept, *changes]
        return " ".join([*words, "--images", str(length), *(f"--set {quoted(one)}" for one in sets)])


@dataclass(frozen=True)
class Rule:
    """A piece of advice.

    Args:
        name: of its text in the words' table `advice`.
        quotes: the numbers that it rests on; without one of them it does not hold.
        holds: whether these numbers call for it.
        do: the command to try.
        source: of `sources.toml`, where it knows more than was measured here.
        anew: whether that trains another network or another process, which a model from elsewhere does not begin.
        longer: how many times as long a training it asks for, where it asks for nothing else.
    """

    name: str
    quotes: tuple[str, ...]
    holds: Callable[[Case], bool]
    do: Callable[[Case], str]
    source: str = ""
    anew: bool = False
    longer: Callable[[Case], float] | None = None


def applies(rule: Rule, case: Case) -> bool:
    """Whether all its numbers were measured and call for it."""
    quoted_all = all(name in case.numbers for name in rule.quotes)
    return quoted_all and not (rule.anew and case.imported) and rule.holds(case)


def advise(case: Case) -> list[Rule]:
    """The rules that hold, those that weigh most first; for a trained model there is always one."""
    return [rule for rule in RULES if applies(rule, case)] or [one for one in (NOTHING_LEFT,) if applies(one, case)]


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
    return _trained(case) and _surely(case, "fell", 1.0) and not _is_any(case, "overfits", "few-epochs")


def _settled(case: Case) -> bool:
    """Whether the records show that the loss had come to rest."""
    fell = case.numbers.get("fell")
    return fell is not None and abs(fell.value) + 3 * (fell.error or 0.0) < 100 * SETTLED


def _is_far_and_not_settled(case: Case) -> bool:
    better = ("memorises", "overfits", "few-epochs", "unfinished", "spikes")
    return _trained(case) and _likeness_is_lacking(case) and not _settled(case) and not _is_any(case, *better)


def _is_any(case: Case, *names: str) -> bool:
    return any(_holds(name, case) for name in names)


def _likeness_is_lacking(case: Case) -> bool:
    return _surely(case, "kid", 2 * max(_value(case, "kid_floor"), 0.0))


def _varied(case: Case) -> bool:
    """Whether what is drawn covers the data as far as held-out images do, within three errors."""
    recall = case.numbers["recall"]
    return recall.value + 3 * (recall.error or 0.0) >= _value(case, "recall_floor")


def _train_longer(
    name: str, quotes: tuple[str, ...], holds: Callable[[Case], bool], times: Callable[[Case], float]
) -> Rule:
    return Rule(name, quotes, holds, lambda case: case.again(seen=times(case)), longer=times)


def _more_dropout(case: Case, least: float = 0.0) -> str:
    return f"model.dropout={min(max(least, case.config.model.dropout + 0.1), 0.5):g}"


RULES: tuple[Rule, ...] = (
    Rule(
        "too-few",
        ("available",),
        lambda case: _trained(case) and _value(case, "available") < LEAST,
        lambda case: case.again("data.holdout=0.5"),
    ),
    Rule(
        "noise",
        ("lossless",),
        lambda case: _trained(case) and _surely(case, "lossless", 7.5),
        lambda case: f"{case.again()} --dry-run",
    ),
    Rule(
        "repeats",
        ("repeated_share",),
        lambda case: _trained(case) and _value(case, "repeated_share") > 20,
        lambda case: f"{case.again()} --dry-run",
    ),
    Rule(
        "memorises",
        ("copied", "copied_usual"),
        _copies,
        lambda case: case.again(_more_dropout(case, 0.2), seen=0.5),
        "ddpm",
    ),
    Rule(
        "too-large",
        ("gap", "parameters", "train_values"),
        lambda case: (
            _value(case, "parameters") > _value(case, "train_values")
            and case.config.model.width >= 32
            and "bound_train" in case.numbers
            and _overfits(case)
        ),
        lambda case: case.again(f"model.width={case.config.model.width // 2}"),
        anew=True,
    ),
    Rule("overfits", ("gap", "bound_train"), _overfits, lambda case: case.again(_more_dropout(case)), "ddpm"),
    Rule(
        "spikes",
        ("spike", "left_out"),
        lambda case: _trained(case) and (_value(case, "spike") > 10 or _value(case, "left_out") > 0),
        lambda case: case.again(f"train.learning_rate={case.config.train.learning_rate / 2:g}"),
    ),
    _train_longer(
        "few-epochs",
        ("epochs", "train_images"),
        lambda case: _trained(case) and _value(case, "epochs") < 1,
        lambda case: 10 / _value(case, "epochs"),
    ),
    _train_longer("unfinished", ("fell", "gain"), _falls, lambda case: 2),
    _train_longer("unsettled", ("kid", "kid_floor"), _is_far_and_not_settled, lambda case: 4),
    Rule(
        "few-images",
        ("train_images",),
        lambda case: _trained(case) and _value(case, "train_images") < 2000 and not case.config.train.flip,
        lambda case: case.again("train.flip=true"),
        "ddpm",
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
        "flawed",
        anew=True,
    ),
    Rule(
        "variance",
        ("variance_costs", "bound"),
        lambda case: _surely(case, "variance_costs", 0.005 * _value(case, "bound")),
        lambda case: f"ancestral evaluate {quoted(case.run)} --variance optimal",
        "analytic",
    ),
    Rule(
        "capacity",
        ("kid", "kid_floor", "parameters", "fell", "gap"),
        lambda case: (
            _trained(case)
            and _value(case, "parameters") < 2e6
            and _settled(case)
            and _likeness_is_lacking(case)
            and not _is_any(case, "memorises", "overfits", "unfinished", "few-epochs")
        ),
        lambda case: case.again(f"model.width={2 * case.config.model.width}"),
        anew=True,
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
        "improved",
        anew=True,
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
        "vdm",
        anew=True,
    ),
    Rule(
        "at-the-floor",
        ("kid", "kid_floor", "recall", "recall_floor"),
        lambda case: (
            not _surely(case, "kid", max(_value(case, "kid_floor"), 0.0))
            and _varied(case)
            and not _is_any(case, "too-few", "noise", "memorises", "overfits", "few-epochs")
        ),
        lambda case: f"ancestral metrics {quoted(case.run)} --num-images 10000",
    ),
)


# What is said where no rule holds.
NOTHING_LEFT = Rule(
    "nothing-left",
    ("bound",),
    lambda case: case.seen is not None,
    lambda case: f"ancestral explain {quoted(case.run)} --num-images 2000",
)


def settings(config: Config, facts: Facts, changed: tuple[str, ...] = ()) -> list[str]:
    """The assignments by which a configuration differs from the preset `images` for such images."""
    keys, taken = known_keys(), {one.partition("=")[0] for one in changed}
    usual_settings, _ = for_images(resolve(config.source, "images", {}), facts, None)
    usual, own = (flat(asdict(one)) for one in (usual_settings, config))
    return [
        f"{name}={_text(value)}"
        for name, value in own.items()
        if name in keys and name not in taken and usual[name] != value
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
