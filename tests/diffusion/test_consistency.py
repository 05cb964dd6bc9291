"""Consistency: the exact function of data N(m, v), whose flow is known, and what training and drawing make of it."""

import itertools

import pytest
import torch
from torch import nn

from ancestral.diffusion.denoisers.denoiser import Denoiser, predict
from ancestral.diffusion.denoisers.targets import TARGETS, V
from ancestral.diffusion.objectives.consistency import Consistency
from ancestral.diffusion.processes import schedules, torch_generators
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.processes.types import over
from ancestral.diffusion.samplers.grids import full, refining, trailing
from ancestral.diffusion.samplers.transitions import DDIM, Renoised
from ancestral.networks.unet import UNet
from ancestral.training import simple

F64 = torch.float64
SCHEDULE = schedules.cosine(1000)
MEAN, STD = 0.3, 0.4


def end(x_t, t, noise_schedule=SCHEDULE):
    """Where the flow of N(m, v) data through x_t ends: the same number of standard deviations from the mean."""
    signal, noise = noise_schedule.signal(t), noise_schedule.noise(t)
    return MEAN + over(STD / (signal**2 * STD**2 + noise**2).sqrt(), x_t) * (x_t - over(signal, x_t) * MEAN)


class Exact(nn.Module):
    """The v of a known x0_hat."""

    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self, x_t, time):
        t = time.round().long()
        signal, noise = over(SCHEDULE.signal(t), x_t), over(SCHEDULE.noise(t), x_t)
        return (signal * x_t - self.of(x_t, t)) / noise


def pairs():
    t = torch.tensor([1, 40, 300, 700, 999, 1000])
    return t, torch.tensor([0, 10, 150, 699, 500, 0])


def noise_like(count, channels):
    return Streams(1, "consistency", range(count)).normal((channels, 4, 4))


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_clean_images_are_given_back_whatever_the_network_says(target):
    x, output = noise_like(2, 1), noise_like(4, 1)[2:]
    near = torch.tensor([1e-7, 1e-7], dtype=F64)
    if not target.is_identity_at_0(SCHEDULE):
        assert target.name in ("x0", "mean")
        assert torch.allclose(target.x0(output, x, SCHEDULE, 1), output)  # at s = 0 the mean is x0 too
        return
    found = target.x0(output, x, SCHEDULE, near)
    assert torch.allclose(found, x, atol=1e-4)
    if target.name != "score":  # whose scale is infinite at 0
        assert torch.equal(target.x0(output, x, SCHEDULE, torch.zeros(2, dtype=torch.int64)), x)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_exact_function_of_one_image_has_no_loss(channels):
    x0 = torch.rand(1, channels, 4, 4, generator=torch.Generator().manual_seed(2), dtype=F64) * 2 - 1
    t, s = pairs()
    denoiser = Denoiser(Exact(lambda x_t, t: x0.expand_as(x_t)), SCHEDULE, V)
    losses = Consistency()(denoiser, x0.expand(len(t), -1, -1, -1), t, s, noise_like(len(t), channels))
    assert losses.shape == (len(t),)
    assert bool((losses < 1e-6).all())


@pytest.mark.parametrize("channels", [1, 3])
def test_the_loss_is_the_distance_of_the_ends_of_both_points(channels):
    t, s = pairs()
    x0, eps = MEAN + STD * noise_like(12, channels)[6:], noise_like(6, channels)
    c = 0.01
    losses = Consistency(c=c)(Denoiser(Exact(end), SCHEDULE, V), x0, t, s, eps)
    ends = [end(SCHEDULE.marginal(x0, time).sample(eps), time) for time in (t, s)]
    assert torch.allclose(ends[1][s == 0], x0[s == 0])  # the boundary
    distance = (ends[0] - ends[1]).square().mean((1, 2, 3))
    weight = SCHEDULE.snr(t) + 1 / 0.5**2  # 1 / sigma^2 + 1 / sigma_data^2
    assert torch.allclose(losses, weight * ((distance + c**2).sqrt() - c))


def test_the_aim_is_held_and_has_the_same_dropout():
    network = UNet(1, 1, 8, (1,), 1, (), dropout=0.5).train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    denoiser = Denoiser(network, SCHEDULE, V)
    x0, eps, t = (noise_like(8, 1)[4:].float(), noise_like(4, 1).float(), torch.tensor([300, 500, 700, 900]))
    outputs = [denoiser.output(x0, t) for _ in range(2)]
    assert not torch.equal(*outputs)  # dropout is at work
    assert bool((Consistency()(denoiser, x0, t, t, eps) == 0).all())  # and is the same in both
    network.eval()
    objective, s = Consistency(), t // 2
    (found,) = torch.autograd.grad(objective(denoiser, x0, t, s, eps).mean(), network.head[-1].weight)
    with torch.no_grad():
        aim = denoiser(SCHEDULE.marginal(x0, s).sample(eps), s).x0
    distance = (denoiser(SCHEDULE.marginal(x0, t).sample(eps), t).x0 - aim).square().mean((1, 2, 3))
    weight = (SCHEDULE.snr(t) + 4).float()
    by_hand = (weight * ((distance + objective.c**2).sqrt() - objective.c)).mean()
    (expected,) = torch.autograd.grad(by_hand, network.head[-1].weight)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("grid", [full(SCHEDULE), trailing(SCHEDULE, 50)], ids=["full", "50 times"])
