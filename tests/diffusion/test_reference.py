"""Published values of another implementation: diffusers' own scheduler tests, met by our loop; and diffusers itself.

Set-up of those tests: a ramp as state, a network that returns x t / (t + 1) for their 0-based t, the sum and the mean
of the absolute values at the end, noise from torch's generator seeded 0.
"""

import pytest
import torch
from torch import nn

from ancestral.diffusion.denoisers.denoiser import Denoiser, clip_dynamic, clip_static, unclipped
from ancestral.diffusion.denoisers.targets import EPS, X0, V
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.loop import walk
from ancestral.diffusion.samplers.sample import finish
from ancestral.diffusion.samplers.transitions import DDIM, Ancestral, beta, fixedsmall, learned

LINEAR = schedules.linear(1000)


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
        (Ancestral(fixedsmall), grids.full(LINEAR), EPS, 258.9606, 0.3372),
        (Ancestral(fixedsmall), grids.full(LINEAR), V, 202.0296, 0.2631),
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
    result = run(Ancestral(fixedsmall), [2, 1, 0], start=noised(2)).abs()
    # Their float32 tables lose three digits of 1 - alpha_bar at t = 1 and 2, which moves their sum by 5e-5 of itself.
    assert float(result.sum()) == pytest.approx(387.9466, rel=1e-4)
    result = run(DDIM(), [101, 1, 0], start=noised(101)).abs()
    assert float(result.sum()) == pytest.approx(354.5418, abs=1e-2)


def test_published_value_with_another_beta():
    result = run(DDIM(), grids.leading(LINEAR, 10), noise_schedule=schedules.linear(1000, beta_start=0.01)).abs()
    assert float(result.sum()) == pytest.approx(149.8295, abs=1e-2)


