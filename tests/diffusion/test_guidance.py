"""Guidance against mixtures of Gaussians, whose conditional scores and noisy classifiers are known in closed form."""

import json
import math
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import ancestral
from ancestral.data import load
from ancestral.data.dataset import DataOptions
from ancestral.data.pictures import read_png
from ancestral.diffusion.denoisers.analytic import Mixture, gaussian
from ancestral.diffusion.denoisers.denoiser import Conditioned, Denoiser, Prediction, clip_static, predict, score
from ancestral.diffusion.denoisers.guidance import ClassifierGuided, Guided, beside, conditional
from ancestral.diffusion.denoisers.targets import TARGETS
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.sample import finish, trajectory
from ancestral.diffusion.samplers.solvers import SOLVERS
from ancestral.diffusion.samplers.transitions import DDIM, Ancestral, optimal
from ancestral.networks.unet import UNet
from ancestral.runs import checkpoint, datasets
from ancestral.runs.conditions import trained_with
from ancestral.runs.config import resolve
from ancestral.runs.facts import Facts
from ancestral.runs.hub.model_card import table
from ancestral.runs.measurements import Measured
from ancestral.training import prefetch
from ancestral.training.trainer import Training
from conftest import TINY, run_command

F64 = torch.float64
CPU = torch.device("cpu")
SCALES = [0.0, 0.3, 1.0, 1.5, 4.0]
MEANS = torch.tensor([[-0.8, 0.1], [0.5, 0.6], [0.4, -0.5]], dtype=F64)
VARIANCES = torch.tensor([0.02, 0.1, 0.05], dtype=F64)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
CLASSES = [[0, 1], [2]]  # components of each class


def everything(noise_schedule):
    return Mixture(noise_schedule, MEANS, VARIANCES, WEIGHTS)


def of_class(noise_schedule, label):
    part = CLASSES[label]
    return Mixture(noise_schedule, MEANS[part], VARIANCES[part], WEIGHTS[part])


def class_log_prob(noise_schedule):
    """The exact classifier of noisy points: log p(y) q(x_t | y) / q(x_t)."""

    def log_prob(x_t, t, labels):
        prior = torch.tensor([WEIGHTS[part].sum() for part in CLASSES], dtype=F64).log()
        each = torch.stack([of_class(noise_schedule, y).log_prob(x_t, t) + prior[y] for y in range(2)], 1)
        return (each - each.logsumexp(1, keepdim=True)).gather(1, labels[:, None])[:, 0]

    return log_prob


