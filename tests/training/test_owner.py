"""One trainer a run folder; what is done beside a training never ends it; how commands end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ancestral.errors import UserError
from ancestral.runs import calibration, checkpoint, lock, metrics_log
from ancestral.runtime import plots, side_tasks
from ancestral.runtime.signals import StopSignal, raise_on_stop
from ancestral.training import preview, trackers
from ancestral.training import run as training_run
from ancestral.training.set_aside import set_aside
from conftest import TINY, harness, run_command

pytest.importorskip("sklearn")
HERE = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
TRAIN = ("train", "digits", "--preset", "tiny", *TINY)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_of_those_who_race_for_a_folder_exactly_one_wins():
    """The long form: python tests/lock_harness.py 20 200."""
    lines = harness("lock_harness.py", 2, 9)
    assert lines["others"] == []
    assert (lines["one trained, one refused"], lines["named the other"], lines["exactly one owner"]) == (2, 2, 9)


def replaced(run, **changes):
    """The record of the run's owner with other values; the heartbeat stands still."""
    path = sorted((run / lock.FOLDER).glob("*.json"))[-1]
    record = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))
    return path


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "PATIENCE", 0.4)


def test_a_second_trainer_is_refused_and_names_the_first_and_readers_are_not_hindered(trained_run, tmp_path):
    own = lock.own(trained_run)
    try:
        for more in ((), ("--fresh",)):
            result = run_command(*TRAIN, "--steps", 30, "--out", trained_run, *more)
            assert result.exit_code == 2
            assert f"is being trained by process {os.getpid()} on " in result.output
            assert " since 20" in result.output
        drawn = ("--num-images", 1, "--steps", 2, "--device", "cpu", "--out", tmp_path)
        assert run_command("sample", trained_run, *drawn).exit_code == 0
    finally:
        own.release()
    assert run_command(*TRAIN, "--steps", 30, "--out", trained_run).exit_code == 0


