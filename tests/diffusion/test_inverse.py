"""Inverse problems: operators against their definitions, methods against Gaussian posteriors in closed form."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from ancestral.diffusion.denoisers.analytic import Correlated, gaussian
from ancestral.diffusion.denoisers.denoiser import predict
from ancestral.diffusion.editing.inverse_problems import (
    METHODS,
    Ddnm,
    Dps,
    Mmps,
    Observation,
    PiGdm,
    conjugate_gradients,
    from_spectrum,
)
from ancestral.diffusion.editing.operators import Known, Separable, box_means, gaussian_blur, grey
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.loop import Move, from_model, walk
from ancestral.diffusion.samplers.sample import finish
from ancestral.diffusion.samplers.transitions import DDIM, Ancestral, fixedsmall, optimal
from oracles import known_spread

F64 = torch.float64
SHAPE = (3, 8, 12)


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


class Noise:
    """Streams for many rows at once."""

    def __init__(self, rows, seed=0):
        self.rows, self.generator = rows, torch.Generator().manual_seed(seed)

    def normal(self, shape):
        return torch.randn(self.rows, *shape, dtype=F64, generator=self.generator)


OPERATORS = {
    "box-2": (box_means(SHAPE, 2), SHAPE),
    "box-4": (box_means(SHAPE, 4), SHAPE),
    "blur": (gaussian_blur(SHAPE, 0.8), SHAPE),
    "wide-blur": (gaussian_blur(SHAPE, 5.0), SHAPE),
    "grey": (grey(SHAPE), SHAPE),
    "known": (Known(drawn(1, 8, 12) > 0), SHAPE),
    "dense": (Separable(drawn(2, 5)), (5,)),
    "tall": (Separable(drawn(7, 5)), (5,)),
    "singular": (Separable(drawn(4, 2) @ drawn(2, 5, seed=1)), (5,)),
}


@pytest.fixture(params=OPERATORS, name="measured")
def of_each(request):
    operator, shape = OPERATORS[request.param]
    x = drawn(3, *shape, seed=2)
    return operator, x, drawn(*operator(x).shape, seed=3)


def test_the_adjoint_is_the_adjoint(measured):
    operator, x, y = measured
    assert float((operator(x) * y).sum()) == pytest.approx(float((x * operator.adjoint(y)).sum()), rel=1e-12)


def test_the_pseudo_inverse_obeys_penrose(measured):
    """All four conditions; the last two say that A A^+ and A^+ A are symmetric."""
    operator, x, y = measured
    seen, back = operator(x), operator.pseudo_inverse(y)
    assert torch.allclose(operator(operator.pseudo_inverse(seen)), seen, atol=1e-6)
    assert torch.allclose(operator.pseudo_inverse(operator(back)), back, atol=1e-6 * float(back.abs().max()))
    other_x, other_y = x.flip(0), y.flip(0)
    assert float((operator(back) * other_y).sum()) == pytest.approx(
        float((y * operator(operator.pseudo_inverse(other_y))).sum()), rel=1e-5
    )
    projected = operator.pseudo_inverse(operator(x))
    assert float((projected * other_x).sum()) == pytest.approx(
        float((x * operator.pseudo_inverse(operator(other_x))).sum()), rel=1e-5
    )


def matrix(operator, shape):
    unit = torch.eye(int(np.prod(shape)), dtype=F64)
    return operator(unit.reshape(-1, *shape)).flatten(1).mT


def test_the_ridge_is_the_matrix_formula(measured):
    operator, x, y = measured
    a = matrix(operator, x.shape[1:])
    x_var = torch.tensor([0.3, 0.5, 2.0], dtype=F64)
    for row in range(3):
        solved = torch.linalg.solve(x_var[row] * a @ a.mT + 0.1 * torch.eye(len(a)), y[row].flatten())
        # What A cannot reach has no part in A^T v.
        found = operator.ridge(y, x_var.reshape(-1, *[1] * (x.ndim - 1)), 0.1)[row]
        assert torch.allclose(found.flatten(), a.mT @ solved, atol=1e-9)


def test_operators_are_what_they_are_called():
    ndimage = pytest.importorskip("scipy.ndimage")
    x = drawn(2, *SHAPE)
    assert torch.allclose(box_means(SHAPE, 4)(x), torch.nn.functional.avg_pool2d(x, 4), atol=1e-12)
    for width in (0.5, 1.0, 1.5):
        blurred = ndimage.gaussian_filter(x.numpy(), width, axes=(2, 3), mode="reflect", truncate=4)
        assert np.allclose(gaussian_blur(SHAPE, width)(x), blurred, atol=1e-12)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    ours = grey(SHAPE)(torch.from_numpy(pixels).double().permute(2, 0, 1)[None])[0, 0]
    assert np.abs(ours.numpy() - np.asarray(Image.fromarray(pixels).convert("L"))).max() < 1
    known = torch.tensor([[True, False]])
    assert torch.equal(Known(known)(torch.tensor([[3.0, 4.0]])), torch.tensor([[3.0, 0.0]]))


@pytest.mark.parametrize("make", [lambda: box_means((1, 9, 8), 2), lambda: grey((1, 8, 8))])
def test_an_operator_that_cannot_be_says_so(make):
    with pytest.raises(ValueError, match=r"divide|channels"):
        make()


def test_conjugate_gradients_solve_in_as_many_steps_as_there_are_eigenvalues():
    root = drawn(6, 6)
    square = root @ root.mT + torch.eye(6)
    right = drawn(4, 6, seed=1)
    right[2] = 0
    found = conjugate_gradients(lambda v: v @ square, right, 6)
    assert torch.allclose(found @ square, right, atol=1e-8)
    assert torch.equal(conjugate_gradients(lambda v: -v, right, 3), torch.zeros_like(right))


A = Separable(torch.tensor([[1.0, 0.5, -0.2], [0.0, 0.8, 0.6]], dtype=F64))
MEAN = torch.tensor([0.3, -0.4, 0.1], dtype=F64)
COVARIANCE = torch.tensor([[0.5, 0.3, 0.0], [0.3, 0.4, -0.2], [0.0, -0.2, 0.3]], dtype=F64)
Y, Y_VAR = torch.tensor([[0.7, -0.3]], dtype=F64), 0.05


def posterior(mean, covariance, a, y, y_var):
    """Mean and covariance of x0 given y = A x0 + noise."""
    gain = covariance @ a.mT @ torch.linalg.inv(a @ covariance @ a.mT + y_var * torch.eye(len(a)))
    return mean + gain @ (y - a @ mean), covariance - gain @ a @ covariance


def seen(rows, y_var=Y_VAR):
    return Observation(A, Y.expand(rows, -1), y_var)


ROUND = gaussian(schedules.cosine(1000), MEAN, 0.5)
LONG = Correlated(schedules.cosine(1000), MEAN, COVARIANCE)
EXACT = [
    (partial(Ddnm, spread=known_spread), ROUND, 0.5 * torch.eye(3, dtype=F64)),
    (partial(PiGdm, spread=known_spread), ROUND, 0.5 * torch.eye(3, dtype=F64)),
    (PiGdm, gaussian(schedules.cosine(1000), MEAN, 1.0), torch.eye(3, dtype=F64)),
    (lambda predictor, y: Mmps(predictor, y, iterations=2), LONG, COVARIANCE),
]
IDS = ["ddnm", "pigdm", "pigdm-unit", "mmps"]


@pytest.mark.parametrize(("method", "oracle", "covariance"), EXACT, ids=IDS)
@pytest.mark.parametrize("t", [1, 30, 400, 999])
def test_the_corrected_prediction_is_the_posterior_mean(method, oracle, covariance, t):
    """E[x0 | x_t, y] by conditioning on both: x_t is another measurement."""
    x_t = drawn(4, 3, seed=t)
    signal, noise_var = oracle.schedule.signal(t), oracle.schedule.noise_var(t)
    a = torch.cat([matrix(A, (3,)) / Y_VAR**0.5, signal / noise_var.sqrt() * torch.eye(3, dtype=F64)])
    found = method(oracle, seen(4))(x_t, t)
    for row in range(4):
        both = torch.cat([Y[0] / Y_VAR**0.5, x_t[row] / noise_var.sqrt()])
        mean, _ = posterior(MEAN, covariance, a, both, 1.0)
        assert torch.allclose(found.x0[row], mean, atol=1e-7)
    assert torch.allclose(found.eps, predict(found.x0, x_t, oracle.schedule, t).eps)
    assert not found.x0.requires_grad


def moments_of_the_flow(predictor, steps):
    """Mean and covariance of x_0 for x_T ~ N(0, I): the walk is affine in x_T, so four walks tell all."""
    start = torch.cat([torch.zeros(1, 3, dtype=F64), torch.eye(3, dtype=F64)])
    grid = grids.log_snr(predictor.schedule, steps)
    end = finish(walk(predictor, start, grid, DDIM(0.0), lambda move: move.p.mean))
    slope = (end[1:] - end[0]).mT
    return end[0], slope @ slope.mT


@pytest.mark.parametrize(("method", "oracle", "covariance"), EXACT, ids=IDS)
def test_the_walk_samples_the_posterior(method, oracle, covariance):
    """The error of mean and covariance goes to nothing at order 1, that of DDIM."""
    mean, spread = posterior(MEAN, covariance, matrix(A, (3,)), Y[0], Y_VAR)
    errors = []
    for steps in (50, 100, 200):
        found = moments_of_the_flow(method(oracle, seen(4)), steps)
        errors.append(max(float((found[0] - mean).abs().max()), float((found[1] - spread).abs().max())))
    assert errors[-1] < 0.03
    assert errors[0] / errors[1] > 1.6
    assert errors[1] / errors[2] > 1.6


def test_only_the_true_covariance_is_exact_for_correlated_data():
    mean, spread = posterior(MEAN, COVARIANCE, matrix(A, (3,)), Y[0], Y_VAR)

    def error(method):
        found = moments_of_the_flow(method(LONG, seen(4)), 200)
        return float((found[0] - mean).norm() + (found[1] - spread).norm())

    exact = error(EXACT[3][0])
    assert all(error(partial(way, spread=known_spread)) > 3 * exact for way in (PiGdm, Ddnm))


def test_dps_goes_to_the_measurement_and_is_not_the_posterior():
    """Its mean answers y, but its spread is not that of the posterior: a bias of many standard errors.

    Its steps have one length whatever is left, which is much for three dimensions: hence the small scale.
    """
    count = 2000
    guided = Dps(ROUND, seen(count), scale=0.05)
    draw = guided.after(from_model(Noise(count)))
    grid = grids.trailing(ROUND.schedule, 200)
    x0 = finish(walk(guided, drawn(count, 3, seed=5), grid, Ancestral(fixedsmall), draw))
    prior = MEAN + 0.5**0.5 * drawn(count, 3, seed=6)
    assert seen(count).residual(x0).norm(dim=1).mean() < 0.3 * seen(count).residual(prior).norm(dim=1).mean()
    _, spread = posterior(MEAN, 0.5 * torch.eye(3, dtype=F64), matrix(A, (3,)), Y[0], Y_VAR)
    of_y = matrix(A, (3,)) @ spread @ matrix(A, (3,)).mT
    found = torch.cov(seen(count).residual(x0).mT).diagonal()
    assert ((found / of_y.diagonal() - 1).abs() > 5 * (2 / count) ** 0.5).all()


def test_ddrm_keeps_what_was_measured_without_noise():
    count = 50
    oracle = gaussian(schedules.cosine(200), MEAN, 0.5)
    exactly = seen(count, 0.0)
    draw = from_spectrum(exactly, oracle, Noise(count))
    x0 = finish(walk(oracle, drawn(count, 3), grids.trailing(oracle.schedule, 20), DDIM(), draw))
    assert torch.allclose(exactly.residual(x0), torch.zeros(count, 2, dtype=F64), atol=1e-9)
    hidden = torch.linalg.svd(matrix(A, (3,)))[2][2]
    assert (x0 @ hidden).std() > 0.1  # what A does not see stays open


def test_ddrm_that_saw_nothing_is_ddim():
    blind = Observation(Known(torch.zeros(3, dtype=torch.bool)), torch.zeros(4, 3, dtype=F64), 0.1)
    grid, start = grids.trailing(ROUND.schedule, 20), drawn(4, 3)
    draw = from_spectrum(blind, ROUND, Noise(4), eta=0.0)
    found = finish(walk(ROUND, start, grid, DDIM(), draw))
    assert torch.allclose(found, finish(walk(ROUND, start, grid, DDIM(0.0), lambda move: move.p.mean)), atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"dps"}))
@pytest.mark.parametrize("kind", ["cosine", "linear-zero-snr"])
def test_every_method_comes_nearer_to_the_truth_than_sampling(name, kind):
    oracle = Correlated(schedules.SCHEDULES[kind](300), MEAN, COVARIANCE)
    truth = MEAN + drawn(400, 3) @ torch.linalg.cholesky(COVARIANCE).mT
    y = A(truth) + Y_VAR**0.5 * drawn(400, 2, seed=1)
    start, grid = drawn(400, 3, seed=2), grids.trailing(oracle.schedule, 100)
    means = METHODS[name].guide(oracle, Observation(A, y, Y_VAR), Noise(400), lambda x0: x0)
    found = finish(walk(means.predictor, start, grid, Ancestral(optimal), means.draw))
    free = finish(walk(oracle, start, grid, Ancestral(optimal), from_model(Noise(400))))
    assert (found - truth).square().mean() < 0.5 * (free - truth).square().mean()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_part_of_y_in_the_range_of_an_operator(channels):
    """What A makes stays as it is; what no x gives is gone, and a second time changes nothing."""
    shape = (channels, 6, 6)
    seen = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.5
    for operator in (Known(seen), box_means(shape, 3), gaussian_blur(shape, 1.0)):
        x = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        assert torch.allclose(operator.in_range(operator(x)), operator(x), atol=1e-12)
        y = torch.randn_like(operator(x))
        part = operator.in_range(y)
        assert torch.allclose(operator.in_range(part), part, atol=1e-12)
        assert torch.allclose(operator.adjoint(part), operator.adjoint(y), atol=1e-12)
    assert torch.equal(Known(seen).in_range(x), torch.where(seen, x, 0.0))


@pytest.mark.parametrize("eta", [0.6, 1.0])
@pytest.mark.parametrize("s", [0, 20, 60, 90, 150])
def test_ddrm_of_noisy_measurements_keeps_the_law_of_x_s_and_weighs_y_as_published(eta, s):
    """Where the prediction is right, q(x_s | x0) stays as it is, whatever y (Kawar et al. 2022, Proposition 3.1).

    The noise of y has a part in x_s: all of it where x_s is noisier, else sqrt(1 - eta^2) of the noise of x_s.
    """
    count, y_var, t = 40_000, 0.05, 170
    point = gaussian(schedules.cosine(200), MEAN, 0.0)
    noise, x0 = drawn(count, 2, seed=3), MEAN.expand(count, -1)
    measured = Observation(A, A(x0) + y_var**0.5 * noise, y_var)
    x_t = point.schedule.marginal(x0, t).sample(drawn(count, 3, seed=4))
    move = Move(t, s, x_t, point(x_t, t), None)
    x_s = from_spectrum(measured, point, Noise(count, 5), eta)(move) / point.schedule.signal(s)
    sigma = float(point.schedule.noise(s) / point.schedule.signal(s))
    assert torch.allclose(x_s.mean(0), MEAN, atol=4.5 * sigma / count**0.5 + 1e-12)
    assert torch.allclose(torch.cov(x_s.mT), sigma**2 * torch.eye(3, dtype=F64), atol=0.03 * sigma**2 + 1e-12)
    left, singular, right = torch.linalg.svd(matrix(A, (3,)), full_matrices=False)
    for row, value in enumerate(singular.tolist()):
        seen_noise, moved = noise @ left[:, row], (x_s - MEAN) @ right[row]  # both of this singular direction
        y_std = y_var**0.5 / value
        expected = y_std if sigma > y_std else sigma * (1 - eta**2) ** 0.5
        assert float((seen_noise * moved).mean()) == pytest.approx(expected, abs=5 * sigma / count**0.5 + 1e-12)
