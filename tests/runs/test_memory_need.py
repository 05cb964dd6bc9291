"""What does not fit into memory is refused before it is tried, by a bound from below of what it takes."""

import numpy as np
import pytest
import torch
from PIL import Image

import ancestral
from ancestral.data import load
from ancestral.errors import UserError
from ancestral.runs import checkpoint, config, memory_need
from ancestral.runs.datasets import facts
from ancestral.runs.facts import Facts
from ancestral.runtime import system
from ancestral.training import cost
from ancestral.training.trainer import Training
from conftest import run_command, save

CPU = torch.device("cpu")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("more", [{}, {"model.labels": True}, {"train.recompute": True}, {"train.micro_batch": 2}])
def test_what_is_counted_without_computing_is_what_an_update_saves(monkeypatch, channels, more):
    monkeypatch.setattr(cost, "SECONDS", 1e-9)
    settings = config.resolve("digits", "tiny", {"train.batch_size": 4, **more})
    data = load.of_any(torch.rand(20, 8, 8, channels).mul(255).byte().numpy(), settings.data).train
    if "model.labels" in more:
        data = load.load("digits", settings.data).train
    saved = cost.measure(Training(settings, facts(data), CPU), data).activation_bytes
    counted = 4 * (settings.train.micro_batch or 4) * memory_need._saved(settings, facts(data))
    assert counted == pytest.approx(saved, rel=0.15)  # of which the loss is a little


@pytest.mark.parametrize("channels", [1, 3])
def test_a_prediction_takes_its_largest_operation_at_least(channels):
    settings = config.resolve("digits", "tiny", {})
    shape = Facts((channels, 8, 8))
    widest = settings.model.width * 8 * 8
    assert 2 * widest <= memory_need._largest(settings, shape) <= 9 * widest


@pytest.mark.parametrize("preset", ["images", "likelihood", "absorbing", "cifar10"])
def test_no_preset_needs_more_than_what_plainly_fits(preset):
    settings = config.resolve("digits", preset, {})
    assert 4 * memory_need._saved(settings, Facts((3, 32, 32))) <= memory_need.PLAINLY * settings.model.width * 32 * 32


def test_a_million_images_at_a_time_are_one_line(trained_run, tmp_path, monkeypatch):
    monkeypatch.setattr(system, "free_memory", lambda: 1_000_000_000)
    train = ("train", "digits", "--preset", "tiny", "--steps", 1, "--out", tmp_path / "new", "--device", "cpu")
    asked = {
        "train.batch_size": [(*train, "--batch-size", 1_000_000)],
        "--batch-size": [
            ("sample", trained_run, "--num-images", 10**6, "--batch-size", 10**6, "--out", tmp_path / "o")
        ],
    }
    for option, commands in asked.items():
        for command in commands:
            result = run_command(*command)
            (line,) = [one for one in result.output.splitlines() if one.startswith("error: ")]
            assert result.exit_code == 2
            assert line.startswith(f"error: {option}: 1,000,000 images, 1,000,000 at a time, need ")
            assert "GB of memory at least, and this machine has 1.0 GB free; take " in line
    settings = config.resolve("digits", "tiny", {"train.batch_size": 1_000_000})
    memory_need.need_for_training(settings, Facts((1, 8, 8)), 8, CPU)  # as with train.micro_batch=8


@pytest.fixture
def pictures(tmp_path, any_run):
    """An image of the model's size, and a mask."""
    channels = 1 if any_run.name == "digits" else 3
    save(tmp_path / "image.png", 0, channels)
    Image.fromarray(np.pad(np.full((4, 4), 255, np.uint8), 2)).save(tmp_path / "mask.png")
    return tmp_path / "image.png", tmp_path / "mask.png"


