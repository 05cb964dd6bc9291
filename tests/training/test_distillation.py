"""`ancestral distill` and what commands make of its runs, grey and colour."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import ancestral
from ancestral.data import load
from ancestral.data.inventory import counted
from ancestral.data.pixels import to_bytes
from ancestral.diffusion.objectives.consistency import Consistency
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.grids import trailing
from ancestral.errors import UserError
from ancestral.runs import build, checkpoint
from ancestral.runs.datasets import facts
from ancestral.runs.open import open_model
from ancestral.runtime.disk import Damaged
from ancestral.runtime.distributed import Processes
from ancestral.sampling import command
from ancestral.training import cost, gradient_sync
from ancestral.training.trainer import Training
from conftest import run_command

CPU = torch.device("cpu")
CONSISTENCY = ("--set", "diffusion.objective=consistency")


def refused(result, said):
    """One line, with this in it."""
    assert result.exit_code == 2, result.output
    assert len(result.output.strip().splitlines()) == 1
    assert re.search(said, result.output), result.output


def are_drawn(x, folder):
    """The pictures of a folder are these images, up to a rounding."""
    for number, expected in enumerate(to_bytes(x)):
        found = np.asarray(Image.open(folder / f"{number:06d}.png")).reshape(expected.shape)
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


@pytest.fixture(scope="module", params=["trained_run", "colour_run"])
def pair(request, tmp_path_factory):
    """A model and what it was tuned into by 12 updates, half of them after a stop."""
    model, fast = request.getfixturevalue(request.param), tmp_path_factory.mktemp("fast") / "run"
    result = run_command("distill", model, "--out", fast, "--steps", 12, *CONSISTENCY)
    assert result.exit_code == 0, result.output
    return model, fast, result.output


def test_it_begins_with_the_model_and_says_so(pair):
    model, fast, output = pair
    before, after = checkpoint.open_newest(model), checkpoint.open_newest(fast)
    assert "begins with the weights of" in output
    assert after.state["origin"]["name"] == str(model)
    assert after.state["origin"]["digest"] == checkpoint.weights_digest(before)
    assert after.config.model == before.config.model
    assert (after.config.diffusion.chain, after.config.diffusion.target) == (
        "consistency",
        before.config.diffusion.target,
    )
    moved = [(after.weights[name] - value).abs().max() for name, value in before.weights.items()]
    assert 0 < max(moved) < 0.5  # a few small updates away, not a network begun anew
    assert run_command("distill", model, "--out", fast, "--steps", 12, *CONSISTENCY).exit_code == 0  # is complete
    other = run_command("distill", model, "--out", fast, "--steps", 13, *CONSISTENCY)
    assert other.exit_code == 2
    assert "another length" in other.output


def test_every_step_is_said_to_be_none_of_the_papers_chain(pair, tmp_path, monkeypatch):
    """Before it is drawn, which here it is not."""

    def no_job(*_):
        raise UserError("not drawn")

    monkeypatch.setattr(command, "Job", no_job)
    model, fast, _ = pair
    every = len(build.training_grid(checkpoint.open_newest(fast).config)) - 1
    expected = f"--steps all predicts and renoises {every:,} times; this model was tuned for few steps"
    for run, more in ((fast, True), (model, False)):
        result = run_command("sample", run, "--steps", "all", "--num-images", 1, "--out", tmp_path / run.name)
        assert (result.exit_code, result.output.startswith(expected)) == (2, more), result.output


@pytest.mark.parametrize(("dropout", "labels"), [(0.0, False), (0.3, True)])
def test_both_networks_go_on_from_a_checkpoint_to_the_bit(pair, dropout, labels):
    """In the part of the run that has a critic; and parts of a batch add up to the whole."""
    saved = checkpoint.open_newest(pair[1])
    data = load.load(saved.config.source, saved.config.data).train
    labels = labels and data.labels is not None
    model = replace(saved.config.model, labels=labels, condition_dropout=0.2 * labels, dropout=dropout)
    diffusion = replace(saved.config.diffusion, objective="adversarial", times="stratified")
    config = replace(saved.config, model=model, diffusion=diffusion)
    known = facts(data)
    first, straight = Training(config, known, CPU), Training(config, known, CPU)
    for one in (first, straight):
        one.step(data, 0.1)
        one.step(data, 0.5)
    assert [monitor.updates for monitor in first.monitors] == [1, 1]  # a loss is compared with those of its own part
    tensors = {name: value.clone() for name, value in first.tensors().items()}
    assert {name.partition("/")[0] for name in tensors} >= {"auxiliary-network", "auxiliary-optimizer"}
    second = Training(config, known, CPU)
    second.load(tensors, first.images, "here")
    for one in (straight, second):
        one.step(data, 0.75)
    expected = straight.tensors()
    assert all(torch.equal(value, expected[name]) for name, value in second.tensors().items())
    assert any(not torch.equal(value, tensors[name]) for name, value in expected.items() if "auxiliary-n" in name)
    broken = {name: value for name, value in tensors.items() if name != "auxiliary-optimizer/0/exp_avg"}
    with pytest.raises(Damaged, match="auxiliary-optimizer/0 has"):
        second.load(broken, first.images, "here")
    if not dropout:
        whole, *divided = (
            Training(replace(config, train=replace(config.train, **parts)), known, CPU)
            for parts in ({}, {"micro_batch": 3}, {"exact_shards": 2})
        )
        losses = whole.step(data, 0.5).losses
        for parts in divided:
            assert torch.allclose(parts.step(data, 0.5).losses, losses, atol=1e-4)
            for of_whole, of_parts in zip(whole.learners.values(), parts.learners.values(), strict=True):
                for one, other in zip(of_whole.network.parameters(), of_parts.network.parameters(), strict=True):
                    assert torch.allclose(one.grad, other.grad, atol=1e-4)


def test_memory_is_also_of_the_critic_that_does_not_learn_yet(pair, monkeypatch):
    monkeypatch.setattr(cost, "SECONDS", 1e-9)
    saved = checkpoint.open_newest(pair[1])
    data = load.load(saved.config.source, saved.config.data).train
    diffusion = replace(saved.config.diffusion, objective="adversarial", times="stratified")
    training = Training(replace(saved.config, diffusion=diffusion), facts(data), CPU)
    own, critic = (list(training.learners[name].network.parameters()) for name in ("", "auxiliary-"))
    sizes = [sum(value.numel() for value in weights) for weights in (own, critic)]
    assert sizes[1] > 0
    # Weights, gradients, two moments, and of the network two averages and the number of each weight's updates.
    assert cost.measure(training, data).state_bytes == 4 * (6 * sizes[0] + len(own) + 4 * sizes[1])


def test_casts_of_calls_without_gradients_are_not_kept_for_those_with(pair):
    """Older torch kept them, so that under autocast the network that is its own teacher learned nothing."""
    saved, asked = checkpoint.open_newest(pair[1]), []
    config = replace(saved.config, train=replace(saved.config.train, precision="bfloat16"))
    data = load.load(saved.config.source, saved.config.data).train
    training = Training(config, facts(data), CPU)
    objective = training.objective

    def asking(*given, **cond):
        asked.append((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
        return objective(*given, **cond)

    training.objective = asking
    before = {name: value.clone() for name, value in training.network.named_parameters()}
    training.step(data, 0.1)
    assert set(asked) == {(True, False)}
    assert any(not torch.equal(before[name], value) for name, value in training.network.named_parameters())


@pytest.mark.parametrize(
    "engine",
    [gradient_sync.Ddp, partial(gradient_sync.Fsdp, precision=torch.float32, device=torch.device("cpu"))],
    ids=["Ddp", "Fsdp"],
)
def test_engines_that_wrap_one_network_refuse_two(engine):
    with pytest.raises(UserError, match="two learn; use all-reduce"):
        engine(torch.nn.Linear(2, 2), Processes(), torch.nn.Linear(2, 2))


@pytest.mark.parametrize("steps", [None, 1, 2, 4])
def test_images_are_drawn_by_predicting_and_renoising(pair, steps, tmp_path):
    """Algorithm 1 of Song et al. 2023, written out with the same streams."""
    _, fast, _ = pair
    chosen = () if steps is None else ("--steps", steps)
    result = run_command("sample", fast, "--num-images", 3, "--out", tmp_path, *chosen, "--device", "cpu")
    assert result.exit_code == 0, result.output
    calls = steps or 2
    assert f"3 images, {counted(calls, 'network call')} each" in result.output
    assert ("--steps 1" in result.output) == (steps is None)
    saved, model = open_model(fast, "cpu", None)
    x, noise = Streams(0, "latent", range(3)).normal(saved.facts.shape), Streams(0, "reverse", range(3))
    times = trailing(model.schedule, calls)
    for place, t in enumerate(times[:-1]):
        with torch.no_grad():
            x0 = model(x, t).x0
        assert x0.abs().max() <= 1
        s = times[place + 1]
        x = model.schedule.signal(s) * x0
        if s:
            x = x + model.schedule.noise(s) * noise.normal(saved.facts.shape)
    are_drawn(x, tmp_path)


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        ("sample", ("--solver", "heun"), "--solver: a run of chain 'consistency' has one reverse step"),
        ("sample", ("--eta", 0), "--eta: a run of chain 'consistency' has one reverse step"),
        ("sample", ("--guidance", 2), "--guidance: needs a run .* predicts the mean"),
        ("tune-steps", ("--steps", 2), "tune-steps: "),
        ("evaluate", (), "has no bound"),
        ("likelihood", (), "predicts the mean"),
        ("rd", (), "predicts the mean"),
        ("explain", ("--out", "page.html"), "predicts the mean"),
        ("distill", ("--out", "other"), "predicts the mean"),
    ],
)
def test_what_needs_the_mean_of_x0_is_refused(pair, command, options, said):
    refused(run_command(command, pair[1], *options), said)


def test_from_python_it_is_the_command(pair, tmp_path):
    model, fast, _ = pair
    run = ancestral.distill(model, tmp_path / "fast", steps=12, objective="consistency")
    assert run.complete
    weights = checkpoint.open_newest(fast).weights
    assert all(torch.equal(value, weights[name]) for name, value in run.model().saved.weights.items())
    assert run.model("cpu").sample(2).array.shape[0] == 2


def test_its_samples_are_measured(pair, tmp_path):
    result = run_command("metrics", pair[1], "--network", "pixels", "--num-images", 40, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    (file,) = tmp_path.glob("metrics-*.json")
    assert json.loads(file.read_text())["metrics"]


def test_only_targets_that_give_clean_images_back_can_be_tuned(tmp_path):
    result = run_command(
        "train", "digits", "--preset", "tiny", "--out", tmp_path / "run", "--steps", 1,
        *(word for key in ("chain", "objective") for word in ("--set", f"diffusion.{key}=consistency")),
        "--set", "diffusion.target=x0",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "diffusion.target: at t = 0 a consistency model gives back x_t" in result.output
    result = run_command("train", "digits", "--out", tmp_path / "run", "--set", "diffusion.objective=consistency")
    assert result.exit_code == 2
    assert "diffusion.chain=consistency" in result.output


def test_a_run_that_goes_on_needs_its_model_no_more(pair, tmp_path, monkeypatch):
    model, _, _ = pair
    there, fast = shutil.copytree(model, tmp_path / "model"), tmp_path / "fast"
    assert run_command("distill", there, "--out", fast, "--steps", 2, *CONSISTENCY).exit_code == 0
    there.rename(tmp_path / "moved")
    again = run_command("distill", there, "--out", fast, "--steps", 2, *CONSISTENCY)
    assert (again.exit_code, "is complete" in again.output) == (0, True), again.output
    seen, earlier = [], Consistency.earlier
    monkeypatch.setattr(Consistency, "earlier", lambda *given: seen.append(given[-1]) or earlier(*given))
    wrong = run_command("distill", there, "--out", fast, "--calls", 2, "--steps", "+2")
    assert (wrong.exit_code, "draws in any number of calls" in wrong.output) == (2, True), wrong.output
    further = run_command("distill", there, "--out", fast, "--steps", "+2")
    assert (further.exit_code, "leg 2 of" in further.output) == (0, True), further.output
    assert seen == [1, 1]  # not again from the denoising that its stages begin with
    rate, own = (checkpoint.open_newest(run).config.train.learning_rate for run in (fast, model))
    assert rate == pytest.approx(own / 3, rel=1e-3)


def test_a_critic_brings_its_times_and_a_further_leg_keeps_it(pair, tmp_path):
    model, _, _ = pair
    critic, fast = ("--set", "diffusion.objective=adversarial"), tmp_path / "fast"
    wrong = run_command("distill", model, "--out", fast, "--steps", 1, *critic, "--set", "diffusion.times=log-normal")
    assert (wrong.exit_code, "use stratified or uniform" in wrong.output) == (2, True), wrong.output
    for more, leg in ((("--steps", 2, *critic, "--seed", 7), False), (("--steps", "+1"), True)):
        result = run_command("distill", model, "--out", fast, *more)
        assert (result.exit_code, "leg 2 of" in result.output) == (0, leg), result.output
    found = checkpoint.open_newest(fast).config
    assert (found.diffusion.objective, found.diffusion.times, found.train.seed) == ("adversarial", "stratified", 7)
    again = run_command("distill", model, "--out", fast, "--steps", 2)  # another command than the run's
    assert (again.exit_code, "objective was adversarial" in again.output) == (2, True), again.output
    for length in (2, "+1"):
        result = run_command("distill", fast, "--out", model, "--steps", length)
        assert (result.exit_code, "was not distilled" in result.output) == (2, True), result.output


@pytest.fixture(scope="module", params=["trained_run", "colour_run"])
def progressive(request, tmp_path_factory):
    """A model and what it was tuned into for three calls."""
    model, fast = request.getfixturevalue(request.param), tmp_path_factory.mktemp("progressive") / "run"
    result = run_command("distill", model, "--out", fast, "--calls", 3, "--steps", 2)
    assert result.exit_code == 0, result.output
    return model, fast


def test_progressive_distillation_is_for_its_calls_with_the_model_as_teacher(progressive):
    model, fast = progressive
    before, after = checkpoint.open_newest(model), checkpoint.open_newest(fast)
    own = after.config.diffusion
    assert (own.objective, own.chain, own.times, own.train_steps) == ("progressive", "progressive", "stratified", 3)
    assert build.training_grid(after.config) == trailing(build.schedule(after.config), 3)
    assert any(not torch.equal(value, before.weights[name]) for name, value in after.weights.items())
    training = Training(after.config, after.facts, CPU)
    training.load(after.tensors, after.images, "here")
    teacher = training.objective.auxiliary.state_dict()
    assert all(torch.equal(value, before.weights[name]) for name, value in teacher.items())
    assert list(training.learners) == [""]


def test_images_are_drawn_by_the_steps_that_were_tuned(progressive, tmp_path):
    """DDIM with eta = 0 at the times of training, written out."""
    result = run_command("sample", progressive[1], "--num-images", 3, "--out", tmp_path, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "3 images, 3 network calls each" in result.output
    saved, model = open_model(progressive[1], "cpu", None)
    x, q = Streams(0, "latent", range(3)).normal(saved.facts.shape), model.schedule
    times = trailing(q, 3)
    for place, t in enumerate(times[:-1]):
        with torch.no_grad():
            x0 = model(x, t).x0
        eps = (x - q.signal(t) * x0) / q.noise(t)
        s = times[place + 1]
        x = q.signal(s) * x0 + q.noise(s) * eps
    are_drawn(x, tmp_path)


def test_the_teacher_goes_on_from_a_checkpoint_to_the_bit(progressive):
    """And parts of a batch add up to the whole; dropout is the pupil's alone."""
    saved = checkpoint.open_newest(progressive[1])
    data = load.load(saved.config.source, saved.config.data).train
    known, weights = facts(data), checkpoint.open_newest(progressive[0]).weights

    def begun(dropout, micro_batch=None):
        config = replace(saved.config, model=replace(saved.config.model, dropout=dropout))
        training = Training(replace(config, train=replace(config.train, micro_batch=micro_batch)), known, CPU)
        training.begin_with(weights, "the model")
        return training

    first, straight, second = begun(0.3), begun(0.3), begun(0.3)
    assert torch.equal(*(one.step(data, 0.1).losses for one in (first, straight)))
    second.load({name: value.clone() for name, value in first.tensors().items()}, first.images, "here")
    for one in (straight, second):
        one.step(data, 0.5)
    expected = straight.tensors()
    assert all(torch.equal(value, expected[name]) for name, value in second.tensors().items())
    assert all(torch.equal(expected[f"auxiliary-network/{name}"], value) for name, value in weights.items())
    whole, parted = begun(0.0), begun(0.0, 3)
    assert torch.allclose(parted.step(data, 0.1).losses, whole.step(data, 0.1).losses, atol=1e-4)
    for one, other in zip(whole.network.parameters(), parted.network.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-4)


