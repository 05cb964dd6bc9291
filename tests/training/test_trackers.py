"""Trackers: what they are told arrives, and nothing they do reaches the run."""

import time

import numpy as np
import pytest

from ancestral.errors import UserError
from ancestral.training import trackers


class Listening:
    def __init__(self):
        self.received = []

    def log(self, images, values):
        self.received.append((images, values))

    def picture(self, images, name, pixels):
        self.received.append((images, name))

    def close(self):
        self.received.append("closed")


class Failing(Listening):
    def log(self, images, values):
        raise OSError("no network")


class Hanging(Listening):
    def log(self, images, values):
        time.sleep(3600)


def test_entries_arrive_in_order():
    one, two, warned = Listening(), Listening(), []
    aside = trackers.TrackerThread({"one": lambda: one, "two": lambda: two}, warned.append)
    for images in range(100):
        aside.log(images, {"loss": 1.0})
    aside.picture(100, "preview", np.zeros((2, 2, 3), np.uint8))
    aside.close()
    assert one.received == two.received == [*((n, {"loss": 1.0}) for n in range(100)), (100, "preview"), "closed"]
    assert not warned


def test_a_tracker_that_fails_is_named_once_and_the_others_go_on():
    one, warned = Listening(), []
    aside = trackers.TrackerThread({"bad": Failing, "one": lambda: one, "absent": lambda: 1 / 0}, warned.append)
    for images in range(10):
        aside.log(images, {})
    aside.close()
    assert len(one.received) == 11
    assert len(warned) == 2
    assert "ZeroDivisionError" in warned[0]
    assert "no network" in warned[1]


def test_a_tracker_that_hangs_or_is_flooded_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(trackers, "CLOSE_TIMEOUT", 0.2)
    warned = []
    aside = trackers.TrackerThread({"slow": Hanging}, warned.append)
    began = time.monotonic()
    for images in range(10 * trackers.PENDING):
        aside.log(images, {})
    aside.close()
    assert time.monotonic() - began < 5
    assert aside.dropped >= 8 * trackers.PENDING
    assert "too slow" in warned[0]


def test_wrong_names(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="did you mean 'tensorboard'"):
        trackers.check(["tensorbord"])
    monkeypatch.setattr("ancestral.training.trackers.find_spec", lambda name: None)
    with pytest.raises(UserError, match='needs wandb; pip install "wandb'):
        trackers.check(["wandb"])
    assert trackers.open_trackers([], tmp_path, {}, print) is None


def test_tensorboard_can_be_read_back(tmp_path):
    warned = []
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    aside = trackers.open_trackers(["tensorboard"], tmp_path, {"train.seed": 0}, warned.append)
    for images in (10, 20):
        aside.log(images, {"loss": 1 / images, "loss_by_tenth_of_t/3": 0.5})
    aside.picture(20, "preview", np.full((4, 6, 3), 7, np.uint8))
    aside.close()
    read = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(one.step, round(one.value, 6)) for one in read.Scalars("loss")] == [(10, 0.1), (20, 0.05)]
    assert read.Scalars("loss_by_tenth_of_t/3")[0].value == 0.5
    picture = read.Images("preview")[0]
    assert (picture.height, picture.width) == (4, 6)
    assert not warned


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(trackers, "CLOSE_TIMEOUT", 60.0)
    warned = []
    for _ in range(2):  # a run and its continuation
        aside = trackers.open_trackers(["wandb"], tmp_path, {"train.seed": 0}, warned.append)
        aside.log(10, {"loss": 0.5})
        aside.close()
    assert not warned
    name = (tmp_path / "wandb-id").read_text()
    runs = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert 1 <= len(runs) <= 2  # named by the second
    assert all(name in run for run in runs)


def test_a_record_of_a_moved_end_has_curves_of_the_rest():
    entry = {"loss": 0.5, "loss_by_tenth_of_t": [0.25, None], "end_moved": [[640, 1280]], "grad_norm": None}
    assert trackers.scalars(entry) == {"loss": 0.5, "loss_by_tenth_of_t/0": 0.25}
