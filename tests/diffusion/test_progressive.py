"""Progressive distillation: data N(m, v), whose flow is known, and what is learned of it."""

import itertools

import pytest
import torch
from torch import nn

from ancestral.diffusion.denoisers.denoiser import Denoiser, clip_static
from ancestral.diffusion.denoisers.targets import X0, V
from ancestral.diffusion.objectives.progressive import Progressive
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.processes.types import over
from ancestral.diffusion.samplers.grids import between, trailing
from ancestral.diffusion.samplers.sample import finish, trajectory
from ancestral.diffusion.samplers.solvers import SOLVERS
from ancestral.diffusion.samplers.transitions import DDIM

F64 = torch.float64
SCHEDULE = schedules.cosine(1000)
MEAN, STD = 0.1, 0.15


def spread(t):
    """The standard deviation of q(x_t)."""
    return (SCHEDULE.signal(t) ** 2 * STD**2 + SCHEDULE.noise(t) ** 2).sqrt()


def flow(x_t, t, s):
    """x_s on the trajectory through x_t: as many standard deviations from the mean."""
    moved = over(spread(s) / spread(t), x_t) * (x_t - over(SCHEDULE.signal(t), x_t) * MEAN)
    return over(SCHEDULE.signal(s), x_t) * MEAN + moved


def mean_of_x0(x_t, t):
    """E[x0 | x_t]."""
    gain = SCHEDULE.signal(t) * STD**2 / spread(t) ** 2
    return MEAN + over(gain, x_t) * (x_t - over(SCHEDULE.signal(t), x_t) * MEAN)


def aim(x_t, t, s):
    """The x0 from which DDIM arrives where the flow does."""
    ratio = SCHEDULE.noise(s) / SCHEDULE.noise(t)
    return (flow(x_t, t, s) - over(ratio, x_t) * x_t) / over(SCHEDULE.signal(s) - SCHEDULE.signal(t) * ratio, x_t)


class Says(nn.Module):
    """An x0_hat that is known at each time."""

    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self, x_t, time):
        return self.of(x_t, time.round().long())


def noise_like(count, channels):
    return Streams(1, "progressive", range(count)).normal((channels, 4, 4))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("calls", [1, 2, 4])
def test_steps_to_the_exact_aims_are_the_flow(channels, calls):
    times, x = trailing(SCHEDULE, calls), noise_like(5, channels)
    for t, s in itertools.pairwise(times):
        x0 = aim(x, t, s)
        stepped = DDIM()(SCHEDULE, x, Denoiser(Says(lambda *_, x0=x0: x0), SCHEDULE, X0)(x, t), t, s).mean
        assert torch.allclose(stepped, flow(x, t, s))
        x = stepped
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.05)
    assert float(x.std()) == pytest.approx(STD, rel=0.15)  # the law of the data, from a few steps


@pytest.mark.parametrize(("t", "s"), [(500, 0), (1000, 500), (750, 500), (250, 0), (1, 0)])
def test_the_aim_goes_to_the_flows_with_second_order(t, s):
    x_t = SCHEDULE.marginal(MEAN + STD * noise_like(8, 2)[4:], t).sample(noise_like(4, 2))
    denoiser = Denoiser(nn.Identity(), SCHEDULE, X0)
    errors = [
        float((Progressive(Says(mean_of_x0), calls=calls).aim(denoiser, x_t, t, s) - aim(x_t, t, s)).abs().max())
        for calls in (8, 16, 32)
    ]
    if t - s == 1:
        assert max(errors) < 1e-2  # one step is all there is
        return
    assert errors[-1] < 0.01
    assert errors[-1] < errors[0] / 6  # 16 by its order


@pytest.mark.parametrize("channels", [1, 3])
def test_the_aim_is_where_the_teacher_goes_and_never_learns(channels):
    teacher = nn.Conv2d(channels, channels, 3, padding=1, dtype=F64)

    class Timed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = teacher

        def forward(self, x, time):
            return self.layer(x)

    objective, x_t = Progressive(Timed(), calls=3), noise_like(2, channels)
    denoiser = Denoiser(Timed(), SCHEDULE, V, clip_static)
    teachers = Denoiser(objective.auxiliary, SCHEDULE, V, clip_static)
    arrived = finish(trajectory(teachers, x_t, between(700, 300, 3), SOLVERS["dpm++2m"]))
    found = objective.aim(denoiser, x_t, 700, 300)
    says = Denoiser(Says(lambda *_: found), SCHEDULE, X0)
    assert torch.allclose(DDIM()(SCHEDULE, x_t, says(x_t, 700), 700, 300).mean, arrived)
    assert not any(one.requires_grad for one in objective.auxiliary.parameters())
    assert not objective.auxiliary.training


@pytest.mark.parametrize("channels", [1, 3])
def test_the_loss_is_the_weighted_distance_to_the_aim(channels):
    """Several pairs in a batch, in any order; a network that predicts the aims has none."""
    t, s = torch.tensor([1000, 500, 1000, 250, 500]), torch.tensor([500, 0, 0, 0, 250])
    x0, eps = MEAN + STD * noise_like(10, channels)[5:], noise_like(5, channels)
    objective = Progressive(Says(mean_of_x0), calls=3)
    x_t = SCHEDULE.marginal(x0, t).sample(eps)
    teachers = Denoiser(nn.Identity(), SCHEDULE, X0)
    exact = torch.cat([objective.aim(teachers, x_t[[k]], int(t[k]), int(s[k])) for k in range(5)])
    for off in (0.0, 0.3):
        losses = objective(Denoiser(Says(lambda *_, off=off: exact + off), SCHEDULE, X0), x0, t, s, eps)
        assert torch.allclose(losses, (SCHEDULE.snr(t) + 4) * off**2, atol=1e-12)


def test_what_drawing_clips_away_costs_nothing_and_the_rest_is_pulled_back():
    x0, t, s = torch.ones(1, 1, 1, 3, dtype=F64), torch.tensor([500]), torch.tensor([0])
    aims = torch.tensor([1.0, 1.0, 0.2], dtype=F64)
    said = torch.tensor([1.5, 0.9, 1.5], dtype=F64, requires_grad=True)
    denoiser = Denoiser(Says(lambda x, _: said.expand(x.shape)), SCHEDULE, X0, clip_static)
    objective = Progressive(Says(lambda x, _: aims.expand(x.shape)), calls=2)
    loss = objective(denoiser, x0, t, s, torch.zeros_like(x0))
    weight = float(SCHEDULE.snr(t) + 4)
    assert float(loss.detach()) == pytest.approx(weight * (0.1**2 + 0.8**2) / 3)
    loss.sum().backward()
    expected = weight * 2 / 3 * torch.tensor([0, -0.1, 0.8], dtype=F64)
    assert torch.allclose(said.grad, expected)


def test_times_between_are_even_and_as_many_as_there_are():
    assert between(1000, 500, 4) == [1000, 875, 750, 625, 500]
    assert between(3, 0, 8) == [3, 2, 1, 0]
    assert between(1, 0, 4) == [1, 0]