def points(count=6, seed=0):
    return torch.randn(count, 2, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("t", [1, 40, 100])
def test_the_guided_score_is_the_line_through_both(scale, t):
    q, x = schedules.linear(100), points()
    strong, weak = of_class(q, 0), everything(q)
    guided = Guided(beside(strong, weak), weak, scale)(x, t)
    line = (1 - scale) * score(weak(x, t), q, t) + scale * score(strong(x, t), q, t)
    assert torch.allclose(score(guided, q, t), line, atol=1e-9, rtol=1e-9)
    assert torch.allclose(x, q.signal(t) * guided.x0 + q.noise(t) * guided.eps, atol=1e-12)


def test_scale_one_is_the_conditional_to_the_bit_and_zero_the_unconditional():
    q, x, t = schedules.cosine(100), points(), torch.tensor([1, 7, 30, 60, 99, 100])
    strong, weak = of_class(q, 1), everything(q)
    for rescale in (0.0, 0.3, 0.7, 1.0):
        one = Guided(beside(strong, weak), weak, 1.0, rescale)(x, t)
        assert all(torch.equal(a, b) for a, b in zip(one[:3], strong(x, t)[:3], strict=True))
    zero = Guided(beside(strong, weak), weak, 0.0)(x, t)
    assert torch.equal(zero.x0, weak(x, t).x0)
    assert torch.equal(zero.eps, weak(x, t).eps)


@pytest.mark.parametrize(
    "transition", [DDIM(), DDIM(0.5), Ancestral(optimal), SOLVERS["unipc3"], SOLVERS["dpm++2m"], SOLVERS["heun"]]
)
def test_a_guided_walk_between_gaussians_is_the_walk_of_the_gaussian_beyond(transition):
    """p1^w p0^(1-w) of two Gaussians of one variance has the mean w m1 + (1 - w) m0, at every t."""
    q, scale = schedules.cosine(60), 2.5
    m0, m1 = torch.tensor([0.1, -0.2], dtype=F64), torch.tensor([0.4, 0.3], dtype=F64)
    weak, strong = gaussian(q, m0, 0.2), gaussian(q, m1, 0.2)
    beyond = gaussian(q, scale * m1 + (1 - scale) * m0, 0.2)
    guided, grid, start = Guided(beside(strong, weak), weak, scale), grids.trailing(q, 12), points()
    drawn = (finish(trajectory(one, start, grid, transition, seed=3)) for one in (guided, beyond))
    assert torch.allclose(*drawn, atol=1e-8)


class Exact(torch.nn.Module):
    """A network that says what the exact predictors of the classes, or of all, would say in the units of a target."""

    def __init__(self, noise_schedule, target):
        super().__init__()
        self.schedule, self.target = noise_schedule, target

    def forward(self, x, time, labels, dropped=None):
        t = (time * self.schedule.T / 1000).round().long()
        flat = x.flatten(1)
        known = [one(flat, t) for one in (of_class(self.schedule, 0), of_class(self.schedule, 1))]
        every = everything(self.schedule)(flat, t)
        rows = torch.arange(len(x))
        x0, eps = (torch.stack([one[part] for one in known])[labels, rows] for part in (0, 1))
        if dropped is not None:
            x0, eps = (
                torch.where(dropped[:, None], every[part], conditioned) for part, conditioned in enumerate((x0, eps))
            )
        return self.target.of(x0, eps, self.schedule, t).reshape(x.shape)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_every_target_is_guided_alike(name, kind):
    q, t = schedules.SCHEDULES[kind](50), torch.tensor([2, 9, 17, 25, 33, 45])
    x, labels = points(), torch.tensor([0, 1, 0, 1, 1, 0])
    denoiser = Denoiser(Exact(q, TARGETS[name]), q, TARGETS[name], clip_static)
    for scale in SCALES:
        guided = Guided(conditional(denoiser, labels=labels), denoiser, scale)(x.reshape(6, 2, 1, 1), t)
        for row, label in enumerate(labels.tolist()):
            own = beside(of_class(q, label), everything(q))
            exact = Guided(own, denoiser, scale)(x[row : row + 1], int(t[row]))
            assert torch.allclose(guided.x0[row].flatten(), exact.x0[0], atol=1e-6, rtol=1e-6)


def test_outside_its_interval_guidance_is_the_conditional_to_the_bit():
    q, x = schedules.linear(100), points()
    strong, weak = of_class(q, 0), everything(q)
    low, high = float(q.log_snr(70)), float(q.log_snr(30))
    guided = Guided(beside(strong, weak), weak, 3.0, 0.7, (low, high))
    always = Guided(beside(strong, weak), weak, 3.0, 0.7)
    for t in range(1, 101):
        expected = always if 30 <= t <= 70 else strong
        assert torch.equal(guided(x, t).x0, expected(x, t).x0)
        assert not torch.equal(always(x, t).x0, strong(x, t).x0)
    mixed = torch.tensor([1, 29, 30, 70, 71, 100])
    each = torch.cat([guided(x[i : i + 1], int(t)).x0 for i, t in enumerate(mixed)])
    assert torch.allclose(guided(x, mixed).x0, each, atol=1e-14)


@pytest.mark.parametrize("phi", [0.0, 0.25, 0.7, 1.0])
def test_rescaling_mixes_the_standard_deviations(phi):
    """std of phi rescaled + (1 - phi) guided = phi std of the conditional + (1 - phi) std of the guided, an image."""
    q, x = schedules.linear(100), 2 * points()
    strong, weak = of_class(q, 0), everything(q)
    plain = Guided(beside(strong, weak), weak, 4.0)(x, 60).x0
    scaled = Guided(beside(strong, weak), weak, 4.0, phi)(x, 60).x0
    mixed = phi * strong(x, 60).x0.std(1) + (1 - phi) * plain.std(1)
    assert torch.allclose(scaled.std(1), mixed, atol=1e-12)
    assert torch.allclose(scaled / plain, (scaled / plain)[:, :1].expand(-1, 2), atol=1e-12)
    assert phi == 0 or not torch.allclose(scaled, plain)


def test_an_image_without_contrast_is_left_alone():
    q = schedules.linear(100)
    flat = gaussian(q, torch.tensor([0.3], dtype=F64), 0.1)
    guided = Guided(beside(flat, gaussian(q, torch.tensor([0.0], dtype=F64), 0.1)), flat, 2.0, 0.7)
    assert guided(torch.zeros(2, 1, dtype=F64), 50).x0.isfinite().all()


def test_what_is_guided_is_unclipped_and_the_result_is_clipped():
    """x0 of 2 and 1 at scale 0.5 is 1.5, clipped to 1, also where clipping both first would give 1 at every scale."""
    q, x = schedules.linear(100), torch.zeros(1, 2, 1, 1, dtype=F64)
    said = {"strong": torch.tensor([1.6, -0.9]), "weak": torch.tensor([3.0, -1.5])}

    class Says(torch.nn.Module):
        def forward(self, x, time, dropped):
            return torch.where(dropped[:, None], said["weak"], said["strong"]).reshape(x.shape).to(x)

    denoiser = Denoiser(Says(), q, TARGETS["x0"], clip_static)
    pair = conditional(denoiser)
    for scale in (0.0, 0.5, 1.0, 2.0):
        line = said["weak"] + scale * (said["strong"] - said["weak"])
        assert torch.allclose(Guided(pair, denoiser, scale)(x, 50).x0.flatten().float(), line, atol=1e-6)
        clipped = Guided(pair, denoiser, scale, clip=denoiser.clip)(x, 50)
        assert torch.allclose(clipped.x0.flatten().float(), line.clamp(-1, 1), atol=1e-6)
        assert torch.allclose(clipped.eps, predict(clipped.x0, x, q, 50).eps)
    # At 2 the line is (0.2, -0.3); from clipped ends it would be (1, -0.8).
    assert float(Guided(pair, denoiser, 2.0, clip=denoiser.clip)(x, 50).x0[0, 0]) == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize("kind", ["linear", "cosine", "linear-zero-snr"])
@pytest.mark.parametrize("label", [0, 1])
def test_the_exact_classifier_makes_the_exact_conditional(kind, label):
    q, x = schedules.SCHEDULES[kind](100), points()
    labels = torch.full((6,), label)
    guided = ClassifierGuided(everything(q), class_log_prob(q), labels)
    t = torch.tensor([1, 5, 30, 60, 90, 99])
    assert torch.allclose(guided(x, t).x0, of_class(q, label)(x, t).x0, atol=1e-8)
    assert torch.allclose(guided(x, 99).eps, of_class(q, label)(x, 99).eps, atol=1e-8)
    assert guided(x, 100).x0.isfinite().all()
    lost = ClassifierGuided(everything(q), lambda x, t, labels: x.sum(1) * math.nan, labels)
    assert lost(x, 100).x0.isfinite().all() == (float(q.signal(100)) == 0)
    for scale in (-1.5, 0.0, 2.5):
        by_gradient = ClassifierGuided(everything(q), class_log_prob(q), labels, scale)(x, t)
        by_line = Guided(beside(of_class(q, label), everything(q)), everything(q), scale)(x, t)
        assert torch.allclose(by_gradient.x0, by_line.x0, atol=1e-8)


def test_classifier_guidance_draws_one_class_and_works_in_inference_mode():
    q = schedules.cosine(40)
    guided = ClassifierGuided(everything(q), class_log_prob(q), torch.ones(200, dtype=torch.long))
    with torch.inference_mode():
        x0 = finish(trajectory(guided, points(200), grids.full(q), DDIM(), seed=0))
    spread = float(VARIANCES[2]) ** 0.5
    assert torch.allclose(x0.mean(0), MEANS[2], atol=5 * spread / math.sqrt(200))
    assert float(((x0 - MEANS[2]).norm(dim=1) < 4 * spread).double().mean()) > 0.99


def conditional_network(embedding=0):
    torch.manual_seed(0)
    network = UNet(1, 1, width=8, multipliers=(1,), blocks=1, classes=3, embedding=embedding, null=True)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return network.eval().requires_grad_(requires_grad=False)


def test_dropped_conditions_say_nothing_and_the_others_are_untouched():
    network, x, time = conditional_network(embedding=4), torch.randn(3, 1, 4, 4), torch.tensor([1.0, 500.0, 900.0])
    labels, vectors = torch.tensor([0, 1, 2]), torch.randn(3, 4)
    conditioned = network(x, time, labels, vectors)
    dropped = torch.tensor([True, False, True])
    partly = network(x, time, labels, vectors, dropped)
    assert torch.equal(
        partly, network(x, time, torch.tensor([2, 1, 1]), vectors * dropped.logical_not()[:, None], dropped)
    )
    assert torch.allclose(partly[1], conditioned[1], atol=1e-6)
    assert not torch.allclose(partly[0], conditioned[0])
    assert not torch.allclose(conditioned, network(x, time, labels, vectors + 1))
    with pytest.raises(ValueError, match="pass embedding="):
        network(x, time, labels)
    with pytest.raises(ValueError, match="no null"):
        UNet(1, 1, width=8, multipliers=(1,), blocks=1, classes=3)(x, time, labels, dropped=dropped)


def test_a_guided_image_does_not_depend_on_its_batch():
    denoiser = Denoiser(conditional_network(), schedules.cosine(100), TARGETS["v"], clip_static)
    x, t, labels = torch.randn(4, 1, 4, 4, dtype=F64), torch.tensor([3, 40, 80, 100]), torch.tensor([0, 1, 2, 1])

    def guided(part, scale=3.0):
        pair = conditional(denoiser, labels=labels[part])
        return Guided(pair, denoiser, scale, 0.7, (-5, 5), denoiser.clip)(x[part], t[part]).x0

    alone = torch.cat([guided(slice(i, i + 1)) for i in range(4)])
    assert torch.allclose(guided(slice(0, 4)), alone, atol=1e-5)
    assert torch.allclose(guided(slice(0, 4), 1.0), Conditioned(denoiser, labels=labels)(x, t).x0, atol=1e-5)
    nobody = Conditioned(denoiser.unclipped, labels=labels, dropped=torch.ones(4, dtype=torch.bool))
    free = Guided(conditional(denoiser, labels=labels), denoiser, 0.0)(x, t)
    assert torch.allclose(free.x0, nobody(x, t).x0, atol=1e-5)


def test_what_is_known_of_the_variance_stays_the_conditionals():
    q, x = schedules.linear(100), points()
    mix = torch.full((6, 2), 0.3, dtype=F64)

    def with_mix(x_t, t):
        return of_class(q, 0)(x_t, t)._replace(range_mix=mix)

    guided = Guided(beside(with_mix, everything(q)), everything(q), 2.0)(x, 40)
    assert isinstance(guided, Prediction)
    assert torch.equal(guided.range_mix, mix)
    assert torch.equal(guided.x0_var, of_class(q, 0)(x, 40).x0_var)


def settings(source="digits", **overrides):
    small = {"model.width": 8, "train.batch_size": 16, "model.condition_dropout": 0.4}
    return resolve(source, "tiny", {**small, **overrides})


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return load.load("digits", DataOptions())


def test_who_is_dropped_is_a_function_of_the_image_number(digits):
    configuration = settings(**{"model.labels": True})
    numbers = range(4000)
    cond = {"labels": torch.zeros(4000, dtype=torch.long)}
    whole = trained_with(cond, configuration, numbers, Streams)["dropped"]
    parts = [
        trained_with(cond, configuration, numbers[a:b], Streams)["dropped"] for a, b in pairwise([0, 7, 1000, 4000])
    ]
    assert torch.equal(whole, torch.cat(parts))
    assert float(whole.double().mean()) == pytest.approx(0.4, abs=5 * math.sqrt(0.24 / 4000))
    assert "dropped" not in trained_with(
        cond, settings(**{"model.labels": True, "model.condition_dropout": 0}), numbers, Streams
    )


def test_a_stopped_training_with_dropped_labels_goes_on_to_the_same_bits(digits):
    configuration = settings(**{"model.labels": True})
    facts = datasets.facts(digits.train)
    straight, stopped, again = (Training(configuration, facts, CPU) for _ in range(3))
    for _ in range(4):
        straight.step(digits.train, straight.images / 64)
    for _ in range(2):
        stopped.step(digits.train, stopped.images / 64)
    again.load(stopped.tensors(), stopped.images, "x")
    for _ in range(2):
        again.step(digits.train, again.images / 64)
    ours, theirs = straight.tensors(), again.tensors()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert ours["network/null"].abs().sum() > 0


def test_labels_of_dropped_images_teach_nothing():
    network = conditional_network().requires_grad_()
    x, labels = torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 2])
    network(x, torch.full((3,), 500.0), labels, dropped=torch.tensor([True, False, True])).square().sum().backward()
    assert [bool(row.any()) for row in network.label.weight.grad] == [False, True, False]
    assert network.null.grad.any()


