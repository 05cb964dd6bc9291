"""Published values of another implementation: diffusers' own scheduler tests, met by our loop; and diffusers itself.

Set-up of those tests: a ramp as state, a network that returns x t / (t + 1) for their 0-based t, the sum and the mean
of the absolute values at the end, noise from torch's generator seeded 0.
"""

import pytest
import torch
from torch import nn

from ancestral import grids, schedule
from ancestral.denoiser import Denoiser, clip_static, unclipped
from ancestral.reverse import DDIM, Ancestral, large, small
from ancestral.sample import finish
from ancestral.target import EPS, V
from ancestral.walk import walk

LINEAR = schedule.linear(1000)


def ramp():
    """4 x 3 x 8 x 8, element [b, c, h, w] = (((c * 8 + h) * 8 + w) * 4 + b) / 768."""
    return (torch.arange(768, dtype=torch.float64) / 768).reshape(3, 8, 8, 4).permute(3, 0, 1, 2).contiguous()


class Dummy(nn.Module):
    def forward(self, x, time):
        t = (time - 1).to(x).reshape(-1, 1, 1, 1)  # their time is 0-based
        return x * t / (t + 1)


class KeepsEps(Denoiser):
    """Their DDIM moves along the eps that the network gave, though x0 was clipped; ours along the one that agrees."""

    def forward(self, x_t, t, **cond):
        raw = self.interpret(self.output(x_t, t), x_t, t, unclipped)
        return super().forward(x_t, t)._replace(eps=raw.eps)


def run(transition, times, target=EPS, start=None, noise_schedule=LINEAR, clip=clip_static):
    generator = torch.Generator().manual_seed(0)

    def draw(move):
        stochastic = move.t > 1 and bool(move.p.var.any())  # theirs adds noise at a strided last step too
        return move.p.sample(torch.randn(move.x_t.shape, generator=generator).double()) if stochastic else move.p.mean

    kind = KeepsEps if isinstance(transition, DDIM) else Denoiser
    denoiser = kind(Dummy(), noise_schedule, target, clip)
    return finish(walk(denoiser, ramp() if start is None else start, times, transition, draw))


def noised(t):
    noise_ramp = 767 / 768 - ramp()
    return LINEAR.signal(t) * ramp() + LINEAR.noise(t) * noise_ramp


@pytest.mark.parametrize(
    ("transition", "times", "target", "total", "mean"),
    [
        (Ancestral(small), grids.full(LINEAR), EPS, 258.9606, 0.3372),
        (Ancestral(small), grids.full(LINEAR), V, 202.0296, 0.2631),
        (DDIM(), grids.leading(LINEAR, 10), EPS, 172.0067, 0.223967),
        (DDIM(), grids.leading(LINEAR, 10), V, 52.5302, 0.0684),
    ],
    ids=["DDPM eps", "DDPM v", "DDIM eps", "DDIM v"],
)
def test_published_values(transition, times, target, total, mean):
    result = run(transition, times, target).abs()
    assert float(result.sum()) == pytest.approx(total, abs=1e-2)
    assert float(result.mean()) == pytest.approx(mean, abs=1e-3)


def test_published_values_from_a_noised_start():
    # DDPM from 0-based t = 1, noise ramp added at that level; DDIM from 100.
    result = run(Ancestral(small), [2, 1, 0], start=noised(2)).abs()
    # Their float32 tables lose three digits of 1 - alpha_bar at t = 1 and 2, which moves their sum by 5e-5 of itself.
    assert float(result.sum()) == pytest.approx(387.9466, rel=1e-4)
    result = run(DDIM(), [101, 1, 0], start=noised(101)).abs()
    assert float(result.sum()) == pytest.approx(354.5418, abs=1e-2)


def test_published_value_with_another_beta():
    result = run(DDIM(), grids.leading(LINEAR, 10), noise_schedule=schedule.linear(1000, beta_start=0.01)).abs()
    assert float(result.sum()) == pytest.approx(149.8295, abs=1e-2)


PROPER_LOOPS = {
    "DDPM leading small": (Ancestral(small), grids.leading, (204.1339, 234.8491, 250.5724)),
    "DDPM trailing large": (Ancestral(large), grids.trailing, (460.9327, 383.4408, 320.7786)),
    "DDIM leading": (DDIM(), grids.leading, (145.3827, 172.0067, 184.7698)),
    "DDIM trailing": (DDIM(), grids.trailing, (143.4717, 170.0350, 182.8213)),
    "DDIM leading eta 1": (DDIM(1.0), grids.leading, (204.1339, 234.8298, 250.2655)),
}


