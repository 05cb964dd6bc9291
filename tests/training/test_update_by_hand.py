"""One update of training against the same written out by hand: rate, clipping, AdamW, importance, averages."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from ancestral.data import augmentation, load
from ancestral.diffusion.objectives.adversarial import Adversarial
from ancestral.diffusion.objectives.time_sampling import TIME_SAMPLERS
from ancestral.diffusion.processes.schedules import SCHEDULES
from ancestral.runs import build, checkpoint, config, datasets
from ancestral.training import prefetch, trainer
from ancestral.training import run as training_run

CPU = torch.device("cpu")


def settings(**changes):
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return config.resolve("digits", "tiny", {"model.width": 8, "train.batch_size": 8, "train.snapshots": 1, **named})


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return load.load("digits", load.DataOptions(limit=100))


def begun(digits, **changes):
    return trainer.Training(settings(**changes), datasets.facts(digits.train), CPU)


def with_gradients(run, importance=lambda: 1.0):
    """Each update's gradient of the mean of importance times loss, found beside the update and before it."""
    objective, found = run.objective, []
    weights = list(run.network.parameters())

    def spied(*args, **cond):
        losses = objective(*args, **cond)
        mean = (losses * importance()).sum() / len(losses)
        gradients = torch.autograd.grad(mean, weights, allow_unused=True)
        pairs = zip(gradients, weights, strict=True)
        found.append([(torch.zeros_like(w) if g is None else g).double().numpy() for g, w in pairs])
        return objective(*args, **cond)

    run.objective = spied
    return found


def test_the_learning_rate_reaches_every_optimizer(digits):
    run = begun(
        digits,
        train__learning_rate=1e-3,
        train__warmup=0.1,
        train__decay=0.5,
        diffusion__objective="adversarial",
        diffusion__chain="consistency",
        diffusion__variance="fixedsmall",
    )
    peaks = {"": 1e-3, "auxiliary-": 5e-4}
    assert run.learners.keys() == peaks.keys()
    for progress, share in ((0.025, 0.25), (0.5, 1.0), (0.9, 0.2)):
        record = run.step(digits.train, progress)
        assert record.learning_rate == pytest.approx(1e-3 * share)
        for name, one in run.learners.items():
            rates = [group["lr"] for group in one.optimizer.param_groups]
            assert rates == pytest.approx([peaks[name] * share] * len(rates))


def test_two_updates_are_adamw_with_a_clipped_gradient(digits):
    run = begun(
        digits,
        train__learning_rate=1e-3,
        train__warmup=0.0,
        train__decay=0.0,
        train__beta2=0.9,
        train__weight_decay=0.1,
        train__clip_norm=1e-3,
    )
    gradients = with_gradients(run)
    weights = [one.detach().double().numpy().copy() for one in run.network.parameters()]
    means, squares = ([np.zeros_like(one) for one in weights] for _ in range(2))
    for update in (1, 2):
        record = run.step(digits.train, 0.5)
        norm = np.sqrt(sum((one**2).sum() for one in gradients[-1]))
        assert norm > 0.01
        assert record.grad_norm == pytest.approx(norm, rel=1e-4)
        for i, gradient in enumerate(gradients[-1]):
            clipped = gradient * 1e-3 / norm
            means[i] = 0.9 * means[i] + 0.1 * clipped
            squares[i] = 0.9 * squares[i] + 0.1 * clipped**2
            step = means[i] / (1 - 0.9**update) / (np.sqrt(squares[i] / (1 - 0.9**update)) + 1e-8)
            weights[i] = weights[i] * (1 - 1e-3 * 0.1) - 1e-3 * step
        for one, expected in zip(run.network.parameters(), weights, strict=True):
            np.testing.assert_allclose(one.detach().numpy(), expected, rtol=1e-6, atol=2e-6)


def test_importance_weighs_each_images_gradient_and_loss(digits):
    run = begun(digits, diffusion__T=4, diffusion__times="loss-importance", train__clip_norm=1e9)
    size = np.array([1.0, 2, 3, 10])
    run.sampler.losses[:] = torch.from_numpy(size)[:, None]
    run.sampler.seen[:] = 10
    importance = 1 / (4 * (0.001 / 4 + 0.999 * size / 16))
    drawn, of_batch = run.sampler.draw, []

    def draw(u):
        index, weights = drawn(u)
        of_batch.append(importance[index.numpy()])
        return index, weights

    run.sampler.draw = draw
    gradients = with_gradients(run, lambda: torch.from_numpy(of_batch[-1]))
    record = run.step(digits.train, 0.5)
    assert len(set(of_batch[0])) > 1
    assert record.loss == pytest.approx(float((of_batch[0] * record.losses.numpy()).sum() / 8))
    for one, expected in zip(run.network.parameters(), gradients[0], strict=True):
        if one.grad is not None:
            np.testing.assert_allclose(one.grad.numpy(), expected, rtol=1e-3, atol=1e-6)


def exponent(width):
    """gamma of width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), by bisection."""
    low, high = 0.0, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        wider = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > width**2
        low, high = (middle, high) if wider else (low, middle)
    return low