def test_a_further_leg_keeps_the_teacher_and_needs_its_model_no_more(progressive, tmp_path):
    model, fast = progressive
    there = shutil.copytree(fast, tmp_path / "fast")
    wrong = run_command("distill", model, "--out", there, "--calls", 4, "--steps", "+1")
    assert (wrong.exit_code, "draws in 3 calls, which a further leg keeps" in wrong.output) == (2, True), wrong.output
    result = run_command("distill", model, "--out", there, "--calls", 3, "--steps", "+1")
    assert (result.exit_code, "leg 2 of" in result.output) == (0, True), result.output
    states = [checkpoint.open_newest(run).tensors for run in (fast, there)]
    names = [name for name in states[0] if name.startswith("auxiliary-network/")]
    assert names
    assert all(torch.equal(states[0][name], states[1][name]) for name in names)


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        ("sample", ("--steps", 2), "tuned to draw in 3, and in no other number; .*--calls 2"),
        ("sample", ("--solver", "heun"), "--solver: a run of chain 'progressive' has one reverse step"),
        ("sample", ("--guidance", 2), "--guidance: needs a run .* predicts the mean"),
        ("tune-steps", ("--steps", 2), "tune-steps: "),
        ("evaluate", (), "has no bound"),
        ("likelihood", (), "predicts the mean"),
        ("explain", ("--out", "page.html"), "predicts the mean"),
        ("distill", ("--out", "other"), "predicts the mean"),
    ],
)
def test_what_a_model_for_few_calls_cannot_do_is_refused(progressive, command, options, said):
    refused(run_command(command, progressive[1], *options), said)


