"""The probability flow: exact on data whose flow and density are known, and a bound on bytes that adds up to one."""

import json
import math
import shutil

import pytest
import torch
from torch import nn

from ancestral.data.load import load
from ancestral.data.pixels import to_unit
from ancestral.diffusion.denoisers.analytic import Mixture, gaussian
from ancestral.diffusion.denoisers.calibrated import Calibrated
from ancestral.diffusion.denoisers.denoiser import Denoiser, clip_static
from ancestral.diffusion.denoisers.targets import V
from ancestral.diffusion.objectives.elbo_derivation import along_chains
from ancestral.diffusion.objectives.probability_flow import (
    DEQUANTISATIONS,
    Adaptive,
    Noised,
    Uniform,
    every_direction,
    flow_bound,
    log_density,
    rademacher,
    transport,
)
from ancestral.diffusion.objectives.statistics import mean_and_error
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.normal import HALF_BIN, Normal
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.transitions import VARIANCES, Ancestral, optimal
from ancestral.runs import build
from ancestral.runs.open import open_model
from conftest import TINY, run_command

F64 = torch.float64
SHARP = Adaptive("DOP853", 1e-10, 1e-10)
ENDS_IN_NOISE = schedules.cosine(50).zero_terminal_snr()  # q(x_T) is N(0, I) itself


def mixture(noise_schedule=ENDS_IN_NOISE):
    means = torch.tensor([[-1.0, 0.4], [0.6, -0.5], [0.2, 0.9]], dtype=F64)
    return Mixture(noise_schedule, means, torch.tensor([0.1, 0.2, 0.15], dtype=F64))


def drawn(oracle, count, t=1):
    x0 = oracle.sample(torch.Generator().manual_seed(0), count)
    return oracle.schedule.marginal(x0, t).sample(Streams(0, "x", range(count)).normal([x0.shape[1]]))


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_times_in_between_are_those_of_the_table_at_integers_and_fall_between_them(name):
    noise_schedule = schedules.SCHEDULES[name](50)
    t = torch.arange(51)
    assert torch.allclose(noise_schedule.log_alpha_bar_at(t.double()), noise_schedule.log_alpha_bar, rtol=1e-9)
    fine = noise_schedule.log_alpha_bar_at(torch.linspace(0, 50, 501, dtype=F64))
    assert bool((fine.diff() < 0).all())
    u = torch.linspace(0, 50, 333, dtype=F64)
    assert torch.allclose(noise_schedule.time(noise_schedule.angle(u)), u, atol=1e-9)
    beyond = torch.stack([noise_schedule.angle(0) - 0.1, noise_schedule.angle(noise_schedule.T) + 0.1])
    assert noise_schedule.time(beyond).tolist() == [0, noise_schedule.T]
    angle = noise_schedule.angle(u)
    assert torch.allclose(noise_schedule.signal(u), angle.cos(), atol=1e-12)
    assert torch.allclose(noise_schedule.noise(u), angle.sin(), atol=1e-12)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_the_flow_of_a_gaussian_is_a_change_of_scale(name):
    """x_t - signal_t mean moves with the standard deviation of x_t, up and down."""
    noise_schedule, mean = schedules.SCHEDULES[name](50), torch.tensor([0.3, -0.4], dtype=F64)
    oracle = gaussian(noise_schedule, mean, 0.25)

    def standard(x, t):
        deviation = (noise_schedule.alpha_bar(t) * 0.25 + noise_schedule.noise_var(t)).sqrt()
        return (x - noise_schedule.signal(t) * mean) / deviation

    x_1 = drawn(oracle, 16)
    up = transport(oracle, x_1, 1, 50, SHARP).x
    assert torch.allclose(standard(up, 50), standard(x_1, 1), atol=1e-7)
    assert torch.allclose(transport(oracle, up, 50, 20, SHARP).x, transport(oracle, x_1, 1, 20, SHARP).x, atol=1e-7)


@pytest.mark.parametrize(("method", "order", "steps"), [("RK23", 3, 64), ("RK45", 5, 16), ("DOP853", 8, 8)])
def test_orders_of_convergence(method, order, steps):
    oracle = mixture(schedules.linear_log_snr(50, 3, -6))
    x_1, ends = drawn(oracle, 8), oracle.schedule.angle(torch.tensor([1, 50]))
    truth, errors = transport(oracle, x_1, 1, 50, Adaptive("DOP853", 1e-12, 1e-12)).x, []
    for count in (steps, 2 * steps):
        fixed = Adaptive(method, 1e3, 1e3, max_step=float(ends.diff()) / count * (1 + 1e-9))
        errors.append(float((transport(oracle, x_1, 1, 50, fixed).x - truth).abs().max()))
    assert math.log2(errors[0] / errors[1]) > order - 0.7, errors


