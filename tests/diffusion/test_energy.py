"""Energies, compositions and their moves, against densities that are known: closed forms, quadrature, and the chain."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from ancestral.diffusion.denoisers.analytic import Mixture, gaussian
from ancestral.diffusion.denoisers.composition import OneOf, Product, negation
from ancestral.diffusion.denoisers.denoiser import Conditioned, Denoiser, score
from ancestral.diffusion.denoisers.energy import EnergyNetwork, Learned
from ancestral.diffusion.denoisers.targets import EPS, TARGETS, X0, V
from ancestral.diffusion.objectives.losses import Weighted
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.langevin import PredictorCorrector, langevin
from ancestral.diffusion.samplers.loop import Move, from_model, walk
from ancestral.diffusion.samplers.mcmc import acceptance, adjusted, proposal
from ancestral.diffusion.samplers.sample import finish, latents, trajectory
from ancestral.diffusion.samplers.transitions import DDIM, Ancestral, optimal
from ancestral.networks.unet import UNet
from oracles import score_of

F64 = torch.float64
Q = schedules.cosine(50)
LINE = torch.linspace(-9, 9, 6001, dtype=F64)[:, None]


def double(*values):
    return torch.tensor(values, dtype=F64)


LEFT = Mixture(Q, double([-1.2], [0.4]), double(0.05, 0.3), double(0.6, 0.4))
RIGHT = Mixture(Q, double([-0.9], [1.1]), double(0.2, 0.1), double(0.3, 0.7))
PLANE = Mixture(Q, double([-1.0, 0.4], [0.6, -0.5], [0.2, 0.9]), double(0.1, 0.2, 0.15))
OTHER = Mixture(Q, double([0.5, 0.5], [-0.6, 0.3]), double(0.3, 0.2), double(0.2, 0.8))


# Networks as energies


class Ideal(nn.Module):
    """f whose energy has the exact gradient of N(0, variance I) data in the units of a target."""

    def __init__(self, target, variance):
        super().__init__()
        self.target, self.variance, self.unused = target, variance, nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, x, time):
        q, t = schedules.cosine(1000), time.round().long()
        a, b = self.target.coefficients(q, t)
        total = q.alpha_bar(t) * self.variance + q.noise_var(t)
        slope = (a * q.signal(t) * self.variance + b * q.noise(t)) / total
        return x * (1 - slope.sqrt())[:, None, None, None]


@pytest.mark.parametrize("target", [EPS, X0, V], ids=lambda target: target.name)
def test_the_density_of_an_ideal_energy_network_is_the_marginal(target):
    q = schedules.cosine(1000)
    model = Learned(Denoiser(EnergyNetwork(Ideal(target, 0.25)), q, target))
    exact = gaussian(q, torch.zeros(4, dtype=F64), 0.25)
    x = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    for t in (1, 300, 990):
        found, true = model.log_prob(x, t), exact.log_prob(x.flatten(1), t)
        assert torch.allclose(found - found[0], true - true[0], rtol=1e-9, atol=1e-7)
        assert torch.allclose(model(x, t).x0.flatten(1), exact(x.flatten(1), t).x0, atol=1e-9)


class Wavy(nn.Module):
    """A small smooth network that heeds the time."""

    def __init__(self):
        super().__init__()
        made = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(0.4 * torch.randn(4, 4, generator=made, dtype=F64))

    def forward(self, x, time):
        mixed = torch.tanh(x.flatten(1) @ self.weight + time.to(x)[:, None] / 500)
        return mixed.reshape(x.shape)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_the_score_is_the_gradient_of_the_density_for_every_target(target):
    model = Learned(Denoiser(EnergyNetwork(Wavy()), Q, target))
    x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    for t in (1, 25, torch.tensor([2, 30, 49])):
        assert torch.allclose(score(model(x, t), Q, t), score_of(model, x, t), rtol=1e-8, atol=1e-9)


def test_what_a_network_hands_on_has_a_symmetric_derivative_only_as_an_energy():
    x, time = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64), double(100.0)

    def derivative(network):
        slopes = torch.autograd.functional.jacobian(lambda x: network(x, time), x)
        return slopes.reshape(4, 4)

    free, energy = derivative(Wavy()), derivative(EnergyNetwork(Wavy()))
    assert torch.allclose(energy, energy.T, atol=1e-12)
    assert (free - free.T).abs().max() > 0.1


def test_l_simple_reaches_the_weights_through_the_gradient():
    """Against central differences of the loss, in a network with attention."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inner = UNet(1, 1, width=8, multipliers=(1,), blocks=1, attention=(0,)).double()
        for parameter in inner.parameters():
            nn.init.normal_(parameter, std=0.2)
        x0, eps = torch.randn(2, 2, 1, 4, 4, dtype=F64)
    denoiser, t = Denoiser(EnergyNetwork(inner), Q, EPS), torch.tensor([10, 40])
    parameters = list(denoiser.parameters())

    def loss():
        return Weighted()(denoiser, x0, t, t - 1, eps).mean()

    slopes = torch.autograd.grad(loss(), parameters, allow_unused=True)
    assert sum(slope is not None and bool(slope.abs().max() > 1e-8) for slope in slopes) > len(slopes) / 2
    along = [torch.zeros_like(p) if slope is None else slope for p, slope in zip(parameters, slopes, strict=True)]
    size = math.sqrt(sum(float(slope.square().sum()) for slope in along))
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, slope in zip(parameters, along, strict=True):
                parameter += sign * 1e-5 * slope / size
        values.append(float(loss().detach()))
        with torch.no_grad():
            for parameter, slope in zip(parameters, along, strict=True):
                parameter -= sign * 1e-5 * slope / size
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(size, rel=1e-5)