PROPER_LOOPS = {
    "DDPM leading small": (Ancestral(fixedsmall), grids.leading, (204.1339, 234.8491, 250.5724)),
    "DDPM trailing large": (Ancestral(beta), grids.trailing, (460.9327, 383.4408, 320.7786)),
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

    transition = {"fixed_small": Ancestral(fixedsmall), "fixed_large": Ancestral(beta)}.get(
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


def test_published_value_with_their_other_last_step():
    """set_alpha_to_one off: the last alpha_bar is that of their t = 0, so the last step stays at our t = 1."""
    times = [*grids.leading(LINEAR, 10)[:-1], 1]
    result = run(DDIM(), times, noise_schedule=schedules.linear(1000, beta_start=0.01)).abs()
    assert float(result.sum()) == pytest.approx(149.0784, abs=1e-2)


def test_published_variances_are_those_of_the_transitions():
    """The same table, read off the Gaussians that the loop draws from."""
    x = ramp()
    for t, s, expected in ((420, 400, 0.14771), (980, 960, 0.32460), (487, 486, 0.00979), (999, 998, 0.02)):
        prediction = Denoiser(Dummy(), LINEAR, EPS)(x, t + 1)
        for transition in (DDIM(1.0), Ancestral(fixedsmall)):
            variance = transition(LINEAR, x, prediction, t + 1, s + 1).var
            assert torch.allclose(variance, torch.tensor(expected).double(), atol=1e-5)
        assert not DDIM(0.0)(LINEAR, x, prediction, t + 1, s + 1).var.any()
        half = DDIM(0.5)(LINEAR, x, prediction, t + 1, s + 1).var  # eta scales the standard deviation
        assert torch.allclose(half, torch.tensor(expected / 4).double(), atol=1e-5)
        # fixed_large is 1 - alpha_bar / alpha_bar' for any stride.
        stride = 1 - LINEAR.alpha_bar(t + 1) / LINEAR.alpha_bar(s + 1)
        assert torch.allclose(Ancestral(beta)(LINEAR, x, prediction, t + 1, s + 1).var, stride.expand_as(x))


class TwoHeads(nn.Module):
    """Small, with a second half of channels for the variance; smooth and within -1..1."""

    def __init__(self):
        super().__init__()
        self.mean = Small()

    def forward(self, x, time):
        return torch.cat([self.mean(x, time), torch.sin(3 * x + time.reshape(-1, 1, 1, 1).to(x) / 90)], 1)


ZERO_SNR = schedules.linear(1000).zero_terminal_snr()
SCALED = schedules.scaled_linear(1000)
WHOLE_RUNS = {
    "DDPM small": ("DDPM", {"variance_type": "fixed_small"}, LINEAR, EPS, clip_static, Ancestral(fixedsmall), 1000),
    "DDPM large": ("DDPM", {"variance_type": "fixed_large"}, LINEAR, EPS, clip_static, Ancestral(beta), 100),
    "DDPM learned": ("DDPM", {"variance_type": "learned_range"}, LINEAR, EPS, clip_static, Ancestral(learned), 50),
    "DDPM x0": (
        "DDPM", {"prediction_type": "sample"}, LINEAR, X0, clip_static, Ancestral(fixedsmall), 100,
    ),
    "DDPM dynamic clip": (
        "DDPM", {"thresholding": True, "sample_max_value": 1e6}, LINEAR, EPS, clip_dynamic, Ancestral(fixedsmall), 100,
    ),
    "DDPM scaled linear": (
        "DDPM", {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012, "clip_sample": False,
                 "prediction_type": "v_prediction"}, SCALED, V, unclipped, Ancestral(fixedsmall), 100,
    ),
    "DDPM cosine": (
        "DDPM", {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
        schedules.cosine(1000), V, clip_static, Ancestral(fixedsmall), 100,
    ),
    "DDIM eta 0": ("DDIM", {"clip_sample": False}, LINEAR, EPS, unclipped, DDIM(0.0), 50),
    "DDIM eta 1/2": ("DDIM", {"clip_sample": False}, LINEAR, EPS, unclipped, DDIM(0.5), 20),
    "DDIM clipped": ("DDIM", {}, LINEAR, EPS, clip_static, DDIM(0.5), 20),
    "DDIM zero SNR": (
        "DDIM", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        ZERO_SNR, V, clip_static, DDIM(0.5), 20,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE_RUNS)
def test_every_option_of_diffusers_on_the_same_noise(name, monkeypatch):
    """Their loop with its own noise replaced by ours, image by image; eps derived anew after clipping, as in GLIDE."""
    diffusers = pytest.importorskip("diffusers")
    kind, options, noise_schedule, target, clip, transition, steps = WHOLE_RUNS[name]
    options = {"timestep_spacing": "leading", **options}
    network = TwoHeads() if "learned" in name else Small()
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 3, 8, 8, generator=generator).double()
    noise = [torch.randn(2, 3, 8, 8, generator=generator).double() for _ in range(steps)]

    theirs = getattr(diffusers, f"{kind}Scheduler")(**options)
    theirs.set_timesteps(steps)
    module = f"diffusers.schedulers.scheduling_{kind.lower()}"
    x, visited = start, []
    with torch.no_grad():
        for t, eps in zip(theirs.timesteps.tolist(), noise, strict=True):
            monkeypatch.setattr(f"{module}.randn_tensor", lambda *_, eps=eps, **__: eps)
            more = {"eta": transition.eta, "use_clipped_model_output": True} if kind == "DDIM" else {}
            x = theirs.step(network(x, torch.full((2,), float(t))), t, x, **more).prev_sample
            visited.append(t)

    grid = grids.GRIDS[options["timestep_spacing"]](noise_schedule, steps)
    assert [t - 1 for t in grid[:-1]] == visited
    noises = iter(noise)

    def draw(move):
        eps = next(noises)
        return move.p.sample(eps) if move.s else move.p.mean

    denoiser = Denoiser(ZeroBased(network), noise_schedule, target, clip)
    ours = finish(walk(denoiser, start, grid, transition, draw))
    assert float(x.std()) > 0.05
    assert float((ours - x).abs().max()) < 1e-4 * max(1, float(x.abs().max()))


def test_noising_and_velocity_of_diffusers():
    """add_noise and get_velocity at one time an image."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler()
    x0, eps = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    t = torch.tensor([1, 2, 300, 700, 1000])
    assert torch.allclose(LINEAR.marginal(x0, t).sample(eps), theirs.add_noise(x0, eps, t - 1), atol=1e-5)
    assert torch.allclose(V.of(x0, eps, LINEAR, t), theirs.get_velocity(x0, eps, t - 1), atol=1e-5)


def test_the_network_hears_the_papers_time():
    """t * 1000 / T whatever T is, one an image, as float32."""
    heard = []

    class Listens(nn.Module):
        def forward(self, x, time):
            heard.append(time)
            return x

    x = torch.zeros(2, 1, 2, 2)
    Denoiser(Listens(), schedules.linear(50), X0)(x, 25)
    Denoiser(Listens(), schedules.linear(50), X0)(x, torch.tensor([1, 50]))
    assert [time.tolist() for time in heard] == [[500.0, 500.0], [20.0, 1000.0]]
    assert all(time.dtype == torch.float32 for time in heard)
