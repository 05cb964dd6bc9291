"""The U-Net: the paper's sizes, shapes it takes, what each part does."""

import pytest
import torch
from torch.nn import functional

from ancestral.networks import unet
from ancestral.networks.unet import Attention, ResidualBlock, UNet, UNetVariant, time_embedding

TINY = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,)}


def awake(network, seed=0):
    """The network with its zero-initialised layers moved off zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.mark.parametrize(
    ("options", "size"),
    [({}, 35_746_307), ({"multipliers": (1, 1, 2, 2, 4, 4), "attention": (4,)}, 113_673_219)],
    ids=["CIFAR-10", "256"],
)
def test_the_papers_sizes(options, size):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in UNet(3, 3, **options).parameters()) == size


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(28, 28), (32, 32), (24, 40), (2, 2)])
def test_any_sides_that_divide(channels, size):
    x = torch.ones(2, channels, *size)
    network = UNet(channels, 2 * channels, **TINY)
    output = network(x, torch.tensor([1.0, 500.0]))
    assert output.shape == (2, 2 * channels, *size)
    assert not output.any()  # it starts as zero
    assert awake(network)(x, torch.tensor([1.0, 500.0])).any()


def test_sides_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"divide by 4 .*\(30, 28\)"):
        UNet(1, 1, patch=2, **TINY)(torch.zeros(1, 1, 30, 28), torch.ones(1))


def test_time_and_label_matter_and_images_do_not_mix():
    network = awake(UNet(1, 1, classes=3, **TINY)).eval()
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    time, labels = torch.tensor([3.0, 3.0, 900.0]), torch.tensor([0, 1, 0])
    together = network(x, time, labels)
    alone = torch.cat([network(x[i : i + 1], time[i : i + 1], labels[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, rtol=0, atol=1e-4)
    assert not torch.allclose(network(x, time + 50, labels), together, rtol=0, atol=1e-3)
    assert not torch.allclose(network(x, time, 2 - labels), together, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="labels"):
        network(x, time)


def test_dropout_only_while_training():
    network = awake(UNet(1, 1, dropout=0.5, **TINY))
    x, time = torch.ones(1, 1, 8, 8), torch.ones(1)
    assert not torch.equal(network(x, time), network(x, time))
    network.eval()
    assert torch.equal(network(x, time), network(x, time))


def test_every_parameter_learns():
    network = awake(UNet(2, 2, classes=2, patch=2, **TINY))
    network(torch.randn(2, 2, 8, 8), torch.tensor([1.0, 9.0]), torch.tensor([0, 1])).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize("plain", [0, 256])  # places up to which it is two matrix products
def test_attention_by_hand(monkeypatch, plain):
    monkeypatch.setattr(unet, "PLAIN_PLACES", plain)
    block = awake(Attention(8)).eval()
    x = torch.randn(2, 8, 3, 5, generator=torch.Generator().manual_seed(2))
    q, k, v = block.qkv(block.norm(x)).flatten(2).chunk(3, 1)
    weights = torch.einsum("bci,bcj->bij", q, k).div(8**0.5).softmax(2)
    mixed = torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape)
    assert torch.allclose(block(x), x + block.out(mixed), atol=1e-5)


def test_time_embedding_is_the_papers():
    embedding = time_embedding(torch.tensor([0.0, 7.0]), 6)
    frequencies = [1.0, 10000**-0.5, 1e-4]
    expected = [torch.tensor([7.0 * f for f in frequencies]).sin(), torch.tensor([7.0 * f for f in frequencies]).cos()]
    assert torch.allclose(embedding[0], torch.tensor([0.0, 0, 0, 1, 1, 1]))
    assert torch.allclose(embedding[1], torch.cat(expected), atol=1e-6)
    assert functional.pad(embedding, (0, 1)).shape == time_embedding(torch.zeros(2), 7).shape


@pytest.mark.parametrize("channels", [4, 8, 32, 48, 64, 96, 128])
def test_normalisation_does_not_undo_the_time(channels):
    """A constant added to each channel must outlive the norm that follows it."""
    block = ResidualBlock(channels, channels, 4, 0.0)
    shift = torch.arange(channels, dtype=torch.float32).reshape(1, -1, 1, 1)
    x = torch.randn(1, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(block.norm2(x + shift), block.norm2(x), atol=0.1)


def test_fourier_features_tell_neighbouring_bytes_apart():
    # Two bytes are 2/255 apart: at n = 6 and 7 their waves are about 1/4 and 1/2 of a turn apart, wherever they lie.
    x = torch.arange(256).float().reshape(1, 1, 16, 16) / 127.5 - 1
    variant = UNetVariant(fourier=(6, 7))
    features = variant.features(x)
    assert features.shape == (1, 5, 16, 16)
    assert torch.equal(features[:, :1], x)
    for n, (sin, cos) in {6: (1, 2), 7: (3, 4)}.items():
        turned = torch.atan2(features[0, sin], features[0, cos]).flatten().diff() / (2 * torch.pi)
        assert torch.allclose(turned % 1, torch.tensor(2**n / 255), atol=1e-3)
    output = UNet(1, 1, **TINY, variant=variant)(x, torch.tensor([1.0]))
    assert output.shape == x.shape


def test_groups_are_as_wide_as_set():
    assert [UNetVariant().groups_of(channels) for channels in (6, 8, 32, 128, 256)] == [1, 2, 8, 32, 32]
    assert [UNetVariant(group_width=16).groups_of(channels) for channels in (6, 32, 48, 128)] == [1, 2, 3, 8]
    assert UNetVariant(groups=4, group_width=16).groups_of(128) == 4
