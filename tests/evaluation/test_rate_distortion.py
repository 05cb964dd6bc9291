"""Rate and distortion: Shannon's curve for Gaussian data, the paper's Table 4 as input, formats on known images."""

import csv
import itertools
import json
import math
import sys
import types

import numpy as np
import pytest
import torch

from ancestral.data.load import load
from ancestral.data.pixels import to_unit
from ancestral.diffusion.denoisers.analytic import gaussian
from ancestral.diffusion.objectives.elbo import Elbo
from ancestral.diffusion.objectives.elbo_derivation import along_chains
from ancestral.diffusion.objectives.rate_distortion import curve
from ancestral.diffusion.objectives.statistics import image_psnr, mean_and_error, psnr
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.transitions import Ancestral, fixedlarge, optimal
from ancestral.evaluation import image_formats
from ancestral.runs import build, checkpoint
from ancestral.runs.open import open_model

F64 = torch.float64
VARIANCE, COUNT, DIMENSIONS = 0.25, 3000, 8


@pytest.fixture(scope="module", params=[25, 100])
def gaussian_chain(request):
    oracle = gaussian(schedules.cosine(100), torch.zeros(DIMENSIONS, dtype=F64), VARIANCE)
    grid = grids.trailing(oracle.schedule, request.param)
    x0 = oracle.sample(torch.Generator().manual_seed(0), COUNT)
    return (
        oracle,
        grid,
        along_chains(oracle, x0, grid, Ancestral(optimal), Streams(0, "a", range(COUNT)), Normal.log_prob).elbo,
    )


def aggregate_gap(oracle, T):
    """KL of q(x_T) from N(0, I), nats per dimension."""
    end = oracle.schedule.alpha_bar(T) * VARIANCE + oracle.schedule.noise_var(T)
    return float(end - 1 - end.log()) / 2


def test_rate_and_distortion_of_gaussian_data_in_closed_form(gaussian_chain):
    """Distortion is Var[x0 | x_t], rate is I(x0; x_t) = log(1 + variance SNR_t) / 2, on any grid."""
    oracle, grid, measured = gaussian_chain
    found, t = curve(measured), torch.tensor(grid[:-1])
    assert torch.equal(found.t, t)
    snr = oracle.schedule.snr(t)
    mmse = VARIANCE / (1 + VARIANCE * snr)
    assert ((found.rmse - 127.5 * mmse.sqrt()).abs() < 4.5 * found.rmse_error).all()
    rate = (0.5 * torch.log1p(VARIANCE * snr) + aggregate_gap(oracle, grid[0])) / math.log(2)
    assert ((found.rate - rate).abs() < 4.5 * found.rate_error + 1e-9).all()
    assert float(found.rate_error.max()) < 0.02


def test_the_curve_of_gaussian_data_is_shannons(gaussian_chain):
    """R(D) = log2(variance / D) / 2 bits for a Gaussian: progressive decoding loses nothing on the way."""
    oracle, grid, measured = gaussian_chain
    found = curve(measured)
    shannon = 0.5 * (VARIANCE * 127.5**2 / found.rmse.square()).log2()
    gap = aggregate_gap(oracle, grid[0]) / math.log(2)
    assert torch.allclose(found.rate - gap, shannon, atol=0.05)
    assert float(shannon[-1]) > 1


def test_all_terms_together_are_the_bound(gaussian_chain):
    oracle, grid, measured = gaussian_chain
    mean, error = mean_and_error(measured.nats / DIMENSIONS)
    entropy = 0.5 * math.log(2 * math.pi * math.e * VARIANCE)
    assert abs(mean - entropy - aggregate_gap(oracle, grid[0])) < 4 * error
    assert curve(measured).lossless == pytest.approx(mean / math.log(2))


# Table 4 of the paper, CIFAR-10: at each tenth of the steps the rate in bits/dim and the RMSE; L_0 is 1.97.
RATE = [0.0, 0.00013, 0.00081, 0.00282, 0.00716, 0.01507, 0.02866, 0.05415, 0.11994, 1.77581]
RMSE = [67.601, 60.972, 54.188, 46.128, 38.032, 30.809, 24.437, 18.475, 12.023, 0.951]


def table_4():
    nats = torch.tensor(RATE, dtype=F64) * math.log(2) * 3072
    terms = torch.cat([nats.diff(), torch.tensor([1.97 * math.log(2) * 3072], dtype=F64)])[None]
    t = torch.arange(1000, 0, -100)[None]
    mse = (torch.tensor(RMSE, dtype=F64)[None] / 127.5).square()
    return Elbo(nats[:1], t, t == 100, terms, mse, torch.ones_like(terms), 3072)


def test_a_single_image_has_no_standard_error():
    found = curve(table_4())
    assert found.rate_error.isnan().all()
    assert found.rmse_error.isnan().all()


def test_the_papers_table_comes_out_as_it_went_in():
    found = curve(table_4())
    assert found.rate.tolist() == pytest.approx(RATE)
    assert found.rmse.tolist() == pytest.approx(RMSE)
    assert found.lossless == pytest.approx(1.77581 + 1.97)
    assert found.share_in_last_tenth == pytest.approx((1.77581 - 0.11994) / 1.77581)
    assert found.rmse_at((0.11994 + 1.77581) / 2) == pytest.approx((12.023 + 0.951) / 2)
    assert math.isnan(found.rmse_at(2.0))
    assert float(found.psnr[-1]) == pytest.approx(20 * math.log10(255 / 0.951))


