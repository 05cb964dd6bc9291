"""A budget of wall time is kept, whatever happens to the speed: with a clock that goes by what is computed."""

import math
import signal
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from ancestral.data import load
from ancestral.diffusion.denoisers.denoiser import Conditioned, InParts, images_per_call
from ancestral.runs import build, calibration, config, metrics_log
from ancestral.runs.facts import Facts
from ancestral.runs.length import Length
from ancestral.runtime.signals import StopSignal
from ancestral.training import budget, command, preview
from ancestral.training import run as training_run
from ancestral.training.health import Health

BATCH = 8
IMAGE, SAVE, CALL = 0.1, 0.5, 0.01  # seconds at full speed: of training an image, a checkpoint, predicting an image
T, HELD_OUT = 8, 12
PREVIEW = (16 * T + 32 * T) * CALL
CALIBRATION, HEALTH = 128 * T * CALL, HELD_OUT * T * CALL


class Pretended:
    """A clock that only computing moves on; `slower` gives how many times as long that takes at a time."""

    def __init__(self, slower):
        self.now, self.slower = 0.0, slower

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds * self.slower(self.now)


@pytest.fixture(params=[1, 3])
def images(request, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (160, 8, 8, request.param), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=values)
    found = load.load(str(tmp_path / "data.npz"), load.DataOptions())
    return replace(found, test=found.test.spread(HELD_OUT))


@pytest.fixture(autouse=True)
def as_many_calibrated(monkeypatch):
    monkeypatch.setattr(budget, "CALIBRATED", calibration.CALIBRATED)


def run_of(folder, images, seconds, clock, monkeypatch, **more):
    settings = {"model.width": 8, "train.batch_size": BATCH, "diffusion.T": T, "train.snapshots": 5}
    run = training_run.Run(
        folder, config.resolve("data.npz", "tiny", settings), images, torch.device("cpu"), f"--budget {seconds}",
        budget=seconds, clock=clock, **more,
    )  # fmt: skip
    record, save = run.training.step(images.train), run.save
    run.training.images = 0

    def step(*arguments):
        clock.passes(BATCH * IMAGE)
        run.training.images += BATCH
        return replace(record, images=run.training.images)

    def saved(*arguments):
        clock.passes(SAVE)
        save(*arguments)

    folder.mkdir(exist_ok=True)
    run.training.step, run.save = step, saved
    shown = preview.Preview(images.test.images[:1], 5.0, [None] * 10)
    for where, name, seconds_taken, value in (
        (training_run.preview, "preview", PREVIEW, shown),
        (training_run.run_calibration, "calibration", CALIBRATION, None),
        (training_run, "health", HEALTH, Health(None, None, 0, None, {})),
    ):
        monkeypatch.setattr(where, name, lambda *arguments, t=seconds_taken, v=value, **_: clock.passes(t) or v)
    return run


def begin(run, seconds_an_image=IMAGE):
    run.begin(command.planned(run, Length(run.budget, None, None), 1 / seconds_an_image))


@pytest.mark.parametrize(
    ("what", "slower"),
    [
        ("nothing", lambda now: 1),
        ("half of the speed from half time on", lambda now: 2 if now > 150 else 1),
        ("half of the speed in the middle third", lambda now: 2 if 100 < now < 200 else 1),
        ("twice the speed in the last third", lambda now: 0.5 if now > 200 else 1),
    ],
)
def test_it_ends_within_five_percent(images, tmp_path, monkeypatch, what, slower):
    clock = Pretended(slower)
    run = run_of(tmp_path / "run", images, 300.0, clock, monkeypatch)
    begin(run)
    left = [(progress.seconds_left, clock.now, progress.doing) for progress in run.train(lambda: False)]
    assert clock.now == pytest.approx(300, rel=0.05), what
    moved = [
        one for entry in metrics_log.read_metrics(run.folder / "metrics.jsonl") for one in entry.get("end_moved", [])
    ]
    assert [images for images, _ in moved] == [images for images, _ in run.plan.legs[0].knots[1:-1]]
    if what == "nothing":
        assert len(moved) <= 2
    assert [doing for _, _, doing in left[-3:]] == [budget.CALIBRATING, budget.MEASURING, budget.SAVING]
    assert all(seconds > 0 for seconds, _, _ in left)  # never "0:00 left" while there is something to do