def test_there_and_back_is_as_near_as_the_tolerance():
    oracle, errors = mixture(), []
    x_1 = drawn(oracle, 16)
    for tolerance in (1e-3, 1e-5, 1e-7, 1e-9):
        solver = Adaptive(rtol=tolerance, atol=tolerance)
        latent = transport(oracle, x_1, 1, 50, solver).x
        errors.append(float((transport(oracle, latent, 50, 1, solver).x - x_1).abs().max()))
        assert errors[-1] < 100 * tolerance
    assert errors == sorted(errors, reverse=True)


def test_the_latents_of_the_data_are_standard_normal():
    oracle, count = mixture(), 2000
    latent = transport(oracle, drawn(oracle, count), 1, 50).x
    assert float(latent.mean(0).abs().max()) < 4.5 / count**0.5
    assert torch.allclose(latent.T.cov(), torch.eye(2, dtype=F64), atol=4.5 * (2 / count) ** 0.5)


@pytest.mark.parametrize("t", [1, 17])
@pytest.mark.parametrize("name", ["linear-zero-snr", "cosine-zero-snr"])
def test_the_density_is_that_of_the_marginal(name, t):
    noise_schedule = schedules.SCHEDULES[name](50)
    for oracle in (mixture(noise_schedule), gaussian(noise_schedule, torch.tensor([0.3, -0.4], dtype=F64), 0.25)):
        x_t = drawn(oracle, 16, t)
        found = log_density(oracle, x_t, t, every_direction(x_t), SHARP)
        assert torch.allclose(found.nats.mean(1), oracle.log_prob(x_t, t), atol=1e-8, rtol=0)
        assert torch.allclose(found.x_T, transport(oracle, x_t, t, 50, SHARP).x, atol=1e-8)
        loose = log_density(oracle, x_t, t, every_direction(x_t))
        assert torch.allclose(loose.nats.mean(1), oracle.log_prob(x_t, t), atol=1e-2, rtol=0)


def test_a_chain_that_does_not_end_in_noise_is_measured_from_the_prior_that_it_is_sampled_with():
    """A Gaussian's own flow, begun from N(0, I) instead of q(x_T): a Gaussian with another variance."""
    oracle = gaussian(schedules.linear_log_snr(50, 6, -1), torch.zeros(2, dtype=F64), 0.25)
    q = oracle.schedule
    first, last = (q.alpha_bar(t) * 0.25 + q.noise_var(t) for t in (1, 50))
    x_1 = drawn(oracle, 8)
    found = log_density(oracle, x_1, 1, every_direction(x_1), SHARP).nats.mean(1)
    true = Normal(torch.zeros(2, dtype=F64), first / last).log_prob(x_1).sum(1)
    assert torch.allclose(found, true, atol=1e-8)
    assert (found - oracle.log_prob(x_1, 1)).abs().max() > 0.05


def test_random_probes_are_unbiased():
    """The probe is held along the path, so that each is an estimate of the whole integral."""
    oracle, count = mixture(), 1500
    x_1 = drawn(oracle, 1).expand(4, 2)
    probes = rademacher(Streams(0, "probe", range(4)), x_1, count)
    assert set(probes.flatten().tolist()) == {-1.0, 1.0}
    # Two signs in two dimensions make two different estimates: their mean is the trace.
    same = torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]]], dtype=F64)
    estimates = log_density(oracle, x_1[:1], 1, same, SHARP).nats[0]
    true = float(oracle.log_prob(x_1[:1], 1))
    assert float(estimates.mean()) == pytest.approx(true, abs=1e-8)
    assert float((estimates[0] - estimates[1]).abs()) > 0.1
    agree = (probes.prod(2) > 0).double().mean()
    assert float(agree) == pytest.approx(0.5, abs=4.5 * 0.5 / (4 * count) ** 0.5)


def test_probes_and_noise_belong_to_the_image():
    oracle = mixture()
    x0 = oracle.sample(torch.Generator().manual_seed(1), 6)
    both = flow_bound(oracle, x0, Streams(0, "flow", range(6)), Uniform(), 2, SHARP).nats
    part = flow_bound(oracle, x0[2:4], Streams(0, "flow", range(2, 4)), Uniform(), 2, SHARP).nats
    assert both.shape == (6, 2)
    assert torch.allclose(both[2:4], part, atol=1e-8)