def save_with_vectors(path, count=60, length=3, **changes):
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(count, length))
    pixels = (128 + 100 * np.tanh(vectors[:, :1, None])).astype(np.uint8).repeat(8, 1).repeat(8, 2)
    np.savez(path, **{"images": pixels, "embeddings": vectors, **changes})
    return vectors


def test_vectors_of_the_users_are_read_split_and_given(tmp_path):
    vectors = save_with_vectors(tmp_path / "a.npz")
    splits = load.load(str(tmp_path / "a.npz"), DataOptions())
    assert datasets.facts(splits.train) == Facts((1, 8, 8), (), 3)
    for part in (splits.train, splits.test):
        rows = [int(name.split("[")[1][:-1]) for name in part.names]
        assert np.array_equal(part.embeddings, vectors[rows].astype(np.float32))
    shown = prefetch.batch(splits.train, 0, range(20), flip=False)
    assert torch.equal(shown.cond["embedding"], torch.from_numpy(splits.train.embeddings)[shown.rows])
    save_with_vectors(tmp_path / "b.npz", embeddings=vectors + 1e-3)
    assert load.load(str(tmp_path / "b.npz"), DataOptions()).train.digest() != splits.train.digest()
    whole = splits.train
    np.save(tmp_path / "c.npy", whole.images[:, :, :, 0])
    np.save(tmp_path / "c.embeddings.npy", whole.embeddings)
    mapped = load.load(str(tmp_path / "c.npy"), DataOptions()).train
    rows = [int(name.split("[")[1][:-1]) for name in mapped.names]
    assert np.array_equal(mapped.embeddings, whole.embeddings[rows])