def test_the_end_is_worked_out_in_closed_form(images, tmp_path, monkeypatch):
    """The speed halves at half time: what is trained in all is what fits, less what the end and the saves take."""
    clock = Pretended(lambda now: 2 if now > 150 else 1)
    run = run_of(tmp_path / "run", images, 300.0, clock, monkeypatch)
    begin(run)
    list(run.train(lambda: False))
    whole_speed = 150 + 150 / 2  # seconds' worth of work
    saves = len(list((run.folder / "averages").iterdir()))
    fits = (whole_speed - CALIBRATION - HEALTH - SAVE * saves - PREVIEW * (saves - 1)) / IMAGE
    assert run.total == pytest.approx(fits, rel=0.06)


def pace_of_300():
    """Of a budget of 300 seconds; nothing is timed yet."""
    return budget.Pace(window=10, spacing=1, calibrating=40, measuring=0, showing=1, budget=300.0)


@pytest.mark.parametrize(("image", "images"), [(0.001, 128), (0.05, 30), (0.2, 8), (0.4, 8)])
def test_a_slow_network_is_calibrated_on_fewer_images(image, images):
    """40 predictions an image, each half the time of training it: in 30 of 300 seconds, but on 8 images at least."""
    pace = pace_of_300()
    pace.trained(64, 64 * image)
    assert pace.calibration_images == images
    assert pace.ending[budget.CALIBRATING] == pytest.approx(images * 40 * image / 2)
    assert replace(pace, budget=None).calibration_images == 128


def test_a_slow_first_update_does_not_outweigh_what_was_measured():
    """It may be compiled in; where nothing was measured it counts until the next, and a fast one says all."""
    pace = pace_of_300()
    pace.measured(100.0, 4.0)
    assert pace.timed
    pace.trained(10, 30.0)
    assert (pace.image, pace.warming) == (pytest.approx(0.01), False)
    pace.trained(10, 0.2)
    kept = math.exp(-0.02)
    assert pace.image == pytest.approx((4 * kept + 0.2) / (400 * kept + 10))
    other = pace_of_300()
    other.trained(10, 30.0)
    assert (other.image, other.warming) == (3.0, True)
    other.trained(10, 0.2)
    assert (other.image, other.warming) == (pytest.approx(0.02), False)
    busy = pace_of_300()
    busy.measured(1.0, 4.0)
    busy.trained(10, 0.2)
    assert (busy.image, busy.warming) == (pytest.approx(0.02), False)
    usual = pace_of_300()
    usual.measured(100.0, 4.0)
    usual.trained(10, 0.09)
    kept = math.exp(-0.009)
    assert usual.image == pytest.approx((4 * kept + 0.09) / (400 * kept + 10))


def test_what_is_calibrated_on_is_what_the_budget_counts(images, tmp_path, monkeypatch):
    slow = 0.5
    run = run_of(tmp_path / "run", images, 300.0, Pretended(lambda now: slow / IMAGE), monkeypatch)
    counts, called = [], lambda *_, count: counts.append((count, run.pace.calibration_images))
    monkeypatch.setattr(training_run.run_calibration, "calibration", called)
    begin(run, slow)
    list(run.train(lambda: False))
    assert counts == [(counts[0][1],) * 2]
    assert counts[0][0] < 128


