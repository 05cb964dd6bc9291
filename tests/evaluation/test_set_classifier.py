"""The judge that is trained on a set's own classes, and the balance of classes, against shares that are known."""

import json
import math

import numpy as np
import pytest
import torch

import ancestral
from ancestral.data import load
from ancestral.data.dataset import DataOptions, ImageSet
from ancestral.errors import UserError
from ancestral.evaluation import features, set_classifier
from ancestral.evaluation.features import TrainedOn, compared_with, features_of, network, unlabelled
from ancestral.evaluation.sample_metrics import class_imbalance, imbalance_by_chance
from conftest import run_command

pytest.importorskip("sklearn")


def classes(counts):
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def test_the_imbalance_of_known_shares():
    assert class_imbalance(classes([30, 50, 20]), classes([300, 500, 200])).value == pytest.approx(0, abs=1e-12)
    assert class_imbalance(classes([0, 10]), classes([10, 0])).value == 1
    assert class_imbalance(classes([0, 10]), classes([10, 0])).error == 0
    # Without one of ten classes a tenth of the images is in a wrong class, whichever it is.
    for missing in (0, 9):
        shares = [90] * 10
        shares[missing] = 0
        found = class_imbalance(classes(shares), classes([50] * 10))
        assert found.value == pytest.approx(0.1)


def draws(count, number=300):
    random = np.random.default_rng(0)
    p, q = [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]
    reference = classes(random.multinomial(count, q).tolist())
    return reference, [classes(random.multinomial(count, p).tolist()) for _ in range(number)]


def test_the_bootstraps_error_is_the_true_spread():
    reference, samples = draws(400)
    values, errors = (torch.tensor(one) for one in zip(*(class_imbalance(x, reference) for x in samples), strict=True))
    assert float(errors.square().mean().sqrt() / values.std()) == pytest.approx(1, abs=0.15)


