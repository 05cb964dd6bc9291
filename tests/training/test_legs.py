"""A finished run goes on with another leg: its rate, its state, its images, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import ancestral
from ancestral.data import load
from ancestral.errors import UserError
from ancestral.runs import checkpoint, config
from ancestral.runs.length import Length, amount, count, seconds, typed
from ancestral.runs.metrics_log import leg_starts, read_metrics
from ancestral.runtime import verified_folder
from ancestral.training import legs, trainer
from ancestral.training import run as training_run
from conftest import TINY, run_command


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def source(request, tmp_path_factory):
    """A folder with a class in each of two sub-folders, which may grow."""
    folder = tmp_path_factory.mktemp("images") / "photos"
    add(folder, range(40), request.param)
    return folder


def add(folder, numbers, channels):
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        place = folder / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(place / f"{number}.png")


def train(source, run, *options):
    result = run_command("train", source, "--out", run, *options)
    return " ".join(result.output.split()), result.exit_code


def begin(source, run, steps=4):
    said, code = train(source, run, "--preset", "tiny", "--steps", steps, *TINY, "--seed", 7)
    assert code == 0, said
    return checkpoint.open_run(run)[0]


def on(source, folder, length, *, stop_at=0, further=True):
    """A leg of a run, stopped after so many images; the checkpoint that it leaves."""
    saved = checkpoint.open_run(folder)[0]
    settings = legs.own_settings(config.resolve(str(source), "tiny", {}), [], saved.config)
    images = load.load(str(source), settings.data)
    run = training_run.Run(folder, settings, images, torch.device("cpu"), f"--images +{length}", further=further)
    run.resume()
    if run.needs_leg:
        run.begin(length)
    list(run.train(lambda: run.training.images == stop_at))
    return run


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_rate_rises_and_falls_once_more_and_the_log_and_plot_know_the_legs(source, tmp_path):
    run = tmp_path / "run"
    first = begin(source, run, 10)
    before, rates = (run / "loss.png").read_bytes(), []
    said, code = train(source, run, "--steps", "+20")
    assert code == 0, said
    assert f"leg 2 of {run}, which goes on from 160 images seen with its own settings" in said
    assert "the learning rate rises to 0.002 and falls once more" in said
    log = read_metrics(run / "metrics.jsonl")
    assert [one["images"] for one in log] == list(range(16, 481, 16))
    assert [one.get("leg", 1) for one in log] == [1] * 10 + [2] * 20
    rates = [one["learning_rate"] for one in log]
    options = first.config.train
    for steps, found in ((10, rates[:10]), (20, rates[10:])):
        rule = options.learning_rate, options.warmup, options.decay
        assert found == pytest.approx([trainer.learning_rate(index / steps, *rule) for index in range(steps)])
    assert max(rates[10:]) == options.learning_rate > 3 * rates[9]
    assert leg_starts(log) == [160]
    assert (run / "loss.png").read_bytes() != before
    state = checkpoint.open_run(run)[0].state
    assert [(one["length"], one["planned"]) for one in state["legs"]] == [("--steps 10", 160), ("--steps +20", 320)]
    assert (state["complete"], state["total"]) == (True, 480)
    again, code = train(source, run, "--steps", "+3")
    assert (code, "leg 3 of" in again) == (0, True), again
    assert read_metrics(run / "metrics.jsonl")[-1]["leg"] == 3


def test_network_moments_and_averages_go_on_as_they_were(source, tmp_path):
    saved = begin(source, tmp_path / "run")
    settings = legs.own_settings(config.resolve(str(source), "tiny", {}), [], saved.config)
    images = load.load(str(source), settings.data)
    run = training_run.Run(tmp_path / "run", settings, images, torch.device("cpu"), "--images +32", further=True)
    run.resume()
    assert run.needs_leg
    assert same(run.training.tensors(), saved.tensors)
    assert any(name.startswith("optimizer/") for name in saved.tensors)


def test_a_leg_resumes_to_the_bit(source, tmp_path):
    for name in ("whole", "parts"):
        begin(source, tmp_path / name)
    whole = on(source, tmp_path / "whole", 96)
    part = on(source, tmp_path / "parts", 96, stop_at=112)
    assert (part.complete, part.training.images) == (False, 112)
    kept = checkpoint.open_run(tmp_path / "parts")[0]
    assert (kept.images, kept.state["total"], len(kept.state["legs"])) == (112, 160, 2)
    parts = on(source, tmp_path / "parts", 96)
    assert parts.complete
    assert same(whole.training.tensors(), parts.training.tensors())
    tables = [checkpoint.open_run(tmp_path / name)[0].calibration for name in ("whole", "parts")]
    assert torch.equal(*tables)
    logs = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    assert [(one["images"], one["loss"]) for one in logs[0]] == [(one["images"], one["loss"]) for one in logs[1]]


def test_images_may_be_more_when_a_leg_begins_and_not_within_it(tmp_path, source):
    channels = load.load(str(source), load.DataOptions()).train.shape[2]
    photos, run = tmp_path / "photos", tmp_path / "run"
    add(photos, range(40), channels)
    first = begin(photos, run)
    counts = [len(load.load(str(photos), load.DataOptions()).train)]
    add(photos, range(40, 60), channels)
    counts.append(len(load.load(str(photos), load.DataOptions()).train))
    files = sorted(path for path in run.rglob("*") if path.is_file())
    said, code = train(photos, run, "--images", "+64", "--dry-run")
    assert (code, sorted(path for path in run.rglob("*") if path.is_file())) == (0, files)
    assert f"they were {counts[0]} and are {counts[1]} ({first.state['data'][:12]}, now " in said
    assert "--images +64: 64 images = 4 updates" in said
    on(photos, run, 64, stop_at=96)
    kept = checkpoint.open_run(run)[0].state
    assert [one["data"] for one in kept["legs"]] == [first.state["data"], kept["data"]]
    assert kept["data"] != first.state["data"]
    add(photos, range(60, 70), channels)
    said, code = train(photos, run, "--images", "+64")
    assert (code, "not the images that" in said, "began its leg 2 with" in said) == (2, True, True), said
    for number in range(60, 70):
        (photos / ("cat", "dog")[number % 2] / f"{number}.png").unlink()
    said, code = train(photos, run, "--images", "+64")
    assert code == 0, said
    add(photos, range(60, 61), channels)
    add(photos / "more", range(3), channels)
    (photos / "more").rename(photos / "emu")
    said, code = train(photos, run, "--images", "+64")
    assert (code, f"begin with its weights: ancestral train DATA --out NEW --from {run}" in said) == (2, True), said
    assert "facts.class_names was" in said


def test_what_cannot_go_on_is_one_line(source, tmp_path):
    run = tmp_path / "run"
    said, code = train(source, run, "--budget", "+1h")
    assert (code, f"--budget +3600s: there is no run in {run} to go on with" in said) == (2, True), said
    saved = begin(source, run)
    on(source, run, 64, stop_at=96)
    refused = [
        (("--budget", "+1h"), f"{run}: is not finished (96 of 128 images); finish it first, with --images +64"),
        (("--preset", "tiny", "--steps", "4", *TINY, "--seed", "7"), "finish it first, with --images +64"),
    ]
    for options, named in refused:
        said, code = train(source, run, *options)
        assert (code, named in said) == (2, True), said
    assert on(source, run, 64).complete
    said, code = train(source, run, "--preset", "tiny", "--steps", "4", *TINY, "--seed", "7")
    assert (code, "is complete (128 images seen); --budget +10m trains it longer" in said) == (0, True), said
    refused = [
        (("--steps", "+2", "--set", "model.width=16"), "config.model.width was 8, is 16"),
        (("--steps", "+2", "--seed", "9"), "config.train.seed was 7, is 9"),
        (("--steps", "+2", "--fresh"), "leave out the +, or --fresh, which begins anew"),
        (("--steps", "+2", "--from", tmp_path / "x"), "holds a run that began with no model"),
        (("--steps", "+0"), "'0' is not a whole number above 0"),
        (("--steps", "+" + "9" * 20), "is more than any run can do"),
        (("--budget", "+1e9h"), "'1e9h' is longer than three years"),
        (("--steps", "+1", "--set", "train.learning_rate=inf"), "train.learning_rate"),
        (("--budget", "++1h"), "'++1h' has more than one +"),
        (("--steps", "+1", "--budget", "+1h"), "give one of them"),
        (
            ("--steps", "9", "--preset", "tiny", *TINY, "--seed", "7"),
            "another length (--images +64, 128 images); --bud",
        ),
    ]
    for options, named in refused:
        said, code = train(source, run, *options)
        assert (code, named in said, said.count("rror: ")) == (2, True, 1), said
    checkpoint.save_imported(tmp_path / "imported", saved)
    for options in (("--steps", "+2"), ("--preset", "tiny", "--steps", "2", *TINY)):
        said, code = train(source, tmp_path / "imported", *options)
        assert (code, f"--out NEW --from {tmp_path / 'imported'}" in said) == (2, True), said


def test_an_older_run_of_millions_of_images_is_of_the_length_that_it_was(source, tmp_path):
    saved = begin(source, tmp_path / "run")
    saved.state["legs"][0]["length"] = "--images 2e+06"
    same = (tmp_path / "run", saved, saved.config, saved.facts, saved.state["data"])
    assert not legs.begins_leg(*same, "--images 2000000", further=False)
    with pytest.raises(UserError, match=r"another length \(--images 2000000,"):
        legs.begins_leg(*same, "--images 2000001", further=False)


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_seconds_that_are_none_are_damage(source, tmp_path, seconds):
    saved = begin(source, tmp_path / "run")
    files = {path.name: path.read_bytes() for path in saved.folder.iterdir() if path.name != verified_folder.MANIFEST}
    for state in ({"seconds": seconds}, {"legs": [{**saved.state["legs"][0], "began": seconds}]}):
        files["state.json"] = json.dumps({**saved.state, **state}).encode()
        verified_folder.write(saved.folder, files)
        with pytest.raises(UserError, match=r"state\.json: damaged"):
            checkpoint.load(saved.folder)


def test_a_leg_damaged_under_a_valid_digest_is_passed_over_for_the_state_before(source, tmp_path):
    """It is made again as it was: the checkpoint before lies within the same leg."""
    run = tmp_path / "run"
    begin(source, run, 2)
    whole = on(source, run, 32).training.tensors()
    newest, before = (checkpoint.load(folder) for folder in reversed(checkpoint.folders(run)))
    files = {path.name: path.read_bytes() for path in newest.folder.iterdir() if path.name != verified_folder.MANIFEST}
    for damage in (
        lambda legs: legs.reverse(),
        lambda legs: legs[1]["knots"].pop(),
        lambda legs: legs[1]["knots"][0].__setitem__(0, 0),
        lambda legs: legs[0].__setitem__("began", 1e9),
    ):
        state = json.loads(files["state.json"])
        damage(state["legs"])
        verified_folder.write(newest.folder, {**files, "state.json": json.dumps(state).encode()})
        saved, problems = checkpoint.open_run(run)
        assert (saved.images, len(problems)) == (before.images, 1)
        assert "state.json: damaged (legs that do not follow" in problems[0]
    assert same(on(source, run, 32).training.tensors(), whole)
    assert checkpoint.open_run(run)[0].images == newest.images


def test_an_older_run_is_one_leg_and_goes_on(source, tmp_path):
    saved = begin(source, tmp_path / "run")
    state = {name: value for name, value in saved.state.items() if name != "legs"}
    files = {path.name: path.read_bytes() for path in saved.folder.iterdir() if path.name != verified_folder.MANIFEST}
    verified_folder.write(saved.folder, {**files, "state.json": json.dumps(state).encode()})
    said, code = train(source, tmp_path / "run", "--steps", "+2")
    assert (code, "leg 2 of" in said) == (0, True), said
    found = checkpoint.open_run(tmp_path / "run")[0].state["legs"]
    assert [(one["length"], one["knots"][0][0]) for one in found] == [("--steps 4", 0), ("--steps +2", 64)]


def test_a_leg_may_have_a_peak_of_its_own(source, tmp_path):
    begin(source, tmp_path / "run")
    options = ("--steps", "+10", "--learning-rate", 0.0005)
    assert train(source, tmp_path / "run", *options)[1] == 0
    log = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert max(one["learning_rate"] for one in log if one.get("leg") == 2) == 0.0005
    assert checkpoint.open_run(tmp_path / "run")[0].config.train.learning_rate == 0.0005


def test_python_goes_on_as_the_command(source, tmp_path):
    for name in ("a", "b"):
        begin(source, tmp_path / name)
    run = ancestral.train(source, tmp_path / "a", images="+32")
    assert run.complete
    said, code = train(source, tmp_path / "b", "--images", "+32")
    assert code == 0, said
    a, b = (checkpoint.open_run(tmp_path / name)[0] for name in ("a", "b"))
    assert same(a.tensors, b.tensors)
    assert a.images == 96
    with pytest.raises(UserError, match="no run in"):
        ancestral.train(source, tmp_path / "c", budget="+1h")
    with pytest.raises(UserError, match="steps: must be a whole number"):
        ancestral.train(source, tmp_path / "a", steps="10")


def test_a_run_that_began_with_a_model_goes_on_without_naming_it(source, tmp_path):
    begin(source, tmp_path / "base")
    options = ("--from", tmp_path / "base", "--preset", "tiny", "--set", "train.batch_size=16")
    assert train(source, tmp_path / "run", *options, "--steps", 2)[1] == 0
    said, code = train(source, tmp_path / "run", "--steps", "+2")
    assert (code, "the learning rate rises to 0.002" in said) == (0, True), said
    state = checkpoint.open_run(tmp_path / "run")[0].state
    assert (state["origin"]["name"], state["total"]) == (str(tmp_path / "base"), 64)


def test_lengths_read_and_print_as_they_are_given():
    assert str(Length.of(budget=amount("+1h", seconds))) == "--budget +3600"
    assert str(Length.of(steps=amount("30", count), images=None)) == "--steps 30"
    assert str(Length.of()) == "no length given"
    assert str(Length.of(images=amount("1234567", count))) == "--images 1234567"  # as --images takes it
    assert typed("--budget +3600") == "--budget +3600s"
