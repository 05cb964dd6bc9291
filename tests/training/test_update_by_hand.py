"""One update of training against the same written out by hand: rate, clipping, AdamW, importance, averages."""

import numpy as np
import pytest
import torch

from ancestral.data import load
from ancestral.runs import build, checkpoint, config, datasets
from ancestral.training import run as training_run
from ancestral.training import trainer

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
