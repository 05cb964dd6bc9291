"""A run that begins with the weights of another model: what is carried over to the bit, and what is refused."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import ancestral
from ancestral.data import load
from ancestral.errors import UserError
from ancestral.runs import build, checkpoint, config, metrics_log
from ancestral.runs.datasets import facts as facts_of
from ancestral.runs.hub import hub
from ancestral.runs.hub.model_card import card
from ancestral.runs.lock import own
from ancestral.training import origin
from ancestral.training import run as training_run
from conftest import TINY, run_command

CPU = torch.device("cpu")
CLASSES = ("bird", "cat", "dog", "fox")


def data(folder, classes, channels, count=6, side=8):
    """A .npz file of labelled noise."""
    random = np.random.default_rng(len(classes))
    path = folder / f"{'-'.join(classes) or 'none'}-{channels}-{side}.npz"
    labels = {"labels": np.arange(count * len(classes)) % len(classes), "class_names": np.array(classes)}
    images = random.integers(0, 256, (count * max(1, len(classes)), side, side, channels)).astype(np.uint8)
    np.savez(path, images=images, **(labels if classes else {}))
    return path


def train(source, run, *options, steps=3):
    result = run_command("train", source, "--out", run, "--preset", "tiny", "--steps", steps, *TINY[:2], *options)
    return " ".join(result.output.split()), result.exit_code


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def channels(request):
    return request.param


@pytest.fixture(scope="module")
def base(channels, tmp_path_factory):
    """A run on images of four classes, trained without them too, whose every weight is away from its beginning."""
    folder = tmp_path_factory.mktemp("base")
    settings = ("model.width=8", "model.labels=true", "model.condition_dropout=0.3", "train.batch_size=8")
    options = [part for one in (*settings, "train.snapshots=2") for part in ("--set", one)]
    said, code = train(data(folder, CLASSES, channels), folder / "run", *options, "--learning-rate", 0.05, steps=8)
    assert code == 0, said
    return folder / "run"


def channels_of(run):
    return checkpoint.open_run(run)[0].facts.shape[0]


def begun(run, source, **overrides):
    """(the network that begins with a run's model on these images, its facts, the model's checkpoint)."""
    model = origin.Origin(str(run))
    chosen = config.resolve(str(source), "tiny", overrides)
    settings = origin.settings(chosen, overrides, model.model.config)
    facts = facts_of(load.load(str(source), settings.data).train)
    model.check(settings, facts, overrides)
    started = training_run.Run(
        run.parent / "new", settings, load.load(str(source), settings.data), CPU, begin_with=model
    )
    started.take_weights()
    return started.training, facts, model.model


def output(network, facts, labels=None, dropped=None, side=8):
    """What a network computes from the same noise at several times."""
    x = torch.randn(4, facts.shape[0], side, side, generator=torch.Generator().manual_seed(0))
    cond = {"labels": labels, "dropped": dropped}
    cond = {name: torch.tensor(value) for name, value in cond.items() if value is not None}
    with torch.no_grad():
        return network.eval()(x, torch.tensor([1.0, 50.0, 500.0, 1000.0]), **cond)


def known(saved, **cond):
    """What the model computes."""
    return output(build.ready(saved.config, saved.facts, saved.weights).network, saved.facts, **cond)


def test_the_same_settings_begin_with_the_models_weights_as_network_and_averages(base, channels, tmp_path):
    training, _, saved = begun(base, data(tmp_path, CLASSES, channels))
    tensors = training.tensors()
    for prefix in ("network", "average-0.05", "average-0.1"):
        assert all(torch.equal(tensors[f"{prefix}/{name}"], value) for name, value in saved.weights.items())
    assert not any(name.startswith("optimizer/") for name in tensors)


def test_classes_are_those_of_their_names_and_new_ones_begin_as_the_model_without(base, channels, tmp_path):
    training, facts, saved = begun(base, data(tmp_path, ("cat", "emu", "fox", "yak"), channels))
    found = output(training.network, facts, labels=[0, 0, 2, 2])
    assert torch.equal(found, known(saved, labels=[1, 1, 3, 3]))
    alone = known(saved, labels=[0] * 4, dropped=[True] * 4)
    for label in (1, 3):
        assert torch.equal(output(training.network, facts, labels=[label] * 4), alone)
    assert not torch.allclose(found, alone, atol=1e-4)


def test_a_model_of_classes_goes_on_without_them_as_when_it_was_given_none(base, channels, tmp_path):
    training, facts, saved = begun(base, data(tmp_path, (), channels), **{"model.labels": "false"})
    assert training.config.model.condition_dropout == 0
    alone = known(saved, labels=[0] * 4, dropped=[True] * 4)
    assert torch.allclose(output(training.network, facts), alone, atol=1e-6)


@pytest.mark.parametrize("dropped", [0.0, 0.2])
def test_a_model_without_classes_begins_the_same_for_each(any_run, tmp_path, dropped):
    channels = channels_of(any_run)
    run = shutil.copytree(any_run, tmp_path / "run")
    overrides = {"model.labels": "true", "model.condition_dropout": str(dropped)}
    training, facts, saved = begun(run, data(tmp_path, CLASSES, channels), **overrides)
    for labels in ([0, 1, 2, 3], [3, 2, 1, 0]):
        assert torch.equal(output(training.network, facts, labels=labels), known(saved))
    if dropped:
        assert torch.equal(output(training.network, facts, labels=[0] * 4, dropped=[True] * 4), known(saved))


def test_a_learned_variance_begins_in_the_middle_and_can_be_left(any_run, tmp_path):
    run, channels = shutil.copytree(any_run, tmp_path / "run"), channels_of(any_run)
    source = data(tmp_path, CLASSES, channels)
    hybrid = {"diffusion.variance": "learned", "diffusion.objective": "hybrid"}
    training, facts, saved = begun(run, source, **hybrid)
    found, mean = output(training.network, facts), known(saved)
    assert torch.equal(found[:, :channels], mean)
    assert not found[:, channels:].any()
    options = [part for name, value in hybrid.items() for part in ("--set", f"{name}={value}")]
    said, code = train(source, tmp_path / "hybrid", "--from", run, *options, "--set", "train.batch_size=8", steps=2)
    assert code == 0, said
    training, facts, saved = begun(tmp_path / "hybrid", source, **{"diffusion.variance": "fixedsmall"})
    assert torch.equal(output(training.network, facts), known(saved)[:, :channels])


def test_augmentation_begins_with_no_effect_and_can_be_left(any_run, tmp_path):
    run, channels = shutil.copytree(any_run, tmp_path / "run"), channels_of(any_run)
    source = data(tmp_path, CLASSES, channels)
    options = ("--set", "train.augment=0.5", "--learning-rate", 0.05, "--set", "train.batch_size=8")
    said, code = train(source, tmp_path / "moved", "--from", run, *options)
    assert code == 0, said
    training, facts, saved = begun(tmp_path / "moved", source, **{"train.augment": 0.5})
    assert training.network.augmentation.weight.any()
    assert torch.equal(output(training.network, facts), known(saved))
    assert torch.equal(output(begun(tmp_path / "moved", source)[0].network, facts), known(saved))
    training, facts, saved = begun(run, source, **{"train.augment": 0.5})
    assert not training.network.augmentation.weight.any()
    assert torch.equal(output(training.network, facts), known(saved))


def test_another_size_goes_on_and_is_said(base, channels, tmp_path):
    training, facts, saved = begun(base, data(tmp_path, CLASSES, channels, side=16))
    whole = build.ready(saved.config, saved.facts, saved.weights).network
    shown = {"labels": [0, 1, 2, 3], "side": 16}
    assert torch.equal(output(training.network, facts, **shown), output(whole, saved.facts, **shown))
    options = ("--from", base, "--set", "train.batch_size=8")
    said, code = train(data(tmp_path, CLASSES, channels, side=16), tmp_path / "new", *options)
    assert code == 0, said
    assert "images of 16x16, the model's are 8x8" in said
    assert "coarsest attention looks over 8x8 positions and no more 4x4" in said


@pytest.mark.parametrize(("schedule", "exact"), [("linear", True), ("linear-log-snr", True), ("cosine", False)])
def test_fewer_steps_are_exact_where_the_network_gets_the_same_clock_for_the_same_noise(schedule, exact):
    """linear is one process in continuous time and linear-log-snr a closed form of t/T; cosine caps beta, by T."""
    model, half, third = (
        config.resolve("digits", "tiny", {"diffusion.schedule": schedule, "diffusion.T": T}) for T in (1000, 500, 300)
    )
    assert origin._times_carry_over(model, model)
    assert origin._times_carry_over(model, half) is exact
    assert not origin._times_carry_over(half, model)  # times that it never saw
    assert not origin._times_carry_over(model, third)
    other = config.resolve("digits", "tiny", {"diffusion.schedule": schedule, "diffusion.clock": "zero-based"})
    assert not origin._times_carry_over(model, other)


REFUSED = [
    (("--set", "diffusion.target=eps"), "diffusion.target: the network of"),
    (("--set", "diffusion.schedule=linear"), "diffusion.schedule: at some time"),
    (("--set", "diffusion.T=300"), "diffusion.T: at some time"),
    (("--set", "diffusion.chain=absorbing"), "diffusion.chain: is gaussian in"),
    (("--set", "model.width=16"), "model.width: is 8 in"),
    (("--set", "model.patch=2"), "model.patch: is 1 in"),
    (("--set", "model.fourier=6,7"), "model.fourier"),
    (("--size", "9"), "do not divide by 2, as the network of"),
    (("--set", "data.channels={other}"), "a folder is read so with --set data.channels={own}"),
    (("--from", "absent/none"), "no such folder, nor on the hub: absent/none"),
    (("--from", ""), "--from"),
]


@pytest.mark.parametrize(("options", "named"), REFUSED, ids=[" ".join(options) for options, _ in REFUSED])
def test_what_no_weights_can_make_up_for_is_one_line(any_run, options, named, tmp_path):
    own = channels_of(any_run)
    (tmp_path / "photos").mkdir()
    for number in range(8):
        pixels = np.full((18, 18) if own == 1 else (18, 18, 3), 20 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    words = {"own": str(own), "other": str(4 - own)}
    said, code = train(
        tmp_path / "photos", tmp_path / "new", "--from", any_run, *(one.format(**words) for one in options)
    )
    assert code == 2, said
    assert said.count("error: ") == 1
    assert named.format(**words) in said.partition("error: ")[2]
    assert not (tmp_path / "new" / "checkpoints").exists()


def test_a_model_always_given_its_class_is_refused_without(channels, tmp_path):
    labelled, plain = data(tmp_path, CLASSES, channels), data(tmp_path, (), channels)
    conditional = ("--set", "model.labels=true", "--set", "train.batch_size=8", "--set", "model.width=8")
    assert train(labelled, tmp_path / "run", *conditional, steps=2)[1] == 0
    said, code = train(plain, tmp_path / "new", "--from", tmp_path / "run", "--set", "model.labels=false")
    assert (code, "model.labels: the model was never trained without" in said) == (2, True), said


def resumed(base, folder, source, stop_at):
    """A run of 6 updates that began with the model, stopped after so many images and gone on with."""
    folder.mkdir()
    model = origin.Origin(str(base))
    chosen = config.resolve(str(source), "tiny", {"train.batch_size": 8, "train.snapshots": 2})
    images = load.load(str(source), chosen.data)
    while True:
        begun = checkpoint.latest(folder)[0]
        settings = origin.settings(chosen, ["train.batch_size", "train.snapshots"], (begun or model.model).config)
        run = training_run.Run(folder, settings, images, CPU, "--images 48", begin_with=model)
        run.resume()
        if run.complete:
            return run
        if not run.total:
            run.take_weights()
            run.begin(48)
        list(run.train(lambda run=run: run.training.images == stop_at))


def test_a_run_begun_with_a_model_resumes_to_the_bit(base, channels, tmp_path):
    source = data(tmp_path, CLASSES, channels)
    whole, parts = (resumed(base, tmp_path / str(stop), source, stop) for stop in (0, 24))
    a, b = whole.training.tensors(), parts.training.tensors()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    logs = [
        [(one["images"], one["loss"]) for one in metrics_log.read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("0", "24")
    ]
    assert logs[0] == logs[1]
    assert [images for images, _ in logs[0]] == list(range(8, 49, 8))


def test_the_command_says_records_and_keeps_to_its_model(base, channels, tmp_path):
    source = data(tmp_path, CLASSES, channels)
    options = ("--from", base, "--set", "train.batch_size=8", "--set", "train.snapshots=1")
    said, code = train(source, tmp_path / "new", *options, "--dry-run")
    assert (code, (tmp_path / "new").exists()) == (0, False)
    assert "train.learning_rate = 0.002" in said
    said, code = train(source, tmp_path / "new", *options)
    assert code == 0, said
    assert f"begins with the weights of {base}" in said
    assert "train.learning_rate=0.002, the preset's" in said
    assert "classes carried over by name: bird, cat, dog, fox" in said
    assert "its loss never fell" not in said
    kept, begun_with = (checkpoint.open_run(run)[0] for run in (tmp_path / "new", base))
    packed = checkpoint.model_files(begun_with)["model.safetensors"]
    assert (base / "checkpoints" / f"{begun_with.images:09d}" / "model.safetensors").read_bytes() == packed
    assert kept.state["origin"] == {
        "name": str(base),
        "digest": hashlib.sha256(packed).hexdigest(),
        "images": 64,
        "source": begun_with.config.source,
    }
    moved = base.rename(base.with_name("moved"))
    try:  # a run that goes on needs its own checkpoint alone
        said, code = train(source, tmp_path / "new", *options)
    finally:
        moved.rename(base)
    assert (code, "is complete" in said) == (0, True), said
    for other, named in (
        ((), f"add --from {base}"),
        (("--from", tmp_path / "plain"), f"began with {base}, not with hf:{tmp_path / 'plain'}"),
        (("--from", tmp_path / "new"), "is the run of --out itself"),
    ):
        for dry in ((), ("--dry-run",)):
            said, code = train(source, tmp_path / "new", *other, *options[2:], "--set", "model.width=8", *dry)
            assert (code, named in said) == (2, True), said
    plain = ("--set", "model.width=8", "--set", "train.batch_size=8", "--set", "train.snapshots=1")
    assert train(source, tmp_path / "plain", *plain)[1] == 0
    said, code = train(source, tmp_path / "plain", *options)
    assert (code, "began with no model, not with" in said) == (2, True), said


def test_a_dry_run_refuses_what_training_does_with_the_same_line_and_changes_nothing(base, channels, tmp_path):
    source, run = data(tmp_path, CLASSES, channels), tmp_path / "new"
    options = ("--from", base, "--set", "train.batch_size=8", "--set", "train.snapshots=1")
    assert train(source, run, *options)[1] == 0
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said, code = train(source, run, *options, "--dry-run")
    assert (code, f"{run} is complete (24 images seen)" in said, "buys" in said) == (0, True, False), said
    (tmp_path / "file").touch()
    held = tmp_path / "held"
    owner = own(held)
    for folder, more, named in (
        (run, ("--set", "train.seed=1"), "train.seed was 0, is 1"),
        (run, ("--steps", 4), "planned for another length (--steps 3"),
        (run, ("--steps", "+4", "--set", "train.seed=1"), "train.seed was 0, is 1"),
        (held, (), "is being trained by process"),
        (tmp_path / "file", (), "cannot be written"),
        (tmp_path / "file" / "below", (), "cannot be written"),
    ):
        errors = []
        for dry in ((), ("--dry-run",)):
            said, code = train(source, folder, *options, *more, *dry)
            assert (code, named in said.partition("error: ")[2]) == (2, True), said
            errors.append(said.partition("error: ")[2])
        assert errors[0] == errors[1]
    owner.release()
    for path in (run / "owners").iterdir():  # those who were refused have left theirs
        files.pop(path, None)
    assert all(path.read_bytes() == kept for path, kept in files.items())


def test_a_kept_average_a_published_folder_and_python(base, channels, tmp_path):
    source = data(tmp_path, CLASSES, channels)
    kept = sorted((base / "averages").iterdir())[0]
    model = ancestral.load(kept)
    stored = checkpoint.open_average(kept)
    assert model.saved.images == int(kept.name) < 64
    assert all(torch.equal(value, stored.weights[name]) for name, value in model.saved.weights.items())
    newest = checkpoint.open_run(base)[0].weights
    assert not all(torch.equal(value, newest[name]) for name, value in stored.weights.items())
    run = ancestral.train(
        str(source), tmp_path / "new", steps=2, begin_with=kept, preset="tiny", batch_size=8, device="cpu"
    )
    saved = run.model().saved
    assert saved.state["origin"]["name"] == str(kept)
    shown = hub._public(saved)
    assert f"Begun from `{kept.name}`, {int(kept.name)} images seen of" in card("a/b", shown, [], "mit")
    assert str(tmp_path) not in json.dumps(shown.state["origin"])
    hub.write(shown, tmp_path / "published", "text")
    assert hub.load(tmp_path / "published").state["origin"] == shown.state["origin"]
    again = ancestral.train(
        str(source), tmp_path / "again", steps=1, begin_with=tmp_path / "published", preset="tiny", batch_size=8
    )
    assert again.model().saved.state["origin"]["images"] == 16
    with pytest.raises(UserError, match="begin_with: a folder or a name"):
        ancestral.train(str(source), tmp_path / "x", steps=1, begin_with=3)


def test_a_diffusers_folder_is_a_beginning(channels, tmp_path):
    source = data(tmp_path, (), channels)
    settings = ("model.width=8", "model.groups=4", "diffusion.clock=zero-based", "train.batch_size=8")
    options = [part for one in settings for part in ("--set", one)]
    assert train(source, tmp_path / "run", *options, steps=2)[1] == 0
    assert run_command("export", tmp_path / "run", "--out", tmp_path / "theirs").exit_code == 0
    training, facts, saved = begun(tmp_path / "theirs", source)
    assert training.config.diffusion.clock == "zero-based"
    assert torch.equal(output(training.network, facts), known(checkpoint.open_run(tmp_path / "run")[0]))
    said, code = train(source, tmp_path / "new", "--from", tmp_path / "theirs", "--set", "train.batch_size=8")
    assert code == 0, said
    assert checkpoint.open_run(tmp_path / "new")[0].state["origin"]["images"] == saved.images == 0


def test_every_setting_of_network_and_process_is_the_models_unless_set():
    model = config.resolve("digits", "likelihood", {"diffusion.clip": "dynamic", "model.dropout": 0.3})
    given = {"model.dropout": 0.0}
    found = origin.settings(config.resolve("mnist", "tiny", given), given, model)
    assert (found.model.fourier, found.model.dropout) == ((6, 7), 0.0)
    assert found.diffusion == model.diffusion
    assert found.train.optimizer == "adamw"
    assert found.train.learning_rate == 2e-3
