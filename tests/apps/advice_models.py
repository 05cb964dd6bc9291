"""Trains the models of `advice-models.json` and writes what the report measures of each.

    python tests/apps/advice_models.py [SET ...]

Three sets of 8x8 images (digits in grey, digits in colours of their own, noise), each for 0.5, 5, 50 and 500 epochs.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from click.testing import CliRunner
from sklearn.datasets import load_digits

EPOCHS = (0.5, 5, 50, 500)
TRAIN, HELD_OUT = 128, 40
KEPT = Path(__file__).with_name("advice-models.json")


def images() -> dict[str, np.ndarray]:
    """(N, 8, 8, C) uint8, by name."""
    chance = np.random.default_rng(0)
    grey = (load_digits().images[: TRAIN + HELD_OUT, ..., None] / 16 * 255).astype(np.uint8)
    colour = (grey * chance.uniform(0.2, 1, (len(grey), 1, 1, 3))).astype(np.uint8)
    return {"grey": grey, "colour": colour, "noise": chance.integers(0, 256, grey.shape, dtype=np.uint8)}


def measured(name: str, folder: Path) -> dict[str, dict]:
    """One model, trained on, and measured after each of the lengths."""
    from ancestral.apps.cli.main import main
    from ancestral.apps.report import quality
    from ancestral.apps.report.subject import of_run

    data, run, found = folder / f"{name}.npy", folder / name, {}
    np.save(data, images()[name])
    holdout = HELD_OUT / (TRAIN + HELD_OUT)
    for epochs in EPOCHS:
        run = folder / f"{name}-{epochs:g}"
        words = ["train", data, "--preset", "tiny", "--out", run, "--device", "cpu", "--images", round(epochs * TRAIN)]
        words += [
            word
            for one in (f"data.holdout={holdout}", "train.batch_size=64", "model.width=16")
            for word in ("--set", one)
        ]
        made = CliRunner().invoke(main, [str(word) for word in words])
        assert made.exit_code == 0, made.output
        subject = of_run(run, None, 24, 0, "cpu", None)
        numbers = quality.part(subject).numbers
        assert subject.saved is not None
        found[f"{epochs:g}"] = {
            "seen": subject.saved.images,
            "numbers": {key: [one.value, one.error] for key, one in sorted(numbers.items())},
        }
        print(name, epochs, flush=True)
    return found


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        found = {name: measured(name, Path(folder)) for name in sys.argv[1:] or images()}
    KEPT.write_text(json.dumps(found, indent=1) + "\n")
