"""The functions with the notes' names, beside our own: schedules, one draw, the loss, one step and the whole loop."""

import pytest
import torch

from ancestral.apps.report import notes_code as notes
from ancestral.diffusion.denoisers.denoiser import predict
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.samplers.transitions import VARIANCES, Ancestral

T = 40
SHAPES = [(2, 1, 4, 4), (2, 3, 4, 4)]  # grey and colour


@pytest.mark.parametrize(("theirs", "ours"), [("linear", schedules.linear), ("cosine", schedules.cosine)])
def test_schedules(theirs, ours):
    betas = getattr(notes, f"{theirs}_beta_schedule")(1000)
    assert torch.allclose(betas, ours(1000).beta, rtol=1e-9)
    assert torch.allclose(notes.alphas_bar_of(betas), ours(1000).alpha_bar(torch.arange(1001)), rtol=1e-9)


def guess(x_t, t):
    """Some network: what it predicts is of no matter."""
    return torch.tanh(x_t) * (1 + t / T)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_draw_a_loss_and_a_step(shape):
    q, generator = schedules.cosine(T), torch.Generator().manual_seed(0)
    alphas_bar = notes.alphas_bar_of(notes.cosine_beta_schedule(T))
    x0, eps, z = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    for t in (1, 2, 20, T):
        x_t = q.marginal(x0, t).sample(eps)
        assert torch.allclose(notes.q_sample(x0, t, eps, alphas_bar), x_t)
        assert torch.allclose(notes.p_losses(guess, x0, t, eps, alphas_bar), (eps - guess(x_t, t)).square().mean())
        drawn = z if t > 1 else torch.zeros_like(z)  # the last step has none
        assert torch.allclose(notes.p_sample(guess, x_t, t, drawn, alphas_bar), step(q, x_t, t).sample(drawn))


def step(q, x_t, t):
    x0 = (x_t - q.noise(t) * guess(x_t, t)) / q.signal(t)
    return Ancestral(VARIANCES["fixedsmall"])(q, x_t, predict(x0.clamp(-1, 1), x_t, q, t), t, t - 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_loop(shape):
    alphas_bar, q = notes.alphas_bar_of(notes.cosine_beta_schedule(T)), schedules.cosine(T)
    found = notes.p_sample_loop(guess, shape, alphas_bar, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    for t in range(T, 0, -1):
        z = torch.randn(shape, generator=generator, dtype=torch.float64) if t > 1 else torch.zeros(shape).double()
        x = step(q, x, t).sample(z)
    assert torch.allclose(found, x, atol=1e-9)
