"""Section 7 of the report: its numbers against closed forms, on subjects that are known exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ancestral.apps.report import (
    connections,
    connections_compression,
    connections_energy,
    connections_frequency,
    connections_langevin,
)
from ancestral.apps.report.exact_subject import Shapes, exact
from ancestral.apps.report.subject import of_run
from ancestral.data.dataset import ImageSet, Splits
from ancestral.data.pictures import png
from ancestral.diffusion.denoisers import analytic
from ancestral.diffusion.denoisers.denoiser import predict
from ancestral.diffusion.objectives.elbo import elbo
from ancestral.diffusion.objectives.elbo_derivation import along_chains
from ancestral.diffusion.objectives.rate_distortion import curve
from ancestral.diffusion.objectives.statistics import mean_and_error
from ancestral.diffusion.processes.streams import Streams


@pytest.fixture(scope="module")
def subject():
    return exact(num_images=32, seed=0)


class White:
    """The exact predictor of images whose pixels are N(0, VAR), each by itself."""

    VAR = 0.04

    def __init__(self, schedule):
        self.schedule = schedule
        self.flat = analytic.gaussian(schedule, torch.zeros(64).double(), self.VAR)

    def __call__(self, x_t, t):
        found = self.flat(x_t.flatten(1).double(), t)
        x0_var = found.x0_var.expand(len(x_t), 64).reshape(x_t.shape)
        return predict(found.x0.reshape(x_t.shape), x_t, self.schedule, t, x0_var=x0_var)


@pytest.fixture(scope="module")
def white(subject):
    x0 = White.VAR**0.5 * Streams(0, "white", range(512)).normal((8, 8, 1))
    pixels = ((x0.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    images = ImageSet(pixels, None, (), tuple(map(str, range(len(pixels)))))
    model = White(subject.schedule)
    fields = {"images": Splits(images, images), "conditioned": lambda shown: model, "drawn": lambda numbers: model}
    return replace(subject, num_images=64, **fields)


@pytest.mark.parametrize(("information", "off"), [(2.0, 1e-6), (30.0, 0.01)])
def test_the_score_adds_up_to_the_log_density(subject, information, off):
    shown = connections_energy.Plane(subject)
    t, model = shown.time(information), subject.conditioned(subject.test)
    assert isinstance(model, Shapes)
    found = connections_energy.around(shown, t)
    states = connections_energy.states_around(shown, t)
    true = [
        model.mixture.log_prob(one.flatten(0, 1).flatten(1), t).reshape(connections_energy.DRAWS, -1) for one in states
    ]
    true = torch.cat([true[0], true[1][:, 1:], true[2][:, 1:]], 1)
    assert float((true - true[:, :1]).abs().max()) > 1  # there is something to add up
    assert np.abs(found - (true - true[:, :1]).numpy()).max() < off


def test_in_much_noise_every_arrow_points_to_the_mean(subject):
    shown = connections_energy.Plane(subject)
    arrows = shown.slice(1e-6)
    model = subject.conditioned(subject.test)
    mean = ((model.mixture.means.mean(0) - shown.middle) @ shown.axes.T).numpy()
    assert np.abs(arrows.points + arrows.pull - mean).max() < 0.05


def test_valleys_are_what_lies_below_the_ends():
    line = np.array([0, -1, -2, -1, 0.0])
    around = np.tile(np.interp(np.linspace(0, 4, connections_energy.POINTS), range(5), line), 3)
    log_q = np.delete(around, [connections_energy.POINTS, 2 * connections_energy.POINTS])[None]
    one = connections_energy.Edges(1, 0.0, log_q)
    assert one.between == pytest.approx(-2)
    assert one.way == pytest.approx([12])
    assert one.left == pytest.approx([0])


def test_the_loss_of_the_exact_score_is_what_cannot_be_known(subject):
    """E |eps - eps_hat|^2 = E[SNR Var[x0 | x_t]]: the constant of denoising score matching."""
    found, error = mean_and_error(connections.dsm(subject))
    x0, model, schedule = subject.x0(subject.test), subject.conditioned(subject.test), subject.schedule
    noise = Streams(1, "test-dsm", range(len(x0)))
    least = []
    for t in range(5, 1001, 10):
        x_t = schedule.marginal(x0, t).sample(noise.normal(subject.shape))
        least.append(float(schedule.snr(t) * model(x_t, t).x0_var.mean()))
    assert np.mean(least) == pytest.approx(found, abs=5 * error + 0.002)  # and the midpoint rule


def test_langevin_steps_are_as_long_as_they_must_be_and_stay_where_noise_is_low(subject):
    shown = connections_energy.Plane(subject)
    images = subject.images.test.spread(connections_langevin.CHAINS)
    low = connections_langevin.wander(subject, images, shown.time(1000.0))
    mean, error = mean_and_error(low.moved)
    share = connections_langevin.SHARE
    # |score|^2 noise^2 / D is 1 - SNR Var at equilibrium, between 0.8 and 1 here: its part of a step's square is h^2.
    assert (2 * share + 0.8 * share**2) ** 0.5 - 5 * error < mean < (2 * share + share**2) ** 0.5 + 5 * error
    assert float(low.forgotten.max()) < 0.05


def test_white_images_are_known_at_every_frequency_as_wiener_says(white):
    found = connections_frequency.spectrum(white)
    assert found.power == pytest.approx(np.full(len(found.power), White.VAR), rel=0.35)
    assert np.abs(found.explained - found.linear)[:, 1:].max() < 0.12
    own, linear = found.half(found.explained), found.half(found.linear)
    assert np.nanmax(np.abs(own - linear)[1:]) < 60


def test_rates_are_those_of_the_curve(white):
    x0, grid = white.x0(white.images.test.spread(64)), list(range(1000, -1, -20))
    noise = Streams(0, "test-rates", range(64))
    chain = along_chains(white.conditioned(white.test), x0, grid, white.move, noise).elbo
    ours, true = connections_compression.rates(chain, 1000), curve(chain)
    assert ours.rate == pytest.approx(true.rate.numpy())
    assert ours.rmse == pytest.approx(true.rmse.numpy())
    part = elbo(white.conditioned(white.test), x0, grid, white.move, Streams(1, "test-rates", range(64)), terms=25)
    few = connections_compression.rates(part, 1000)
    mean, error = mean_and_error(few.sent)
    assert mean == pytest.approx(float(true.rate[-1]), abs=5 * error)


def test_a_receiver_is_sent_no_less_and_ends_with_every_pixel(subject):
    images = subject.test.spread(2)
    found = connections_compression.receive(subject, images)
    assert (np.diff(found.bits, axis=1) >= -1e-12).all()
    assert (found.shown[-1] == images.images[:]).all()
    sharp = found.stage(25.0, images.images[:], 0)
    assert sharp is not None
    assert sharp[1] >= 25
    assert sharp[0] < found.bits[0, -1]


def test_a_run_with_files_shows_them(trained_run, command, tmp_path):
    own = of_run(trained_run, None, 8, 0, "cpu", None)
    images = own.test.spread(2)
    assert connections_compression.files(own, images) is None or (trained_run / "codec").is_dir()
    picture = tmp_path / "one.png"
    picture.write_bytes(png(images.images[0]))
    made = command("compress", trained_run, picture, "--out", tmp_path / "one.anc", "--device", "cpu")
    assert made.exit_code == 0, made.output
    found = connections_compression.files(own, images)
    assert found is not None
    assert found.whole[0] == (tmp_path / "one.anc").stat().st_size
