"""Sections 2 and 3 of the report: their numbers against closed forms, identities, and what the commands give."""

import json
import math
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm

from ancestral.apps.report import (
    LANGUAGES,
    forward,
    forward_chain,
    forward_distance,
    forward_posterior,
    html,
    reverse,
    reverse_film,
    reverse_identities,
    reverse_predictions,
)
from ancestral.apps.report.exact_subject import exact
from ancestral.apps.report.part import Number
from ancestral.apps.report.subject import of_run
from ancestral.data.pictures import read_png
from ancestral.data.pixels import to_bytes
from ancestral.diffusion.denoisers.analytic import gaussian
from ancestral.diffusion.denoisers.denoiser import predict
from ancestral.diffusion.objectives.statistics import mean_and_error
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.samplers import transitions
from ancestral.diffusion.samplers.solvers import FLOW_SOLVER, SOLVERS
from ancestral.runs import build, config


@pytest.fixture(scope="module")
def toy():
    return exact(num_images=16, seed=0)


@pytest.fixture(scope="module")
def explained(toy):
    return forward.part(toy), reverse.part(toy)


@pytest.fixture(scope="module")
def run(trained_run):
    return of_run(trained_run, None, num_images=8, seed=0, device="cpu", average_width=None)


def of_schedule(name, T=50):
    """The drawn shapes in another forward process."""
    subject = exact(num_images=8, seed=0)
    made = config.resolve("shapes", "tiny", {"diffusion.schedule": name, "diffusion.T": T})
    vars(subject)["config"] = made
    return subject


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_single_steps_compose_to_the_closed_form(name):
    assert max(forward_chain.composed(schedules.SCHEDULES[name](200))) < 1e-14


def test_the_simulation_agrees_and_would_notice_a_wrong_step(toy):
    looks = forward_chain.simulate(toy)
    assert max(look.far for look in looks) < forward_chain.FAR
    assert [look.t for look in looks] == [200, 400, 600, 800, 1000]

    class Other(Gaussian):
        """Closed form of one process, steps of another."""

        def transition(self, x_s, s, t):
            return schedules.linear(1000).transition(x_s, s, t)

    subject = exact(num_images=16, seed=0)
    vars(subject)["schedule"] = Other(toy.schedule.log_alpha_bar)
    assert max(look.far for look in forward_chain.simulate(subject)) > 5 * forward_chain.FAR


def test_distances_to_noise_are_those_of_known_laws():
    x = torch.from_numpy(norm.ppf((np.arange(10_000) + 0.5) / 10_000))
    shifted = forward_distance.kolmogorov({0: x, 1: x + 1})
    assert shifted[0] == pytest.approx(0.5 / 10_000)
    assert shifted[1] == pytest.approx(norm.cdf(0.5) - norm.cdf(-0.5), abs=1e-4)
    generator = torch.Generator().manual_seed(0)
    x0 = 0.3 * torch.randn(200_000, generator=generator).double()
    x_t = 0.6 * x0 + 0.8 * torch.randn(200_000, generator=generator).double()
    assert forward_distance.correlation(x_t, x0) == pytest.approx(
        forward_distance.of_signal(0.09, 0.6), abs=4 / 200_000**0.5
    )


def test_the_forward_numbers_are_the_schedules(toy, explained):
    made = explained[0]
    q, number = toy.schedule, {name: one.value for name, one in made.numbers.items()}
    half = int(number["half"])
    assert q.snr(half) <= 1 < q.snr(half - 1)
    x0 = toy.x0(toy.some(forward_distance.VALUES))
    assert number["kl_T"] == pytest.approx(mean_and_error(q.prior(x0, q.T))[0] / x0[0].numel())
    # Eq. 7 by the paper's symbols.
    t, beta, bar = int(number["middle"]), q.beta, q.alpha_bar(torch.arange(q.T + 1))
    assert number["of_x0"] == pytest.approx(float(bar[t - 1].sqrt() * beta[t - 1] / (1 - bar[t])))
    assert number["of_x_t"] == pytest.approx(float((1 - beta[t - 1]).sqrt() * (1 - bar[t - 1]) / (1 - bar[t])))
    assert number["tilde_middle"] == pytest.approx(float((1 - bar[t - 1]) / (1 - bar[t]) * beta[t - 1]))
    assert number["beta_middle"] == pytest.approx(float(beta[t - 1]))
    assert number["bayes_gap"] < 1e-12


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_the_posterior_is_bayes_rule_under_every_schedule(name):
    found = forward_posterior.bayes(of_schedule(name), [2, 20, 49, 50])
    assert found.gap.abs().max() < 1e-10
    assert found.posterior.isfinite().all()


@pytest.mark.parametrize("name", ["toy", "run"])
def test_five_forms_of_one_error_agree(name, request):
    subject = request.getfixturevalue(name)
    seen = reverse_identities.look(subject)
    found = reverse_identities.forms(subject, seen)
    for form in (found.means, found.mean_of_eps, found.eps, found.x0):
        assert torch.allclose(form, found.kl, rtol=1e-6)
    assert max(found.x0_gap, found.mean_gap) < 1e-9


def test_the_guess_is_the_variance_around_the_mean(toy):
    train, test = toy.x0(toy.images.train), toy.x0(toy.test)
    assert float(reverse_identities.guess_errors(toy).mean()) == pytest.approx(
        float(((test - train.mean(0)) ** 2).mean())
    )


