"""Anomaly scores: AUROC against brute force, exact denoisers whose anomalies are known, and the command."""

import csv
import math

import numpy as np
import pytest
import torch

from ancestral.data import pictures
from ancestral.data.load import load
from ancestral.diffusion.denoisers.analytic import gaussian
from ancestral.diffusion.objectives.anomaly import SCORES, Trace, Traced, auroc, p_values, restoration_error, trace
from ancestral.diffusion.objectives.elbo import elbo, error_per_image, repeated
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.transitions import Ancestral, optimal
from ancestral.evaluation import anomaly_scores
from ancestral.evaluation.measurement import Measurement
from ancestral.runs import checkpoint
from ancestral.runs.datasets import images_for
from ancestral.runs.open import open_model
from ancestral.runtime.distributed import Processes

F64 = torch.float64


def scores(count, seed, shift=0.0, levels=7):
    """Whole numbers, so that many are equal."""
    draw = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return ((draw + shift) * levels / 4).round()


@pytest.mark.parametrize("shift", [0.0, 0.7, -2.0])
def test_auroc_and_its_error_are_those_of_all_pairs(shift):
    known, foreign = scores(31, 0), scores(23, 1, shift)
    wins = (foreign[:, None] > known).double() + 0.5 * (foreign[:, None] == known)
    assert (foreign[:, None] == known).any()
    found = auroc(known, foreign)
    assert found.value == pytest.approx(float(wins.mean()), abs=1e-15)
    delong = wins.mean(1).var() / 23 + wins.mean(0).var() / 31
    assert found.error == pytest.approx(float(delong.sqrt()), abs=1e-15)


def test_auroc_of_normal_scores_is_known_and_its_error_is_honest():
    """P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2); over many sets the spread is what DeLong's error says."""
    truth = 0.5 * (1 + math.erf(0.5))
    draw = torch.randn(400, 2, 60, generator=torch.Generator().manual_seed(0), dtype=F64)
    found = [auroc(known, foreign + 1) for known, foreign in draw]
    values = torch.tensor([one.value for one in found])
    assert float(values.mean()) == pytest.approx(truth, abs=4 * float(values.std()) / 20)
    assert float(values.std()) == pytest.approx(sum(one.error for one in found) / 400, rel=0.15)


def test_auroc_needs_two_on_each_side():
    with pytest.raises(ValueError, match="at least 2"):
        auroc(torch.ones(1), torch.ones(5))


def test_p_values_by_counting():
    others = torch.tensor([0.0, 1.0, 1.0, 3.0])
    assert p_values(torch.tensor([-1.0, 1.0, 2.0, 4.0]), others).tolist() == [1.0, 0.8, 0.4, 0.2]


def test_p_values_of_the_same_kind_are_rarely_small():
    draw = torch.randn(300, 40, generator=torch.Generator().manual_seed(0), dtype=F64)
    p = torch.stack([p_values(one[:1], one[1:]) for one in draw]).flatten()
    for level in (0.1, 0.5):
        assert float((p <= level).double().mean()) == pytest.approx(level, abs=4 * (level * (1 - level) / 300) ** 0.5)


DIMENSIONS = 48
ORACLE = gaussian(schedules.cosine(100), torch.zeros(DIMENSIONS, dtype=F64), 0.01)
GRID = grids.quadratic(ORACLE.schedule, 12)