def test_a_teacher_and_a_number_of_calls_are_needed(progressive, tmp_path):
    few = ("--set", "diffusion.chain=progressive", "--set", "diffusion.objective=progressive")
    tiny = ("train", "digits", "--preset", "tiny", "--out", tmp_path / "run", "--steps", 1, *few)
    for given, said in (
        (tiny, "diffusion.train_steps: progressive distillation is for one number of network calls"),
        (
            (*tiny, "--set", "diffusion.train_steps=2"),
            "tunes a trained model, and none is named; use ancestral distill",
        ),
        (("distill", progressive[0], "--out", tmp_path / "fast", "--calls", 2, *CONSISTENCY), "--calls: a model of"),
    ):
        result = run_command(*given)
        assert (result.exit_code, said in result.output) == (2, True), result.output
        assert not (tmp_path / "run" / "checkpoints").exists()


def test_what_cannot_be_tuned_is_one_line_with_its_mend(pair, tmp_path):
    model, _, _ = pair
    for name, folder, options, said in (
        (model, model, (), "holds a run that was not distilled; choose another --out"),
        (model, model, ("--fresh",), "is the run of --out itself"),
        (next((model / "checkpoints").iterdir()), tmp_path / "run", (), "is a checkpoint; name the run"),
    ):
        result = run_command("distill", name, "--out", folder, "--steps", 2, *options)
        assert (result.exit_code, said in result.output) == (2, True), result.output
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    ancestral.train(images, tmp_path / "memory", steps=1, preset="tiny", width=8, batch_size=8, device="cpu")
    result = run_command("distill", tmp_path / "memory", "--out", tmp_path / "fast", "--steps", 2)
    assert (result.exit_code, "name those to tune on with --data" in result.output) == (2, True), result.output