def test_errors_of_gaussian_data_are_the_closed_form(toy):
    """E|x0 - E[x0|x_t]|^2 = var noise^2 / (signal^2 var + noise^2); that of eps is SNR times as much."""
    q, var = toy.schedule, 0.25
    subject = exact(num_images=64, seed=0)
    oracle = gaussian(q, torch.zeros(256).double(), var)

    def conditioned(shown):
        def predictor(x_t, t):
            return predict(oracle(x_t.flatten(1), t).x0.reshape(x_t.shape), x_t, q, t)

        predictor.schedule = q
        return predictor

    images = var**0.5 * torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    vars(subject).update(conditioned=lambda shown: conditioned(shown), x0=lambda shown: images[: len(shown)])
    vars(subject).update(move=build.Ancestral(transitions.fixedsmall))
    found = reverse_predictions.errors(subject, torch.ones_like(subject.elbo.mse))
    t = subject.elbo.t
    expected = (var * q.noise_var(t) / (q.signal(t) ** 2 * var + q.noise_var(t))).mean(0).flip(0)
    assert ((found.value - expected).abs() < 5 * found.error).all()
    eps = reverse_predictions.errors(subject, q.snr(t))
    expected = (q.snr(t) * var * q.noise_var(t) / (q.signal(t) ** 2 * var + q.noise_var(t))).mean(0).flip(0)
    # The bytes' neighbours in a part of t have very different errors of eps: only the widths of parts blur it.
    assert ((eps.value - expected).abs() < 5 * eps.error + 1e-12).all()


def test_the_way_to_get_a_number_again_exists(explained):
    numbers = [one for part in explained for one in part.numbers.values()]
    numbers += [one for part in explained for rows in part.tables.values() for row in rows for one in row]
    sources = [path.read_text() for path in Path(forward.__file__).parent.glob("*.py")]  # also of those not shown here
    written = {name for source in sources for name in re.findall(r'"(ancestral(?:\.\w+){2,})"', source)}
    assert len(written) > 20
    for again in written | {one.again for one in numbers if isinstance(one, Number)}:
        if not again.startswith("ancestral "):
            assert pkgutil.resolve_name(again) is not None


def test_distances_between_images():
    images = torch.tensor([0.0, 0.5, 3.0]).reshape(3, 1, 1, 1)  # the last is shown as 1
    assert reverse_film.rmse(images[:2], images[1:]).tolist() == pytest.approx([63.75, 63.75])
    assert reverse_film.mean_apart(images)[0] == pytest.approx((63.75 + 127.5 + 63.75) / 3)


def test_the_error_of_a_mean_over_pairs_is_its_spread_over_repetitions():
    """Pairs share images: the spread of the pairs' means alone would say less than half of it."""
    many = torch.rand(500, 30, 1, 1, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    means, errors = np.array([reverse_film.mean_apart(images) for images in many]).T
    assert np.sqrt(np.square(errors).mean()) == pytest.approx(means.std(), rel=0.15)


def test_more_steps_of_the_solver_come_nearer(explained):
    part = explained[1]
    certain = [row[1].value for row in part.tables["few"] if row[0] in ("5", "50")]
    assert certain[1] < certain[0] < part.numbers["unrelated"].value
    # A state nearer to its image leaves less to the noise.
    shared = [row[1].value for row in part.tables["branches"]]
    assert shared[-1] < shared[0]


def test_drawn_images_are_those_of_the_command(any_run, tmp_path, command):
    run = of_run(any_run, None, num_images=8, seed=0, device="cpu", average_width=None)
    count = ("--num-images", reverse_film.SHOWN, "--device", "cpu", "--seed", 0)
    for options, move in (((), SOLVERS[FLOW_SOLVER]), (("--variance", run.variance), run.move)):
        out = tmp_path / str(len(options))
        result = command("sample", any_run, "--steps", 5, "--out", out, *count, *options)
        assert result.exit_code == 0, result.output
        drawn = to_bytes(reverse_film.drawn(run, 5, move))
        assert all((read_png(out / f"{k:06d}.png") == drawn[k]).all() for k in range(reverse_film.SHOWN))


def test_the_error_at_each_t_is_the_one_that_evaluate_writes(any_run, tmp_path, command):
    run = of_run(any_run, None, num_images=8, seed=0, device="cpu", average_width=None)
    result = command("evaluate", any_run, "--num-images", 8, "--out", tmp_path, "--device", "cpu")
    assert result.exit_code == 0, result.output
    rows = [line.split(",") for line in (tmp_path / "bound.csv").read_text().splitlines()[1:]]
    first = reverse_predictions.errors(run, torch.ones_like(run.elbo.mse))
    assert float(rows[0][2]) == pytest.approx(float(first.value[0]))
    assert json.loads((tmp_path / "evaluation.json").read_text())["images"] == 8


@pytest.mark.parametrize(
    ("name", "T", "train_steps"),
    [("cosine-zero-snr", 60, None), ("ve", 60, 4), ("linear", 3, None)],
)
def test_unusual_processes_are_explained_too(name, T, train_steps, monkeypatch):
    options = {"diffusion.schedule": name, "diffusion.T": T, "diffusion.train_steps": train_steps}
    made = config.resolve("shapes", "tiny", options)
    monkeypatch.setattr(config, "resolve", lambda *given: made)
    subject = exact(num_images=4, seed=0)
    monkeypatch.setattr(reverse_film, "FEWER", 20)
    parts = {"forward": forward.part(subject), "reverse": reverse.part(subject)}
    about = {"title": "", "facts": "", "made": "", "numbers": ""}
    monkeypatch.setattr(html._Section, "section", lambda self, name: name)  # the others, which are not made here
    assert ">nan" not in html.render(parts, LANGUAGES[T % 2], about)
    assert not math.isnan(parts["reverse"].numbers["x0_low"].value)


def test_a_number_without_spread_has_no_error():
    assert str(Number(0.0, "", "", 0.0)) == "0"
    assert str(Number(-math.inf, "", "")) == "−∞"
    assert str(Number(1.2345, "", "", 0.012)) == "1.234 ± 0.012"
