"""The adversarial loss against what it is by hand: which network each part moves, and at which times."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from ancestral.diffusion.denoisers.denoiser import CLIPS, Denoiser
from ancestral.diffusion.denoisers.targets import V
from ancestral.diffusion.objectives.adversarial import Adversarial
from ancestral.diffusion.objectives.consistency import Consistency
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.grids import full, trailing

F64 = torch.float64
SCHEDULE = schedules.cosine(40)


class Affine(nn.Module):
    """A line for each channel; the times that it was asked at are kept."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.times = nn.Conv2d(channels, channels, 1).double(), []

    def forward(self, x, time, **cond):
        self.times.append(time * SCHEDULE.T / 1000)
        return self.conv(x)


class Linear(nn.Module):
    """w x + b, and the label's own constant."""

    def __init__(self, size):
        super().__init__()
        self.line, self.label = nn.Linear(size, 1).double(), nn.Embedding(3, 1).double()

    def forward(self, x, labels):
        return (self.line(x.flatten(1)) + self.label(labels))[:, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_each_network_learns_by_its_own_part_of_the_loss(channels):
    torch.manual_seed(0)
    network, critic = Affine(channels), Linear(16 * channels)
    denoiser = Denoiser(network, SCHEDULE, V, CLIPS["static"])
    t, labels = torch.tensor([10, 20, 30, 40, 40]), torch.tensor([0, 1, 2, 0, 1])
    at = torch.tensor([1, 10, 20, 21, 40])  # what uniform times stand for: T is drawn at in half of all
    x0 = Streams(0, "x0", range(5)).normal((channels, 4, 4)).clamp(-1, 1)
    eps = Streams(0, "eps", range(5)).normal((channels, 4, 4))
    losses = Adversarial(critic, anchor=3.0)(denoiser, x0, at, at, eps, labels=labels)
    losses.sum().backward()

    signal, noise = (part[:, None, None, None] for part in (SCHEDULE.signal(t), SCHEDULE.noise(t)))
    x_t = signal * x0 + noise * eps
    raw = signal * x_t - noise * network.conv(x_t)
    x, (w, b) = raw.clamp(-1, 1), (critic.line.weight[0], critic.line.bias)
    score = lambda image, w, b, of: image.flatten(1) @ w + b + of[:, 0]  # noqa: E731
    held = score(x, w.detach(), b.detach(), critic.label(labels).detach())
    real, false = (score(image, w, b, critic.label(labels)) for image in (x0, x.detach()))
    error = (x - x0).square().mean((1, 2, 3)) * (SCHEDULE.signal(t) / SCHEDULE.noise(t)) ** 2
    of_critic, of_denoiser = (1 - real).clamp(min=0) + (1 + false).clamp(min=0), functional.softplus(-held) + 3 * error
    assert torch.allclose(losses, of_critic + of_denoiser)
    for part, parameters in ((of_critic, critic.parameters()), (of_denoiser, network.parameters())):
        own = list(parameters)
        for parameter, expected in zip(own, torch.autograd.grad(part.sum(), own), strict=True):
            assert torch.allclose(parameter.grad, expected)
            assert parameter.requires_grad


def test_only_the_times_that_are_drawn_at_meet_the_critic():
    network = Affine(1)
    denoiser = Denoiser(network, SCHEDULE, V)
    t = torch.arange(1, 41)
    x0 = torch.zeros(40, 1, 4, 4, dtype=F64)
    Adversarial(nn.Sequential(nn.Flatten(), nn.Linear(16, 1).double(), nn.Flatten(0)))(denoiser, x0, t, t, x0)
    (asked,) = network.times
    times = trailing(SCHEDULE, 4)[-2::-1]
    assert asked.tolist() == sorted(asked.tolist())
    assert [int((asked == time).sum()) for time in times[:-1]] == pytest.approx([20 / 3] * 3, abs=1)
    assert int((asked == times[-1]).sum()) == 20


@pytest.mark.parametrize("steps", [40, 7])
def test_consistency_comes_first(steps):
    t = torch.tensor(full(SCHEDULE)[:-1])[:steps]
    s = torch.cat([t[1:], t.new_zeros(1)])
    objective, consistency = Adversarial(nn.Identity(), share=0.4), Consistency()
    for progress in (0.0, 0.1, 0.2, 0.399):
        found = objective.earlier(SCHEDULE, t, s, progress)
        assert torch.equal(found, consistency.earlier(SCHEDULE, t, s, progress / 0.4))
        assert bool((found < t).all())
    assert torch.equal(objective.earlier(SCHEDULE, t, s, 0.4), t)
    denoiser = Denoiser(Affine(1), SCHEDULE, V)
    x0, eps = (Streams(0, name, range(steps)).normal((1, 4, 4)) for name in ("x0", "eps"))
    assert torch.equal(objective(denoiser, x0, t, s, eps), consistency(denoiser, x0, t, s, eps))