@pytest.mark.parametrize("name", PROPER_LOOPS)
def test_strided_loops(name):
    transition, grid, totals = PROPER_LOOPS[name]
    for steps, total in zip((5, 10, 20), totals, strict=True):
        assert float(run(transition, grid(LINEAR, steps)).abs().sum()) == pytest.approx(total, rel=1e-3)


def test_published_variances():
    """DDPM's posterior variance at 0-based t, and DDIM's for pairs (t, t')."""
    for t, expected in ((0, 0.0), (487, 0.00979), (999, 0.02)):
        variance = LINEAR.gain(t + 1, t) * LINEAR.noise_var(t)
        assert float(variance) == pytest.approx(expected, abs=1e-5)
    for t, s, expected in ((420, 400, 0.14771), (980, 960, 0.32460), (487, 486, 0.00979), (999, 998, 0.02)):
        assert float(LINEAR.gain(t + 1, s + 1) * LINEAR.noise_var(s + 1)) == pytest.approx(expected, abs=1e-5)


class Small(nn.Module):
    """A random network, smooth and bounded, that takes 0-based time."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(3, 3, 3, 3, generator=generator) * 0.2)

    def forward(self, x, time):
        wave = torch.sin(time / 150).reshape(-1, 1, 1, 1).to(x)
        return torch.tanh(nn.functional.conv2d(x, self.weight.to(x), padding=1)) + 0.5 * x * wave


class ZeroBased(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, time):
        return self.network(x, time - 1)


@pytest.mark.parametrize(
    ("kind", "steps", "options"),
    [
        ("DDPMScheduler", 100, {"variance_type": "fixed_small", "clip_sample": True}),
        ("DDPMScheduler", 1000, {"variance_type": "fixed_large", "clip_sample": True}),
        ("DDIMScheduler", 10, {"clip_sample": False}),
        ("DDIMScheduler", 50, {"clip_sample": False, "prediction_type": "v_prediction"}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_whole_runs_of_diffusers(kind, steps, options):
    diffusers = pytest.importorskip("diffusers")
    theirs = getattr(diffusers, kind)(timestep_spacing="trailing", **options)
    theirs.set_timesteps(steps)
    network, generator = Small(), torch.Generator().manual_seed(0)
    start = torch.randn(2, 3, 8, 8, generator=generator)
    noise = [torch.randn(2, 3, 8, 8, generator=generator) for _ in range(steps)]

    x = start.double()
    with torch.no_grad():
        for t, eps in zip(theirs.timesteps, noise, strict=True):
            output = network(x, t.expand(2).float())
            # Their DDPM draws its noise inside; taking it from a generator patched here keeps both runs on the same.
            if kind == "DDPMScheduler":
                mean_only = theirs.step(output, int(t), x, generator=_Fixed.generator()).prev_sample
                x = mean_only + theirs_noise(theirs, int(t), output, x, eps)
            else:
                x = theirs.step(output, int(t), x, eta=0.0).prev_sample

    target = V if options.get("prediction_type") == "v_prediction" else EPS
    clip = clip_static if options["clip_sample"] else unclipped
    denoiser = Denoiser(ZeroBased(network), LINEAR, target, clip)
    noises = iter(noise)

    def draw(move):
        eps = next(noises).double()
        return move.p.sample(eps) if move.s else move.p.mean

    transition = {"fixed_small": Ancestral(small), "fixed_large": Ancestral(large)}.get(
        options.get("variance_type"), DDIM()
    )
    ours = finish(walk(denoiser, start.double(), grids.trailing(LINEAR, steps), transition, draw))
    assert float((ours - x).abs().max()) < 1e-4


class _Fixed:
    """Their step's own noise is a function of this generator, so it can be taken off again."""

    @staticmethod
    def generator():
        return torch.Generator().manual_seed(5)


def theirs_noise(scheduler, t, output, x, eps):
    """Their standard deviation at t times (our noise minus theirs)."""
    if t <= 0:
        return torch.zeros_like(x)
    if scheduler.previous_timestep(t) < 0 and t == int(scheduler.timesteps[-1]) and t != 0:
        own = torch.randn(output.shape, generator=_Fixed.generator(), dtype=output.dtype)
        return -(scheduler._get_variance(t, predicted_variance=None) ** 0.5) * own
    own = torch.randn(output.shape, generator=_Fixed.generator(), dtype=output.dtype)
    return scheduler._get_variance(t, predicted_variance=None) ** 0.5 * (eps.double() - own)
