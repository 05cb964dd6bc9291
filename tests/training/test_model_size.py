"""Size follows budget: the law's arithmetic in closed form, and whose width a run has."""

import math
from dataclasses import replace

import pytest

from ancestral.runs import config
from ancestral.runs.facts import Facts
from ancestral.training import model_size
from ancestral.training.model_size import TIMED, UNIT, WIDTHS, Law, curve, law, laws

LAW = Law(0.1, (0.03, 0.5), (0.05, 0.6), 1.6)
KINDS = pytest.mark.parametrize("channels", [1, 3])


def test_the_loss_is_its_formula_and_the_images_needed_are_its_inverse():
    assert LAW.loss(64, 2e5) == pytest.approx(0.1 + 0.03 / math.sqrt(2) + 0.05 * 2**-0.6, rel=1e-12)
    for width in WIDTHS:
        assert LAW.needed(width, LAW.loss(width, 12_345)) == pytest.approx(12_345, rel=1e-9)
    assert LAW.needed(32, 0.13) == math.inf  # where the loss of infinitely many images is
    assert LAW.per_second(64, LAW.seen(64, 1, 500)) == pytest.approx(500)


@pytest.mark.parametrize("seconds", [1, 60, 300, 1e3, 1e4, 1e5, 1e9])
def test_the_width_is_the_narrowest_near_the_least_loss_which_is_where_the_derivative_is_zero(seconds):
    # With r = w / 32 the loss is a r^-p + b (n r^-s)^-q: least where a p r^-p = b s q n^-q r^(s q).
    (a, p), (b, q), s = LAW.width, LAW.images, LAW.seconds
    n = 500 * seconds / 1e5
    exact = UNIT * (a * p / (b * s * q * n**-q)) ** (1 / (p + s * q))
    best = LAW.best(seconds, 500)

    def loss(width):
        return LAW.loss(width, LAW.seen(width, seconds, 500))

    assert loss(best) <= 1.02 * min(map(loss, WIDTHS))
    assert all(loss(width) > 1.02 * min(map(loss, WIDTHS)) for width in WIDTHS if width < best)
    # At equal losses it would be one of the two neighbours; never is it wider.
    assert best <= min([w for w in WIDTHS if w > exact], default=WIDTHS[-1])
    assert loss(exact) <= min(map(loss, WIDTHS))


@KINDS
def test_more_time_or_a_faster_machine_never_asks_for_a_smaller_network(channels):
    found = laws()["grey" if channels == 1 else "colour"]
    for by in (lambda more: found.best(60 * more, 500), lambda more: found.best(60, 500 * more)):
        widths = [by(4.0**power) for power in range(10)]
        assert widths == sorted(widths)
        assert widths[0] < widths[-1]
    curved = curve(found, 600, 500)
    assert curved.count(" after ") == 5
    losses = [float(part.split()[0]) for part in curved.partition(": ")[2].split(", ")]
    assert losses == sorted(losses, reverse=True)


def narrowest(losses):
    """Of the widths with these losses the first whose is at most 2 % above the least."""
    return next(width for width in sorted(losses) if losses[width] <= 1.02 * min(losses.values()))


def test_a_wider_network_must_promise_more_than_the_law_s_error():
    assert model_size.narrowest({32: 1.0, 16: 1.0199, 48: 1.1}) == 16
    assert model_size.narrowest({32: 1.0, 16: 1.0201, 48: 0.99}) == 32
    assert model_size.narrowest({16: 1.5, 64: 1.0}) == 64


def machine(speed, s):
    """One whose images per second fall by a power of the width, from so many at the preset's."""
    return lambda width: speed * (width / plain().width) ** -s


@pytest.mark.parametrize("s", [0.0, 0.4, 1.1, 1.5, 2.0])
@pytest.mark.parametrize("seconds", [600, 1e4, 1e6])
@KINDS
def test_the_width_is_the_best_of_all_on_a_machine_with_any_exponent(channels, seconds, s):
    speed, known = machine(300.0, s), laws()["grey" if channels == 1 else "colour"]
    best, found, per_second = model_size.timed(known, 16, seconds, speed)
    assert found.seconds == pytest.approx(s, abs=1e-9)
    assert per_second == pytest.approx(speed(32))
    assert best == narrowest({one: known.loss(one, seconds * speed(one)) for one in WIDTHS})


@KINDS
def test_a_width_that_does_not_fit_into_memory_is_not_timed(channels):
    asked, known, speed = [], laws()["grey" if channels == 1 else "colour"], machine(300.0, 0.4)
    best, *_ = model_size.timed(known, 16, 1e5, lambda width: asked.append(width) or speed(width), [16, 32, 48])
    assert best == narrowest({one: known.loss(one, 1e5 * speed(one)) for one in (16, 32, 48)}) > 16
    assert max(asked) == 48
    assert model_size.timed(known, 16, 1e5, speed, [16])[0] == 16


