"""diffusion.shift: the noise of images of another size, by itself where it is auto."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ancestral.diffusion.objectives.time_sampling import TIME_SAMPLERS
from ancestral.errors import UserError
from ancestral.runs import build, config
from ancestral.runs.current_settings import for_images
from ancestral.runs.facts import Facts
from ancestral.runs.hub.diffusers_config import scheduler_document
from ancestral.training import trainer
from conftest import TINY, run_command

IMAGES = config.resolve("data", "images", {})


def shift(settings, side, begun=None):
    return for_images(settings, Facts((3, *side)), begun)[0].diffusion.shift


def test_it_follows_the_side_of_the_images_unless_it_was_set_or_the_run_began_otherwise():
    assert [shift(IMAGES, side) for side in ((28, 28), (32, 32), (64, 64), (32, 128), (256, 256))] == [1, 1, 2, 2, 8]
    assert shift(config.resolve("data", "images", {"diffusion.shift": "3"}), (64, 64)) == 3
    assert shift(config.resolve("data", "cifar10", {}), (64, 64)) == 1
    assert shift(IMAGES, (64, 64), begun=config.resolve("data", "cifar10", {})) == 1
    began_with_3 = config.resolve("data", "images", {"diffusion.shift": 3})
    assert (
        for_images(IMAGES, Facts((3, 64, 64)), began_with_3)[1] == "diffusion.shift = auto: 3.0, as the run was begun"
    )


def test_what_it_is_of_any_images_can_be_read_back():
    settings, _ = for_images(IMAGES, (facts := Facts((3, 65536, 65536))), None)
    assert config.from_json(json.loads(json.dumps(config.to_json(settings, facts))), "config.json")[0] == settings


def test_a_chain_without_noise_has_none():
    hiding = {"diffusion.chain": "absorbing", "diffusion.schedule": "even", "diffusion.objective": "bound"}
    assert shift(config.resolve("data", "images", hiding), (64, 64)) == 1
    with pytest.raises(UserError, match=r"diffusion\.shift: .* hides places"):
        build.schedule(config.resolve("data", "images", {**hiding, "diffusion.shift": 2}))


@pytest.mark.parametrize("times", TIME_SAMPLERS)
def test_times_are_drawn_as_often_as_without(times):
    plain = config.resolve("data", "images", {"diffusion.T": "40", "diffusion.times": times})
    moved = replace(plain, diffusion=replace(plain.diffusion, shift=4.0))
    assert torch.equal(build.time_schedule(moved).log_alpha_bar, build.schedule(plain).log_alpha_bar)
    assert torch.equal(build.schedule(moved).log_alpha_bar, build.schedule(plain).shifted(4).log_alpha_bar)
    runs = [trainer.Training(one, Facts((1, 8, 8)), torch.device("cpu")) for one in (plain, moved)]
    drawn = [run.sampler.draw(run.uniforms(0, range(200)))[0] for run in runs]
    assert len(drawn[0].unique()) > 10
    assert torch.equal(*drawn)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "linear-zero-snr"])
def test_diffusers_gets_the_noise_itself(schedule):
    diffusers = pytest.importorskip("diffusers")
    settings = config.resolve("data", "images", {"diffusion.schedule": schedule, "diffusion.shift": "2"})
    document = scheduler_document(settings.diffusion, "trailing")
    theirs = diffusers.DDPMScheduler(**{name: one for name, one in document.items() if not name.startswith("_")})
    ours = build.schedule(settings).alpha_bar(torch.arange(1, 1001))
    assert torch.allclose(theirs.alphas_cumprod.double(), ours, rtol=1e-3, atol=1e-7)


def test_a_training_says_it_and_goes_on_with_it(tmp_path):
    np.savez(tmp_path / "data.npz", images=np.random.default_rng(0).integers(0, 256, (12, 64, 64, 1), dtype=np.uint8))
    job = ("train", tmp_path / "data.npz", "--out", tmp_path / "run", *TINY)
    made = run_command(*job, "--steps", 1)
    assert made.exit_code == 0, made.output
    assert "diffusion.shift = auto: 2.0, the noise of images of 64x64" in made.output
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["diffusion"]["shift"] == 2
    again = run_command(*job, "--steps", 1)
    assert (again.exit_code, "is complete" in again.output) == (0, True), again.output
    other = run_command(*job, "--steps", 1, "--set", "diffusion.shift=1")
    assert (other.exit_code, "diffusion.shift" in other.output) == (2, True), other.output
    wrong = run_command(*job, "--set", "diffusion.shift=x")
    assert "choose from: a number, auto" in wrong.output