@pytest.mark.parametrize("average", [0, 1])
def test_the_model_is_the_chosen_average_of_the_weights_after_each_update(tmp_path, digits, monkeypatch, average):
    widths = (0.08, 0.2)
    configuration = settings(train__average_widths=widths, train__average=average)
    run = training_run.Run(tmp_path, configuration, digits, CPU)
    run.resume()
    run.begin(48)
    after, built, step, ready = [], [], run.training.step, build.ready

    def copied(*args):
        record = step(*args)
        after.append({name: one.double().clone() for name, one in run.training.network.state_dict().items()})
        return record

    def noted(settings, facts, weights):
        built.append(weights)
        return ready(settings, facts, weights)

    run.training.step = copied
    monkeypatch.setattr(build, "ready", noted)
    list(run.train(lambda: False))
    assert len(after) == 6
    saved, tensors = checkpoint.latest(tmp_path)[0].weights, run.training.tensors()
    for i, width in enumerate(widths):
        edges = (np.arange(7) / 6) ** (exponent(width) + 1)
        for name in after[0]:
            expected = sum(share * one[name] for share, one in zip(np.diff(edges), after, strict=True))
            assert torch.allclose(tensors[f"average-{width:g}/{name}"].double(), expected, rtol=1e-5, atol=1e-6)
            if i == average:
                assert torch.allclose(saved[name].double(), expected, rtol=1e-5, atol=1e-6)
                assert torch.allclose(built[-1][name].double(), expected, rtol=1e-5, atol=1e-6)


def test_wide_times_are_normal_in_the_logarithm_of_the_noise():
    schedule = SCHEDULES["linear"](1000)
    sampler = TIME_SAMPLERS["log-normal-wide"].sampler(range(1000, -1, -1), schedule)
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    log_sigma = -schedule.log_snr(sampler.t[sampler.draw(u)[0]]) / 2
    for share, normal in ((0.25, -0.67449), (0.5, 0.0), (0.75, 0.67449), (0.95, 1.64485)):
        assert float(log_sigma.quantile(share)) == pytest.approx(-1.1 + 2.0 * normal, abs=0.05)


def test_augmented_images_are_moved_and_mirrored_once(digits, monkeypatch):
    plain = prefetch.batch(digits.train, 3, range(20), flip=True)
    drawn = prefetch.batch(digits.train, 3, range(20), flip=True, augment=0.5)
    assert torch.equal(drawn.cond["augmentation"], augmentation.draw(3, range(20), 0.5).vector())
    zero = torch.zeros(20, dtype=torch.float64)
    monkeypatch.setattr(augmentation, "draw", lambda *args: augmentation.Moves(zero + 1, *[zero] * 7))
    mirrored = prefetch.batch(digits.train, 3, range(20), flip=True, augment=0.5)
    assert torch.equal(mirrored.x0(), plain.x0().flip(3))
    assert mirrored.cond["augmentation"].tolist() == [[1.0, *[0.0] * 8]] * 20


def test_dropout_reaches_the_network_and_differs_between_updates(digits):
    masks = []
    for _ in range(2):
        run = begun(digits, model__dropout=0.3)
        layers = [one for one in run.network.modules() if isinstance(one, nn.Dropout)]
        assert layers
        assert {one.p for one in layers} == {0.3}
        layers[0].register_forward_hook(lambda layer, given, out: masks.append(out == 0))
        for _ in range(2):
            run.step(digits.train, 0.5)
    assert len(masks) == 4
    assert torch.equal(masks[0], masks[2])
    assert torch.equal(masks[1], masks[3])
    assert not torch.equal(masks[0], masks[1])


def test_a_batch_meets_the_network_a_micro_batch_at_a_time(digits):
    run, sizes = begun(digits, train__micro_batch=3), []
    run.network.register_forward_pre_hook(lambda network, given: sizes.append(len(given[0])))
    run.step(digits.train, 0.5)
    assert sizes == [3, 3, 2]


@pytest.mark.parametrize("wanted", [False, True])
def test_compiling_and_deterministic_updates_are_as_set(digits, monkeypatch, wanted):
    compiled, within = [], []
    monkeypatch.setattr(nn.Module, "compile", lambda self, *args, **options: compiled.append(self))
    monkeypatch.setattr(trainer, "deterministic", lambda device: within.append(device) or nullcontext())
    run = begun(digits, train__compile=wanted, train__deterministic=wanted)
    run.step(digits.train, 0.5)
    assert [one is run.network for one in compiled] == [True] * wanted
    assert within == [CPU] * wanted


@pytest.mark.parametrize(("spike", "loss", "applied"), [(2.0, 3.0, False), (None, 100.0, True)])
def test_a_spike_is_as_set(digits, spike, loss, applied):
    run = begun(digits, train__spike=spike)
    for _ in range(64):
        run.monitors[0].add(1.0)
    objective = run.objective
    run.objective = lambda *args, **cond: objective(*args, **cond) * 0 + loss
    assert run.step(digits.train, 0.5).applied is applied


def test_the_adversarial_stage_has_the_values_it_is_documented_with():
    loss = Adversarial(nn.Identity())
    assert (loss.share, loss.times, loss.anchor) == (0.35, 4, 4.0)
    group = build.auxiliary_optimizer(nn.Linear(1, 1), 0.1).param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.1, (0.5, 0.99), 0.0)
