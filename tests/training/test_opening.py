"""What a training says of its images before it begins, and keeps with the run."""

import json
import re

import numpy as np
import pytest

from ancestral.data import load
from ancestral.data.dataset import DataOptions
from ancestral.data.inventory import counted
from ancestral.training import command
from conftest import TINY, run_command, save

KIND = {1: "grey", 3: "colour"}
TENTH = "(about 10% of all, by their names; data.holdout sets the share)"
SKIP = ("--set", "data.bad_images=skip")
MEND = "mend or remove them, or leave such files out: --set data.bad_images=skip"
ALONE = ("20 images used, of 21 found", f"  16 to train on, 4 held out {TENTH}")
ALONE += (
    "  1 class (the folders), to train on + held out: disc: 16 + 4",
    "  size 16x16, {kind}; values 0 to 255 of 255",
)
STRAYS = r"esc\x1b[31m.png, exp[red]1.png, line\nleft out: nothing.png, plain.png, rtl\u202egnp.png"
# Cases of ../shared/cases with options: all that is said of the images, {kind} being grey or colour.
SAID = {
    ("twelve-bit",): (
        "60 images found, all used",
        f"  54 to train on, 6 held out {TENTH}",
        "  no classes",
        "  size 16x16, {kind}; values 0 to 238 of 255",
        "  60 images with more than 8 bits a value, rounded to 8: the largest is 3825, so that 4095 is white (another: "
        "--set data.white=65535)",
    ),
    ("edm-layout",): (
        "60 images found, all used",
        f"  57 to train on, 3 held out {TENTH}",
        "  2 classes (dataset.json), to train on + held out: 0: 28 + 2, 1: 29 + 1",
        "  size 16x16, {kind}; values 0 to 255 of 255",
    ),
    ("train-valid",): (
        "80 images found, all used",
        "  60 to train on, 20 held out (the folders train and valid)",
        "  2 classes (the folders), to train on + held out: box: 30 + 10, disc: 30 + 10",
        "  size 16x16, {kind}; values 0 to 255 of 255",
    ),
    ("nested",): (
        "76 images found, all used",
        "  60 to train on, 16 held out (the folders train and test of dataset)",
        "  2 classes (the folders), to train on + held out: box: 30 + 8, disc: 30 + 8",
        "  size 16x16, {kind}; values 0 to 255 of 255",
    ),
    ("unseen",): (
        "52 images found, all used",
        "  40 to train on, 12 held out (the folders train and test)",
        "  2 classes (the folders), to train on + held out: box: 0 + 6, disc: 40 + 6",
        "  size 16x16, {kind}; values 0 to 255 of 255",
        "warning: no training image of the class box: not learned, and cannot be drawn",
    ),
    ("suffixes",): (
        "40 images found, all used",
        f"  36 to train on, 4 held out {TENTH}",
        "  no classes",
        "  size 16x16, colour; values 0 to 255 of 255",
    ),
    ("linked",): (
        "60 images found, all used",
        f"  51 to train on, 9 held out {TENTH}",
        "  2 classes (the folders), to train on + held out: box: 27 + 3, disc: 24 + 6",
        "  size 16x16, {kind}; values 0 to 255 of 255",
    ),
    ("stray",): (
        "41 images found, all used",
        f"  35 to train on, 6 held out {TENTH}",
        "  no classes, since cover.png lies beside the folders box, disc; to have classes by folders, move it into one "
        "of them or away",
        "  size 16x16, {kind}; values 0 to 255 of 255",
    ),
    ("dangling",): (f"error: {{case}}/disc/gone.png: cannot be read (a link to nothing); {MEND}",),
    ("dangling", *SKIP): (
        ALONE[0],
        "  left out, damaged or not readable: 1 (disc/gone.png: cannot be read (a link to nothing))",
        *ALONE[1:],
    ),
    ("two-channels.npz",): (
        "error: {case}: images: must be (N, H, W) or (N, H, W, C) with C 1, 3 or 4, not (60, 16, 16, 2)",
    ),
    ("pipe",): (ALONE[0], "  left out, not a regular file: 1 (a.tar)", *ALONE[1:]),
    ("names",): (
        f"error: {{case}}/a[/broken].png: cannot be read (not an image of a known format, or damaged); {MEND}",
    ),
    ("names", *SKIP): (
        "6 images used, of 7 found",
        "  left out, damaged or not readable: 1 (a[/broken].png: cannot be read (not an image of a known format, or "
        "damaged))",
        f"  5 to train on, 1 held out {TENTH}",
        f"  no classes, since {STRAYS} lie beside the folder a[; to have classes by folders, move them into one of "
        "them or away",
        "  size 16x16, {kind}; values 0 to 245 of 255",
    ),
    ("leak4",): (
        "400 images found, all used",
        "  300 to train on, 100 held out (the folders train and test)",
        "  no classes",
        "  size 16x16, {kind}; values 0 to 255 of 255",
        "  4 held-out images equal or nearly equal one to train on",
    ),
}


