"""Sections 4 to 6 of the report: the bound, its spread, one step. Their numbers against other ways to the same ones."""

import contextlib
import io
import json
import math
import unicodedata
from dataclasses import replace

import pytest
import torch
from scipy.stats import norm

from ancestral.apps.report import LANGUAGES, elbo, main, one_step, variance_losses
from ancestral.apps.report import html as page
from ancestral.apps.report import variance as spread
from ancestral.apps.report.exact_subject import SPREAD, Shapes, exact
from ancestral.apps.report.subject import of_run
from ancestral.data.pixels import to_unit
from ancestral.diffusion.objectives.elbo import elbo as elbo_of
from ancestral.diffusion.processes.philox import PhiloxStreams
from conftest import run_command

SECTIONS = {"bound": elbo, "spread": spread, "onestep": one_step}
RUN_IMAGES = 16


@pytest.fixture(scope="module")
def subjects(trained_run, colour_run):
    runs = {"run": trained_run, "colour": colour_run}
    own = {name: of_run(folder, None, RUN_IMAGES, 0, "cpu", None) for name, folder in runs.items()}
    return {"toy": exact(num_images=16, seed=0), **own}


@pytest.fixture(scope="module")
def parts(subjects):
    return {
        name: {title: section.part(subject) for title, section in SECTIONS.items()}
        for name, subject in subjects.items()
    }


@pytest.mark.parametrize("subject", ["run", "colour"])
def test_the_report_says_what_evaluate_prints(subject, subjects, parts, tmp_path):
    folder, own = subjects[subject].run, parts[subject]
    result = run_command("evaluate", folder, "--num-images", RUN_IMAGES, "--out", tmp_path, "--device", "cpu")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "evaluation.json").read_text())["bits_per_dim"]
    numbers = own["bound"].numbers
    for name, key in {"bits": "bound, bits/dim", "L_T": "L_T", "L_mid": "L_1:T-1", "L_0": "L_0"}.items():
        assert numbers[name].value == found[key]["mean"]
        assert numbers[name].error == found[key]["standard_error"]
    shares = {row[0]: row[2] for row in own["bound"].tables["terms"]}
    for name, key in {"total": "bound, bits/dim", "L_T": "L_T", "L_1:T-1": "L_1:T-1", "L_0": "L_0"}.items():
        assert shares[f"term {name}"].value == pytest.approx(100 * found[key]["largest_share"])
        assert 100 / RUN_IMAGES <= shares[f"term {name}"].value < 100
    for name, number in own["bound"].tables["rivals"][1:]:
        assert number.value == found[name]["mean"]
    assert f"evaluate {folder} --num-images {RUN_IMAGES}" in numbers["bits"].again


@pytest.mark.parametrize("subject", ["run", "colour"])
def test_the_bound_is_measured_with_the_noise_of_the_runs_own_streams(subject, subjects):
    own = subjects[subject]
    config = replace(own.config, train=replace(own.config.train, stream="philox"))
    noise = PhiloxStreams(own.seed, "evaluate", range(RUN_IMAGES))
    x0, predictor = own.x0(own.test), own.conditioned(own.test)
    expected = elbo_of(predictor, x0, own.times, own.move, noise, terms=own.terms).terms
    assert torch.equal(replace(own, config=config).elbo.terms, expected)
    assert not torch.equal(own.elbo.terms, expected)


@pytest.mark.parametrize("subject", ["toy", "run", "colour"])
def test_the_lines_are_one_number_and_the_last_agrees_within_its_error(subject, parts):
    numbers = parts[subject]["bound"].numbers
    for name in ("steps", "split", "markov", "bayes", "telescoped"):
        assert numbers[name].value == pytest.approx(numbers["joint"].value, rel=1e-9)
    assert numbers["rounding"].value < 1e-6
    assert abs(numbers["apart"].value) < 4.5 * numbers["apart"].error


def test_the_truth_is_the_density_times_the_volume_of_a_bin(subjects):
    toy = subjects["toy"]
    shapes = Shapes(toy.schedule)
    x0 = to_unit(toy.test.images).double()
    x0 = x0[(x0.abs() < 1).flatten(1).all(1)]  # the bins at the ends are open
    assert len(x0) > 10
    density = shapes.mixture.log_prob(x0.flatten(1)) + x0[0].numel() * math.log(2 / 255)
    # The density curves within a bin: about (bin / SPREAD)^2 / 24 nats a pixel, of either sign.
    curved = x0[0].numel() * (2 / 255 / SPREAD) ** 2 / 24
    torch.testing.assert_close(shapes.log_prob(x0), density, rtol=0, atol=curved)