def test_vectors_held_out_are_like_those_trained_on(tmp_path):
    vectors = save_with_vectors(tmp_path / "a.npz")
    pixels = np.load(tmp_path / "a.npz")["images"]
    for held_out, length in ({}, 0), ({"test_embeddings": vectors[:, :2]}, 2):
        parts = {"train_images": pixels, "test_images": pixels, "train_embeddings": vectors, **held_out}
        np.savez(tmp_path / "b.npz", **parts)
        line = ("train", tmp_path / "b.npz", "--preset", "tiny", "--steps", 1, "--out", tmp_path / "run")
        result = run_command(*line, "--set", "model.embedding=true")
        assert result.exit_code == 2
        assert f"vectors of 3 numbers to train on, of {length} held out" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (np.zeros((59, 3)), "must be 60 vectors"),
        (np.zeros(60), "must be 60 vectors"),
        (np.zeros((60, 0)), "must be 60 vectors"),
        (np.full((60, 2), np.nan), "not finite"),
        (np.full((60, 2), "a"), "must be 60 vectors"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(tmp_path, wrong, problem):
    save_with_vectors(tmp_path / "a.npz", embeddings=wrong)
    result = run_command("train", tmp_path / "a.npz", "--preset", "tiny", "--steps", 1, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "embeddings" in result.output
    assert problem in result.output


@pytest.fixture(scope="module")
def guidable(tmp_path_factory):
    pytest.importorskip("sklearn")
    run = tmp_path_factory.mktemp("runs") / "conditional"
    conditioned = ("--set", "model.labels=true", "--set", "model.condition_dropout=0.3")
    result = run_command("train", "digits", "--preset", "tiny", "--steps", 40, "--out", run, *TINY, *conditioned)
    assert result.exit_code == 0, result.output
    return run


def drawn(run, out, *options):
    arguments = ("--num-images", 6, "--steps", 5, "--device", "cpu", "--out", out, *options)
    result = run_command("sample", run, *arguments)
    assert result.exit_code == 0, result.output
    return np.stack([read_png(out / f"{number:06d}.png").astype(int) for number in range(6)])


def test_guidance_from_the_command_line(guidable, tmp_path):
    plain = drawn(guidable, tmp_path / "plain")
    one = drawn(guidable, tmp_path / "one", "--guidance", 1)
    assert np.abs(one - plain).max() <= 1  # the network saw twice as many images at a time
    three = drawn(guidable, tmp_path / "three", "--guidance", 3)
    assert np.abs(three - plain).max() > 1
    again = drawn(guidable, tmp_path / "again", "--guidance", 3, "--batch-size", 2)
    assert np.abs(three - again).max() <= 1
    nowhere = drawn(guidable, tmp_path / "nowhere", "--guidance", 3, "--guidance-interval", "50:60")
    assert np.abs(nowhere - plain).max() <= 1
    assert (drawn(guidable, tmp_path / "phi", "--guidance", 3, "--guidance-rescale", 0.7) != three).any()
    zero = [drawn(guidable, tmp_path / label, "--guidance", 0, "--label", label) for label in ("3", "8")]
    assert np.abs(zero[0] - zero[1]).max() == 0


def test_a_model_guided_by_itself_is_itself_and_by_an_earlier_average_is_not(guidable, tmp_path):
    plain = drawn(guidable, tmp_path / "plain")
    own = drawn(guidable, tmp_path / "own", "--guidance", 3, "--guide", guidable)
    assert np.array_equal(own, plain)
    early = min((guidable / "averages").iterdir())
    assert (drawn(guidable, tmp_path / "early", "--guidance", 3, "--guide", early) != plain).any()
    result = run_command(
        *("metrics", guidable, "--network", "pixels", "--num-images", 64, "--steps", 2, "--guidance", 2),
        *("--guide", early, "--device", "cpu", "--cache", tmp_path / "cache"),
    )
    assert result.exit_code == 0, result.output
    path = guidable / "metrics-pixels.json"
    how = table(Measured(path.stem, json.loads(path.read_text())))
    assert "guidance 2.0" in how  # on the card too
    assert "guidance_rescale" not in how


def test_early_is_the_average_at_a_quarter_of_the_run(guidable, tmp_path):
    saved, _ = checkpoint.open_run(guidable)
    quarter = checkpoint.early_average(saved, 0.25)
    named = drawn(guidable, tmp_path / "named", "--guidance", 3, "--guide", quarter)
    assert np.array_equal(drawn(guidable, tmp_path / "early", "--guidance", 3, "--guide", "early"), named)
    how = ("--steps", 2, "--num-images", 2, "--device", "cpu", "--guidance", 3, "--guide", "early")
    said = run_command("sample", guidable, *how, "--out", tmp_path / "said").output
    assert f"--guide early: {quarter}" in said.replace("\n", "")
    run = tmp_path / "run"
    shutil.copytree(guidable, run, ignore=shutil.ignore_patterns("averages"))
    result = run_command("sample", run, *how)
    assert result.exit_code == 2
    assert "no average of an earlier time" in result.output.replace("\n", " ")
    later = saved.images + 10
    for images in (*range(0, saved.images, saved.images // 16), later):
        (run / "averages" / f"{images:09d}").mkdir(parents=True)
    here = replace(saved, folder=run / "checkpoints" / saved.folder.name)
    chosen = [int(checkpoint.early_average(here, share).name) / saved.images for share in (0.25, 0.5, 1.0)]
    assert chosen == [0.25, 0.5, 0.9375]


def test_images_that_are_there_are_not_guided(tmp_path):
    result = run_command("metrics", tmp_path, "digits", "--guidance-rescale", 0.5)
    assert result.exit_code == 2
    assert "--guidance-rescale" in result.output


def test_a_model_of_vectors_trains_draws_and_measures(tmp_path):
    save_with_vectors(tmp_path / "a.npz", count=120)
    run = tmp_path / "run"
    conditioned = ("--set", "model.embedding=true", "--set", "model.condition_dropout=0.2")
    assert "embeddings" in run_command("train", "digits", "--out", run, "--steps", 1, *conditioned).output
    result = run_command(
        "train", tmp_path / "a.npz", "--preset", "tiny", "--steps", 20, "--out", run, *TINY, *conditioned
    )
    assert result.exit_code == 0, result.output
    assert "--embeddings" in run_command("sample", run, "--steps", 2).output
    vectors = np.array([[2.0, 0, 0], [-2.0, 0, 0]])
    np.save(tmp_path / "v.npy", vectors)
    images = drawn(run, tmp_path / "s", "--embeddings", tmp_path / "v.npy", "--guidance", 2)
    film = ancestral.load(run, "cpu").film(6, steps=5, guidance=2, embeddings=tmp_path / "v.npy")
    assert np.array_equal(film.images.array.reshape(images.shape), images)
    np.save(tmp_path / "w.npy", vectors[::-1])
    other = drawn(run, tmp_path / "t", "--embeddings", tmp_path / "w.npy", "--guidance", 2)
    assert (images != other).any()
    np.save(tmp_path / "x.npy", vectors[:, :2])
    assert "vectors of 2" in run_command("sample", run, "--embeddings", tmp_path / "x.npy").output
    measured = run_command("evaluate", run, "--num-images", 8, "--terms", 4, "--device", "cpu")
    assert measured.exit_code == 0, measured.output


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--guidance", "2"), "trained without labels"),
        (("--guidance", "2"), "--guide early"),
        (("--guide", "{run}"), "add --guidance"),
        (("--guidance-rescale", "0.5"), "add --guidance"),
        (("--guidance", "2", "--guide", "nowhere"), "no such run"),
        (("--guidance", "2", "--guide", "{conditioned}"), "its classes are not those"),
        (("--guidance", "2", "--guide", "{run}/averages/7"), "averages/7/manifest.json: no such file"),
        (("--guidance", "2", "--guidance-interval", "3:1"), "LO:HI"),
        (("--guidance", "2", "--guidance-interval", "wide"), "LO:HI"),
        (("--guidance", "-1"), "-1"),
        (("--embeddings", "v.npy"), "trained without"),
    ],
)
def test_what_cannot_guide_is_one_line(options, problem, trained_run, guidable):
    chosen = [option.format(run=trained_run, conditioned=guidable) for option in options]
    result = run_command("sample", trained_run, "--steps", 2, *chosen)
    assert result.exit_code == 2
    assert problem in result.output


def test_a_model_that_never_went_without_cannot_be_guided(tmp_path):
    pytest.importorskip("sklearn")
    run = tmp_path / "run"
    made = run_command(
        *("train", "digits", "--preset", "tiny", "--steps", 1, "--out", run, *TINY, "--set", "model.labels=true")
    )
    assert made.exit_code == 0, made.output
    result = run_command("sample", run, "--guidance", 2)
    assert result.exit_code == 2
    assert "model.condition_dropout" in result.output
    nothing = run_command("train", "digits", "--out", run, "--set", "model.condition_dropout=0.1", "--steps", 1)
    assert nothing.exit_code == 2
    assert "nothing to drop" in nothing.output