@KINDS
def test_a_budget_too_short_for_another_width_times_none(channels):
    asked, known = [], laws()["grey" if channels == 1 else "colour"]
    speed = machine(100.0, 1.1)
    best, found, per_second = model_size.timed(known, 16, 60, lambda width: asked.append(width) or speed(width))
    assert (best, found, asked) == (16, known, [16])
    assert per_second == known.per_second(16, 100.0)


@KINDS
@pytest.mark.parametrize("seconds", [60, 600, 1e4, 1e6])
def test_on_a_device_that_small_networks_leave_idle_it_is_near_the_best_after_few_measurements(channels, seconds):
    asked, known = [], laws()["grey" if channels == 1 else "colour"]

    def speed(width):
        asked.append(width)
        return 2000.0 / max(1, width / 64) ** 2

    def loss(width):
        return known.loss(width, seconds * speed(width))

    best, found, per_second = model_size.timed(known, 16, seconds, speed)
    assert len(asked) == len(set(asked)) <= TIMED + 1
    assert found.seen(best, 1, per_second) == pytest.approx(2000.0 / max(1, best / 64) ** 2)
    assert loss(best) <= 1.02 * loss(known.best(seconds, known.per_second(16, 2000.0)))
    assert loss(best) == pytest.approx(min(map(loss, WIDTHS)), rel=0.04)


def sized(channels=3, side=32, seconds=600.0, speed=500.0, given=(), begun=None, preset="images", **changes):
    """The network's settings, and what was said."""
    return measured(channels, side, seconds, speed, given, begun, preset, **changes)[:2]


def measured(channels=3, side=32, seconds=600.0, speed=500.0, given=(), begun=None, preset="images", **changes):
    """And the images per second that it will train on, on a machine with an exponent of 1.2."""
    settings = config.resolve("data", preset, {key.replace("__", "."): value for key, value in changes.items()})
    facts, lines, by = Facts((channels, side, side)), [], machine(speed, 1.2)
    found, here, of = model_size.sized(
        *(settings, given, seconds, facts, begun, lambda one: by(one.model.width), lambda one: True, lines.append)
    )
    assert replace(found, model=settings.model) == settings
    assert (of is None) == (law(found, facts) is None)
    return found.model, lines, here


def plain(**changes):
    return config.resolve("data", "images", {f"model.{name}": value for name, value in changes.items()}).model


@KINDS
def test_the_width_is_the_law_s_for_the_speed_that_was_measured(channels):
    one = law(config.resolve("data", "images", {}), Facts((channels, 32, 32)))
    assert one is not None
    for speed in (0.5, 500.0, 1e6):
        losses = {width: one.loss(width, 600.0 * machine(speed, 1.2)(width)) for width in WIDTHS}
        model, lines = sized(channels, speed=speed)
        assert model == plain(width=narrowest(losses))
        if model != plain():
            (line,) = lines
            assert line.startswith(f"model.width={model.width}: ")
            assert f"{losses[model.width]:.4f}" in line
            assert "--set model.width=16" in line


@KINDS
def test_what_was_measured_for_the_width_serves_the_plan(channels):
    model, _, here = measured(channels, speed=500.0)
    assert here == pytest.approx(machine(500.0, 1.2)(model.width))
    for more in ({"seconds": None}, {"seconds": 59.0}, {"begun": config.resolve("data", "images", {})}):
        assert measured(channels, **more)[2] is None


@KINDS
def test_what_was_set_stays_and_so_does_a_preset_s_where_no_law_holds(channels):
    fast = {"channels": channels, "speed": 1e6}
    assert sized(**fast)[0].width > plain().width
    for name, value in {"width": 48, "patch": 2, "multipliers": (1, 3), "attention": (0,), "blocks": 2}.items():
        key = f"model.{name}"
        assert sized(**fast, given=(key,), **{f"model__{name}": value}) == (plain(**{name: value}), [])
    assert sized(**fast, seconds=None) == (plain(), [])  # a count of images
    assert sized(**fast, seconds=59.0) == (plain(), [])
    assert sized(**fast, side=64) == (plain(), [])
    assert sized(**fast, preset="tiny")[1] == []
    assert sized(**fast, diffusion__T=100) == (plain(), [])
    assert sized(**fast, train__batch_size=128) == (plain(), [])


@KINDS
def test_a_run_goes_on_with_the_network_that_it_began_with(channels):
    before = {
        "width": 32,
        "multipliers": (1, 2),
        "attention": (1,),
        "patch": 2,
    }  # the preset's until it had more levels
    begun = config.resolve("data", "images", {f"model.{name}": value for name, value in before.items()})
    model, (line,) = sized(channels, begun=begun, speed=1.0)
    assert model == plain(**before)
    assert line.startswith("model.width=32 model.multipliers=1,2 model.attention=1 model.patch=2: as the run was begun")
    begun = config.resolve("data", "images", {})
    assert sized(channels, begun=begun, speed=1e6) == (plain(), [])


def test_the_stored_laws_are_of_both_kinds_of_images():
    assert set(laws()) == {"grey", "colour"}
    assert model_size.law(config.resolve("data", "likelihood", {}), Facts((1, 28, 28))) is None