@pytest.mark.parametrize("kind", ["grey", "colour"])
@pytest.mark.parametrize("job", SAID, ids=" ".join)
def test_every_case_is_understood_aloud(job, kind, tmp_path, request, monkeypatch):
    root = request.getfixturevalue("cases" if kind == "grey" else "colour_cases")
    monkeypatch.chdir(root)
    monkeypatch.setattr(command, "_describe", lambda *_: None)  # what it would cost
    result = run_command("train", *job, "--dry-run", "--preset", "tiny", "--out", tmp_path / "run", *TINY)
    expected = [line.replace("{kind}", kind).replace("{case}", str(root / job[0])) for line in SAID[job]]
    if not expected[0].startswith("error: "):
        expected[0] = f"{job[0]}: {expected[0]}"
    assert result.output.splitlines() == expected
    assert result.exit_code == (2 if expected[0].startswith("error: ") else 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_training_begins_with_what_was_understood(tmp_path, channels):
    images = np.random.default_rng(0).integers(10, 241, (60, 8, 8, channels), dtype=np.uint8)
    images[0].flat[:2] = 10, 240
    images[50] = images[3]
    labels = np.array([0] * 30 + [1] * 20 + [0] * 8 + [2] * 2)
    np.savez(
        tmp_path / "data.npz",
        train_images=images[:50],
        test_images=images[50:],
        train_labels=labels[:50],
        test_labels=labels[50:],
        class_names=np.array(["disc", "box", "star"]),
    )
    job = ("train", tmp_path / "data.npz", "--preset", "tiny", "--steps", 2, "--out", tmp_path / "run", *TINY)
    for options in (("--dry-run",), ()):
        result = run_command(*job, *options)
        assert result.exit_code == 0, result.output
        for said in (
            "60 images found, all used",
            "50 to train on, 10 held out",
            "3 classes (labels), to train on + held out: disc: 30 + 8, box: 20 + 0, star: 0 + 2",
            "warning: no training image of the class star: not learned, and cannot be drawn",
            f"size 8x8, {KIND[channels]}; values 10 to 240",
            "1 held-out image equals or nearly equals one to train on",
        ):
            assert result.output.count(said) == 1, said
        assert (tmp_path / "run" / "data.json").exists() == (not options)
    kept = json.loads((tmp_path / "run" / "data.json").read_text())
    assert (kept["train"], kept["test"], kept["repeated_held_out"]) == (50, 10, 1)
    assert kept["shape"] == [8, 8, channels]
    assert kept["class_counts"][0] == {"name": "disc", "train": 30, "test": 8}


@pytest.mark.parametrize("channels", [1, 3])
def test_an_older_run_gets_its_facts_when_it_goes_on(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, channels), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    job = ("train", tmp_path / "x.npy", "--preset", "tiny", "--steps", 1, "--out", tmp_path / "run", *TINY)
    assert run_command(*job).exit_code == 0
    facts = tmp_path / "run" / "data.json"
    before = facts.read_text()
    facts.unlink()
    assert run_command(*job).exit_code == 0
    assert facts.read_text() == before


@pytest.mark.parametrize("channels", [1, 3])
def test_held_out_images_without_classes(tmp_path, channels):
    """Class folders to train on beside a flat folder of tests: said, and refused where the model is told the class."""
    for number in range(12):
        for folder in ("train/disc", "train/box", "test"):
            save(tmp_path / "set" / folder / f"{number}.png", 100 * len(folder) + number, channels)
    job = ("train", tmp_path / "set", "--dry-run", "--preset", "tiny", "--out", tmp_path / "run", *TINY)
    result = run_command(*job)
    assert result.exit_code == 0, result.output
    assert "2 classes (of train: the folders; of test: none), to train on: box: 12, disc: 12\n" in result.output
    refused = run_command(*job, "--set", "model.labels=true")
    assert refused.exit_code == 2
    assert "the images held out have other classes, or none (of train: the folders; of test: none)" in refused.output


@pytest.mark.parametrize("channels", [1, 3])
def test_held_out_images_of_a_class_that_was_not_trained_on_are_named(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, channels), dtype=np.uint8)
    labels = np.array([0] * 25 + [0] * 20 + [1] * 5)
    parts = {"train_images": images[:25], "test_images": images[25:]}
    parts |= {"train_labels": labels[:25], "test_labels": labels[25:], "class_names": np.array(["disc", "box"])}
    np.savez(tmp_path / "x.npz", **parts)
    run = tmp_path / "run"
    assert (
        run_command("train", tmp_path / "x.npz", "--preset", "tiny", "--steps", 1, "--out", run, *TINY).exit_code == 0
    )
    np.save(tmp_path / "drawn.npy", images[:25])
    pixels = ("--network", "pixels", "--out", tmp_path, "--cache", tmp_path / "cache")
    said = "warning: no training image of the class box: 5 of 25 held-out images here\n"
    for measured in (
        ("evaluate", run, "--device", "cpu", "--terms", 2),
        ("rd", run, "--device", "cpu", "--steps", 2),
        ("metrics", tmp_path / "drawn.npy", tmp_path / "x.npz", *pixels),
        ("metrics", run, "--device", "cpu", "--steps", 2, *pixels),
    ):
        result = run_command(*measured)
        assert result.exit_code == 0, result.output
        assert result.output.count(said) == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_too_few_held_out_images_are_said_at_the_end(tmp_path, channels):
    for number in range(30):
        save(tmp_path / "few" / f"{number}.png", number, channels)
    tiny = ("--preset", "tiny", "--images", 10, *TINY, "--out", tmp_path / "run")
    said = run_command("train", tmp_path / "few", *tiny).output
    held_out = int(re.search(r"(\d+) held out", said)[1])
    assert held_out < 8
    assert f"what was learned is not checked: {counted(held_out, 'image')} held out, 8 are needed" in said


