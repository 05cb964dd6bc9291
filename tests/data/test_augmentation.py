"""Augmentation that does not leak: what each move does to pixels, how often, and a network that hears of none."""

import math

import numpy as np
import pytest
import torch

from ancestral.data import augmentation
from ancestral.data.augmentation import LENGTH, Moves
from ancestral.networks.unet import UNet

STILL = dict.fromkeys(Moves._fields, 0.0)


def one(**moves):
    return Moves(*(torch.tensor([value], dtype=torch.float64) for value in {**STILL, **moves}.values()))


def images(channels, height=16, width=16, count=1):
    pixels = np.random.default_rng(0).integers(0, 256, (count, channels, height, width))
    return torch.from_numpy(pixels).float().div(127.5).sub(1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_flips_and_whole_translations_are_exact(channels, shape):
    x = images(channels, *shape)
    assert torch.equal(augmentation.moved(x, one(flip_x=1.0)), x.flip(3))
    assert torch.equal(augmentation.moved(x, one(flip_y=1.0)), x.flip(2))
    assert torch.equal(augmentation.moved(x, one(flip_x=1.0, flip_y=1.0)), x.flip(2, 3))
    height, width = shape
    right = augmentation.moved(x, one(shift_x=3 / (0.125 * width)))
    assert torch.equal(right[..., 3:], x[..., :-3])
    assert torch.equal(right[..., :3], x[..., :3].flip(3))
    down = augmentation.moved(x, one(shift_y=2 / (0.125 * height)))
    assert torch.equal(down[..., 2:, :], x[..., :-2, :])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_quarter_turn_is_exact_and_goes_from_x_to_y(channels):
    x = images(channels)
    assert torch.equal(augmentation.moved(x, one(angle=math.pi / 2)), torch.rot90(x, -1, (2, 3)))


@pytest.mark.parametrize(
    ("moves", "slope_x", "slope_y"),
    [
        ({"scale": 5.0}, 0.5, 0.5),
        ({"stretch": 5.0}, 0.5, 2.0),
        ({"stretch": 5.0, "direction": math.pi / 2}, 2.0, 0.5),
    ],
)
def test_scales_and_stretches_change_the_slope_of_a_ramp(moves, slope_x, slope_y):
    side = 32
    across = ((torch.arange(side) + 0.5) / side - 0.5).float()
    for x, slope, axis in ((across[None, :], slope_x, 3), (across[:, None], slope_y, 2)):
        made = augmentation.moved(x.expand(1, 1, side, side).contiguous(), one(**moves))
        inner = made.narrow(2, 12, 8).narrow(3, 12, 8)  # away from the mirrored edges
        steps = inner.diff(dim=axis)
        assert steps.mean() == pytest.approx(slope / side, abs=2 / 127.5 / 7)
        assert inner.diff(dim=5 - axis).abs().max() < 1.5 / 127.5


def test_moves_are_a_function_of_seed_and_number_with_the_law_of_the_paper():
    whole = augmentation.draw(3, range(4000), 0.5)
    parts = [augmentation.draw(3, range(n, n + 500), 0.5) for n in range(0, 4000, 500)]
    for name in Moves._fields:
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
    share = {name: float((getattr(whole, name) != 0).double().mean()) for name in Moves._fields}
    for name, right in {
        "flip_x": 0.25,
        "flip_y": 0.25,
        "scale": 0.5,
        "angle": 0.5,
        "stretch": 0.5,
        "shift_x": 0.5,
    }.items():
        assert share[name] == pytest.approx(right, abs=5 * math.sqrt(right * (1 - right) / 4000))
    for normal in (whole.scale, whole.stretch, whole.shift_x, whole.shift_y):
        taken = normal[normal != 0]
        assert float(taken.std()) == pytest.approx(1, abs=0.1)
        assert abs(float(taken.mean())) < 0.1
    assert float(whole.direction.abs().max()) <= math.pi
    assert float(whole.direction.std()) == pytest.approx(math.pi / math.sqrt(3), rel=0.05)
    assert float(whole.angle.abs().max()) <= math.pi
    assert float(whole.angle.std()) > 1
    assert not augmentation.draw(3, range(100), 0.0).any.any()


def test_the_vector_tells_moves_apart_and_is_zero_for_none():
    assert augmentation.draw(0, range(5), 0.0).vector().equal(torch.zeros(5, LENGTH))
    turned = one(angle=math.pi).vector()[0]
    assert turned.tolist() == pytest.approx([0, 0, 0, -2, 0, 0, 0, 0, 0], abs=1e-6)
    assert one(stretch=2.0, direction=math.pi / 2).vector()[0].tolist() == pytest.approx(
        [0, 0, 0, 0, 0, 0, 2, 0, 0], abs=1e-6
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_images_that_are_not_moved_stay_to_the_bit_and_moved_ones_are_bytes(channels):
    x = images(channels, count=200)
    moves = augmentation.draw(0, range(200), 0.12)
    made, still = augmentation.moved(x, moves), ~moves.any
    assert 0 < still.sum() < 200
    assert torch.equal(made[still], x[still])
    assert not torch.equal(made[~still], x[~still])
    levels = (made + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4
    assert made.abs().max() <= 1


def test_a_network_that_gets_no_move_is_the_one_without():
    torch.manual_seed(0)
    plain = UNet(3, 3, 16, (1, 2), 1, (1,), classes=4)
    augmented = UNet(3, 3, 16, (1, 2), 1, (1,), classes=4, augmentation=LENGTH)
    for weight in augmented.parameters():  # the last layers of blocks begin at 0
        torch.nn.init.normal_(weight, std=0.2)
    plain.load_state_dict({name: value for name, value in augmented.state_dict().items() if "augmentation" not in name})
    x, t, labels = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 900.0]), torch.tensor([0, 3])
    expected = plain(x, t, labels)
    assert torch.equal(augmented(x, t, labels), expected)
    assert torch.equal(augmented(x, t, labels, augmentation=torch.zeros(2, LENGTH)), expected)
    assert not torch.allclose(augmented(x, t, labels, augmentation=torch.ones(2, LENGTH)), expected)