@pytest.mark.parametrize("off", [1, 5, 255])
def test_psnr_of_a_constant_error(off):
    black = np.zeros((2, 3, 3, 1), np.uint8)
    assert image_psnr(black, black + np.uint8(off)) == pytest.approx(20 * math.log10(255 / off))
    assert image_psnr(black, black) == math.inf


def test_psnr_of_images_on_another_scale():
    assert psnr(torch.full((2,), 0.2**2, dtype=F64), peak=2).tolist() == pytest.approx([20.0, 20.0])
    assert psnr(np.zeros(2), peak=2).tolist() == [math.inf, math.inf]


def test_psnr_is_of_the_mean_squared_error():
    one, other = np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 2], np.uint8).reshape(2, 1, 1, 1)
    assert image_psnr(one, other) == pytest.approx(10 * math.log10(255**2 / 2))


def waves(channels):
    """Smooth pictures, none alike."""
    across = np.linspace(0, 3, 16)
    grey = [127 + 100 * np.sin(k + across[:, None] * (1 + k / 3) + across) for k in range(3)]
    return np.repeat(np.stack(grey)[..., None], channels, 3).round().astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_more_bits_show_more_in_every_format(channels):
    images = waves(channels)
    here, absent = image_formats.lossy_formats(channels)
    assert {*here, *absent} == {"jpeg", "webp", "avif", "jxl"}
    assert ("jpeg" in here) == (channels != 4)
    for name in here:
        points = image_formats.lossy_points(images, name)
        assert len(points) > 4, name
        assert all(a.bits_per_dim <= b.bits_per_dim and a.psnr < b.psnr for a, b in itertools.pairwise(points))
        assert all(0 <= point.payload_bits_per_dim < point.bits_per_dim for point in points)
        assert points[-1].psnr > 35, name


def test_a_missing_jpeg_xl_is_left_out_and_a_present_one_is_asked(monkeypatch):
    monkeypatch.setattr(image_formats, "find_spec", lambda name: None)
    assert "jxl" in image_formats.lossy_formats(3)[1]
    monkeypatch.setattr(image_formats, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "pillow_jxl", types.ModuleType("pillow_jxl"))
    assert "jxl" in image_formats.lossy_formats(3)[0]


def test_the_shortest_file_is_no_longer_than_either():
    images = waves(1)
    means = image_formats.lossless_bits_per_dim(images)
    shortest = image_formats.shortest_bits_per_dim(images)
    assert shortest.shape == (3,)
    assert 0 < shortest.mean() <= min(value for name, value in means.items() if "without" in name) + 1e-12


def test_the_command_writes_what_it_shows(any_run, tmp_path, command):
    arguments = ("--num-images", 5, "--steps", 20, "--batch-size", 3, "--device", "cpu")
    result = command("rd", any_run, *arguments, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    with open(tmp_path / "rate_distortion.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    rates = [float(row["rate_bits_per_dim"]) for row in rows]
    assert len(rows) == 20
    assert rates == sorted(rates)
    report = json.loads((tmp_path / "rate_distortion.json").read_text())
    assert report["rate_bits_per_dim"] == rates[-1] < report["lossless_bits_per_dim"]
    assert "in the last tenth" in result.output
    assert (tmp_path / "rate_distortion.png").stat().st_size > 5000
    assert (tmp_path / "rates.png").stat().st_size > 5000
    assert not (tmp_path / ".rd").exists()
    again = tmp_path / "again"
    assert command("rd", any_run, *arguments[:4], "--device", "cpu", "--out", again).exit_code == 0
    other = json.loads((again / "rate_distortion.json").read_text())
    assert other["rmse"] == pytest.approx(report["rmse"], rel=1e-3)


def test_a_variance_an_average_and_a_seed_reach_the_curve(any_run, tmp_path, command):
    options = ("--variance", "fixedlarge", "--average-width", 0.08, "--seed", 5, "--grid", "trailing", "--steps", 7)
    result = command("rd", any_run, "--num-images", 3, *options, "--device", "cpu", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    saved, model = open_model(any_run, "cpu", 0.08)
    images = load(saved.config.source, saved.config.data).test.spread(3)
    predictor, grid = build.predictor(model, saved.calibration), grids.trailing(model.schedule, 7)
    noise = Streams(5, "rd", range(3))
    x0 = to_unit(images.images[:]).double()
    expected = curve(along_chains(predictor, x0, grid, Ancestral(fixedlarge), noise).elbo)
    with open(tmp_path / "rate_distortion.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["rate_bits_per_dim"]) for row in rows] == pytest.approx(expected.rate.tolist(), rel=1e-6)
    assert [float(row["rmse"]) for row in rows] == pytest.approx(expected.rmse.tolist(), rel=1e-6)


def test_exact_pixels_have_no_infinity_in_json(any_run, tmp_path, command):
    channels, *sides = checkpoint.open_newest(any_run).facts.shape
    np.save(tmp_path / "black.npy", np.zeros((20, *sides, channels), np.uint8))
    arguments = ("--num-images", 2, "--steps", 4, "--device", "cpu", "--out", tmp_path / "rd")
    result = command("rd", any_run, tmp_path / "black.npy", *arguments)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "rd" / "rate_distortion.json").read_text()
    formats = json.loads(text, parse_constant=pytest.fail)["formats"]
    assert any(point["psnr"] is None for points in formats.values() for point in points)
