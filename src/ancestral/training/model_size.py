"""Size follows budget: which width of the preset `images` to train for so much time.

By a law of the loss of width w after n images, loss(w, n) = floor + a (w / 32)^-p + b (n / 10^5)^-q, as Hoffmann et al.
2022 have it for language models (section 3.3), where an image takes (w / 32)^s of the time that it takes at width 32.
It was fitted to the trials of benchmarks/model_size.py, which writes model_size.json; s is the machine's own, measured
where a width is chosen: between 16 and 32 it was 1.5 on an AMD EPYC, 1.1 on an Intel Xeon with AMX, and a GPU that such
networks leave idle would have none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from ancestral.runs.config import Config, ModelOptions, resolve
from ancestral.runs.facts import Facts
from ancestral.runtime.text import minutes

FILE = Path(__file__).with_suffix(".json")
WIDTHS = (16, 32, 48, 64, 96, 128)  # multiples of the preset's groups
UNIT, IMAGES = 32, 1e5  # width and images that the law counts in
SIDES = range(28, 33)  # of the images of the trials
LEAST = 60.0  # seconds of a budget from which on the measuring of the speed is little
TIMED = 4  # widths whose speed is measured to find that of the least loss, at most
MARGIN = 0.02  # of the loss, as far as the law errs; and a narrower network draws in less time
HOPEFUL = 0.3  # s of a machine that wide networks suit: where no other width is best even by it, none is timed

NETWORK = ("width", "multipliers", "blocks", "attention", "patch")  # settings that make its size


@dataclass(frozen=True)
class Law:
    """The loss of a width after so many images, of one kind of data."""

    floor: float
    width: tuple[float, float]  # a, p
    images: tuple[float, float]  # b, q
    seconds: float  # s

    def loss(self, width: int, images: float) -> float:
        """The held-out loss, per dimension, of a run of so many images."""
        (a, p), (b, q) = self.width, self.images
        return self.floor + a * (width / UNIT) ** -p + b * (images / IMAGES) ** -q

    def needed(self, width: int, loss: float) -> float:
        """Images that a run of this width sees until it has this loss; infinitely many where it never has."""
        b, q = self.images
        left = loss - self.loss(width, float("inf"))
        return IMAGES * (left / b) ** (-1 / q) if left > 0 else float("inf")

    def seen(self, width: int, seconds: float, per_second: float) -> float:
        """Images of this width in so many seconds, where one of width 32 would see so many per second."""
        return seconds * per_second * (width / UNIT) ** -self.seconds

    def per_second(self, width: int, measured: float) -> float:
        """Images per second of width 32, where so many of this width were measured."""
        return measured * (width / UNIT) ** self.seconds

    def best(self, seconds: float, per_second: float) -> int:
        """The width for so many seconds, at so many images per second of width 32."""
        return narrowest({width: self.loss(width, self.seen(width, seconds, per_second)) for width in WIDTHS})


def narrowest(losses: Mapping[int, float]) -> int:
    """The narrowest of the widths with these losses that is within MARGIN of the least."""
    enough = (1 + MARGIN) * min(losses.values())
    return min(width for width, loss in losses.items() if loss <= enough)


def timed(
    law: Law, width: int, seconds: float, speed: Callable[[int], float], widths: Iterable[int] = WIDTHS
) -> tuple[int, Law, float]:
    """The best width for so many seconds on this machine, the law with its s, and its images per second of width 32.

    Measured are this width and, where another would be better with an s of HOPEFUL, the next, whichever has the least
    loss by what is known until then, and that which is chosen.

    Args:
        law: with a first guess at s.
        width: of the preset.
        seconds: of the budget.
        speed: measures the images per second of a width.
        widths: to choose from; looked at only where another than the preset's could be better.
    """
    speeds = {width: speed(width)}

    def expected(other: int) -> float:
        one, *more = sorted(speeds, key=lambda near: abs(math.log(near / other)))
        return speeds[one] * (other / one) ** -(_exponent(speeds, one, more[0]) if more else law.seconds)

    def losses(among: Iterable[int]) -> dict[int, float]:
        return {one: law.loss(one, seconds * expected(one)) for one in among}

    hopeful = replace(law, seconds=HOPEFUL)
    if hopeful.best(seconds, hopeful.per_second(width, speeds[width])) == width:
        return width, law, law.per_second(width, speeds[width])
    known = sorted(widths)
    second = max([_least(losses(known)), *known[1:2]])
    if second not in speeds:
        speeds[second] = speed(second)
    while len(speeds) < TIMED:
        near = [one for one in known if one <= 2 * max(speeds)]  # further than that a guess is worth little
        if (other := _least(losses(near))) in speeds:
            break
        speeds[other] = speed(other)
    while (chosen := narrowest(losses(known))) not in speeds:
        speeds[chosen] = speed(chosen)
    for one in [chosen, *speeds]:
        if one != width:
            law = replace(law, seconds=_exponent(speeds, width, one))
            break
    return chosen, law, law.per_second(width, speeds[width])


def _least(losses: Mapping[int, float]) -> int:
    """The width of the least loss."""
    return min(losses, key=losses.__getitem__)


def _exponent(speeds: Mapping[int, float], one: int, other: int) -> float:
    """The s between two widths, of which the wider is not taken for the faster."""
    return max(0.0, math.log(speeds[one] / speeds[other]) / math.log(other / one))


def curve(law: Law, seconds: float, per_second: float) -> str:
    """The loss after a quarter, half, once, twice and four times this time, each with the width that is best for it."""
    parts = []
    for share in (0.25, 0.5, 1, 2, 4):
        width = law.best(share * seconds, per_second)
        loss = law.loss(width, law.seen(width, share * seconds, per_second))
        parts.append(f"{loss:.4f} after {minutes(share * seconds)} (width {width})")
    return f"held-out loss expected of budgets: {', '.join(parts)}"


def kind(facts: Facts) -> str:
    """Of images: grey or colour."""
    return "grey" if facts.shape[0] == 1 else "colour"


def laws() -> Mapping[str, Law]:
    """Of grey and of colour images."""
    return msgspec.json.decode(FILE.read_bytes(), type=dict[str, Law])


def law(config: Config, facts: Facts) -> Law | None:
    """The law of runs with these settings, whatever their width, and this size of images; None without such trials."""
    usual = resolve("", "images", {"model.width": config.model.width})
    conditions = {name: getattr(usual.model, name) for name in ("labels", "embedding", "condition_dropout")}
    noise = replace(config.diffusion, shift=usual.diffusion.shift)  # 1 at these sides, unless it was set
    learning = ("batch_size", "learning_rate", "warmup", "optimizer")
    tried = (
        replace(config.model, **conditions) == usual.model
        and config.model.width in WIDTHS
        and noise == usual.diffusion
        and config.diffusion.shift in ("auto", 1.0)
        and all(getattr(config.train, name) == getattr(usual.train, name) for name in learning)
        and all(side in SIDES for side in facts.shape[1:])
    )
    return laws()[kind(facts)] if tried else None


def sized(
    settings: Config,
    given: Collection[str],
    seconds: float | None,
    facts: Facts,
    begun: Config | None,
    speed: Callable[[Config], float],
    fits: Callable[[Config], bool],
    say: Callable[[str], object],
) -> tuple[Config, float | None, Law | None]:
    """The settings with the width for a budget on this machine; a run goes on with the network that it began with.

    Where a part of the network was set, or there is no law, they stay as they are. With them come the images per second
    that they train on here, None where nothing was measured, and the law with what was.

    Args:
        settings: of a preset, with those that were set one by one.
        given: keys of these.
        seconds: of the budget; None for a count of images or updates, which changes no width.
        facts: of the images to train on.
        begun: the configuration of the run that is there.
        speed: measures how many images per second are trained on with a configuration; to all processes the same.
        fits: whether its training fits into memory; to all processes the same.
        say: takes a line that says what was chosen, and why.
    """
    found, before = law(settings, facts), settings.model
    if found is None or any(f"model.{name}" in given for name in NETWORK):
        return settings, None, found
    own, why, here = {name: getattr(before, name) for name in NETWORK}, "", None
    if begun is not None:
        own, why = {name: getattr(begun.model, name) for name in NETWORK}, "as the run was begun"
    elif seconds is not None and seconds >= LEAST:
        of = {width: replace(settings, model=replace(before, width=width)) for width in WIDTHS}
        own["width"], found, per_second = timed(
            found,
            before.width,
            seconds,
            lambda width: speed(of[width]),
            (width for width, one in of.items() if width == before.width or fits(one)),
        )
        here = found.seen(own["width"], 1.0, per_second)
        widths = own["width"], before.width
        losses = [f"{found.loss(one, found.seen(one, seconds, per_second)):.4f}" for one in widths]
        why = f"for this budget here (expected held-out loss {losses[0]}, and {losses[1]} at width {before.width})"
    after = replace(before, **own)
    changed = [name for name in NETWORK if getattr(after, name) != getattr(before, name)]
    if changed:
        now, was = ([_setting(name, model) for name in changed] for model in (after, before))
        say(f"{' '.join(now)}: {why}; --set {' --set '.join(was)} is the preset's own")
    settings = replace(settings, model=after)
    return settings, here, law(settings, facts) if here is None else found


def _setting(name: str, model: ModelOptions) -> str:
    value = getattr(model, name)
    return f"model.{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