def test_images_that_are_all_alike_are_split_and_that_is_said(tmp_path):
    for number in range(8):
        save(tmp_path / "same" / f"{number}.png", 0, 3)
    splits = load.load(str(tmp_path / "same"), DataOptions())
    assert len(splits.train)
    assert len(splits.test)
    assert "all are equal or nearly equal, and are split all the same" in splits.reading.split
    assert "kept on one side" not in splits.reading.split


def test_a_dry_run_says_what_was_rounded_and_what_the_disk_holds(tmp_path):
    tiny = ("--preset", "tiny", *TINY, "--out", tmp_path / "run")
    said = run_command("train", "digits", "--images", 40, *tiny, "--dry-run").output
    assert re.search(r"--images 40: (32|48) images \(whole updates of 16\) = [23] updates = ", said)
    wide = (*tiny, "--set", "model.width=64", "--images", 96)
    said = run_command("train", "digits", *wide, "--dry-run").output
    planned = float(re.search(r"disk: ([\d,]+) MB, of 2 checkpoints and 3 snapshots", said)[1])
    assert "whole updates" not in said
    assert run_command("train", "digits", *wide).exit_code == 0
    names = ("checkpoints", "averages")
    taken = sum(one.stat().st_size for name in names for one in (tmp_path / "run" / name).rglob("*") if one.is_file())
    assert planned > 10
    assert 0.6 * planned <= taken / 1e6 <= 1.1 * planned
    again = run_command("train", "digits", *wide[:-1], "+16", "--dry-run").output
    assert "--images +16: 16 images = 1 update = " in again
