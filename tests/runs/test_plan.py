"""The plan of a run: where the learning rate is, and where it goes when the end of a leg is moved."""

import json

import pytest

from ancestral.errors import UserError
from ancestral.runs.plan import Plan, from_state
from ancestral.training.trainer import learning_rate

WARMUP, DECAY = 0.125, 0.5  # powers of two: what follows is exact


def rate(plan, images):
    return learning_rate(plan.progress(images), 2.0, WARMUP, DECAY)


def test_a_leg_as_planned_is_images_over_all_of_them():
    for total in (7, 96, 1000, 59_968):
        plan = Plan().further(total)
        assert plan.end == total
        assert all(plan.progress(images) == images / total for images in range(0, total, max(1, total // 97)))


def test_before_the_fall_the_rate_does_not_depend_on_the_end():
    plan = Plan().further(1024)
    for end in (640, 4096):
        moved = plan.corrected(256, end)
        assert moved.end == end
        assert rate(moved, 256) == rate(plan, 256) == 2.0
        falls = 256 + round(
            (end - 256) / 3
        )  # progress goes from 1/4 to 1 over what is left, and the fall begins at 1/2
        assert rate(moved, falls - 1) == 2.0
        assert rate(moved, falls + 2) < 2.0
        assert rate(moved, (falls + end) // 2) == pytest.approx(1.0, abs=0.01)
        assert all(rate(moved, images) == rate(plan, images) for images in range(0, 257, 16))


def test_in_the_fall_the_rate_goes_on_linearly_to_zero_at_the_new_end():
    plan = Plan().further(1024)
    now = rate(plan, 768)
    assert now == 1.0
    for end in (800, 896, 2048):
        moved = plan.corrected(768, end)
        for images in (768, 768 + 16, end - 8):
            assert rate(moved, images) == pytest.approx(now * (end - images) / (end - 768))


def test_corrections_add_up_and_one_at_the_same_image_replaces_the_last():
    once = Plan().further(1000).corrected(200, 1500)
    assert once.corrected(200, 700) == Plan().further(1000).corrected(200, 700)
    twice = once.corrected(850, 900)
    assert twice.progress(850) == once.progress(850)
    assert twice.progress(875) == pytest.approx((1 + once.progress(850)) / 2)
    assert [twice.progress(images) for images in (0, 100, 200)] == [0, 0.1, 0.2]


def test_another_leg_rises_and_falls_again():
    plan = Plan().further(1024, "--steps 8", "a").corrected(512, 768).further(256, "--images 256", "b")
    assert plan.end == 1024
    assert plan.progress(767) > 0.99
    assert [plan.progress(images) for images in (768, 896, 1024)] == [0, 0.5, 1]
    assert rate(plan, 768 + 32) == 2.0 > rate(plan, 768)


def test_a_checkpoint_keeps_it_to_the_bit():
    plan = (
        Plan().further(999, "--budget 60", "a").corrected(333, 1234).corrected(700, 1001).further(77, "--steps 7", "b")
    )
    state = {"total": plan.end, "length": "--steps 7", "data": "b", "legs": plan.to_json()}
    assert from_state(json.loads(json.dumps(state)), "state.json") == plan


def test_an_older_checkpoint_is_one_leg():
    assert from_state({"total": 96, "length": "x", "data": "a"}, "") == Plan().further(96, "x", "a")


@pytest.mark.parametrize(
    "damage",
    [
        lambda legs: legs.clear(),
        lambda legs: legs[0]["knots"].clear(),
        lambda legs: legs[0]["knots"].pop(),
        lambda legs: legs[0]["knots"].reverse(),
        lambda legs: legs[1]["knots"][0].__setitem__(0, 50),
        lambda legs: legs[1]["knots"][1].__setitem__(0, 300),
        lambda legs: legs[0].__setitem__("planned", 0),
    ],
)
def test_damaged_legs_are_refused_by_the_file(damage):
    legs = json.loads(json.dumps(Plan().further(100).further(100).to_json()))
    damage(legs)
    with pytest.raises(UserError, match=r"RUN/state\.json: damaged"):
        from_state({"total": 200, "length": "", "data": "", "legs": legs}, "RUN/state.json")


def test_what_a_later_version_says_of_a_leg_is_passed_over():
    plan = Plan().further(100)
    state = {"total": 100, "legs": [{**leg, "later": 1} for leg in plan.to_json()]}
    assert from_state(state, "") == plan


def test_the_loss_goes_through_its_stages_once():
    """A further leg raises the rate again, and goes on with the loss that the run ended with."""
    plan = Plan().further(100).further(50)
    assert [plan.stage(images) for images in (0, 25, 99, 100, 125)] == [0, 0.25, 0.99, 1, 1]
    assert [plan.progress(images) for images in (0, 25, 99, 100, 125)] == [0, 0.25, 0.99, 0, 0.5]