def test_what_chance_alone_gives():
    """The mean over pairs of sets of one distribution; of K equal shares sqrt((K-1) / (pi N))."""
    random, shares = np.random.default_rng(1), [0.4, 0.3, 0.2, 0.1]
    pairs = (random.multinomial(500, shares, 2).tolist() for _ in range(200))
    found = torch.tensor([class_imbalance(classes(one), classes(other)).value for one, other in pairs])
    expected = imbalance_by_chance(classes([400, 300, 200, 100]), 500)
    assert float(found.mean()) == pytest.approx(expected, abs=4 * float(found.std()) / 200**0.5)
    assert imbalance_by_chance(classes([200] * 10), 2000) == pytest.approx(math.sqrt(9 / (math.pi * 2000)))


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def digits(request, tmp_path_factory):
    """Digits in one or three channels, and their classifier after fewer updates than usual."""
    train = load.load("digits", DataOptions()).train
    images = np.asarray(train.images[:]).repeat(request.param, 3)
    if request.param == 3:
        images[..., 1] = 255 - images[..., 1]
    whole = ImageSet(images, train.labels, train.class_names, train.names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(set_classifier, "UPDATES", 80)
        cache = tmp_path_factory.mktemp("cache")
        yield whole, network("classifier", training=TrainedOn(whole, cache)), cache


def looked(images, by, cache):
    return features_of(unlabelled(images), by, cache)


def test_halves_of_one_set_are_alike_and_others_are_not(digits):
    """By the judge: halves within error; without a class, that class's share; shuffled pixels far away."""
    whole, by, cache = digits
    images, labels = whole.images, whole.labels
    order = np.random.default_rng(0).permutation(len(images))
    one, two = (looked(images[half], by, cache) for half in (order[::2], order[1::2]))
    compare = compared_with(one, by)
    same = compare(two)
    chance = imbalance_by_chance(features.predicted(one, by), len(two))
    assert same["tv-classifier"].value < chance + 3 * same["tv-classifier"].error
    assert abs(same["kid-classifier"].value) < 4 * same["kid-classifier"].error
    kept = order[labels[order] != 3]
    without = compared_with(looked(images[order], by, cache), by)(looked(images[kept], by, cache))
    share = float((labels == 3).mean())
    assert without["tv-classifier"].value == pytest.approx(share, abs=0.02)
    random = np.random.default_rng(1)
    shuffled = random.permuted(images[order[1::2]].reshape(len(two), -1), axis=1).reshape(-1, *whole.shape)
    spoiled = compare(looked(shuffled, by, cache))
    assert spoiled["fd-classifier"].value > 20 * same["fd-classifier"].value
    assert spoiled["kid-classifier"].value > 20 * abs(same["kid-classifier"].value)
    right = features.predicted(two, by) == torch.from_numpy(labels[order[1::2]])
    assert float(right.double().mean()) > 0.9


def test_a_set_has_one_judge(digits, tmp_path, monkeypatch):
    """Trained anew it is the same to the bit, no global generator moves, and the second time it is not trained."""
    whole, by, _ = digits
    before = torch.random.get_rng_state()
    again = network("classifier", training=TrainedOn(whole, tmp_path))
    assert again.key == by.key
    assert torch.equal(torch.random.get_rng_state(), before)
    monkeypatch.setattr(set_classifier, "_train", lambda *_: pytest.fail("trained again"))
    assert network("classifier", training=TrainedOn(whole, tmp_path)).key == by.key


def test_transparent_pixels_lie_on_white(digits):
    whole, by, _ = digits
    if whole.shape[2] == 3:
        clear = np.concatenate([whole.images[:4], np.zeros_like(whole.images[:4, ..., :1])], 3)
        white = by.extract(np.full_like(whole.images[:4], 255))
        assert torch.equal(by.extract(clear), white)


def test_a_set_without_classes_has_no_judge(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    for labels in (None, np.zeros(60, np.int64)):
        with pytest.raises(UserError, match="no classes"):
            network("classifier", training=TrainedOn(ImageSet(images, labels, (), ("x",) * 60), tmp_path))
    with pytest.raises(UserError, match="training images"):
        network("classifier")
    np.savez(tmp_path / "bare.npz", train_images=images, test_images=images)
    np.save(tmp_path / "drawn.npy", images)
    result = run_command(
        "metrics", tmp_path / "drawn.npy", tmp_path / "bare.npz", "--network", "classifier", "--no-cache"
    )
    assert result.exit_code == 2
    assert "no classes to train it on" in result.output


def test_two_judges_of_one_command(tmp_path, monkeypatch):
    monkeypatch.setattr(set_classifier, "UPDATES", 60)
    np.save(tmp_path / "drawn.npy", load.load("digits", DataOptions()).train.images[:200])
    job = ("metrics", tmp_path / "drawn.npy", "digits", "--network", "pixels", "--network", "classifier")
    result = run_command(*job, "--num-images", 150, "--out", tmp_path, "--cache", tmp_path / "cache")
    assert result.exit_code == 0, result.output
    for name in ("kid-pixels", "kid-classifier", "tv-classifier", "150 images: at least 2,000"):
        assert name in result.output
    assert "tv-pixels" not in result.output
    document = json.loads((tmp_path / "metrics-classifier.json").read_text())
    assert set(document["metrics"]["tv-classifier"]) == {"train", "test", "floor"}
    assert document["held_out_accuracy"] > 0.7
    assert document["tv_by_chance"] == pytest.approx(math.sqrt(9 / (math.pi * 150)), rel=0.05)
    assert f"right of {100 * document['held_out_accuracy']:.1f} %" in result.output
    assert "held_out_accuracy" not in json.loads((tmp_path / "metrics-pixels.json").read_text())


def test_two_judges_from_python(trained_run, tmp_path, monkeypatch):
    monkeypatch.setattr(set_classifier, "UPDATES", 20)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = ancestral.load(trained_run)
    found = model.metrics(num_images=30, network=["pixels", "classifier"], steps=2)
    assert {"fd-pixels", "fd-classifier", "tv-classifier"} <= set(found)
    assert 0 <= found["tv-classifier"]["test"].value <= 1
    assert found["tv-classifier"]["floor"].error > 0
    assert list((tmp_path / "ancestral" / "classifiers").glob("*/00000000-00000000"))
    alone = model.metrics(num_images=30, network="classifier", steps=2)
    assert alone == {name: one for name, one in found.items() if name.endswith("-classifier")}
