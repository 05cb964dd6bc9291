"""Training from Python: the command's own training, with data from a path or from memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, cast

from ancestral.apps.python.model import Model, load
from ancestral.apps.python.words import names_parameters
from ancestral.data import load as reading
from ancestral.data import memory
from ancestral.errors import UserError
from ancestral.runs import config
from ancestral.runs.length import LONGEST, MOST, Amount, Length, amount, count, seconds
from ancestral.runs.registry import suggest
from ancestral.training import command, distillation
from ancestral.training.origin import Origin


@dataclass(frozen=True)
class Run:
    """A training run on disk.

    Args:
        folder: what `load`, and every command, takes.
        complete: False when it was stopped; the same call goes on from there.
    """

    folder: Path
    complete: bool

    def model(self, device: str = "auto") -> Model:
        """The trained model."""
        return load(self.folder, device)


@names_parameters
def train(
    data: object,
    out: str | Path,
    *,
    size: int | None = None,
    budget: str | float | None = None,
    images: int | str | None = None,
    steps: int | str | None = None,
    preset: str = "images",
    seed: int = 0,
    device: str = "auto",
    fresh: bool = False,
    track: Sequence[str] = (),
    begin_with: str | Path | None = None,
    **settings: Any,
) -> Run:
    """Train on images, as `ancestral train` does; the same call goes on with a run that was stopped.

    Args:
        data: a folder or whatever else the command takes; or a uint8 array (N, H, W) or (N, H, W, C), a torch data set
            of images or of images with labels, or a list of PIL images.
        out: the run folder.
        size: side of the images after a centre crop; their own when left out.
        budget: wall time to plan for, "10m" or seconds; ten minutes when no length is given; "+10m" goes on with a
            finished run.
        images: length in images seen, instead of a time; "+1000" goes on with a finished run.
        steps: length in updates, instead of a time; "+100" goes on with a finished run.
        preset: images, likelihood, absorbing, tiny, cifar10 or paper-256.
        seed: of every draw.
        device: auto, cpu, cuda, cuda:1 or mps.
        fresh: begin anew; a run that is there is moved aside.
        track: also tell tensorboard or wandb.
        begin_with: the model whose weights the run begins with, as `load` takes it; its network and process are the
            run's, the rest of the settings is the preset's.
        settings: any other by its name, `batch_size=32`, `labels=True`.

    Raises:
        UserError: naming the data, setting or file that is wrong, and the mend.
    """
    overrides = {"train.seed": seed, **({} if size is None else {"data.size": size})}
    overrides |= {_key(name): value for name, value in settings.items()}
    resolved = config.resolve(_source(data), preset, overrides)
    folder, length = _folder(out), _length(budget, images, steps)
    complete = command.train(
        resolved,
        folder,
        length,
        device,
        dry_run=False,
        fresh=fresh,
        track=track,
        images=_in_memory(data, resolved),
        given=overrides.keys() - ([] if seed else ["train.seed"]),
        begin_with=None if begin_with is None else _origin("begin_with", begin_with),
    )
    return Run(folder, complete)


@names_parameters
def distill(
    model: str | Path,
    out: str | Path,
    *,
    calls: int | None = None,
    data: object = None,
    budget: str | float | None = None,
    images: int | str | None = None,
    steps: int | str | None = None,
    seed: int = 0,
    device: str = "auto",
    fresh: bool = False,
    **settings: Any,
) -> Run:
    """Tune a model into one that draws in few network calls, as `ancestral distill` does.

    Args:
        model: to begin with, as `load` takes it.
        out: the run folder.
        calls: of the network to draw an image, that it is tuned for; 2 when left out.
        data: images to tune on, as of `train`; those that the model was trained on when left out.
        budget: wall time to plan for, "10m" or seconds; ten minutes when no length is given; "+10m" goes on with a
            finished run.
        images: length in images seen, instead of a time; "+1000" goes on with a finished run.
        steps: length in updates, instead of a time; "+100" goes on with a finished run.
        seed: of every draw.
        device: auto, cpu, cuda, cuda:1 or mps.
        fresh: begin anew; a run that is there is moved aside.
        settings: any other by its name, `batch_size=32`; the model's own when left out.

    Raises:
        UserError: naming the model, setting or file that is wrong, and the mend.
    """
    folder, length, begin_with = _folder(out), _length(budget, images, steps), _origin("model", model)
    overrides = {"train.seed": seed, **{_key(name): value for name, value in settings.items()}}
    source = None if data is None else _source(data)
    how = {"calls": calls, "data": source, "fresh": fresh, "further": length.further}
    resolved, given = distillation.settings(begin_with, overrides, folder, **how)
    chosen = {"dry_run": False, "fresh": fresh, "given": given, "begin_with": begin_with}
    chosen["images"] = None if data is None else _in_memory(data, resolved)
    return Run(folder, command.train(resolved, folder, length, device, **chosen))


def _source(data: object) -> str:
    """What data are called: their path, or that they have none."""
    return os.fspath(data) if isinstance(data, (str, os.PathLike)) else memory.NAME


def _in_memory(data: object, settings: config.Config) -> reading.Splits | None:
    """The images of data without a path."""
    return reading.of_any(data, settings.data) if settings.source == memory.NAME else None


def _folder(out: object) -> Path:
    return Path(_path("out", out, "the path of a folder"))


def _origin(name: str, model: object) -> Origin:
    return Origin(_path(name, model, "a folder or a name on the hub"))


def _path(name: str, value: object, what: str) -> str:
    """A path as text.

    Raises:
        UserError: for anything else, by the name of the argument and what is needed.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise UserError(f"{name}: {what} is needed, got {type(value).__name__}")
    return os.fspath(value)


def _length(budget: str | float | None, images: int | str | None, steps: int | str | None) -> Length:
    """The length of a run as it was given."""
    return Length.of(
        budget=_amount("budget", budget, seconds),
        images=_amount("images", images, count),
        steps=_amount("steps", steps, count),
    )


def _amount(name: str, value: Any, read: Callable[[str], Any]) -> Amount | None:
    """A length as a number, or as the command reads it."""
    if value is None:
        return None
    if isinstance(value, str) and (name == "budget" or value.startswith("+")):
        try:
            return amount(value, read)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
    kind, convert, what = (Real, float, "a number") if name == "budget" else (Integral, int, "a whole number")
    if isinstance(value, bool) or not isinstance(value, kind):
        raise UserError(f"{name}: must be {what}, or a text such as '+10', got {value!r}")
    number = convert(cast(Any, value))  # Real says not that it has __float__
    limit = LONGEST if name == "budget" else MOST
    if not 0 < number < limit:
        raise UserError(f"{name}: the length of a run must be above 0 and below {limit:.0e}, got {value!r}")
    return Amount(number)


def _key(name: str) -> str:
    """The setting of this name, with or without its group."""
    keys = config.known_keys()
    found = [key for key in (*keys, *config.IMPORTED) if name in (key, key.partition(".")[2])]
    if len(found) != 1:
        names = [key.partition(".")[2] for key in keys]
        raise UserError(
            f"{name}: {'one of ' + ', '.join(found) if found else 'unknown setting; ' + suggest(name, names)}"
        )
    return found[0]
