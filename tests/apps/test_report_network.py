"""The report's section on the network: what hooks see against what the layers say of themselves."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ancestral.apps.report import network
from ancestral.apps.report.subject import of_run
from ancestral.networks.unet import UNet
from ancestral.networks.unet_layers import UNetVariant


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("variant", [UNetVariant(), UNetVariant(scale_shift=True, middle_attention=False)])
def test_the_drawing_has_every_parameter_once_and_the_shapes_of_the_levels(channels, variant):
    unet = UNet(channels, 2 * channels, 8, (1, 2, 3), 2, (1, 2), patch=2, variant=variant)
    seen = network.look(unet, torch.randn(2, channels, 16, 24), torch.tensor([5.0, 5.0]), {})
    assert [one.shape for one in seen.down] == [(8, 8, 12), (16, 4, 6), (24, 2, 3)]
    assert [one.shape for one in reversed(seen.up)] == [one.shape for one in seen.down]
    assert seen.output == (2 * channels, 16, 24)
    assert seen.stem == (8, 8, 12)
    assert seen.features.shape == (8, 8, 12)
    assert [(one.blocks, one.attention) for one in seen.down] == [(2, 0), (2, 2), (2, 2)]
    assert [(one.blocks, one.attention) for one in seen.up] == [(3, 3), (3, 3), (3, 0)]
    assert (seen.middle.blocks, seen.middle.attention) == (2, int(variant.middle_attention))
    apart = sum(one.numel() for part in (unet.stem, unet.time, unet.head) for one in part.parameters())
    drawn = sum(one.parameters for one in (*seen.down, seen.middle, *seen.up))
    assert drawn + apart == sum(one.numel() for one in unet.parameters())
    assert not unet.down[0]._forward_hooks


def test_counts_fit_into_boxes():
    assert [network.short(count) for count in (950, 55_300, 1_234_567)] == ["950", "55.3 k", "1.23 M"]


@pytest.mark.parametrize("name", ["trained_run", "colour_run"])
def test_a_run_s_own_network_is_drawn(name, request):
    """Its count is that of the saved weights."""
    run: Path = request.getfixturevalue(name)
    subject = of_run(run, None, 8, 0, "cpu", None)
    part = network.part(subject)
    assert subject.saved is not None
    assert part.numbers["parameters"].value == sum(one.numel() for one in subject.saved.weights.values())
    assert part.numbers["values_in"].value == np.prod(subject.shape)
    words = {"unet": dict.fromkeys(("blocks", "attention", "parameters", "stem", "head", "output"), "")}
    drawn = part.figures["unet"](words)
    assert f"xₜ: {'×'.join(map(str, subject.shape))}" in drawn