def test_time_of_earlier_processes_counts_and_the_plan_goes_on(images, tmp_path, monkeypatch):
    first = run_of(tmp_path / "run", images, 300.0, clock := Pretended(lambda now: 1), monkeypatch, began=-20.0)
    begin(first)
    assert first.seconds_left == 280  # twenty seconds went by before, as imports and reading do
    list(first.train(lambda: clock.now > 100))
    clock.now += 1000  # between processes
    again = run_of(tmp_path / "run", images, 300.0, clock, monkeypatch, began=clock.now - 5)
    again.resume()
    assert again.plan == first.plan
    assert again.seconds_left == pytest.approx(300 - first.seconds + 1000 - 5, abs=0.5)
    list(again.train(lambda: False))
    assert again.seconds == pytest.approx(300, rel=0.05)


def test_a_further_leg_is_of_its_own_wall_time(images, tmp_path, monkeypatch):
    """As --budget +200: what the run took before, and the hour between, are not of it; its own start and end are."""
    first = run_of(tmp_path / "run", images, 100.0, clock := Pretended(lambda now: 1), monkeypatch)
    begin(first)
    list(first.train(lambda: False))
    first_took = first.seconds
    clock.now += 3600
    start = clock.now
    clock.slower = lambda now: 2 if start + 60 < now < start + 120 else 1
    leg = run_of(tmp_path / "run", images, 200.0, clock, monkeypatch, began=start - 5, further=True)
    assert leg.resume() == []
    assert (leg.complete, leg.needs_leg) == (True, True)
    assert leg.seconds_left == pytest.approx(195)
    begin(leg)
    list(leg.train(lambda: clock.now > start + 90))
    clock.now, clock.slower = clock.now + 3600, lambda now: 1  # between processes
    again = run_of(tmp_path / "run", images, 200.0, clock, monkeypatch, began=clock.now - 2, further=True)
    again.length = leg.length
    again.resume()
    assert not again.needs_leg
    list(again.train(lambda: False))
    assert again.seconds - again.plan.legs[1].began == pytest.approx(200, rel=0.05)
    assert again.plan.legs[1].began == pytest.approx(first_took, abs=SAVE)  # as the last save, under way, knows


@pytest.mark.parametrize("length", [Length(None, 203, None), Length(None, None, 25)])
def test_counts_are_exact_however_slow_it_is(images, tmp_path, monkeypatch, length):
    clock = Pretended(lambda now: 50 if now > 3 else 1)
    run = run_of(tmp_path / "run", images, 1.0, clock, monkeypatch)
    run.budget = length.seconds
    run.begin(length.counted(BATCH))
    list(run.train(lambda: False))
    assert run.total == run.training.images == 200
    assert run.plan.legs[0].knots == ((0, 0.0), (200, 1.0))


@pytest.mark.parametrize(("seconds_an_image", "updates"), [(100.0, 1), (2.3, 6)])
def test_few_updates_planned_while_the_machine_was_busy_are_planned_anew(
    images, tmp_path, monkeypatch, seconds_an_image, updates
):
    run = run_of(tmp_path / "run", images, 300.0, clock := Pretended(lambda now: 1), monkeypatch)
    begin(run, seconds_an_image)
    assert run.total == BATCH * updates
    list(run.train(lambda: False))
    assert clock.now == pytest.approx(300, rel=0.05)
    first, second, *_ = run.plan.legs[0].knots
    assert first == (0, 0.0)
    assert second[0] > 50 * BATCH  # the rate rises as if that had been the plan from the start
    assert 1 < len(list((run.folder / "averages").iterdir())) <= 7  # and what is kept is spaced so


def test_a_machine_that_was_busy_until_its_first_updates_were_made_uses_the_rest(images, tmp_path, monkeypatch):
    """By the first, which takes a hundred times as long, the end alone would take longer than the budget."""
    run = run_of(tmp_path / "run", images, 300.0, clock := Pretended(lambda now: 100 if now < 40 else 1), monkeypatch)
    begin(run, 100 * IMAGE)
    assert run.total == BATCH
    once = preview.predict_once
    monkeypatch.setattr(preview, "predict_once", lambda *given: once(*given) or clock.passes(given[3] * CALL))
    list(run.train(lambda: False))
    assert clock.now == pytest.approx(300, rel=0.05)


