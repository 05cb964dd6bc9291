"""Tuned times: the path is the best one, and steps end nearer to a curved flow than on any fixed grid."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch

from ancestral.diffusion.denoisers.analytic import Mixture
from ancestral.diffusion.denoisers.denoiser import Watched
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.grid_search import by_ends, shortest
from ancestral.diffusion.samplers.sample import finish, latents, trajectory
from ancestral.diffusion.samplers.solvers import SOLVERS
from ancestral.runs import build
from ancestral.runs.open import open_model
from ancestral.runs.process_kinds import chain
from ancestral.sampling import command
from conftest import run_command

F64 = torch.float64


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6])
def test_the_path_is_the_best_of_all(steps):
    cost = np.triu(np.random.default_rng(steps).random((8, 8)), 1)
    cost[cost == 0] = np.inf

    def total(path):
        return sum(cost[i, j] for i, j in itertools.pairwise(path))

    every = [(0, *middle, 7) for middle in itertools.combinations(range(1, 7), steps - 1)]
    assert total(shortest(cost, steps)) == pytest.approx(min(map(total, every)), rel=1e-12)


def test_a_path_needs_points():
    for steps in (0, 8):
        with pytest.raises(ValueError, match="steps must be between 1 and 7"):
            shortest(np.ones((8, 8)), steps)


def oracle(T):
    means = torch.tensor([[-1.0, 0.4], [0.6, -0.5], [0.2, 0.9]], dtype=F64)
    return Mixture(schedules.linear(T), means, torch.tensor([0.01, 0.02, 0.01], dtype=F64))


def ends(denoiser, start, times, solver="unipc3"):
    return finish(trajectory(denoiser, start, times, SOLVERS[solver]))


def named(denoiser, steps):
    found = (make(denoiser.schedule, steps) for make in grids.GRIDS.values())
    return [times for times in found if times[0] == denoiser.schedule.T]


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_times_are_nearly_the_best_of_all(steps):
    denoiser, start = oracle(16), latents([2], 0, range(64))
    every, fine = grids.full(denoiser.schedule), grids.trailing(denoiser.schedule, 16)
    truth = ends(denoiser, start, fine)

    def missed(times):
        return float((ends(denoiser, start, times) - truth).square().mean().sqrt())

    found = by_ends(SOLVERS["unipc3"]).best(denoiser, start, every, fine, named(denoiser, steps))
    assert len(found) == steps + 1
    least = min(missed([16, *middle, 0]) for middle in itertools.combinations(range(15, 0, -1), steps - 1))
    assert missed(found) <= 1.1 * least


def test_tuned_times_are_better_than_every_fixed_grid_on_other_images():
    denoiser = oracle(1000)
    every, fine = grids.full(denoiser.schedule), grids.trailing(denoiser.schedule, 100)
    other = latents([2], 1, range(200))
    for solver in ("unipc3", "euler"):
        truth = ends(denoiser, other, every, "euler")

        def error(times, solver=solver, truth=truth):
            return float((ends(denoiser, other, times, solver) - truth).square().mean().sqrt())

        for steps in (4, 6, 8):
            start, begun = latents([2], 0, range(1000)), named(denoiser, steps)
            found = by_ends(SOLVERS[solver]).best(denoiser, start, every, fine, begun)
            assert error(found) < min(map(error, begun)), (solver, steps)


def test_only_times_that_there_are_are_chosen_and_few_are_fewer_than_many():
    denoiser, start = oracle(100), latents([2], 0, range(4))
    every = grids.trailing(denoiser.schedule, 20)  # as of a model that was trained at these
    found = by_ends(SOLVERS["unipc3"]).best(denoiser, start, every, every[:1] + every[2:], [every[:1] + every[-4:]])
    assert set(found) <= set(every)
    assert found == sorted(found, reverse=True)
    with pytest.raises(ValueError, match="must be fewer than the 20"):
        by_ends(SOLVERS["unipc3"]).best(denoiser, start, every, every, [every])


def test_as_many_calls_are_promised_as_are_made_at_most():
    denoiser, start = oracle(1000), latents([2], 0, range(4))
    fine, search = grids.trailing(denoiser.schedule, 60), by_ends(SOLVERS["unipc3"])
    for steps in (1, 2, 5):
        watched = Watched(denoiser, lambda images: None)
        begun = named(denoiser, steps)
        search.best(watched, start, grids.full(denoiser.schedule), fine, begun)
        promised = search.calls(60, steps, len(begun))
        assert 0.8 * promised < watched.calls <= promised


def test_the_command_stores_the_times_and_sampling_takes_them(any_run, tmp_path):
    result = run_command("sample", any_run, "--steps", 5, "--grid", "tuned", "--out", tmp_path, "--device", "cpu")
    assert result.exit_code == 2
    assert "ancestral tune-steps" in result.output
    result = run_command("tune-steps", any_run, "--steps", 5, "--num-images", 4, "--device", "cpu")
    assert result.exit_code == 0, result.output
    kept = json.loads((any_run / "tuned.json").read_text())["5"]
    times = kept["times"]
    assert len(times) == 6
    assert times[0] == 1000
    assert times[-1] == 0
    arguments = ("--num-images", 2, "--steps", 5, "--grid", "tuned", "--out", tmp_path, "--device", "cpu")
    result = run_command("sample", any_run, *arguments)
    assert result.exit_code == 0, result.output
    assert "5 network calls" in result.output
    for other, said in (
        ([1, 2], "which model"),  # as an earlier version wrote them
        ({**kept, "model": "0" * 64}, "another model"),
        ({**kept, "average_width": 0.1}, "another model"),
        ({**kept, "times": [1, 2]}, "damaged"),
    ):
        (any_run / "tuned.json").write_text(json.dumps({"5": other}))
        result = run_command("sample", any_run, *arguments)
        assert result.exit_code == 2
        assert "tuned.json" in result.output
        assert said in result.output
        assert "ancestral tune-steps" in result.output
    (any_run / "tuned.json").unlink()


@pytest.mark.parametrize(("seed", "width"), [(0, None), (3, 0.08)])
def test_a_seed_and_an_average_reach_the_search(any_run, monkeypatch, seed, width):
    begun, asked = [], []
    at_T, watched = command.beginning, Watched
    monkeypatch.setattr(command, "beginning", lambda schedule, noise: begun.append(noise) or at_T(schedule, noise))
    monkeypatch.setattr(command, "Watched", lambda predictor, tell: asked.append(predictor) or watched(predictor, tell))
    more = () if width is None else ("--average-width", width)
    options = ("--steps", 2, "--num-images", 3, "--seed", seed, "--device", "cpu")
    result = run_command("tune-steps", any_run, *options, *more)
    assert result.exit_code == 0, result.output
    kept = json.loads((any_run / "tuned.json").read_text())["2"]
    (any_run / "tuned.json").unlink()
    assert kept["average_width"] == width
    x0 = {}
    for average in (None, 0.08):
        saved, model = open_model(any_run, "cpu", average)
        noise = latents(saved.facts.shape, seed, range(3), build.streams(saved.config, torch.device("cpu"))).double()
        assert torch.equal(begun[0], noise)
        move = chain(saved.config).default_step(2)
        x0[average] = build.predictor(build.drawing(model, saved.config, move), saved.calibration)(noise, 500).x0
    found = asked[0](noise, 500).x0
    assert torch.allclose(found, x0.pop(width), atol=1e-6)
    assert not torch.allclose(found, *x0.values(), atol=1e-6)


def test_times_that_cannot_be_kept_are_not_searched_for(trained_run, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "Watched", lambda *given: pytest.fail("worked before it looked"))
    shutil.copytree(trained_run, tmp_path / "run")
    (tmp_path / "run" / "tuned.json").mkdir()
    result = run_command("tune-steps", tmp_path / "run", "--steps", 5, "--num-images", 4, "--device", "cpu")
    assert (result.exit_code, "tuned.json: cannot be written" in result.output) == (2, True), result.output
