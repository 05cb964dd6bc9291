"""Signals (B, C, L) and volumes (B, C, D, H, W): the network against the two-dimensional one, the algebra against
closed forms, the examples in short form.
"""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from ancestral.diffusion.denoisers.analytic import Correlated, gaussian
from ancestral.diffusion.denoisers.calibrated import Calibrated
from ancestral.diffusion.denoisers.denoiser import Denoiser, Prediction, clip_dynamic
from ancestral.diffusion.denoisers.guidance import Guided, beside
from ancestral.diffusion.denoisers.targets import X0, V
from ancestral.diffusion.objectives.calibration import calibrate
from ancestral.diffusion.objectives.elbo import elbo
from ancestral.diffusion.objectives.elbo_derivation import along_chains
from ancestral.diffusion.objectives.losses import OBJECTIVES, Networks
from ancestral.diffusion.objectives.probability_flow import every_direction, log_density, transport
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.sample import sample
from ancestral.diffusion.samplers.transitions import DDIM, Ancestral, fixedsmall, optimal
from ancestral.networks.unet import UNet
from ancestral.networks.unet_layers import UNetVariant, fold, unfold
from ancestral.training.simple import fit

F64 = torch.float64
EXAMPLES = Path(__file__).parents[2] / "examples"
SHAPES = [(2, 6), (2, 2, 3, 2)]  # (C, L) and (C, D, H, W)
SMALL = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,)}