def test_the_bound_of_the_exact_model_is_above_the_truth_and_near_it(parts):
    gap = parts["toy"]["bound"].numbers["gap_chains"]
    assert 0 < gap.value < 0.03  # bits/dim: the variance at t = 1, steps that are not quite Gaussian


@pytest.mark.parametrize("subject", ["run", "colour"])
def test_the_terms_and_the_tenths_are_the_whole(subject, parts):
    bound = parts[subject]["bound"]
    numbers, tenths = bound.numbers, bound.tables["tenths"]
    whole = numbers["L_T"].value + numbers["L_mid"].value + numbers["L_0"].value
    assert whole == pytest.approx(numbers["bits"].value)
    assert sum(row[1].value for row in tenths) == pytest.approx(whole - numbers["L_T"].value)
    assert tenths[-1][4].value == pytest.approx(100)


def test_the_pixels_bin_is_the_normal_integrated_over_it(parts):
    numbers = {name: number.value for name, number in parts["toy"]["bound"].numbers.items()}
    belief = norm(numbers["pixel_mean"], numbers["pixel_std"])
    byte = numbers["pixel_byte"]
    assert 0 < byte < 255
    chance = (1 - 2**-16) * (belief.cdf(byte + 0.5) - belief.cdf(byte - 0.5)) + 2**-24  # no byte is rarer to a coder
    assert numbers["pixel_chance"] == pytest.approx(chance, rel=1e-6)
    assert 2 ** -numbers["pixel_bits"] == pytest.approx(numbers["pixel_chance"])
    assert numbers["pixel_sum"] == pytest.approx(1)


@pytest.mark.parametrize("subject", ["toy", "run", "colour"])
def test_the_law_of_total_variance_predicts_what_was_measured(subject, parts):
    numbers = parts[subject]["spread"].numbers
    # Pairs of chains at a thousand times: a few per cent; the largest terms are at few times.
    assert numbers["single_regrouped"].value == pytest.approx(numbers["single_law"].value, rel=0.35)
    assert numbers["single_kl"].value < numbers["single_law"].value
    assert numbers["need_kl_every"].value < numbers["need_regrouped_every"].value


def test_the_weights_are_the_papers(subjects, parts):
    numbers, q = parts["toy"]["spread"].numbers, subjects["toy"].schedule
    for name, t in (("w_early", 2), ("w_late", 1000)):
        assert numbers[f"{name}_t"].value == t
        beta, alpha_bar, before = float(q.beta[t - 1]), float(q.alpha_bar(t)), float(q.alpha_bar(t - 1))
        variance = (1 - before) / (1 - alpha_bar) * beta
        paper = beta**2 / (2 * variance * (1 - beta) * (1 - alpha_bar))
        assert numbers[name].value == pytest.approx(paper, rel=1e-6)
    snr_1, snr_2 = (float(q.alpha_bar(t) / (1 - q.alpha_bar(t))) for t in (1, 2))
    assert numbers["w_x0_early"].value == pytest.approx((snr_1 - snr_2) / 2, rel=1e-6)


def test_l_simple_of_the_exact_model_is_what_the_noise_hides(subjects):
    """E||eps - eps_hat||^2 = SNR_t E[Var[x0 | x_t]]."""
    toy = subjects["toy"]
    found = variance_losses.measured(toy)
    x0 = toy.x0(toy.test)
    hidden = []
    for draw, t in enumerate(found.times.tolist()):
        generator = torch.Generator().manual_seed(draw)
        one = x0[draw % len(x0)][None]
        x_t = toy.schedule.marginal(one, t).sample(torch.randn(one.shape, generator=generator).double())
        hidden.append(toy.schedule.snr(t) * toy.conditioned(toy.test)(x_t, t).x0_var.mean())
    difference = found.simple - torch.stack(hidden)
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / len(difference) ** 0.5


