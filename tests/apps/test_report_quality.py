"""Section 8 of the report: made-up measurements for every rule, and numbers that can be known otherwise."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ancestral.apps.report import LANGUAGES, html, quality, quality_advice, quality_samples, quality_training
from ancestral.apps.report.connections_energy import several
from ancestral.apps.report.exact_subject import exact
from ancestral.apps.report.part import Number, Part
from ancestral.apps.report.quality_advice import Case
from ancestral.apps.report.subject import of_run
from ancestral.data.dataset import Splits
from ancestral.evaluation import features, sample_metrics_command
from ancestral.runs import build, config
from ancestral.runs.current_settings import for_images
from ancestral.runs.facts import Facts
from ancestral.training import model_size
from conftest import RUNS, TINY, run_command

DIGITS = Facts((1, 28, 28))
LINEAR = config.resolve("mnist", "cifar10", {"diffusion.variance": "beta", "train.flip": False})

# For each rule: numbers (value, error) for which it holds, and one change after which it does not.
BOTH_SIDES = {
    "memorises": ({"copied": (20, 2), "copied_usual": (1.2, None)}, {"copied_usual": (6, None)}),
    "overfits": ({"gap": (0.2, 0.02), "bound_train": (2, 0.1)}, {"gap": (0.2, 0.1)}),
    "spikes": ({"spike": (30, None), "left_out": (0, None)}, {"spike": (4, None)}),
    "too-few": ({"available": (7, None)}, {"available": (20, None)}),
    "noise": ({"lossless": (8.1, 0.01)}, {"lossless": (7.1, 0.01)}),
    "repeats": ({"repeated_share": (60, None)}, {"repeated_share": (2, None)}),
    "too-large": (
        {"gap": (0.2, 0.02), "bound_train": (2, 0.1), "parameters": (3e6, None), "train_values": (1e6, None)},
        {"parameters": (3e5, None)},
    ),
    "few-epochs": ({"epochs": (0.5, None), "train_images": (60_000, None)}, {"epochs": (1.5, None)}),
    "unfinished": ({"fell": (5, 0.5), "gain": (14, None)}, {"fell": (2, 0.5)}),
    "unsettled": ({"kid": (0.2, 0.01), "kid_floor": (0.001, 0.001)}, {"kid": (0.02, 0.01)}),
    "few-images": ({"train_images": (500, None)}, {"train_images": (5000, None)}),
    "prior": ({"L_T": (0.02, 0.001), "bound": (3, 0.1)}, {"L_T": (2e-3, 1e-4)}),
    "variance": ({"variance_costs": (0.2, 0.01), "bound": (3, 0.1)}, {"variance_costs": (0.2, 0.1)}),
    "capacity": (
        {
            "kid": (0.2, 0.01),
            "kid_floor": (0.001, 0.001),
            "parameters": (7e5, None),
            "fell": (0.5, 0.2),
            "gap": (0, 0.1),
        },
        {"parameters": (7e7, None)},
    ),
    "late-bits": ({"late": (95, 1)}, {"late": (60, 1)}),
    "few-steps": ({"missed": (20, 1), "missed_share": (25, None)}, {"missed_share": (5, None)}),
    "bits": ({"bound": (3, 0.1), "lossless": (2.5, 0.1), "excess": (0.5, 0.1)}, {"excess": (0.2, 0.1)}),
    "at-the-floor": (
        {"kid": (0.001, 0.001), "kid_floor": (0.0005, 0.001), "recall": (0.88, 0.02), "recall_floor": (0.9, 0.01)},
        {"recall": (0.5, 0.02)},
    ),
}
EPOCHS = {"0.5": "few-epochs", "5": "unsettled", "50": "unfinished", "500": "overfits"}
MODELS = Path(__file__).with_name("advice-models.json")
RULES = {rule.name: rule for rule in quality_advice.RULES}
ALSO = {"too-large": ["overfits"]}  # what holds of the same numbers


def test_what_few_steps_lose_is_a_part_of_what_tells_two_images_apart():
    """Few steps and many of the exact denoiser end near each other, as they follow one flow from the same noise."""
    drawn = quality_samples.draw(exact(64, 0))
    assert drawn.missed is not None
    assert drawn.missed.mean() < 0.2 * drawn.apart


def case(numbers, settings=LINEAR):
    made = {name: Number(value, "", "made up", error) for name, (value, error) in numbers.items()}
    return Case("runs/a b", settings, DIGITS, settings.source, 1000, made)


@pytest.mark.parametrize("name", RULES)
def test_each_rule_from_both_sides(name):
    numbers, change = BOTH_SIDES[name]
    assert [rule.name for rule in quality_advice.advise(case(numbers))] == [name, *ALSO.get(name, ())]
    assert name not in [rule.name for rule in quality_advice.advise(case({**numbers, **change}))]
    for quoted in RULES[name].quotes:
        without = {one: value for one, value in numbers.items() if one != quoted}
        assert not quality_advice.applies(RULES[name], case(without))


@pytest.mark.parametrize(
    ("own", "copies", "overfits"), [(0.0, 0.2, 0.1), (0.2, 0.3, 0.3), (0.3, 0.4, 0.4), (0.5, 0.5, 0.5)]
)
def test_more_dropout_is_never_less(own, copies, overfits):
    settings = replace(LINEAR, model=replace(LINEAR.model, dropout=own))
    for name, dropout in (("memorises", copies), ("overfits", overfits)):
        assert f"model.dropout={dropout:g} " in RULES[name].do(case(BOTH_SIDES[name][0], settings)) + " "


def test_rules_that_need_a_training_say_nothing_without_one():
    for name, (numbers, _) in BOTH_SIDES.items():
        held = quality_advice.advise(replace(case(numbers), seen=None))
        assert not held or name in ("variance", "few-steps", "at-the-floor")


def test_weightier_rules_come_first_and_a_small_network_is_no_answer_to_an_unfinished_run():
    numbers = BOTH_SIDES["capacity"][0] | BOTH_SIDES["unfinished"][0] | BOTH_SIDES["memorises"][0]
    assert [rule.name for rule in quality_advice.advise(case(numbers))] == ["memorises", "unfinished"]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", RULES)
def test_advice_quotes_its_numbers_and_names_a_command(name, language):
    one = case(BOTH_SIDES[name][0])
    marks = (lambda quoted: f"<{quoted}>", lambda typed: f"`{typed}`", lambda source: f"[{source}]")
    text = quality.said(RULES[name], one, html.words(language), *marks)
    assert set(re.findall(r"<(\w+)>", text)) == set(RULES[name].quotes)
    assert re.findall(r"\[([a-z]+)\]", text) == [RULES[name].source] * bool(RULES[name].source)
    assert f"`{RULES[name].do(one)}`" in text
    assert RULES[name].do(one).startswith("ancestral ")
    assert set(html.words(language)["advice"]) == {*RULES, quality_advice.NOTHING_LEFT.name}


@pytest.mark.parametrize("preset", ["images", "tiny", "cifar10", "likelihood"])
@pytest.mark.parametrize("name", RULES)
def test_the_command_trains_with_the_same_settings_but_for_the_change(name, preset):
    asked = config.resolve("some data", preset, {"train.seed": 3, "train.spike": None})
    settings, _ = for_images(asked, DIGITS, None)
    words = shlex.split(RULES[name].do(case(BOTH_SIDES[name][0], settings)))
    if words[1] != "train":
        assert {"runs/a b", "some data"} & set(words)
        return
    assignments = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    asked = config.resolve(words[2], "images", config.parse_assignments(assignments))
    made, _ = for_images(asked, DIGITS, None)
    before, after = (quality_advice.flat(quality_advice.asdict(one)) for one in (settings, made))
    changed = {key: after[key] for key in before if before[key] != after[key]}
    allowed = {
        "memorises": {"model.dropout"},
        "overfits": {"model.dropout"},
        "spikes": {"train.learning_rate"},
        "too-few": {"data.holdout"},
        "too-large": {"model.width"},
        "few-epochs": set(),
        "noise": set(),
        "repeats": set(),
        "unfinished": set(),
        "unsettled": set(),
        "few-images": {"train.flip"},
        "prior": {"diffusion.schedule", "diffusion.target"},
        "capacity": {"model.width"},
        "late-bits": {"diffusion.schedule"},
        "bits": {"model.fourier"},
    }
    assert set(changed) <= allowed[name]


def records(losses, spike=1.0):
    return [
        {"images": 10 * k, "loss": loss, "largest_grad_norm": spike if k == 50 else 1.0, "loss_over_lowest": 1.0}
        | {"updates_left_out": int(k == 3), "loss_by_tenth_of_t": [loss] * 10}
        for k, loss in enumerate(losses)
    ]


def test_the_fall_at_the_end_of_a_training():
    noise = np.random.default_rng(0).normal(0, 0.01, 100)
    flat = quality_training.course(records(1 + noise))
    assert flat is not None
    assert abs(flat.fell) < 4 * flat.fell_error < 0.05
    # exp(-k / 100): a fifth of a hundred records on, the loss is exp(-0.2) of what it was.
    falling = quality_training.course(records(np.exp(-np.arange(100) / 100), spike=30.0))
    assert falling is not None
    assert falling.fell == pytest.approx(1 - np.exp(-0.2))
    assert falling.spike == 30
    assert falling.left_out == 1
    assert quality_training.course(records([1.0] * 5)) is None
    # n^-0.2: twice as long is 2^-0.2 of the loss.
    power = quality_training.course(records((1.0 + np.arange(4000)) ** -0.2))
    assert power is not None
    for times in (2, 4, 20):
        assert power.gain(times).value == pytest.approx(1 - times**-0.2, rel=0.01)
    # Its error, by falls that are this far off.
    ends = [replace(flat, fell=flat.fell + way * flat.fell_error / 100).gain(4).value for way in (-1, 1)]
    assert flat.gain(4).error == pytest.approx(50 * (ends[1] - ends[0]), rel=1e-3)


def test_a_model_from_elsewhere_goes_on_from_itself():
    """No option of `train` describes its network, so that the command begins with it, and no rule asks for another."""
    elsewhere = replace(LINEAR, model=replace(LINEAR.model, norm_eps=1e-5, head_width=8))
    numbers = BOTH_SIDES["unfinished"][0] | BOTH_SIDES["prior"][0] | BOTH_SIDES["late-bits"][0]
    found = quality_advice.advise(case(numbers, elsewhere))
    assert [rule.name for rule in found] == ["unfinished"]
    words = shlex.split(found[0].do(case(numbers, elsewhere)))
    assert words[words.index("--from") + 1] == "runs/a b"
    assert not [word for word in words if word.startswith(("model.", "diffusion."))]
    assert "--from" not in found[0].do(case(numbers))


# What is to be said first of models of 132 images, by how often they have seen them: too little, unsettled, still
# falling, learned by heart; and of noise, however long, that it is noise.
FIRST = {
    **{(name, epochs): rule for name in ("grey", "colour") for epochs, rule in EPOCHS.items()},
    **{("noise", epochs): "noise" for epochs in EPOCHS},
}


@pytest.mark.parametrize(("name", "epochs"), FIRST)
def test_models_that_were_trained_get_the_advice_that_they_need(name, epochs):
    """Measurements of twelve real models, which `advice_models.py` has trained."""
    model = json.loads(MODELS.read_text())[name][epochs]
    numbers = {key: Number(value, "", "measured", error) for key, (value, error) in model["numbers"].items()}
    settings = config.resolve(f"{name}.npy", "tiny", {"train.batch_size": 64, "model.width": 16})
    assert numbers["epochs"].value == pytest.approx(float(epochs), rel=0.06)
    advice = [
        rule.name
        for rule in quality_advice.advise(Case("run", settings, DIGITS, settings.source, model["seen"], numbers))
    ]
    assert advice[0] == FIRST[name, epochs]
    assert ("few-epochs" in advice) == (epochs == "0.5")
    assert ("overfits" in advice) == (epochs == "500")
    assert not {"overfits", "noise", "few-epochs"} & set(advice) or "at-the-floor" not in advice


@pytest.mark.parametrize("name", RUNS)
def test_every_model_gets_a_next_step(name, request):
    """Of one run, as if it had been trained for so many epochs: less than one is said, and all have advice."""
    subject = of_run(request.getfixturevalue(name), None, 8, 0, "cpu", None)
    part = quality.part(subject)
    images = part.numbers["train_images"].value
    assert subject.saved is not None
    assert part.numbers["epochs"].value == subject.saved.images / images
    for epochs in (0.5, 5, 50, 500):
        numbers = part.numbers | {"epochs": Number(epochs, "", "made up")}
        advice = quality_advice.advise(
            Case("run", subject.config, subject.facts, subject.source, round(epochs * images), numbers)
        )
        assert advice
        assert ("few-epochs" in [rule.name for rule in advice]) == (epochs < 1)


@pytest.mark.parametrize("by", ["records", "law", "nothing"])
def test_a_longer_training_says_what_it_is_expected_to_give(by):
    """Of four times 20,000 images, by a loss that falls as n^-0.2, by the law of runs like it, or not at all."""
    settings = config.resolve("mnist", "images", {"model.width": 16})
    log = records((1.0 + np.arange(4000)) ** -0.2) if by == "records" else records([1.0] * 5)
    saved = SimpleNamespace(facts=Facts((1, 8, 8) if by == "nothing" else (1, 28, 28)), images=20_000)
    one, found = case(BOTH_SIDES["unsettled"][0], settings), Part(facts={"advice": [RULES["unsettled"]]})
    quality._expected(SimpleNamespace(log=log, saved=saved, config=settings), one, found)
    law = json.loads(model_size.FILE.read_text())["grey"]
    (a, p), (b, q) = law["width"], law["images"]
    now, then = (law["floor"] + a * 0.5**-p + b * images**-q for images in (0.2, 0.8))
    expected = {"records": 1 - 4**-0.2, "law": 1 - then / now}
    assert {name: number.value for name, number in found.numbers.items()} == (
        {} if by == "nothing" else {"longer": pytest.approx(100 * expected[by], rel=0.01)}
    )
    said = quality.said(
        RULES["unsettled"], replace(one, numbers=one.numbers | found.numbers), html.words("en"), str, str, str
    )
    assert ("lower by longer" in said) == (by != "nothing")
    assert ("too few to say" in said) == (by == "nothing")


def test_a_model_without_a_fault_is_told_to_measure_more_surely():
    assert [rule.name for rule in quality_advice.advise(case({"bound": (3, 0.1)}))] == ["nothing-left"]


@pytest.mark.parametrize(
    ("losses", "ending"),
    [
        (np.exp(-np.arange(100) / 100), "falling"),
        (np.exp(np.arange(100) / 100), "rising"),
        (1 + 0.01 * np.resize([1, -1], 100), "settled"),
        (1 + 0.3 * np.resize([1, -1], 100), "unsure"),
    ],
)
def test_how_a_training_ended(losses, ending):
    made = quality_training.course(records(losses))
    assert made is not None
    assert made.ending == ending


def test_a_single_look_at_held_out_images_is_no_curve():
    axes = html.words("en")["axes"]
    for looked, panels in ((0, 1), (1, 1), (2, 2)):
        log = records(np.linspace(1, 0.1, 30))
        for one in log[:looked]:
            one["held_out_bits_per_dim"] = 3.0
        drawn = quality_training.draw(log, html.words("en"))
        assert drawn.count(f">{axes['seen']}<") == panels
        assert drawn.count(f">{axes['bits']}<") == panels - 1


@pytest.mark.parametrize("channels", [1, 3])
def test_copies_are_found_and_smooth_images_are_none(channels):
    chance = np.random.default_rng(0)
    known = chance.integers(0, 256, (400, 8, 8, channels), dtype=np.uint8)
    own = chance.integers(0, 256, (200, 8, 8, channels), dtype=np.uint8)
    held_out = quality_samples.near(chance.integers(0, 256, (200, 8, 8, channels), dtype=np.uint8), known)
    smooth = np.full_like(own, 128)
    for images, share, off in ((own, 0.01, 0.03), (smooth, 0.0, 0.01)):
        found = quality_samples.Neighbours(quality_samples.near(images, known), held_out, None)
        assert found.copied.value == pytest.approx(share, abs=off)
    own[:60] = known[:60]
    found = quality_samples.Neighbours(quality_samples.near(own, known), held_out, None)
    assert found.copied.value == pytest.approx(0.3, abs=0.03)
    assert found.samples.row[:60].tolist() == list(range(60))


def test_the_gap_is_that_among_images_equally_hard():
    chance = torch.Generator().manual_seed(0)
    easy, hard = (torch.rand(400, generator=chance).double() + above for above in (0, 1))
    wobble = [0.05 * torch.randn(400, generator=chance).double() for _ in range(2)]
    above, error = quality.gap((0.3 + 2 * hard + wobble[0], hard), (2 * easy + wobble[1], easy))
    assert above == pytest.approx(0.3, abs=5 * error + 0.02)
    # The sides' own errors, and that of the slope over covariates that are 1 apart and vary by 1/12 on each side.
    assert error == pytest.approx(0.05 * (2 / 400 + 12 / 800) ** 0.5, rel=0.1)


def test_nothing_trained_has_no_gap_and_little_advice(tmp_path):
    subject = exact(num_images=64, seed=0)
    part = quality.part(subject)
    gap = part.numbers["gap"]
    assert abs(gap.value) < 5 * gap.error
    assert not {rule.name for rule in part.facts["advice"]} - {"few-steps", "at-the-floor"}
    drawn = quality_samples.draw(subject)
    assert len(drawn.images) == 64
    again = features.measure(drawn.images.images, subject.images.train, features.network("pixels"), tmp_path)
    shown = {row[0]: row[1] for row in part.tables["metrics"]}
    for name in ("fd", "kid", "coverage"):
        assert shown[name].value == pytest.approx(again[f"{name}-pixels"].value, rel=1e-6, abs=1e-9)


@pytest.fixture(scope="module")
def uneven_run(tmp_path_factory):
    """A run with labels, eleven images of one class for each of the other, and its data, which lie elsewhere now."""
    folder = tmp_path_factory.mktemp("uneven")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(60) % 12 == 0
    np.savez(folder / "data.npz", images=pixels, labels=labels.astype(np.int64), class_names=["most", "few"])
    made = run_command(
        *("train", folder / "data.npz", "--preset", "tiny", "--steps", 2, "--out", folder / "run", *TINY),
        *("--set", "model.labels=true"),
    )
    assert made.exit_code == 0, made.output
    return folder / "run", (folder / "data.npz").rename(folder / "moved.npz")


def test_metrics_are_of_images_with_the_classes_of_the_data(uneven_run, monkeypatch):
    """As `ancestral metrics` draws them; those that are shown have the classes in turn."""
    run, data = uneven_run
    subject = of_run(run, str(data), 8, 0, "cpu", None)
    labels, seen = subject.images.train.labels, []
    monkeypatch.setattr(build, "predictor", lambda *given, labels: seen.append(labels))
    subject.alike(range(len(labels)), subject.move)
    subject.drawn(range(len(labels)), subject.move)
    assert sorted(seen[0].tolist()) == sorted(labels.tolist())
    assert seen[1].sum() == len(labels) // 2
    assert seen[0][:7].tolist() == sample_metrics_command.like(labels, 7, 0).tolist()


def test_data_that_were_moved_are_still_the_models_own(uneven_run, tmp_path):
    run, data = uneven_run
    subject = of_run(run, str(data), 8, 0, "cpu", None)
    assert subject.own
    assert str(data) in subject.command("metrics")
    with np.load(data) as found:
        np.savez(tmp_path / "other.npz", **{**found, "images": 255 - found["images"]})
    assert not of_run(run, str(tmp_path / "other.npz"), 8, 0, "cpu", None).own


def test_walks_that_stay_at_a_time_have_images_to_compare(uneven_run):
    """Of one class, unless it has too few: then of all."""
    run, data = uneven_run
    subject = of_run(run, str(data), 8, 0, "cpu", None)
    assert set(several(subject).labels.tolist()) == {0}
    each = replace(subject.images.test.take([0, 1, 2]), labels=np.array([0, 1, 2]))
    alone = replace(subject, images=Splits(each.take([0, 1]), each.take([2])))
    assert len(several(alone)) == 3


@pytest.mark.parametrize("name", RUNS)
def test_metrics_of_this_checkpoint_are_not_measured_again(name, command, tmp_path, request, monkeypatch):
    run = request.getfixturevalue(name)
    monkeypatch.setattr(quality_samples, "LITE0", "no_such_package")
    subject = of_run(run, None, 8, 0, "cpu", None)
    options = ("--network", "pixels", "--num-images", 40, "--cache", tmp_path, "--device", "cpu")
    for otherwise in (("--steps", 1), ("--solver", "euler"), ("--eta", 1), ("--grid", "quadratic"), ()):
        made = command("metrics", run, *options, *otherwise)
        assert made.exit_code == 0, made.output
        # What was drawn in another way than without any option says something else.
        assert (quality_samples._kept(subject) is None) == bool(otherwise)
    kept = quality_samples.metrics(subject, None)
    assert kept is not None
    assert (kept.kept, kept.network, kept.images, kept.steps) == (True, "pixels", 40, 20)
    assert {"fd", "kid", "copies"} <= set(kept.by_name)
    assert set(kept.by_name["kid"]) == set(quality_samples.SIDES)
    # Of 40 images the covariances of 64 features or more, and the balls of manifolds, are not comparable elsewhere.
    assert set(kept.few) == {"fd", "precision", "recall", "density", "coverage"}