def test_pairs_close_during_the_run(grid):
    """r = t (1 - (1 + k sigmoid(-b t)) / q^stage) of Geng et al. 2024 in sigma, rounded down to the grid."""
    t, s = torch.tensor(grid[:-1]), torch.tensor(grid[1:])
    objective = Consistency(q=2, stages=8, k=8)
    sigma = (SCHEDULE.noise(t) / SCHEDULE.signal(t)).tolist()
    before = None
    for stage in range(1, 9):
        earlier = objective.earlier(SCHEDULE, t, s, (stage - 0.5) / 8)
        for i in range(len(t)):
            share = 1 - (1 + 8 / (1 + torch.tensor(sigma[i]).double().exp())) / 2**stage
            allowed = [j for j in range(len(t)) if sigma[j] <= float(share) * sigma[i] * (1 + 1e-12)]
            assert int(earlier[i]) == (int(t[allowed[0]]) if allowed else 0)
        assert bool((earlier <= s).all())
        assert before is None or bool((earlier >= before).all())
        before = earlier
    assert torch.equal(objective.earlier(SCHEDULE, t, s, 1.0), before)


def test_where_every_image_begins_is_taught_by_the_time_before():
    """At zero terminal SNR sigma is infinite, of which no share is less."""
    objective, schedule = Consistency(), SCHEDULE.zero_terminal_snr()
    t = torch.tensor([1000, 1000, 600])
    for progress in (0.0, 0.5, 1.0):
        earlier = objective.earlier(schedule, t, t - 1, progress)
        assert earlier[:2].tolist() == [999, 999]
        assert earlier[2] == objective.earlier(SCHEDULE, t[2:], t[2:] - 1, progress)[0] or progress > 0.9


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_drawing_with_the_exact_function_is_exact(steps):
    """States have the law of q(x_t) at every time visited: means and variances, in closed form."""
    noise_schedule = SCHEDULE.zero_terminal_snr()
    mean, variance = torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)
    for t, s in itertools.pairwise(trailing(noise_schedule, steps)):
        points = torch.cat([mean, mean + 1])
        p = Renoised()(noise_schedule, points, predict(end(points, t, noise_schedule), points, noise_schedule, t), t, s)
        slope = p.mean[1] - p.mean[0]
        mean, variance = p.mean[:1], slope**2 * variance + p.var[0]
        assert torch.allclose(mean, noise_schedule.signal(s) * MEAN)
        assert torch.allclose(variance, noise_schedule.signal(s) ** 2 * STD**2 + noise_schedule.noise_var(s))


class Lines(nn.Module):
    """An output a_t x + b_t for each time."""

    def __init__(self, a, b):
        super().__init__()
        self.table = nn.Parameter(torch.stack([a, b], 1))

    def forward(self, x, time):
        row = self.table[(time * STEPS / 1000).round().long() - 1]
        return over(row[:, 0], x) * x + over(row[:, 1], x)


STEPS = 12


def test_tuning_finds_the_flow_that_the_posterior_mean_has():
    """Begun as E[x0 | x_t], each f_t becomes E[f_s(x_s) | x_t], which for lines is a step of DDIM with that mean."""
    coarse = schedules.cosine(STEPS)
    t = torch.arange(1, STEPS + 1)
    signal, noise = coarse.signal(t), coarse.noise(t)
    gain = signal * STD**2 / (signal**2 * STD**2 + noise**2)  # E[x0 | x_t] = m + gain (x_t - signal m)
    denoiser = Denoiser(Lines((signal - gain) / noise, (gain * signal - 1) * MEAN / noise), coarse, V)
    start = torch.tensor([[-1.0], [0.5], [1.0]], dtype=F64)

    def of_mean(x_t, time):
        at = time - 1
        x0 = MEAN + gain[at] * (x_t - signal[at] * MEAN)
        return predict(x0, x_t, coarse, time)

    x, grid = start, full(coarse)
    for time, s in itertools.pairwise(grid):
        x = DDIM()(coarse, x, of_mean(x, time), time, s).mean
    before = denoiser(start, STEPS).x0
    assert (before - x).abs().max() > 0.2  # the mean of all images, not one of them
    data = MEAN + STD * Streams(3, "data", range(4000)).normal((1,))
    for _ in simple.fit(denoiser, data, 1200, 128, 0.1, 0, Consistency(c=100.0)):
        pass
    assert torch.allclose(denoiser(start, STEPS).x0, x, atol=0.05)


def test_few_calls_refine_where_little_noise_is_left():
    cosine = schedules.cosine(1000)
    assert [refining(cosine, calls) for calls in (1, 2, 4)] == [[1000, 0], [1000, 50, 0], [1000, 150, 100, 50, 0]]
    assert all(refining(cosine, calls) == trailing(cosine, calls) for calls in (1, 20, 21, 1000))


def test_a_fork_puts_the_generators_of_the_cpu_and_of_mps_back(monkeypatch):
    """There is no MPS here: its functions are stood in for."""
    state, seeds = [torch.tensor([1])], []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state[0])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda value: state.append(value))
    monkeypatch.setattr(torch.mps, "manual_seed", seeds.append)
    before = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with torch_generators.forked(torch.device("mps"), 7):
            drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
    assert torch.equal(torch.get_rng_state(), before)
    assert seeds == [7, 7]
    assert state == [state[0]] * 3