@pytest.mark.parametrize("t", [1, 6])
def test_with_the_exact_last_step_the_bound_is_the_density_of_clean_data(t):
    """Bayes' rule at t: log q(x_t | x0) - log p(x0 | x_t) - log p(x_t) = -log p(x0), for every draw of x_t."""
    oracle = gaussian(ENDS_IN_NOISE, torch.tensor([0.3, -0.4], dtype=F64), 0.25)
    x0 = oracle.sample(torch.Generator().manual_seed(0), 16)
    dequantisation = Noised(Ancestral(optimal), t, Normal.log_prob)
    # In two dimensions with an isotropic trace every probe of signs is exact.
    found = flow_bound(oracle, x0, Streams(0, "flow", range(16)), dequantisation, 1, SHARP).bits_per_dim
    assert torch.allclose(found, -oracle.log_prob(x0) / 2 / math.log(2), atol=1e-7)


class Wrong(nn.Module):
    """No denoiser of anything: a probability must be one for every network."""

    def forward(self, x, time):
        return torch.tanh(1.3 * x + 0.2) * (1 + time.reshape(-1, 1) / 3000)


BYTES = torch.arange(256, dtype=F64)[:, None] / 127.5 - 1


def every_byte(predictor, dequantisation, copies):
    """(mean and error of exp(-nats), mean of nats) of each of the 256 bytes, over many draws."""
    x0 = BYTES.repeat_interleave(copies, 0)
    exact = Adaptive("DOP853", 1e-7, 1e-7)
    nats = flow_bound(predictor, x0, Streams(0, "flow", range(len(x0))), dequantisation, 1, exact).nats.reshape(
        256, copies
    )
    p = (-nats).exp()
    return p.mean(1), p.std(1) / copies**0.5, nats.mean(1)


def test_the_bytes_of_a_wrong_network_add_up_to_one():
    predictor = Denoiser(Wrong(), schedules.linear(40), V)
    p, error, nats = every_byte(predictor, Noised(), 40)
    assert float(p.sum()) == pytest.approx(1, abs=5 * float(error.square().sum().sqrt()))
    assert float(error.square().sum().sqrt()) < 0.02
    assert bool((nats >= -(p + 5 * error).log()).all())
    assert float((-nats).exp().sum()) < 1


def test_uniform_bins_hold_the_density():
    """sum P(x0) is the mass of p(x_1) between the outer edges of the bins, here by quadrature of the closed form."""
    means, variances = torch.tensor([[-0.6], [0.5]], dtype=F64), torch.tensor([0.02, 0.05], dtype=F64)
    oracle = Mixture(ENDS_IN_NOISE, means, variances)
    p, _, nats = every_byte(oracle, Uniform(), 8)
    signal = oracle.schedule.signal(1)
    edge = signal * (1 + HALF_BIN)
    inside = torch.linspace(-float(edge), float(edge), 20001, dtype=F64)[:, None]
    mass = torch.trapezoid(oracle.log_prob(inside, 1).exp(), inside[:, 0])
    assert float(p.sum()) == pytest.approx(float(mass), abs=1e-3)
    middle = oracle.log_prob(signal * BYTES, 1) + (2 * HALF_BIN * signal).log()
    assert torch.allclose(-nats, middle, atol=0.2)
    assert float((-nats).exp().sum()) == pytest.approx(float(mass), abs=1e-3)  # Jensen's gap is small in narrow bins


def test_the_flow_is_no_worse_than_the_chain_that_it_replaces():
    """On exact data both are bounds of one NLL; the chain's has the gap of its Gaussian steps on top."""
    oracle = mixture(schedules.cosine(12).zero_terminal_snr())
    x0 = oracle.sample(torch.Generator().manual_seed(0), 3200)
    chain = along_chains(
        oracle, x0, list(range(12, -1, -1)), Ancestral(optimal), Streams(0, "chain", range(3200)), Normal.log_prob
    ).monte_carlo.nats
    dequantisation = Noised(Ancestral(optimal), 1, Normal.log_prob)
    flow = flow_bound(
        oracle, x0, Streams(0, "flow", range(3200)), dequantisation, 2, Adaptive(rtol=1e-5, atol=1e-5)
    ).nats.mean(1)
    gap, error = mean_and_error(chain - flow)
    assert gap > 2 * error
    nll, error = mean_and_error(flow + oracle.log_prob(x0))
    assert -4 * error < nll < 0.05


