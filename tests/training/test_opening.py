"""What a training says of its images before it begins, and keeps with the run."""

import json

import numpy as np
import pytest

from conftest import TINY, run_command


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
            "60 images found, 60 used",
            "50 to train on, 10 held out",
            "3 classes, to train on + held out: disc 30 + 8, box 20 + 0, star 0 + 2",
            "no image to train on: star",
            f"8x8x{channels}; values 10 to 240",
            "1 held-out images equal or nearly equal one to train on",
        ):
            assert said in result.output
        assert (tmp_path / "run" / "data.json").exists() == (not options)
    kept = json.loads((tmp_path / "run" / "data.json").read_text())
    assert (kept["train"], kept["test"], kept["repeated_held_out"]) == (50, 10, 1)
    assert kept["shape"] == [8, 8, channels]
    assert kept["class_counts"][0] == {"name": "disc", "train": 30, "test": 8}
