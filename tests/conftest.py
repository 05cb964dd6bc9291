"""Shared pieces: one tiny trained run for all tests of the commands."""

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import settings
from PIL import Image

settings.register_profile("exact", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("exact")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["ANCESTRAL_STRICT"] = "1"  # see ancestral.runtime.side_tasks
os.environ["HF_HUB_OFFLINE"] = "1"  # read when datasets is imported
if sys.dont_write_bytecode:  # every process that a test starts would compile torch, and most of its time go into that
    sys.dont_write_bytecode = False
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(Path(sys.prefix) / "bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def run_command(*arguments):
    """Run `ancestral` in this process."""
    from ancestral.apps.cli.main import main

    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=True)


@pytest.fixture(autouse=True, scope="session")
def few_calibrated():
    """Trainings in this process calibrate their variances on 16 images for 128, which takes half of a short one."""
    from ancestral.training import budget

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "CALIBRATED", 16)
        yield


@pytest.fixture
def command():
    return run_command


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> Path:
    """A run of 30 updates on the 8x8 digits."""
    run = tmp_path_factory.mktemp("runs") / "digits"
    result = run_command("train", "digits", "--preset", "tiny", "--steps", 30, "--out", run, *TINY)
    assert result.exit_code == 0, result.output
    return run


@pytest.fixture(scope="session")
def colour_digits(tmp_path_factory) -> Path:
    """The 8x8 digits, each painted in a colour of its own."""
    datasets = pytest.importorskip("sklearn.datasets")
    path = tmp_path_factory.mktemp("colour") / "digits.npy"
    paint = np.random.default_rng(0).uniform(0.2, 1, (1797, 1, 1, 3))
    np.save(path, (datasets.load_digits().images[..., None] / 16 * 255 * paint).astype(np.uint8))
    return path


@pytest.fixture(scope="session")
def colour_run(colour_digits) -> Path:
    """A run of 30 updates on these."""
    run = colour_digits.with_name("run")
    result = run_command("train", colour_digits, "--preset", "tiny", "--steps", 30, "--out", run, *TINY)
    assert result.exit_code == 0, result.output
    return run


RUNS = ("trained_run", "colour_run")  # grey and colour


@pytest.fixture(params=RUNS)
def any_run(request) -> Path:
    """Each of them."""
    return request.getfixturevalue(request.param)


TINY = ("--device", "cpu", "--set", "model.width=8", "--set", "train.batch_size=16", "--set", "train.snapshots=3")


def pixels(seed, channels, high=256, side=8):
    return np.random.default_rng(seed).integers(0, high, (side, side, channels)).astype(np.uint16)


def save(path, seed, channels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, channels).astype(np.uint8).squeeze()).save(path, **options)


def png16(path, values, filtered=True):
    """A 16-bit PNG (H, W, 1 to 4); the rows are stored as differences, as writers do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, channels = values.shape

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = np.frombuffer(values.astype(">u2").tobytes(), np.uint8).reshape(height, -1)
    if filtered:  # "Sub": each byte less the one a pixel before
        before = np.pad(rows, ((0, 0), (2 * channels, 0)))[:, : rows.shape[1]]
        rows = rows - before
    data = b"".join(bytes([filtered]) + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, 16, (0, 4, 2, 6)[channels - 1], 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="session")
def cases(tmp_path_factory) -> Path:
    """The inputs on which something went wrong once, made on the spot."""
    return made_cases(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="session")
def colour_cases(tmp_path_factory) -> Path:
    """The same with colours: another red, green and blue of every grey picture."""
    folder = made_cases(tmp_path_factory.mktemp("colour-cases"))
    for path in sorted(folder.rglob("*.png")) + sorted(folder.rglob("*.bmp")):
        if path.is_file() and path.name != "broken].png":
            values = np.asarray(Image.open(path))
            if values.ndim == 3:
                continue
            coloured = np.stack([values, values[::-1], values.max() - values], -1)
            png16(path, coloured) if values.dtype == np.uint16 else Image.fromarray(coloured).save(path)
    return folder


def made_cases(folder: Path) -> Path:
    make = Path(__file__).parents[2] / "shared" / "cases" / "make.py"
    if not make.is_file():
        pytest.skip(f"{make.parent} is not there")
    subprocess.run([sys.executable, make, folder], check=True, capture_output=True, timeout=60)
    return folder


def harness(name, count, seed):
    """What a harness of tests/ says, in a process and with a thread of its own."""
    command = [sys.executable, Path(__file__).parent / name, str(count), str(seed)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
