"""Runs of the absorbing chain: trained, resumed, measured and drawn by the same commands as the Gaussian."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from ancestral.data import load
from ancestral.data.pictures import LINE
from ancestral.diffusion.processes.absorbing import Independent
from ancestral.errors import UserError
from ancestral.runs import build, checkpoint, config
from ancestral.runs.datasets import facts
from ancestral.runs.plan import Plan
from ancestral.runs.process_kinds import CHAINS
from ancestral.training.trainer import Training, train
from conftest import TINY, run_command

SMALL = ("--preset", "absorbing", *TINY, "--set", "model.patch=1", "--set", "diffusion.T=16")
TABLE = {"diffusion.T": 64, "model.width": 8, "train.batch_size": 16}


@pytest.fixture(scope="module")
def digits():
    return load.load("digits", config.DataOptions())


def trained(source, folder):
    result = run_command("train", source, "--steps", 30, "--out", folder / "run", *SMALL)
    assert result.exit_code == 0, result.output
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained("digits", tmp_path_factory.mktemp("absorbing"))


@pytest.fixture(scope="module")
def coloured(colour_digits, tmp_path_factory):
    return trained(colour_digits, tmp_path_factory.mktemp("absorbing"))


@pytest.fixture(params=["run", "coloured"])
def either(request):
    return request.getfixturevalue(request.param)


def settings(**overrides):
    return config.resolve("digits", "absorbing", {**TABLE, **overrides})


@pytest.mark.parametrize("values", ["softmax", "logistic"])
def test_learning_lowers_the_bound_below_one_histogram(digits, values):
    """One distribution for all pixels costs 3.1 bits/dim in 17 levels; context must do better within 60 updates."""
    chosen = settings(**{"diffusion.values": values, "diffusion.levels": 17, "train.learning_rate": 1e-2})
    training = Training(chosen, facts(digits.train), torch.device("cpu"))
    losses = [record.loss for record in train(training, digits.train, lambda: Plan().further(16 * 60))]
    pixels = np.round(digits.train.images[:].ravel() / 255 * 16).astype(int)
    share = np.bincount(pixels, minlength=17) / len(pixels)
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    assert np.mean(losses[-10:]) < entropy


@pytest.mark.parametrize("times", ["stratified", "loss-importance"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(digits, times):
    chosen = settings(**{"diffusion.times": times})
    whole, first, second = (Training(chosen, facts(digits.train), torch.device("cpu")) for _ in range(3))
    for training, steps in ((whole, 6), (first, 3)):
        list(islice(train(training, digits.train, lambda: Plan().further(96)), steps))
    second.load({name: value.clone() for name, value in first.tensors().items()}, first.images, "x")
    list(train(second, digits.train, lambda: Plan().further(96)))
    assert all(torch.equal(a, b) for a, b in zip(whole.tensors().values(), second.tensors().values(), strict=True))


def test_evaluate_sample_and_tune_serve_it(either, tmp_path):
    result = run_command("evaluate", either, "--num-images", 16, "--exact", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "positions revealed in any order" in result.output
    bits = json.loads((either / "evaluation.json").read_text())["bits_per_dim"]
    assert bits["L_T"]["mean"] == 0
    assert bits["bound, bits/dim"]["mean"] > 0
    result = run_command(
        "sample", either, "--num-images", 3, "--steps", 4, "--film", "--out", tmp_path, "--device", "cpu"
    )
    assert result.exit_code == 0, result.output
    film = np.asarray(Image.open(tmp_path / "film.png").convert("L"))
    top, left = LINE + 2, (film.shape[1] - 2) % 66 + 2  # beside and below the labels; frames of 64 pixels and 2 between
    frames = [film[top : top + 64, left + 66 * k : left + 66 * k + 64] for k in range(film.shape[1] // 66)]
    assert (frames[0] == 128).all()  # the first state: nothing seen, grey
    assert not (frames[-1] == 128).all()
    again = run_command("sample", either, "--num-images", 3, "--steps", 4, "--out", tmp_path / "b", "--batch-size", 1)
    assert again.exit_code == 0, again.output
    assert all(
        (tmp_path / f"00000{k}.png").read_bytes() == (tmp_path / f"b/00000{k}.png").read_bytes() for k in range(3)
    )
    result = run_command("tune-steps", either, "--steps", 3, "--num-images", 4, "--device", "cpu")
    assert result.exit_code == 0, result.output
    times = json.loads((either / "tuned.json").read_text())["3"]["times"]
    assert len(times) == 4
    assert times[0] == 16
    assert times[-1] == 0


def test_no_measurement_names_a_variance_that_it_has_not(run, tmp_path):
    result = run_command("evaluate", run, "--num-images", 4, "--terms", 2, "--out", tmp_path, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "evaluation.json").read_text())["variance"] is None


def test_it_cannot_be_edited_and_the_reason_is_the_chain(run, tmp_path):
    result = run_command("edit", "vary", run, tmp_path / "a.png", "--out", tmp_path / "b.png", "--device", "cpu")
    assert result.exit_code == 2
    assert "Gaussian noise" in result.output


def test_it_cannot_guide_a_gaussian_run_of_its_schedule(run, tmp_path):
    options = ("--set", "diffusion.T=16", "--set", "diffusion.schedule=even")
    result = run_command("train", "digits", "--steps", 1, "--out", tmp_path / "g", "--preset", "tiny", *TINY, *options)
    assert result.exit_code == 0, result.output
    result = run_command("sample", tmp_path / "g", "--steps", 2, "--guidance", 2, "--guide", run, "--device", "cpu")
    assert result.exit_code == 2
    assert "Gaussian noise" in result.output


def test_nothing_is_left_hidden(either):
    saved = checkpoint.open_run(either)[0]
    model = build.trained(saved, either, torch.device("cpu"))
    from ancestral.diffusion.samplers.sample import sample

    drawn = sample(
        model, saved.facts.shape, 8, [16, 5, 0], build.transition(saved, None), draw=CHAINS["absorbing"].draw
    )
    levels = (drawn + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-9)
    assert drawn.abs().max() <= 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("diffusion.T=65",), ("65 steps for 64 values", "diffusion.T=64")),
        (("diffusion.objective=simple",), ("diffusion.objective", "bound")),
        (("diffusion.schedule=cosine",), ("diffusion.schedule", "even")),
        (("diffusion.values=softmx",), ("diffusion.values", "softmax")),
        (("diffusion.chain=absorbin",), ("diffusion.chain", "absorbing")),
        (("diffusion.levels=1",), ("levels", ">= 2")),
        (("diffusion.chain=gaussian", "diffusion.levels=16"), ("diffusion.levels", "absorbing chain")),
        (("diffusion.chain=gaussian", "diffusion.values=softmax"), ("diffusion.values", "absorbing chain")),
    ],
)
def test_wrong_settings_are_named(tmp_path, overrides, words):
    chosen = [part for one in overrides for part in ("--set", one)]
    result = run_command("train", "digits", "--steps", 1, "--out", tmp_path / "run", *SMALL, *chosen)
    assert result.exit_code == 2
    assert all(word in result.output for word in words), result.output


@pytest.mark.parametrize("options", [("--solver", "heun"), ("--eta", 0), ("--variance", "fixedsmall")])
def test_other_ways_to_step_are_refused(run, tmp_path, options):
    result = run_command("sample", run, "--out", tmp_path, *options)
    assert result.exit_code == 2
    assert options[0] in result.output


def test_it_cannot_be_exported(run, tmp_path):
    result = run_command("export", run, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "diffusion.chain" in result.output


def test_independent_hiding_is_another_entry(digits):
    chosen = settings(**{"diffusion.chain": "absorbing-independent", "diffusion.T": 100})
    training = Training(chosen, facts(digits.train), torch.device("cpu"))
    assert isinstance(training.denoiser.schedule, Independent)
    assert [record.applied for record in train(training, digits.train, lambda: Plan().further(32))] == [True, True]
    with pytest.raises(UserError, match="schedule"):
        build.schedule(settings(**{"diffusion.schedule": "linear"}))


def test_the_code_on_its_card_runs(either):
    """The Python of the published card, on the run's own folder."""
    from ancestral.runs.hub.model_card import card

    pytest.importorskip("huggingface_hub")
    text = card("somebody/digits", checkpoint.open_run(either)[0], [], "unknown")
    code = text.split("```python\n")[1].split("```")[0].replace("somebody/digits", str(either))
    names = {}
    exec(code, names)
    assert names["images"].array.shape == (16, 8, 8, checkpoint.open_run(either)[0].facts.shape[0])
    assert "target" not in text.split("##")[0].partition("---\n\n")[2]