def traced(scale, seed, count=300):
    """What the exact denoiser of N(0, 0.1^2) makes of N(0, scale^2)."""
    noise = Streams(seed, "trace", range(count))
    x0 = scale * torch.randn(count, DIMENSIONS, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return Traced(trace(ORACLE, x0, GRID, Ancestral(optimal), noise), torch.zeros(count, dtype=F64))


def test_likelihood_prefers_what_is_too_simple_and_two_sided_scores_do_not():
    """Nalisnick et al. 2019a, section 5: less spread than the model's own data is more likely under it."""
    norm, known, simple, wild = traced(0.1, 0), traced(0.1, 1), traced(0.05, 2), traced(0.2, 3)
    found = {
        name: [auroc(score(known, norm), score(other, norm)).value for other in (simple, wild)]
        for name, score in SCORES.items()
    }
    assert found["bits"][0] < 0.05
    assert found["bits"][1] > 0.95
    for name in ("typicality", "profile"):
        assert min(found[name]) > 0.9, name
    for name in set(SCORES) - {"restoration"}:  # which an exact denoiser ends anywhere in the data
        assert found[name][1] > 0.9, name
    for name in SCORES:
        assert abs(auroc(SCORES[name](norm, norm), SCORES[name](known, norm)).value - 0.5) < 0.15, name


def test_complexity_is_a_difference_of_code_lengths():
    one = traced(0.1, 0, 4)
    dearer = Traced(one.trace, torch.full((4,), 2.0, dtype=F64))
    assert torch.equal(SCORES["complexity"](dearer, one), one.trace.bits - 2)


def test_standardised_errors_by_hand():
    """Of known images with mean m and standard deviation s at each time: (error - m) / s, averaged over the times."""
    known = torch.tensor([[0.0, 1.0, 5.0], [2.0, 5.0, 5.5], [4.0, 3.0, 4.5]], dtype=F64)  # m 2, 3, 5; s 2, 2, 0.5
    errors = torch.tensor([[4.0, 3.0, 6.0], [2.0, -3.0, 5.0]], dtype=F64)  # (1, 0, 2), (0, -3, 0)
    noisy = torch.tensor([[True, True, False]]).expand(2, 3)

    def of(values):
        zeros = torch.zeros(len(values), dtype=F64)
        return Traced(Trace(zeros, values, noisy[:1].expand(len(values), -1), values[:, :2]), zeros)

    found = {name: SCORES[name](of(errors), of(known)).tolist() for name in ("reconstruction", "high-noise")}
    assert found["reconstruction"] == pytest.approx([1.0, -1.0])
    assert found["high-noise"] == pytest.approx([0.5, -1.5])
    assert SCORES["restoration"](of(errors), of(known)).tolist() == pytest.approx([0.5, -1.5])
    z = torch.tensor([[1.0, 0.0, 2.0], [0.0, -3.0, 0.0]], dtype=F64)
    correlations = 0.9 * torch.corrcoef(known.mT) + 0.1 * torch.eye(3, dtype=F64)
    distance = torch.einsum("bi,ij,bj->b", z, torch.linalg.inv(correlations), z)
    assert torch.allclose(SCORES["profile"](of(errors), of(known)), distance / 3)


def test_p_values_are_of_images_that_took_no_part_in_the_score():
    """Of images of the same kind they are uniform: compared with those that it was made of, half would be flagged."""
    reference = traced(0.1, 0, 40)
    found = anomaly_scores.score(traced(0.1, 1, 600), reference)
    assert found.keys() == SCORES.keys()
    for name, (values, p) in found.items():
        of = [Traced(Trace(*(part[k::2] for part in reference.trace)), reference.shortest[k::2]) for k in (0, 1)]
        assert torch.equal(values, SCORES[name](traced(0.1, 1, 600), of[0]))
        others = SCORES[name](of[1], of[0])
        assert torch.equal(p, (1 + (others >= values[:, None]).double().sum(1)) / 21)
        assert float(p.mean()) == pytest.approx(0.5, abs=0.3), name


def test_restoration_by_an_exact_denoiser_of_one_point_is_its_distance():
    """Whatever is noised, the walk ends at the only image that the model knows."""
    point = gaussian(ORACLE.schedule, torch.full((3,), 0.5, dtype=F64), 0.0)
    x0 = torch.tensor([[0.5, 0.5, 0.5], [-0.5, 0.0, 0.5]], dtype=F64)
    found = restoration_error(point, x0, GRID[4:], Streams(0, "a", range(2)))
    assert torch.allclose(found, torch.tensor([0.0, (1 + 0.25) / 3], dtype=F64), atol=1e-12)


def test_a_trace_looks_at_every_image_at_the_same_times():
    found = traced(0.1, 0, 5).trace
    assert torch.equal(found.noisy, found.noisy[:1].expand(5, -1))
    assert found.noisy.sum(1).tolist() == [sum(float(ORACLE.schedule.snr(t)) < 1 for t in GRID[:-1])] * 5
    alone = trace(ORACLE, torch.zeros(1, DIMENSIONS, dtype=F64), GRID, Ancestral(optimal), Streams(0, "b", [7]))
    assert isinstance(alone, Trace)
    assert alone.errors.isfinite().all()


def test_repeated_measurements_agree_with_their_mean_and_their_error_is_honest():
    x0 = 0.1 * torch.randn(400, DIMENSIONS, generator=torch.Generator().manual_seed(0), dtype=F64)
    noise, grid = Streams(0, "repeats", range(400)), grids.full(ORACLE.schedule)
    draws = [elbo(ORACLE, x0, grid, Ancestral(optimal), noise, Normal.log_prob, terms=8) for _ in range(4)]
    joined = repeated(draws)
    assert torch.allclose(joined.bits_per_dim, torch.stack([one.bits_per_dim for one in draws]).mean(0), atol=1e-9)
    whole = [elbo(ORACLE, x0, grid, Ancestral(optimal), noise, Normal.log_prob) for _ in range(4)]
    truth = repeated(whole)
    miss = (joined.bits_per_dim - truth.bits_per_dim).square()
    claimed = error_per_image(joined, 4).square() + error_per_image(truth, 4).square()
    assert float(miss.mean()) == pytest.approx(float(claimed.mean()), rel=0.2)


def test_every_image_has_its_line(any_run, tmp_path, command):
    out = tmp_path / "scored"
    arguments = ("--per-image", "--num-images", 9, "--terms", 3, "--device", "cpu", "--out", out)
    result = command("evaluate", any_run, *arguments)
    assert result.exit_code == 0, result.output
    with open(out / "per_image.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len({line["image"] for line in lines}) == 9
    for line in lines:
        parts = [float(line[name]) for name in ("L_T", "L_1:T-1", "L_0")]
        assert sum(parts) == pytest.approx(float(line["bits_per_dim"]))
        assert float(line["standard_error"]) > 0
        assert all(0 < float(line[f"{name}_p"]) <= 1 for name in SCORES)
    ordered = sorted(lines, key=lambda line: -float(line[anomaly_scores.BY]))
    saved = checkpoint.open_newest(any_run)
    test = images_for(saved, None, "")[1].test
    images = np.stack([test.images[[test.names.index(line["image"])]][0] for line in ordered])
    labels = pictures.Labels(
        f"most surprising by {anomaly_scores.BY}", images=[f"{float(line[anomaly_scores.BY]):.1f}" for line in ordered]
    )
    assert (out / "surprising.png").read_bytes() == pictures.sheet(images, anomaly_scores.COLUMNS, labels)
    assert not (any_run / "per_image.csv").exists()
    refused = command("evaluate", any_run, "--reference", "digits", "--device", "cpu")
    assert refused.exit_code == 2
    assert "--per-image" in refused.output


def test_the_reference_that_is_named_is_compared_with(trained_run, tmp_path, command, monkeypatch):
    """Black images as what is usual: digits are all flagged among them, and none among digits."""
    monkeypatch.setattr(anomaly_scores, "FLAGGED", 0.2)
    monkeypatch.setattr(anomaly_scores, "REFERENCE", 40)
    monkeypatch.setattr(anomaly_scores, "MAY_FLAG", 8)
    random = np.random.default_rng(0)
    np.save(tmp_path / "dark.npy", random.integers(0, 3, (60, 8, 8, 1), dtype=np.uint8))
    arguments = ("--per-image", "--num-images", 9, "--terms", 3, "--device", "cpu", "--out", tmp_path)
    flags = {}
    for reference in (None, "digits", tmp_path / "dark.npy"):
        more = () if reference is None else ("--reference", reference)
        result = command("evaluate", trained_run, *arguments, *more)
        assert result.exit_code == 0, result.output
        with open(tmp_path / "per_image.csv", newline="") as file:
            lines = list(csv.DictReader(file))
        flags[reference] = [int(line["flagged"]) for line in lines]
        assert flags[reference] == [float(line[f"{anomaly_scores.BY}_p"]) <= 0.2 for line in lines]
        assert f"{sum(flags[reference])} of 9 flagged" in " ".join(result.output.split())
    assert flags[None] == flags["digits"]
    assert sum(flags["digits"]) < 9 == sum(flags[tmp_path / "dark.npy"])


def test_traces_of_another_grid_are_not_taken(any_run, tmp_path, monkeypatch):
    """As after a change of the grid in a later version."""
    saved, model = open_model(any_run, "cpu", None)
    images = load(saved.config.source, saved.config.data).test.spread(3)
    measurement = Measurement(saved, model, None, images, 3, 0)
    for grid in ([50, 20, 0], [50, 30, 10, 0]):
        monkeypatch.setattr(anomaly_scores, "shared_grid", lambda schedule, grid=grid: grid)
        found = anomaly_scores.traced(measurement, tmp_path, Processes(), lambda count: None)
        assert found.errors.shape == (3, len(grid) - 1)


def test_too_few_images_to_compare_with_are_said(any_run, tmp_path, command, monkeypatch):
    """With n of them the least p-value is 1 / (n // 2 + 1); of one or two there is no standard deviation."""
    arguments = ("--per-image", "--num-images", 2, "--terms", 3, "--device", "cpu", "--out", tmp_path)
    assert 1 / (anomaly_scores.MAY_FLAG // 2 + 1) <= anomaly_scores.FLAGGED < 1 / (anomaly_scores.MAY_FLAG // 2)
    monkeypatch.setattr(anomaly_scores, "REFERENCE", 6)
    result = command("evaluate", any_run, *arguments)
    assert result.exit_code == 0, result.output
    assert "none can be flagged: that takes 198 training images" in " ".join(result.output.split())
    monkeypatch.setattr(anomaly_scores, "REFERENCE", 3)
    result = command("evaluate", any_run, *arguments)
    assert result.exit_code == 2
    assert "compares with 4 training images at least, and here are 3" in result.output