def test_every_command_that_draws_in_batches_refuses_what_does_not_fit(any_run, pictures, tmp_path, monkeypatch):
    image, mask = pictures
    out, wide = ("--out", tmp_path / "out.png"), ("--num-images", 50, "--batch-size", 50)
    asked = {
        "--batch-size: 50": [
            ("sample", any_run, *wide, "--out", tmp_path / "drawn"),
            ("evaluate", any_run, *wide),
            ("likelihood", any_run, *wide),
            ("rd", any_run, *wide),
            ("metrics", any_run, *wide),
            ("edit", "inpaint", any_run, image, "--mask", mask, *out, *wide),
            ("edit", "vary", any_run, image, *out, *wide),
            ("edit", "interpolate", any_run, image, image, *out, "--frames", 50, "--batch-size", 50),
            ("edit", "restore", any_run, image, "--task", "missing", *out, *wide),
        ],
        "--num-images: 50": [("tune-steps", any_run, "--steps", 3, "--num-images", 50)],
        f"{any_run}: 64": [
            ("archive", any_run, image, "--out", tmp_path / "a.anc"),
            ("unarchive", any_run, tmp_path / "a.anc", "--out", tmp_path / "back"),
            ("agree", any_run),
            ("explain", any_run, "--out", tmp_path / "report.html"),
        ],
    }
    before = sorted(any_run.iterdir())
    monkeypatch.setattr(system, "free_memory", lambda: 100_000)
    for named, commands in asked.items():
        for command in commands:
            result = run_command(*command)
            assert result.exit_code == 2, result.output
            (line,) = [one for one in result.output.splitlines() if one.startswith("error: ")]
            count = named.split()[-1]
            assert line.startswith(f"error: {named} images, {count} at a time, need 0.0 GB of memory at least"), line
    assert sorted(tmp_path.iterdir()) == sorted(pictures)
    assert sorted(any_run.iterdir()) == before
    model = ancestral.load(any_run, device="cpu")
    with pytest.raises(UserError, match="batch_size: 50 images, 50 at a time"):
        model.bits_per_dim(num_images=50, batch_size=50)
    with pytest.raises(UserError, match="count: 50 images, 50 at a time"):
        model.film(50)


@pytest.mark.parametrize("method", ["ddnm", "ddrm", "pigdm", "mmps", "dps"])
def test_restoring_by_a_gradient_needs_what_its_backward_pass_takes(any_run, pictures, tmp_path, monkeypatch, method):
    """Between what a prediction takes and what is saved of it, only the methods that differentiate are refused."""
    image, _ = pictures
    saved, _ = checkpoint.open_run(any_run)
    least, most = (20 * 4 * count(saved.config, saved.facts) for count in (memory_need._largest, memory_need._saved))
    assert 2 * least < most
    monkeypatch.setattr(system, "free_memory", lambda: (least + most) // 2)
    result = run_command(
        *("edit", "restore", any_run, image, "--task", "missing", "--method", method, "--steps", 2),
        *("--num-images", 20, "--batch-size", 20, "--out", tmp_path / "out.png"),
    )
    if method in ("ddnm", "ddrm"):
        assert result.exit_code == 0, result.output
    else:
        assert result.exit_code == 2
        assert "error: --batch-size: 20 images, 20 at a time, need 0.0 GB of memory at least" in result.output
        assert not (tmp_path / "out.png").exists()


def test_copies_of_files_in_memory_are_no_use_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(system, "_GROUP", str(tmp_path))
    for name, text in (("max", "9000000"), ("current", "8500000"), ("stat", "anon 500000\ninactive_file 7000000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert system.free_memory() == 7_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert system.free_memory() > 7_500_000


def test_what_the_machine_says_is_no_more_than_it_has():
    free = system.free_memory()
    if free is None:
        pytest.skip("this machine does not say")
    assert free > 0
    with pytest.raises(UserError, match=r"1,000,000 images, 1,000,000 at a time, need .* of memory at least"):
        memory_need.need_for_training(
            config.resolve("digits", "paper-256", {"train.batch_size": 1_000_000}), Facts((3, 256, 256)), 1_000_000, CPU
        )