def test_shares_are_whole_and_draws_are_the_samplers(subjects):
    for subject in subjects.values():
        found = variance_losses.measured(subject)
        for share in (found.elbo_share, found.simple_share, found.drawn_share, found.own_share):
            assert float(share.sum()) == pytest.approx(1)
        assert found.drawn_share.tolist() == pytest.approx([0.1] * 10, abs=1e-4)  # stratified is uniform over t


def shown(number):
    """A number as a reader types it into a calculator."""
    text = str(number).replace("\N{MINUS SIGN}", "-").replace(",", "").rstrip(" %")
    mantissa, _, exponent = text.partition("×10")
    return float(f"{mantissa}e{unicodedata.normalize('NFKC', exponent).replace(chr(0x2212), '-') or 0}")


@pytest.mark.parametrize("subject", ["toy", "run", "colour"])
def test_the_step_can_be_checked_by_hand(subject, parts):
    part = parts[subject]["onestep"]
    n = {name: shown(number) for name, number in part.numbers.items()}
    close = pytest.approx
    assert n["x0"] == close(n["byte"] / 127.5 - 1, abs=2e-6)
    assert n["signal"] ** 2 == close(n["alpha_bar"], rel=1e-5)
    assert n["noise"] ** 2 == close(1 - n["alpha_bar"], rel=1e-5)
    assert n["x_t"] == close(n["signal"] * n["x0"] + n["noise"] * n["eps"], abs=1e-5)
    if subject == "run":
        assert n["x0_raw"] == close(n["of_output"] * n["output"] + n["of_state"] * n["x_t"], abs=1e-4)
    assert n["eps_hat"] == close((n["x_t"] - n["signal"] * n["x0_raw"]) / n["noise"], abs=1e-4)
    assert n["squared"] == close((n["eps"] - n["eps_hat"]) ** 2, abs=1e-4)
    assert n["x0_raw"] == close((n["x_t"] - n["noise"] * n["eps_hat"]) / n["signal"], abs=1e-4)
    assert n["x0_hat"] == close(max(-1, min(1, n["x0_raw"])), abs=1e-6)
    assert n["mean"] == close(n["of_x_t"] * n["x_t"] + n["of_x0"] * n["x0_hat"], abs=1e-5)
    assert n["paper_mean"] == close(n["a"] * (n["x_t"] - n["b"] * n["eps_hat"]), abs=1e-5)
    assert (n["paper_mean"] == close(n["mean"], abs=1e-5)) != part.facts["clipped_here"]
    assert n["x_s"] == close(n["mean"] + n["sigma"] * n["z"], abs=1e-5)
    assert n["sigma_small"] * 0.999999 <= n["sigma"]


@pytest.mark.parametrize("subject", ["toy", "run", "colour"])
def test_the_code_takes_the_same_step(subject, parts):
    part = parts[subject]["onestep"]
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        exec(compile(part.facts["code"], "the report's code", "exec"), {})
    names = ("x0", "eps", "x_t", "x0_hat", "mean", "sigma", "z", "x_s")
    assert [float(line) for line in written.getvalue().split()] == [part.numbers[name].value for name in names]


def test_every_kind_of_run_has_these_sections(tmp_path):
    """Few times, no signal at T, a learned variance, classes, times drawn by their loss; in both languages."""
    folder = tmp_path / "odd"
    settings = {
        "model.width": 8, "model.labels": True, "train.batch_size": 8, "diffusion.train_steps": 20,
        "diffusion.schedule": "cosine-zero-snr", "diffusion.variance": "learned", "diffusion.objective": "hybrid",
        "diffusion.times": "loss-importance",
    }  # fmt: skip
    chosen = [
        word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value).strip(chr(34))}")
    ]
    result = run_command(
        "train", "digits", "--preset", "tiny", "--steps", 2, "--out", folder, "--device", "cpu", *chosen
    )
    assert result.exit_code == 0, result.output
    subject = of_run(folder, None, 8, 0, "cpu", None)
    parts = {name: section.part(subject) for name, section in SECTIONS.items()}
    lines = parts["bound"].numbers
    assert lines["telescoped"].value == pytest.approx(lines["joint"].value, rel=1e-9)
    for language in LANGUAGES:
        html = page.render(parts, language, main._about(subject, language, 1.0))
        assert not any(word in html for word in (">nan", ">inf", ">None"))
