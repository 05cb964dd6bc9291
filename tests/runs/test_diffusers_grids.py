"""Grids of diffusers' names are its grids, except where the docs say."""

import numpy as np
import pytest

from ancestral.diffusion.processes.schedules import linear
from ancestral.diffusion.samplers import grids

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")
SCHEDULE = linear()
COUNTS = range(1, 1001)


def theirs(kind, spacing, counts):
    scheduler = getattr(diffusers, f"{kind}Scheduler")(timestep_spacing=spacing)
    for steps in counts:
        scheduler.set_timesteps(steps)
        yield steps, [int(t) + 1 for t in scheduler.timesteps]


def halfway(times):
    """Of these times, which lie between two integers."""
    return np.isclose(np.asarray(times) % 1, 0.5, atol=1e-9)


@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
def test_leading_is_that_of_the_ancestral_schedulers(kind):
    for steps, expected in theirs(kind, "leading", COUNTS):
        assert grids.leading(SCHEDULE, steps)[:-1] == expected


@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
def test_linspace_differs_by_one_t_and_only_halfway_between_two(kind):
    differing = 0
    for steps, expected in theirs(kind, "linspace", COUNTS):
        found = grids.uniform(SCHEDULE, steps)[:-1]
        if steps == 1:
            assert (found, expected) == ([1000], [1])
            continue
        other = np.array(found) != np.array(expected)
        differing += other.any()
        assert np.abs(np.array(found) - np.array(expected)).max() <= 1
        assert halfway(np.linspace(1000, 1, steps))[other].all()
    assert differing == 402


@pytest.mark.parametrize("kind", ["DDPM", "DPMSolverMultistep"])
def test_trailing_differs_halfway_between_two_and_where_theirs_has_a_time_too_many(kind):
    by_one = more = 0
    for steps, expected in theirs(kind, "trailing", COUNTS):
        found = grids.trailing(SCHEDULE, steps)[:-1]
        if len(expected) == steps + 1:
            assert expected[-1] == 0
            more += 1
            continue
        other = np.array(found) != np.array(expected)
        by_one += other.any()
        assert np.abs(np.array(found) - np.array(expected)).max() <= 1
        assert halfway(1000 * np.arange(steps, 0, -1) / steps)[other].all()
    assert (by_one, more) == (49, 62)


@pytest.mark.parametrize("kind", ["DPMSolverMultistep", "UniPCMultistep", "DEISMultistep"])
def test_solvers_of_theirs_take_one_time_more_and_leave_out_the_last(kind):
    for steps, expected in theirs(kind, "leading", range(1, 60)):
        assert expected == grids.leading(SCHEDULE, steps + 1)[:-2]
    for steps, expected in theirs(kind, "linspace", range(1, 60)):
        found = np.array(grids.uniform(SCHEDULE, steps + 1)[:-2])
        assert np.abs(found - np.array(expected)).max() <= 1
        assert halfway(np.linspace(1000, 1, steps + 1)[:-1])[found != np.array(expected)].all()
