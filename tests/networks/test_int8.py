"""Convolutions of whole numbers, against what rounding does by its definition."""

import pytest
import torch
from torch import nn

from ancestral.networks import int8
from ancestral.networks.unet import Downsample, UNet


def whole(shape, low, high, seed=0):
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def test_a_number_comes_back_within_half_a_step_and_zero_exactly():
    x = torch.linspace(-3, 9, 1001)
    scale, zero = int8.Extremes().and_of(x).scale_and_zero()
    assert scale == pytest.approx(12 / 255)
    back = int8.dequantize(int8.quantize(x, scale, zero), scale, zero)
    assert (back - x).abs().max() <= float(scale) / 2 * (1 + 1e-4)
    nothing = torch.zeros(3)
    assert torch.equal(int8.dequantize(int8.quantize(nothing, scale, zero), scale, zero), nothing)
    outside = int8.quantize(torch.tensor([-100.0, 100.0]), scale, zero)
    assert outside.tolist() == [-128, 127]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("make", [
    lambda channels: nn.Conv2d(channels, 5, 3, padding=1),
    lambda channels: nn.Conv2d(channels, 5, 1),
    lambda channels: Downsample(channels, False),
    lambda channels: Downsample(channels, True),
])  # fmt: skip
def test_a_convolution_of_whole_numbers_is_off_by_its_last_rounding_alone(make, channels):
    layer = make(channels)
    weight = whole(layer.weight.shape, -126, 126)
    weight[:, 0, 0, 0] = 127  # so that the scale of each channel is 1
    x = whole((4, channels, 8, 8), -128, 127)
    x[0, 0, 0, :2] = torch.tensor([-128.0, 127.0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(whole(layer.bias.shape, -1000, 1000))
        network = nn.Sequential(layer)
        with int8.watched(network) as met:
            exact = network(x)
        assert list(met) == ["0"]
        assert met["0"].taken == (-128, 127)
        assert met["0"].given == (min(0.0, float(exact.min())), max(0.0, float(exact.max())))
        made = int8.quantized(network, met)
        assert (made[0].weight.dtype, made[0].bias.dtype) == (torch.int8, torch.int32)
        step = float(exact.max() - exact.min()) / 255
        assert (made(x) - exact).abs().max() <= step / 2 * (1 + 1e-4)
        assert torch.equal(network(x), exact)  # which is as it was


@pytest.mark.parametrize("channels", [1, 3])
def test_the_ends_and_the_shortcuts_of_a_network_are_the_delicate_ones(channels):
    network, generator = (
        UNet(channels, channels, width=8, multipliers=(1, 2), blocks=1, attention=(1,)),
        torch.Generator(),
    )
    with torch.no_grad():
        for one in network.parameters():  # off the zeros that some begin at
            one.add_(0.1 * torch.randn(one.shape, generator=generator.manual_seed(one.numel())))
    x, time = torch.randn(2, channels, 8, 8, generator=generator), torch.tensor([3.0, 900.0])
    with torch.no_grad(), int8.watched(network) as met:
        exact = network(x, time)
    layers = [name for name, one in network.named_modules() if isinstance(one, (nn.Conv2d, Downsample))]
    assert sorted(met) == sorted(layers)
    shortcuts = [name for name in layers if name.endswith(".shortcut")]
    assert len(shortcuts) == 5  # where channels change: once on the way down, at each block on the way up
    assert sorted(int8.delicate(met)) == sorted(["stem", "head.2", *shortcuts])
    made = int8.quantized(network, met, int8.delicate(met))
    left = [name for name, one in made.named_modules() if isinstance(one, (nn.Conv2d, Downsample))]
    assert sorted(left) == sorted(int8.delicate(met))
    with torch.no_grad():
        off = (made(x, time) - exact).norm() / exact.norm()
    assert 0 < off < 0.1