def test_a_clipped_and_a_calibrated_network_have_a_flow():
    torch.manual_seed(0)
    network = nn.Conv2d(1, 1, 3, padding=1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = network

        def forward(self, x, time):
            return self.conv(x)

    denoiser = Denoiser(Net(), schedules.cosine(20), V, clip_static).requires_grad_(requires_grad=False)
    predictor = Calibrated(denoiser, torch.full((21, 13), 0.01, dtype=F64))
    x0 = torch.randint(0, 256, (3, 1, 4, 4), generator=torch.Generator().manual_seed(0)).double() / 127.5 - 1
    for make in DEQUANTISATIONS.values():
        bits = flow_bound(predictor, x0, Streams(0, "flow", range(3)), make(Ancestral(optimal), 1), 2).bits_per_dim
        assert bits.shape == (3,)
        assert bits.isfinite().all()


def test_a_flow_that_cannot_be_followed_is_an_error_not_a_number():
    class Broken:
        schedule = ENDS_IN_NOISE

        def __call__(self, x_t, t):
            return mixture()(x_t, t)._replace(x0=x_t * math.nan)

    with pytest.raises(ArithmeticError, match="rtol"):
        transport(Broken(), torch.zeros(1, 2, dtype=F64), 1, 50)


def test_a_flow_of_no_length_stays():
    x = drawn(mixture(), 3)
    assert torch.equal(transport(mixture(), x, 1, 1).x, x)
    assert torch.equal(log_density(mixture(), x, 50, rademacher(Streams(0, "p", range(3)), x, 1)).x_T, x)


def test_a_velocity_that_is_lost_on_the_way_is_an_error_and_not_a_walk_without_end():
    class Lost:
        schedule = ENDS_IN_NOISE

        def __call__(self, x_t, t):
            said = mixture()(x_t, t)
            return said._replace(x0=said.x0 * (math.nan if float(t) > 20 else 1))

    with pytest.raises(ArithmeticError, match="not finite"):
        transport(Lost(), torch.zeros(1, 2, dtype=F64), 1, 50)


def test_the_command_measures_bytes_and_says_what_it_cost(any_run, command, tmp_path):
    run = shutil.copytree(any_run, tmp_path / "run")
    arguments = ("likelihood", run, "--num-images", 6, "--batch-size", 4, "--probes", 2, "--rtol", 1e-3, "--atol", 1e-3)
    result = command(*arguments)
    assert result.exit_code == 0, result.output
    first = json.loads((run / "likelihood.json").read_text())
    assert first["images"] == 6
    assert len(first["network_calls"]) == 2
    assert "bits/dim" in result.output
    found = first["bits_per_dim"]["flow"]
    assert 0 < found["mean"] < 12
    assert first["standard_error_of_trace"] > 0
    assert not (run / ".likelihood").exists()
    assert command(*arguments).exit_code == 0
    assert json.loads((run / "likelihood.json").read_text())["bits_per_dim"] == first["bits_per_dim"]


@pytest.mark.parametrize("how", ["uniform", "noise"])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-2])
def test_the_command_reports_what_the_bound_says_in_bits(trained_run, command, tmp_path, how, tolerance):
    run = shutil.copytree(trained_run, tmp_path / "run")
    options = ("--num-images", 3, "--probes", 2, "--rtol", tolerance, "--atol", tolerance, "--seed", 4)
    result = command("likelihood", run, *options, "--dequantisation", how, "--solver", "RK23")
    assert result.exit_code == 0, result.output
    saved, model = open_model(run, "cpu", None)
    images = load(saved.config.source, saved.config.data).test.spread(3).images
    x0 = to_unit(images[:]).double()
    move = Ancestral(VARIANCES[saved.config.diffusion.variance])
    made = Uniform() if how == "uniform" else Noised(move, build.training_grid(saved.config)[-2])
    predictor, noise = build.predictor(model, saved.calibration), Streams(4, "likelihood", range(3))
    nats = flow_bound(predictor, x0, noise, made, 2, Adaptive("RK23", tolerance, tolerance)).nats.numpy()
    bits = nats / x0[0].numel() / math.log(2)
    found = json.loads((run / "likelihood.json").read_text())
    assert found["bits_per_dim"]["flow"]["mean"] == pytest.approx(bits.mean(), rel=1e-9)
    assert found["nats_per_image"] == pytest.approx(nats.mean(), rel=1e-9)
    of_trace = math.sqrt(sum((a - b) ** 2 / 2 / 2 for a, b in bits)) / 3
    assert found["standard_error_of_trace"] == pytest.approx(of_trace, rel=1e-9)


@pytest.mark.parametrize(
    "wrong", [("--dequantisation", "nois"), ("--solver", "RK4"), ("--rtol", "0"), ("--variance", "big")]
)
def test_a_wrong_option_is_one_line(trained_run, command, wrong):
    result = command("likelihood", trained_run, *wrong)
    assert result.exit_code == 2
    assert wrong[0] in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("verb", ["likelihood", "agree"])
def test_the_flow_of_a_model_trained_at_few_times_is_refused(tmp_path, verb):
    options = ("--preset", "tiny", "--steps", 2, "--set", "diffusion.train_steps=10", *TINY)
    assert run_command("train", "digits", "--out", tmp_path / "few", *options).exit_code == 0
    result = run_command(verb, tmp_path / "few")
    assert result.exit_code == 2
    assert "trained at 10 times only" in result.output