def test_a_stop_during_the_last_update_loses_nothing(images, tmp_path, monkeypatch):
    first = run_of(tmp_path / "run", images, 60.0, clock := Pretended(lambda now: 1), monkeypatch)
    begin(first)
    list(first.train(lambda: first.training.images >= first.total))
    again = run_of(tmp_path / "run", images, 60.0, clock, monkeypatch, began=clock.now)
    assert again.resume() == []
    assert (again.training.images, again.total, again.complete) == (first.total, first.total, False)
    list(again.train(lambda: False))
    assert again.complete
    assert again.total == first.total


def test_a_stop_in_the_last_update_leaves_the_rest_of_the_budget(images, tmp_path, monkeypatch):
    """Planned while the machine was busy, one update is all; the command that goes on has the time for others."""
    first = run_of(tmp_path / "run", images, 300.0, clock := Pretended(lambda now: 1), monkeypatch)
    begin(first, 100.0)
    list(first.train(lambda: True))
    assert (first.training.images, first.total, first.complete) == (BATCH, BATCH, False)
    clock.now += 1000  # between processes
    again = run_of(tmp_path / "run", images, 300.0, clock, monkeypatch, began=clock.now)
    monkeypatch.setattr(command.cost, "measure_speed", lambda training, data: 1 / IMAGE)
    command._train_owned(again, Length(300.0), (), {}, None)
    assert again.complete
    assert again.seconds == pytest.approx(300, rel=0.05)
    resumed = run_of(tmp_path / "run", images, 300.0, clock, monkeypatch)
    resumed.resume()
    assert resumed.plan == again.plan


def test_a_stop_in_the_last_update_with_nothing_left_adds_none(images, tmp_path, monkeypatch):
    first = run_of(tmp_path / "run", images, 60.0, clock := Pretended(lambda now: 1), monkeypatch)
    begin(first)
    list(first.train(lambda: first.training.images >= first.total))
    again = run_of(tmp_path / "run", images, 60.0, clock, monkeypatch, began=clock.now)
    command._train_owned(again, Length(60.0), (), {}, 1 / IMAGE)
    assert again.complete
    assert again.total == first.total


@pytest.mark.parametrize(("part", "number"), [("calibration", 1), ("calibration", 2), ("health", 2)])
def test_a_stop_at_the_end_of_a_run_saves_what_is_trained(images, tmp_path, monkeypatch, part, number):
    """One stop is heeded after what it met; a second one ends that at once."""
    first = run_of(tmp_path / "run", images, 60.0, clock := Pretended(lambda now: 1), monkeypatch)
    begin(first)
    where = training_run.run_calibration if part == "calibration" else training_run
    asked = []

    def interrupted(*arguments, **_):
        asked.append(part)
        if number == 2:
            raise StopSignal(signal.SIGINT)

    with monkeypatch.context() as stopped:
        stopped.setattr(where, part, interrupted)
        with pytest.raises(StopSignal) if number == 2 else nullcontext():
            list(first.train(lambda: bool(asked)))
    assert (asked, first.complete) == ([part], False)
    again = run_of(tmp_path / "run", images, 60.0, clock, monkeypatch, began=clock.now)
    assert again.resume() == []
    assert again.training.images == again.total == first.total
    list(again.train(lambda: False))
    assert again.complete


def test_a_budget_that_is_over_is_one_more_update_and_the_end(images, tmp_path, monkeypatch):
    run = run_of(tmp_path / "run", images, 10.0, clock := Pretended(lambda now: 1), monkeypatch, began=-60.0)
    begin(run)
    list(run.train(lambda: False))
    assert run.total == BATCH
    assert clock.now < 20


