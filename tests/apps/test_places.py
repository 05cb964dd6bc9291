"""A run works from any folder, goes on from another, and says nothing of a home to others."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from ancestral.data import load, source_paths
from ancestral.runs import checkpoint, config
from ancestral.runs.build import device
from ancestral.runs.measurements import read_measurements
from ancestral.training import run as training_run
from conftest import TINY, run_command

TRAIN = ("train", "photos.npz", "--preset", "tiny", "--steps", 2, "--out", "run", *TINY)


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def there(request, tmp_path, monkeypatch):
    """A folder with photos, where the command is typed, and another one."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, request.param), dtype=np.uint8)
    np.savez(tmp_path / "a" / "photos.npz", train_images=images[:40], test_images=images[40:])
    monkeypatch.chdir(tmp_path / "a")
    return tmp_path


def test_a_run_is_measured_from_another_folder(there, monkeypatch):
    made = run_command(*TRAIN)
    assert made.exit_code == 0, made.output
    saved, _ = checkpoint.open_run(there / "a" / "run")
    assert saved.config.source == str(there / "a" / "photos.npz")
    monkeypatch.chdir(there / "b")
    quick = ("--network", "pixels", "--steps", 2, "--device", "cpu", "--cache", there / "cache")
    result = run_command("metrics", there / "a" / "run", *quick)
    assert result.exit_code == 0, result.output
    assert run_command("evaluate", "../a/run", "--terms", 2, "--num-images", 2, "--device", "cpu").exit_code == 0
    # The same images by another name are the run's own.
    assert run_command("metrics", "../a/run", "../a/photos.npz", *quick).exit_code == 0
    assert [one.title for one in read_measurements(there / "a" / "run", saved)] == ["evaluation", "metrics-pixels"]
    shutil.move(there / "a" / "photos.npz", there / "b" / "moved.npz")
    result = run_command("metrics", "../a/run", *quick)
    assert result.exit_code == 2
    assert (
        f"{there / 'a' / 'photos.npz'}: the images of the run are not there; name where they are now" in result.output
    )
    assert run_command("metrics", "../a/run", "moved.npz", *quick).exit_code == 0


def test_relative_absolute_and_linked_are_one_path_when_a_run_goes_on(there, monkeypatch):
    assert run_command(*TRAIN).exit_code == 0
    (there / "b" / "link").symlink_to(there / "a")
    for source in (there / "a" / "photos.npz", there / "b" / "link" / "photos.npz"):
        again = run_command("train", source, *TRAIN[2:])
        assert again.exit_code == 0, again.output
        assert "is complete" in again.output
    np.savez("others.npz", **dict(np.load("photos.npz")))
    assert run_command("train", "others.npz", *TRAIN[2:]).exit_code == 2


def test_an_older_run_with_a_relative_source_goes_on_and_is_measured(there):
    overrides = {"model.width": 8, "train.batch_size": 16, "train.snapshots": 3, "train.seed": 0}
    settings = config.resolve("photos.npz", "tiny", overrides)
    images = load.load("photos.npz", settings.data)
    run = training_run.Run(Path("run"), settings, images, device("cpu"), "--steps 2")
    run.begin(32)
    list(run.train(lambda: False))
    saved, _ = checkpoint.open_run(Path("run"))
    assert saved.config.source == "photos.npz"
    again = run_command(*TRAIN)
    assert again.exit_code == 0, again.output
    assert "is complete" in again.output
    assert run_command("evaluate", "run", "--terms", 2, "--num-images", 2, "--device", "cpu").exit_code == 0


def test_a_source_is_shown_from_here_or_from_home(tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "home" / "work"
    here.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    for source, shown, typed in (
        (here / "my photos", "my photos", "'my photos'"),
        (home / "my photos", "~/my photos", "~/'my photos'"),
        (Path("/data/photos"), "/data/photos", "/data/photos"),
        ("mnist", "mnist", "mnist"),
        ("hf:a/b", "hf:a/b", "hf:a/b"),
        ("~/x", "~/x", "'~/x'"),
    ):
        assert (source_paths.public(str(source)), source_paths.typed(str(source))) == (shown, typed)
    assert load.settled("mnist") == "mnist"
    (here / "mnist").mkdir()
    assert load.settled("mnist") == "mnist"
    assert load.settled("./mnist") == str(here / "mnist")
    assert load.settled("x-{0..3}.tar") == str(here / "x-{0..3}.tar")
    assert load.settled("absent") == "absent"