def test_only_energies_have_densities():
    wide = Denoiser(EnergyNetwork(UNet(1, 2, width=8, multipliers=(1,), blocks=1)), Q, EPS)
    x = torch.randn(2, 1, 4, 4)
    with pytest.raises(ValueError, match="same shape"):
        Learned(wide).log_prob(x, 3)
    with pytest.raises(ValueError, match="no log density; train an EnergyNetwork"):
        Learned(Denoiser(Wavy(), Q, EPS))
    scores = Conditioned(Denoiser(Wavy(), Q, EPS))
    with pytest.raises(ValueError, match="part 1, a Conditioned, has only a score"):
        OneOf([LEFT, scores])
    with pytest.raises(ValueError, match="part 0, a Conditioned, has only a score"):
        Product([scores, scores]).log_prob(x, 3)
    assert Product([scores, scores], [0.5, 0.5])(x.double()[..., :2, :2], 3).x0.shape == (2, 1, 2, 2)


# Compositions


@pytest.mark.parametrize("t", [1, 20, 50])
@pytest.mark.parametrize(("weights", "strength"), [((1.0, 1.0), None), ((2.0, 0.5), None), (None, 0.3)])
def test_products_of_gaussians_in_closed_form(t, weights, strength):
    one, two = gaussian(Q, double(0.8, -0.2), 0.1), gaussian(Q, double(-0.4, 0.5), 0.4)
    made = Product([one, two], weights) if weights else negation(one, two, strength)
    w = torch.tensor(weights or (1 + strength, -strength), dtype=F64)
    totals = Q.alpha_bar(t) * double(0.1, 0.4) + Q.noise_var(t)
    precision = (w / totals).sum()
    mean = Q.signal(t) * (w[0] / totals[0] * one.means[0] + w[1] / totals[1] * two.means[0]) / precision
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert torch.allclose(score(made(x, t), Q, t), precision * (mean - x), rtol=1e-9, atol=1e-9)
    found, true = made.log_prob(x, t), -precision / 2 * (x - mean).square().sum(1)
    assert torch.allclose(found - found[0], true - true[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", [1, 15, 49])
def test_the_score_of_a_composition_is_the_gradient_of_its_density(t):
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    product = Product([PLANE, OTHER], [1.0, 0.7])
    for made in (product, negation(PLANE, OTHER, 0.4), OneOf([PLANE, OTHER, product], [1, 2, 3])):
        assert torch.allclose(score(made(x, t), Q, t), score_of(made, x, t), rtol=1e-8, atol=1e-8)


def test_a_mixture_of_mixtures_is_one_at_every_level():
    made = OneOf([PLANE, OTHER], [1.0, 3.0])
    weights = torch.cat([0.25 * PLANE.log_weights.exp(), 0.75 * OTHER.log_weights.exp()])
    whole = Mixture(
        Q, torch.cat([PLANE.means, OTHER.means]), torch.cat([double(0.1, 0.2, 0.15), double(0.3, 0.2)]), weights
    )
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    for t in (1, 20, torch.tensor([1, 5, 9, 30, 40, 50])):
        assert torch.allclose(made.log_prob(x, t), whole.log_prob(x, t), atol=1e-10)
        assert torch.allclose(made(x, t).x0, whole(x, t).x0, atol=1e-10)
        assert torch.allclose(made(x, t).x0_var, whole(x, t).x0_var, atol=1e-10)


def test_independent_attributes_multiply_exactly():
    """q(x | A) q(x | B) / q(x) = q(x | A, B) where A and B are of different coordinates; at zero terminal SNR too."""
    q = schedules.cosine(50).zero_terminal_snr()
    corners, spread = double([-1, -1], [-1, 1], [1, -1], [1, 1]), double(*[0.1] * 4)
    everything = Mixture(q, corners, spread)
    right, upper = Mixture(q, corners[2:], spread[2:]), Mixture(q, corners[1::2], spread[1::2])
    both = Product([right, upper, everything], [1, 1, -1])
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    corner = gaussian(q, corners[3], 0.1)
    for t in (1, 10, 30, 49, 50):
        assert torch.allclose(both(x, t).x0, corner(x, t).x0, atol=1e-8)
    with pytest.raises(ValueError, match="sum to 2 have no x0 at zero terminal SNR"):
        Product([right, upper])


def test_what_cannot_be_composed_is_refused():
    with pytest.raises(ValueError, match="part 1 has another forward process"):
        Product([LEFT, gaussian(schedules.linear(50), double(0.0), 1.0)])
    with pytest.raises(ValueError, match="one weight a part"):
        Product([LEFT, RIGHT], [1.0])
    with pytest.raises(ValueError, match="positive weights"):
        OneOf([LEFT, RIGHT], [1.0, -1.0])
    with pytest.raises(ValueError, match="nothing to compose"):
        Product([])
    with pytest.raises(ValueError, match="one or more"):
        adjusted(LEFT, 0)


# Moves

PRODUCT = Product([LEFT, RIGHT])
LEAPFROGS = (1, 2, 5)


def law(energy, t):
    """Probabilities of the points of LINE."""
    return energy.log_prob(LINE, t).softmax(0)


def moments(energy, t):
    """Mean and variance."""
    mean = float((law(energy, t) * LINE[:, 0]).sum())
    return mean, float((law(energy, t) * (LINE[:, 0] - mean) ** 2).sum())


def exactly(energy, t, count, seed=0):
    """Draws from the density at t, (count, 1), by its quantiles."""
    total = law(energy, t).cumsum(0)
    u = Streams(seed, "exact", range(count)).uniform()
    return LINE[torch.searchsorted(total, u).clamp(max=len(LINE) - 1)]


def p_value(energy, t, x):
    """Of the Kolmogorov-Smirnov test against the density at t."""
    line, total = LINE[:, 0].numpy(), law(energy, t).cumsum(0).numpy()
    return stats.kstest(x[:, 0].numpy(), lambda at: np.interp(at, line, total)).pvalue


def move_at(energy, x, t, share):
    prediction = energy(x, t)
    return Move(t, t, x, prediction, langevin(Q, x, prediction, t, share))


def test_after_one_leapfrog_the_ratio_is_that_of_mala():
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    z = torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    product, t = Product([PLANE, OTHER]), 20
    there = move_at(product, x, t, 0.6)
    log_ratio, x_new = proposal(product, there, z, 1)
    back = move_at(product, x_new, t, 0.6)
    literal = product.log_prob(x_new, t) + back.p.log_prob(x).sum(1)
    literal = literal - product.log_prob(x, t) - there.p.log_prob(x_new).sum(1)
    assert torch.allclose(log_ratio, literal, atol=1e-9)
    again, x_old = proposal(product, back, (x - back.p.mean) / back.p.var.sqrt(), 1)
    assert torch.allclose(x_old, x, atol=1e-12)
    assert torch.allclose(again, -log_ratio, atol=1e-9)  # detailed balance: q(x) K(x, x') min(1, r) is symmetric


def test_a_leapfrog_keeps_the_energy_to_the_third_order():
    """At a fixed length of path the error is of order two in the step."""
    x, z = double([0.3, -0.4]), double([0.7, 0.2])
    errors = []
    for leapfrogs in (8, 16, 32):
        share = (0.8 / leapfrogs) ** 2 / 2
        errors.append(abs(float(proposal(PLANE, move_at(PLANE, x, 30, share), z, leapfrogs)[0])))
    assert math.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.1)


def after_a_move(energy, t, share, leapfrogs, test, decide):
    """E[test(x')] of a move from the density itself, by quadrature over x and z."""
    x = torch.linspace(-5, 5, 501, dtype=F64)
    z = torch.linspace(-5.5, 5.5, 221, dtype=F64)
    weights = torch.outer(energy.log_prob(x[:, None], t).softmax(0), (-z.square() / 2).softmax(0)).flatten()
    x, z = (both.reshape(-1, 1) for both in torch.meshgrid(x, z, indexing="ij"))
    log_ratio, x_new = proposal(energy, move_at(energy, x, t, share), z, leapfrogs)
    chance = decide(log_ratio)
    return float((weights * (chance * test(x_new[:, 0]) + (1 - chance) * test(x[:, 0]))).sum())


@pytest.mark.parametrize("leapfrogs", LEAPFROGS)
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_move_leaves_the_density_as_it_is(share, leapfrogs):
    """By quadrature, without chance; and without the decision it does not."""
    t, misses = 15, []
    for test in (torch.square, torch.cos, lambda x: torch.sigmoid(20 * (x - 0.3))):
        before = float((law(PRODUCT, t) * test(LINE[:, 0])).sum())
        kept = after_a_move(PRODUCT, t, share, leapfrogs, test, lambda ratio: ratio.exp().clamp(max=1))
        loose = after_a_move(PRODUCT, t, share, leapfrogs, test, torch.ones_like)
        assert kept == pytest.approx(before, abs=4e-4)
        misses.append(abs(loose - before))
    assert max(misses) > 1.5e-3


@pytest.mark.parametrize(("leapfrogs", "share"), [(1, 0.3), (1, 1.0), (4, 0.5)])
def test_who_starts_in_the_law_stays_in_it_and_ula_leaves(leapfrogs, share):
    t, count = 15, 4000
    x = exactly(PRODUCT, t, count)

    def ends(draw, share):
        noise = draw(Streams(0, "reverse", range(count)))
        return list(walk(PRODUCT, x, [t] * 21, lambda q, x, p, t, s: langevin(q, x, p, t, share), noise))

    kept, loose = ends(adjusted(PRODUCT, leapfrogs), share), ends(from_model, 1.0)
    assert p_value(PRODUCT, t, x) > 1e-3
    assert p_value(PRODUCT, t, kept[-1].x_s) > 1e-3
    assert p_value(PRODUCT, t, loose[-1].x_s) < 1e-6
    assert 0.3 < float(acceptance(kept).mean()) < 0.99
    mean, spread = moments(PRODUCT, t)
    assert float(kept[-1].x_s.mean()) == pytest.approx(mean, abs=4.5 * (spread / count) ** 0.5)
    fourth = float((law(PRODUCT, t) * (LINE[:, 0] - mean) ** 4).sum())
    error = ((fourth - spread**2) / count) ** 0.5
    assert float(kept[-1].x_s.var()) == pytest.approx(spread, abs=4.5 * error)
    assert float(loose[-1].x_s.var()) - spread > 5 * error


def test_one_decision_an_image_and_none_depends_on_the_batch():
    product, t = Product([PLANE, OTHER]), 20
    x = latents([2], 0, range(40))

    def ends(rows):
        noise = adjusted(product, 3)(Streams(0, "reverse", rows))
        return list(walk(product, x[list(rows)], [t] * 4, lambda q, x, p, t, s: langevin(q, x, p, t, 1.0), noise))

    together = ends(range(40))
    stayed = together[0].x_s == together[0].x_t
    assert torch.equal(stayed.all(1), stayed.any(1))
    assert 0 < int(stayed[:, 0].sum()) < 40
    assert torch.equal(ends(range(30, 35))[-1].x_s, together[-1].x_s[30:35])
    with pytest.raises(ValueError, match="no move"):
        acceptance(trajectory(product, x, [50, 20, 0], DDIM()))


@pytest.mark.parametrize("kind", ["gaussians", "mixtures"])
def test_summed_scores_alone_miss_a_product_and_moves_mend_it(kind):
    """The steps shrink as if the product had been noised; down to t = 1, against the density there by quadrature."""
    pair = [gaussian(Q, double(mean), 0.1) for mean in (-0.5, 0.5)] if kind == "gaussians" else [LEFT, RIGHT]
    made, count, down = Product(pair), 1000, range(49, 0, -1)
    x = latents([1], 0, range(count))
    plain = finish(trajectory(made, x, [50, *down], DDIM(1.0)))
    steps = list(trajectory(made, x, [50] * 5 + [*down], PredictorCorrector(steps=3, snr=0.4), draw=adjusted(made, 6)))
    mended = steps[-1].x_s
    assert p_value(made, 1, plain) < 1e-5
    assert p_value(made, 1, mended) > 1e-3
    assert 0.5 < float(acceptance(steps).mean()) < 1


def test_the_steps_alone_sample_a_mixture():
    """Its noised density is that of the noised parts, so that with the exact variance nothing is left to mend."""
    made, count = OneOf([LEFT, RIGHT], [1.0, 2.0]), 1000
    drawn = finish(trajectory(made, latents([1], 0, range(count)), [*range(50, 0, -1)], Ancestral(optimal)))
    assert p_value(made, 1, drawn) > 1e-3