@HERE
def test_a_process_that_is_gone_or_whose_number_is_used_again_is_dead(tmp_path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    for changes in ({"process": int(gone.stdout)}, {"started": "1"}):
        lock.own(tmp_path)._left.set()
        replaced(tmp_path, **changes)
        lock.own(tmp_path, pytest.fail).release()


def test_on_another_machine_the_heartbeat_decides(tmp_path, impatient):
    lines, own = [], lock.own(tmp_path)
    replaced(tmp_path, machine="another", host="far", process=1)
    with pytest.raises(UserError, match="process 1 on far since"):  # it still beats
        lock.own(tmp_path, lines.append)
    own._left.set()
    time.sleep(0.1)
    lock.own(tmp_path, lines.append)
    assert "watching for up to" in lines[0]
    with pytest.raises(UserError, match="was taken over by process"):
        own.check()


def test_a_record_that_cannot_be_read_for_a_moment_is_no_death(tmp_path, impatient, monkeypatch):
    """As on a network file system: the owner still beats."""
    own, read, times = lock.own(tmp_path), lock._read, []
    path = replaced(tmp_path, machine="another", host="far", process=1)

    def now_and_then(asked):
        times.append(asked == path)
        return None if sum(times) == 2 and times[-1] else read(asked)

    monkeypatch.setattr(lock, "_read", now_and_then)
    with pytest.raises(UserError, match="process 1 on far since"):
        lock.own(tmp_path, lambda line: None)
    own._left.set()


def test_a_record_that_cannot_be_read_is_watched(tmp_path, impatient):
    lock.own(tmp_path)._left.set()
    replaced(tmp_path).write_text("{")
    lines = []
    lock.own(tmp_path, lines.append)
    assert "whose record cannot be read" in lines[0]


def test_without_hard_links_and_where_files_are_made_twice(tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.os, "link", refuse)
    own, lines = lock.own(tmp_path), []
    with pytest.raises(UserError, match="is being trained"):
        lock.own(tmp_path)
    own.release()
    opened = os.open
    monkeypatch.setattr(lock.os, "open", lambda path, flags: opened(path, flags & ~os.O_EXCL))
    lock.own(tmp_path, lines.append)
    assert "makes a file twice" in lines[0]


def test_old_owners_are_forgotten_and_the_newest_is_kept(tmp_path):
    for _ in range(12):
        lock.own(tmp_path).release()
    names = sorted(path.name for path in (tmp_path / lock.FOLDER).iterdir())
    assert names == [f"{number:06d}.json" for number in range(12 - lock.KEPT + 1, 13)]


def test_what_was_logged_before_any_checkpoint_is_forgotten(tmp_path):
    run = tmp_path / "run"
    assert run_command(*TRAIN, "--steps", 4, "--out", run).exit_code == 0
    whole = metrics_log.read_metrics(run / "metrics.jsonl")
    for folder in (run / "checkpoints").iterdir():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    (run / "averages" / "999999999").mkdir()
    (run / "previews" / "999999999.png").write_bytes(b"")
    assert run_command(*TRAIN, "--steps", 4, "--out", run).exit_code == 0
    again = metrics_log.read_metrics(run / "metrics.jsonl")
    assert [(one["images"], one["loss"]) for one in again] == [(one["images"], one["loss"]) for one in whole]
    assert not list(run.glob("*/999999999*"))


class Fault(Exception):
    """None that anybody would catch by name."""


def failing(*arguments, **named):
    raise Fault("no kernel for this")


BESIDE = {
    "preview": (preview, "preview"),
    "calibration": (calibration, "calibration"),
    "health": (training_run, "health"),
    "averages": (checkpoint, "save_snapshot"),
    "loss.png": (plots, "loss_plot"),
    "trackers": (trackers, "open_trackers"),
    "metrics.jsonl": (json, "dumps"),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_done_beside_a_training_never_ends_it(tmp_path, monkeypatch, name):
    monkeypatch.delenv(side_tasks.STRICT)
    where, what = BESIDE[name]
    if name == "metrics.jsonl":
        monkeypatch.setattr(training_run.Run, "_report", reporting_to_nowhere(training_run.Run._report, monkeypatch))
    else:
        monkeypatch.setattr(where, what, failing)
    result = run_command(*TRAIN, "--steps", 6, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert f"{name}: left out (Fault: no kernel for this); training goes on" in " ".join(result.output.split())
    assert checkpoint.latest(tmp_path / "run")[0].state["complete"]


def reporting_to_nowhere(report, monkeypatch):
    def reported(run, since):
        with monkeypatch.context() as patch:
            patch.setattr(json, "dumps", failing)
            return report(run, since)

    return reported


def test_a_fault_of_the_program_fails_a_test_and_ctrl_c_passes(monkeypatch):
    lines = []
    with pytest.raises(Fault), side_tasks.beside("x", lines.append):
        failing()
    monkeypatch.delenv(side_tasks.STRICT)
    with side_tasks.beside("x", failing):
        failing()
    with pytest.raises(KeyboardInterrupt), side_tasks.beside("x", lines.append):
        raise KeyboardInterrupt
    assert not lines


def stopped(arguments, number, ready):
    """(exit code, output) of a command that is told to stop once `ready`."""
    line = [sys.executable, "-u", "-m", "ancestral", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        end = time.monotonic() + 60
        while not ready() and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(number)
        output = process.communicate(timeout=60)[0]
        return process.returncode, output
    finally:
        process.kill()


def test_a_command_that_is_stopped_says_what_was_kept(trained_run, tmp_path):
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        out = tmp_path / str(code)
        arguments = ("sample", trained_run, "--num-images", 9999, "--batch-size", 2, "--device", "cpu", "--out", out)
        lines = stopped(arguments, number, lambda out=out: len(list(out.glob(".job/*"))) > 2)
        assert lines[0] == code, lines
        assert lines[1].strip().splitlines()[-1] == (
            "stopped: the pieces that are done are kept; the same command does what is missing"
        )
        assert "Traceback" not in lines[1]
        assert "Aborted" not in lines[1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_a_training_stopped_before_it_began(tmp_path, monkeypatch, number, code):
    monkeypatch.setattr("ancestral.data.load.load", lambda *given: signal.raise_signal(number))
    result = run_command(*TRAIN, "--steps", 6, "--out", tmp_path / "run")
    assert result.exit_code == code
    assert result.output.strip() == (
        "stopped: the last checkpoint, where there is one, is kept; the same command goes on from it"
    )


def test_a_training_stopped_after_its_last_save_draws_its_loss_the_next_time(tmp_path, monkeypatch):
    command = (*TRAIN, "--steps", 2, "--out", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("ancestral.runtime.plots.loss_plot", lambda *given: signal.raise_signal(signal.SIGINT))
        assert run_command(*command).exit_code == 130
    assert not (tmp_path / "run" / "loss.png").exists()
    result = run_command(*command)
    assert (result.exit_code, "is complete" in result.output) == (0, True), result.output
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_signals_that_are_ignored_stay_so():
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with raise_on_stop():
            signal.raise_signal(signal.SIGUSR1)
            with pytest.raises(StopSignal):
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_reader_that_goes_away_ends_a_command_quietly_and_a_training_not_at_all(trained_run, tmp_path):
    for arguments, code in (
        (("evaluate", trained_run, "--terms", 2, "--num-images", 4, "--device", "cpu"), 141),
        ((*TRAIN, "--steps", 6, "--out", tmp_path / "run"), 0),
    ):
        reading, writing = os.pipe()
        os.close(reading)
        line = [sys.executable, "-m", "ancestral", *map(str, arguments)]
        ended = subprocess.run(line, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writing)
        assert (ended.returncode, ended.stderr) == (code, "")
    assert checkpoint.latest(tmp_path / "run")[0].state["complete"]


def pictures_of(folder):
    folder.mkdir(parents=True)
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_a_run_lies_in_or_beside_its_images_and_is_never_moved_with_them(tmp_path):
    photos = pictures_of(tmp_path / "photos")
    line = ("train", photos, "--preset", "tiny", "--steps", 2, *TINY)
    for _ in range(2):  # and is complete
        result = run_command(*line, "--out", photos / "run")
        assert result.exit_code == 0, result.output
    result = run_command(*line, "--out", photos)
    assert result.exit_code == 2
    assert "is the folder of the images; give the run one of its own" in " ".join(result.output.split())
    result = run_command(*line, "--out", tmp_path, "--fresh")
    assert result.exit_code == 2
    assert "the images" in result.output
    assert photos.is_dir()


def test_who_is_begun_again_by_a_launcher_goes_on_with_what_it_began_anew(trained_run, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    before = sorted(path.name for path in trained_run.parent.iterdir())
    result = run_command(*TRAIN, "--steps", 30, "--out", trained_run, "--fresh")
    assert result.exit_code == 0, result.output
    assert "complete" in result.output
    assert sorted(path.name for path in trained_run.parent.iterdir()) == before


def test_a_run_on_a_disk_of_its_own_is_set_aside_there(tmp_path, monkeypatch):
    for name in ("config.json", "loss.png"):
        (tmp_path / name).write_text("x")
    (tmp_path / "checkpoints").mkdir()
    actual = Path.stat
    elsewhere = os.stat_result([*range(10)])
    monkeypatch.setattr(Path, "stat", lambda path, **how: elsewhere if path == tmp_path else actual(path, **how))
    set_aside(tmp_path)
    (aside,) = tmp_path.iterdir()
    assert sorted(path.name for path in aside.iterdir()) == ["checkpoints", "config.json", "loss.png"]
    set_aside(tmp_path)  # there is nothing more
    assert list(tmp_path.iterdir()) == [aside]