def test_the_slow_first_update_of_a_process_that_goes_on_moves_nothing(images, tmp_path, monkeypatch):
    first = run_of(tmp_path / "run", images, 300.0, clock := Pretended(lambda now: 1), monkeypatch)
    begin(first)
    list(first.train(lambda: clock.now > 120))
    began = clock.now
    clock.slower = lambda now: 40 if now == began else 1
    again = run_of(tmp_path / "run", images, 300.0, clock, monkeypatch, began=began)
    again.resume()
    list(again.train(lambda: False))
    assert clock.now == pytest.approx(300, rel=0.05)


def test_what_the_end_takes_is_timed_before_the_plan_is_made(images, tmp_path, monkeypatch):
    """A prediction that takes three times as long as training an image: the end is known before the first update."""
    clock = Pretended(lambda now: 1)
    run = run_of(tmp_path / "run", images, 300.0, clock, monkeypatch)
    once = preview.predict_once

    def predict(*arguments):
        once(*arguments)
        clock.passes(arguments[3] * 3 * IMAGE)

    monkeypatch.setattr(preview, "predict_once", predict)
    begin(run)
    on = int(30 / (T * 3 * IMAGE))  # images in a tenth of the budget
    assert 8 < on < 128
    for doing, count in {budget.CALIBRATING: on * T, budget.MEASURING: HELD_OUT * T}.items():
        assert run.pace.ending[doing] == pytest.approx(count * 3 * IMAGE)


def test_a_prediction_is_timed_until_the_device_has_made_it(images, tmp_path, monkeypatch):
    """A GPU's kernels run on after the call that launched them; only what reads their result waits."""
    clock = Pretended(lambda now: 1)
    run = run_of(tmp_path / "run", images, 300.0, clock, monkeypatch)

    class Launched:
        def __call__(self, *given):
            return self

        def cpu(self):
            clock.passes(CALL)

        @property
        def x0(self):
            return self

    monkeypatch.setattr(build, "predictor", lambda *given, **cond: Launched())
    model = run.training.denoiser
    preview.predict_once(run.config, run.facts, model, 1, torch.device("cpu"))
    assert clock.now == CALL


def test_it_is_saved_each_few_minutes_by_its_own_clock(images, tmp_path, monkeypatch):
    clock = Pretended(lambda now: 1)
    run = run_of(tmp_path / "run", images, None, clock, monkeypatch)
    monkeypatch.setattr(run, "_preview", lambda: None)
    run.begin(int(1000 / IMAGE) // BATCH * BATCH)
    saved, save = [], run.save
    monkeypatch.setattr(run, "save", lambda *arguments: saved.append(clock.now) or save(*arguments))
    run.config = replace(run.config, train=replace(run.config.train, snapshots=1))
    list(run.train(lambda: False))
    step = BATCH * IMAGE
    assert [saved[0], saved[1] - saved[0]] == pytest.approx([training_run.SAVE_EVERY] * 2, abs=2 * step + SAVE)


def test_predictions_in_parts_are_those_of_all_at_once():
    """Each image under its own conditions, at one time or at one of its own; large images one at a time."""
    settings = config.resolve("digits", "tiny", {"model.width": 8, "model.labels": True, "diffusion.T": 20})
    facts = Facts((1, 8, 8), tuple("01234"))
    model = build.denoiser(settings, facts).eval()
    x = torch.randn(5, *facts.shape, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 4])
    with torch.no_grad():
        for t in (7, torch.tensor([1, 5, 9, 13, 20])):
            whole, parts = Conditioned(model, labels=labels)(x, t), InParts(model, 2, labels=labels)(x, t)
            assert torch.allclose(parts.x0, whole.x0, atol=1e-5)
            assert torch.allclose(parts.eps, whole.eps, atol=1e-4)
    assert [images_per_call(calibration.MOST_IMAGES, side, side) for side in (8, 64, 128, 256, 1024)] == [
        32,
        32,
        8,
        2,
        1,
    ]