def shifted(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return network.eval()


def widened(name, value, expected, patch):
    """A weight of the network over d dimensions as the one over d + 1 that ignores the last axis."""
    if value.shape == expected.shape:
        return value
    made = torch.zeros_like(expected)
    if name.startswith("stem"):  # of the pixels beside each other the first one is read
        value = value[..., None] * functional.one_hot(torch.tensor(0), patch)
        value = value.movedim(-1, 2).flatten(1, 2)
    if name.startswith("head"):  # all of them are written
        value = value.repeat_interleave(patch, 0)
    if value.ndim > 1:
        made[..., expected.shape[-1] // 2] = value
        return made
    return value


@pytest.mark.parametrize("pad_end", [False, True])
@pytest.mark.parametrize(("dimensions", "sides"), [(1, (16,)), (2, (8, 16))])
def test_what_is_constant_along_an_axis_is_a_case_of_fewer_dimensions(dimensions, sides, pad_end):
    variant, patch = UNetVariant(pad_end=pad_end, head_width=4, fourier=(1,)), 2
    few, more = (UNet(2, 2, patch=patch, variant=variant, dimensions=d, **SMALL) for d in (dimensions, dimensions + 1))
    shifted(few)
    target = more.state_dict()
    assert list(few.state_dict()) == list(target)
    more.load_state_dict({name: widened(name, value, target[name], patch) for name, value in few.state_dict().items()})
    x, time = torch.randn(2, 2, *sides, generator=torch.Generator().manual_seed(1)), torch.tensor([3.0, 700.0])
    output = few(x, time)
    repeated = more.eval()(x[..., None].expand(*x.shape, 8), time)
    assert output.abs().max() > 0.1
    assert torch.allclose(repeated, output[..., None].expand_as(repeated), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sides", [(8,), (4, 12), (4, 8, 12)], ids=len)
def test_folding_moves_every_position_once(sides):
    x = torch.arange(2 * 3 * math.prod(sides)).reshape(2, 3, *sides)
    folded = fold(x, 2)
    assert folded.shape == (2, 3 * 2 ** len(sides), *(side // 2 for side in sides))
    assert torch.equal(unfold(folded, 2), x)
    # Channel c k + i is the place i of each block, the last axis running fastest.
    for i in range(2 ** len(sides)):
        offsets = [i >> (len(sides) - 1 - axis) & 1 for axis in range(len(sides))]
        part = x[(..., *(slice(offset, None, 2) for offset in offsets))]
        assert torch.equal(folded[:, i :: 2 ** len(sides)], part)
    if len(sides) == 2:
        assert torch.equal(folded, functional.pixel_unshuffle(x, 2))


@pytest.mark.parametrize("sides", [(16,), (8, 4, 12)], ids=len)
def test_sides_that_divide_and_those_that_do_not(sides):
    network = UNet(3, 6, patch=2, classes=2, dimensions=len(sides), **SMALL)
    x, time, labels = torch.randn(2, 3, *sides), torch.tensor([1.0, 9.0]), torch.tensor([0, 1])
    assert not network(x, time, labels).any()
    shifted(network)(x, time, labels).square().sum().backward()
    assert network(x, time, labels).shape == (2, 6, *sides)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    with pytest.raises(ValueError, match="divide by 4"):
        network(x[..., :-2], time, labels)


class Shaped:
    """A predictor of vectors as one of arrays."""

    def __init__(self, vectors):
        self.vectors, self.schedule = vectors, vectors.schedule

    def __call__(self, x_t, t):
        prediction = self.vectors(x_t.flatten(1), t)
        return Prediction(*(None if part is None else part.reshape(x_t.shape) for part in prediction))


def exact(shape, steps=30):
    mean = torch.linspace(-1, 1, math.prod(shape), dtype=F64)
    return gaussian(schedules.cosine(steps), mean, 0.25)


def data_of(oracle, shape, count):
    return oracle.sample(torch.Generator().manual_seed(0), count).reshape(count, *shape)


@pytest.mark.parametrize("shape", SHAPES, ids=len)
def test_bound_is_the_nll(shape):
    oracle, transition, count = exact(shape), Ancestral(optimal), 16
    grid, x0 = grids.full(oracle.schedule), data_of(oracle, shape, count)
    chain = along_chains(
        Shaped(oracle), x0, grid, transition, Streams(0, "x", range(count)), Normal.log_prob
    ).monte_carlo
    end = oracle.schedule.marginal(x0, grid[0]).sample(Streams(0, "x", range(count)).normal(shape)).flatten(1)
    gap = oracle.log_prob(end, grid[0]) - Normal(torch.zeros(1), torch.ones(1)).log_prob(end).sum(1)
    assert torch.allclose(chain.nats - gap, -oracle.log_prob(x0.flatten(1)), atol=1e-9, rtol=0)
    assert chain.dimensions == math.prod(shape)
    terms = elbo(Shaped(oracle), x0, grid, transition, Streams(0, "y", range(count)), Normal.log_prob)
    flat = elbo(oracle, x0.flatten(1), grid, transition, Streams(0, "y", range(count)), Normal.log_prob)
    assert torch.allclose(terms.nats, flat.nats, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=len)
def test_samples_have_the_covariance_between_positions(shape):
    size, count = math.prod(shape), 4000
    place = torch.arange(size, dtype=F64)
    covariance = 0.5 * 0.8 ** (place[:, None] - place).abs()
    oracle = Correlated(schedules.cosine(100), torch.linspace(-1, 1, size, dtype=F64), covariance)
    grid = grids.full(oracle.schedule)
    for transition in (Ancestral(fixedsmall), DDIM()):
        x = sample(Shaped(oracle), shape, count, grid, transition, batch_size=count)
        assert x.shape == (count, *shape)
        assert torch.allclose(x.flatten(1).mean(0), oracle.mean, atol=5 * (0.5 / count) ** 0.5)
        assert torch.allclose(x.flatten(1).T.cov(), covariance, atol=0.06)


@pytest.mark.parametrize("shape", SHAPES, ids=len)
def test_flow_has_the_density_and_leads_back(shape):
    oracle = exact(shape)
    x0 = data_of(oracle, shape, 3)
    x_1 = oracle.schedule.marginal(x0, 1).sample(Streams(0, "x", range(3)).normal(shape))
    density = log_density(Shaped(oracle), x_1, 1, every_direction(x_1))
    T = oracle.schedule.T
    # The flow starts from N(0, I), the data end at q(x_T), which is nearly that.
    end = density.x_T.flatten(1)
    gap = oracle.log_prob(end, T) - Normal(torch.zeros(1), torch.ones(1)).log_prob(end).sum(1)
    assert torch.allclose(density.nats.mean(1) + gap, oracle.log_prob(x_1.flatten(1), 1), atol=5e-3)
    assert torch.allclose(transport(Shaped(oracle), density.x_T, T, 1).x, x_1, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=len)
def test_guidance_clipping_and_calibration_take_any_shape(shape):
    oracle = exact(shape)
    x, t = data_of(oracle, shape, 40), torch.arange(1, 31)[torch.arange(40) % 30]
    guided = Guided(beside(Shaped(oracle), Shaped(oracle)), Shaped(oracle), 3.0, rescale=0.5)(x, t)
    assert torch.allclose(guided.x0, Shaped(oracle)(x, t).x0, atol=1e-12)  # nothing to move along, nor to rescale
    assert torch.equal(clip_dynamic(4 * x).flatten(1), clip_dynamic(4 * x.flatten(1)))
    tables = [
        calibrate(one, y, Streams(0, "c", range(40)), (9, 6, 3))
        for one, y in ((oracle, x.flatten(1)), (Shaped(oracle), x))
    ]
    assert torch.allclose(*tables)
    assert Calibrated(Shaped(oracle), tables[1])(x, 5).x0_var.shape == x.shape


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("shape", SHAPES, ids=len)
def test_every_loss_is_that_of_the_flat_data(name, shape):
    channels, size, count = shape[0], math.prod(shape), 6

    class Twice(torch.nn.Module):  # works place by place, so that it can be told flat data too
        def forward(self, x, time):
            return torch.cat([0.5 * x, x.tanh()], 1)

    q = schedules.cosine(30)
    loss = OBJECTIVES[name](Ancestral(fixedsmall), 30, Networks(torch.nn.Identity, Twice))
    x0, eps = torch.randn(2, count, *shape, dtype=F64, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    t = torch.arange(2, 2 + count)
    array, flat = (
        loss(Denoiser(Twice(), q, X0), x, t, t - 1, e) for x, e in ((x0, eps), (x0.flatten(1), eps.flatten(1)))
    )
    assert channels < size
    assert array.shape == (count,)
    assert torch.allclose(array, flat)


def test_the_density_of_correlated_data():
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=F64)
    oracle = Correlated(schedules.cosine(10), torch.tensor([0.3, -1.0], dtype=F64), covariance)
    x = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    for t in (0, 4):
        spread = oracle.schedule.alpha_bar(t) * covariance + oracle.schedule.noise_var(t) * torch.eye(2)
        truth = torch.distributions.MultivariateNormal(oracle.schedule.signal(t) * oracle.mean, spread)
        assert torch.allclose(oracle.log_prob(x, t), truth.log_prob(x))


class Scaled(torch.nn.Module):
    """x0 = w x_t: of N(0, v) data at every t the best w is signal v / (signal^2 v + noise^2)."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, time):
        return self.w * x


def test_fitting_finds_the_best_network_and_is_a_function_of_the_seed():
    q = Gaussian(torch.tensor([0.0, math.log(0.5)], dtype=torch.float64))
    x0 = 2 * torch.randn(4096, 1, 4, generator=torch.Generator().manual_seed(0))

    def fitted(seed):
        denoiser = Denoiser(Scaled(), q, X0)
        losses = list(fit(denoiser, x0, 200, seed=seed, peak=0.05))
        assert not denoiser.network.training
        return losses, denoiser.network.w.item()

    signal, variance = float(q.signal(1)), float(x0.square().mean())
    losses, w = fitted(0)
    assert w == pytest.approx(signal * variance / (signal**2 * variance + float(q.noise_var(1))), abs=0.02)
    assert fitted(0) == (losses, w)
    assert fitted(1)[0] != losses


def test_fitting_stops_at_what_is_not_finite():
    with pytest.raises(ArithmeticError, match="at update 0"):
        list(fit(Denoiser(Scaled(), schedules.linear(5), V), torch.full((4, 1, 4), math.nan), 3))


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_signals_example(tmp_path, capsys):
    signals = example("signals")
    tone = torch.sin(torch.arange(256) * 2 * math.pi * 20 / 256).expand(3, 1, 256)
    assert torch.isclose(signals.spectrum(tone).argmax(), torch.tensor(19))
    assert torch.equal(signals.intervals(-0.2 + tone).unique(), torch.tensor([12.0, 13.0], dtype=F64))  # 256 / 20 apart
    drawn, nats = signals.main(updates=3, count=2, picture=tmp_path / "signals.png")
    assert drawn.shape == (2, 1, 256)
    assert math.isfinite(nats)
    assert (tmp_path / "signals.png").stat().st_size > 5000
    assert "Gaussian" in capsys.readouterr().out
    assert torch.equal(signals.windows(signals.HELD_OUT)[3, 0, 5:], signals.windows(signals.HELD_OUT)[8, 0, :-5])


def test_the_volumes_example(tmp_path, capsys):
    volumes = example("volumes")
    # A made volume stands for the scan: the example's own data are in a package that need not be here.
    axis = torch.arange(20.0)
    made = 500 + 100 * torch.sin(axis[:, None, None] + axis[:, None] / 3) + torch.cos(axis)[:12]
    made = made + torch.randn(2, *made.shape, generator=torch.Generator().manual_seed(0))
    found = volumes.blocks(made[0], step=1)
    assert torch.equal(found, made[0].unfold(0, 8, 1).unfold(1, 8, 1).unfold(2, 8, 1).reshape(-1, 1, 8, 8, 8))
    assert len(volumes.blocks(made[0] - made[0].min())) < len(volumes.blocks(made[0]))  # what holds a zero is left out
    correlations = volumes.correlations(found)
    assert (correlations[2] > correlations[1]).all()
    assert (correlations[1] > correlations[0]).all()
    drawn, nats = volumes.main(updates=2, count=1, picture=tmp_path / "volumes.png", halves=made)
    assert drawn.shape == (1, 1, 8, 8, 8)
    assert math.isfinite(nats)
    assert (tmp_path / "volumes.png").stat().st_size > 5000


def test_the_scan_is_a_brain():
    pytest.importorskip("nibabel", reason="the scan is a file inside nibabel, which is not installed")
    left, right = example("volumes").scan()
    assert left.shape == right.shape == (64, 96, 24)
    both = torch.stack([left.flatten(), right.flatten()])
    assert both.corrcoef()[0, 1] > 0.9  # the halves mirror each other
