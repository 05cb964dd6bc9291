"""Tuned times: the path is the best one, and near a curved flow's best fixed grid, whichever that is."""

import itertools
import json

import numpy as np
import pytest
import torch

from ancestral.diffusion.denoisers.analytic import Mixture
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.grid_search import GROWTH, jumps, shortest
from ancestral.diffusion.samplers.sample import finish, latents, trajectory
from ancestral.diffusion.samplers.transitions import DDIM
from conftest import run_command

F64 = torch.float64


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6])
def test_the_path_is_the_best_of_all(steps):
    cost = np.triu(np.random.default_rng(steps).random((8, 8)), 1)
    cost[cost == 0] = np.inf

    def total(path):
        missed = 0.0
        for i, j in itertools.pairwise(path):
            missed = GROWTH * missed + cost[i, j]
        return missed

    every = [(0, *middle, 7) for middle in itertools.combinations(range(1, 7), steps - 1)]
    assert total(shortest(cost, steps)) == pytest.approx(min(map(total, every)), rel=1e-12)


def test_a_path_needs_points():
    for steps in (0, 8):
        with pytest.raises(ValueError, match="steps must be between 1 and 7"):
            shortest(np.ones((8, 8)), steps)


def test_a_jump_over_one_time_misses_nothing():
    noise_schedule = schedules.linear(100)
    means = torch.tensor([[-1.0, 0.4], [0.6, -0.5]], dtype=F64)
    oracle = Mixture(noise_schedule, means, torch.tensor([0.01, 0.02], dtype=F64))
    cost = jumps(oracle, latents([2], 0, range(8)), grids.full(noise_schedule))
    assert np.allclose(np.diagonal(cost, 1), 0, atol=1e-12)
    assert np.isinf(cost[np.tril_indices(101)]).all()


def test_tuned_times_are_near_the_best_fixed_grid_and_better_than_the_default():
    noise_schedule = schedules.linear(1000)
    means = torch.tensor([[-1.0, 0.4], [0.6, -0.5], [0.2, 0.9]], dtype=F64)
    oracle = Mixture(noise_schedule, means, torch.tensor([0.01, 0.02, 0.01], dtype=F64))
    fine = grids.karras(noise_schedule, 60)
    cost = jumps(oracle, latents([2], 0, range(64)), fine)
    other = latents([2], 1, range(200))  # images that the tuning has not seen
    truth = finish(trajectory(oracle, other, grids.full(noise_schedule), DDIM()))

    def error(grid):
        return float((finish(trajectory(oracle, other, grid, DDIM())) - truth).square().mean().sqrt())

    for steps in (4, 6, 8):
        tuned = error([fine[place] for place in shortest(cost, steps)])
        fixed = {name: error(make(noise_schedule, steps)) for name, make in grids.GRIDS.items()}
        assert tuned < 1.15 * min(fixed.values()), steps
        assert tuned < 0.8 * fixed["trailing"], steps


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
