"""The U-Net against a peer's, weight by weight, and against its size and shape worked out from the paper by hand.

`test_network.py` has the rest: sizes it takes, what time, labels and dropout do, attention written out.
"""

import pytest
import torch
from torch.nn import functional

from ancestral.diffusion.denoisers.denoiser import Denoiser
from ancestral.diffusion.denoisers.targets import V
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.samplers.transitions import Ancestral, beta, fixedsmall, learned
from ancestral.networks.unet import Attention, ResidualBlock, UNet


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


TINY = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,)}


def awake(network, seed=0, scale=0.1):
    """The network with its zero-initialised layers moved off zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def size_by_hand(inputs, outputs, width, multipliers, blocks, attention, classes=0, patch=1):
    """Appendix B counted layer by layer, with no network made."""

    def conv(a, b, side=3):
        return a * b * side**2 + b

    def residual(a, b):
        shortcut = 0 if a == b else conv(a, b, 1)
        return 2 * a + conv(a, b) + conv(4 * width, b, 1) + 2 * b + conv(b, b) + shortcut

    def attend(c):
        return 2 * c + 4 * conv(c, c, 1)

    levels = [width * m for m in multipliers]
    total = conv(inputs * patch**2, width) + conv(width, 4 * width, 1) + conv(4 * width, 4 * width, 1)
    total += classes * 4 * width
    skips, c = [width], width
    for level, wide in enumerate(levels):
        for _ in range(blocks):
            total += residual(c, wide) + attend(wide) * (level in attention)
            c = wide
            skips.append(c)
        if level + 1 < len(levels):
            total += conv(c, c)
            skips.append(c)
    total += 2 * residual(c, c) + attend(c)
    for level in reversed(range(len(levels))):
        for _ in range(blocks + 1):
            total += residual(c + skips.pop(), levels[level]) + attend(levels[level]) * (level in attention)
            c = levels[level]
        if level:
            total += conv(c, c)
    assert not skips
    return total + 2 * c + conv(c, outputs * patch**2)


@pytest.mark.parametrize(
    "options",
    [
        {"width": 128, "multipliers": (1, 2, 2, 2), "blocks": 2, "attention": (1,)},
        {"width": 128, "multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2, "attention": (4,)},
        {"width": 32, "multipliers": (1, 3), "blocks": 3, "attention": (0, 1), "classes": 10},
        {"width": 24, "multipliers": (2,), "blocks": 1, "attention": (), "patch": 2},
    ],
    ids=["CIFAR-10", "256", "labels", "patches"],
)
@pytest.mark.parametrize(("inputs", "outputs"), [(3, 3), (1, 2)])
def test_parameters_counted_by_hand(options, inputs, outputs):
    with torch.device("meta"):
        network = UNet(inputs, outputs, **options)
    assert sum(parameter.numel() for parameter in network.parameters()) == size_by_hand(inputs, outputs, **options)


@pytest.mark.parametrize(
    ("options", "side", "expected"),
    [
        ({}, 32, [16] * 2 + [4] + [16] * 3),
        ({"multipliers": (1, 1, 2, 2, 4, 4), "attention": (4,)}, 256, [16] * 2 + [8] + [16] * 3),
    ],
    ids=["CIFAR-10", "256"],
)
def test_attention_is_at_16_by_16_and_in_the_middle(options, side, expected):
    """Shapes alone are run, on the meta device."""
    seen = []
    with torch.device("meta"):
        network = UNet(3, 3, **options)
        for module in network.modules():
            if isinstance(module, Attention):
                module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[-1]))
        assert network(torch.zeros(2, 3, side, side), torch.ones(2)).shape == (2, 3, side, side)
    assert seen == expected


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (24, 40)])
@pytest.mark.parametrize("patch", [1, 2])
def test_it_begins_as_zero_with_patches_too(size, patch):
    network = UNet(3, 6, patch=patch, **TINY)
    x, time = torch.randn(2, 3, *size), torch.tensor([1.0, 1000.0])
    assert network(x, time).shape == (2, 6, *size)
    assert not network(x, time).any()
    assert awake(network)(x, time).any()


@pytest.mark.parametrize("size", [(7, 8), (8, 7), (6, 8)])
def test_each_side_is_checked(size):
    with pytest.raises(ValueError, match=r"divide by 4 .*\("):
        UNet(1, 1, width=8, multipliers=(1, 1, 1), blocks=1)(torch.zeros(1, 1, *size), torch.ones(1))


def test_a_patch_is_a_position():
    """patch = 2 is the plain network on the pixels of each 2x2 block as channels."""
    folded, plain = awake(UNet(1, 2, patch=2, **TINY)), awake(UNet(4, 8, **TINY))
    plain.load_state_dict(folded.state_dict())
    x, time = torch.randn(2, 1, 8, 12), torch.tensor([3.0, 300.0])
    blocks = x.reshape(2, 4, 2, 6, 2).permute(0, 2, 4, 1, 3).reshape(2, 4, 4, 6)  # by hand: (row, column) of the block
    there = plain(blocks, time).reshape(2, 2, 2, 2, 4, 6)
    back = there.permute(0, 1, 4, 2, 5, 3).reshape(2, 2, 8, 12)
    assert torch.allclose(folded(x, time), back, atol=1e-6)


def test_residual_block_by_hand():
    block = awake(ResidualBlock(8, 16, 4, 0.0))
    x, time = torch.randn(2, 8, 5, 6), torch.randn(2, 4)

    def normed(h, norm):
        groups = h.reshape(len(h), norm.num_groups, -1)
        centred = groups - groups.mean(2, keepdim=True)
        h = (centred / (centred.square().mean(2, keepdim=True) + 1e-6).sqrt()).reshape(h.shape)
        return h * norm.weight[:, None, None] + norm.bias[:, None, None]

    def swish(h):
        return h / (1 + (-h).exp())

    h = functional.conv2d(swish(normed(x, block.norm1)), block.conv1.weight, block.conv1.bias, padding=1)
    h = h + (time @ block.time.weight.T + block.time.bias)[:, :, None, None]
    h = functional.conv2d(swish(normed(h, block.norm2)), block.conv2.weight, block.conv2.bias, padding=1)
    straight = torch.einsum("oi,bihw->bohw", block.shortcut.weight[:, :, 0, 0], x) + block.shortcut.bias[:, None, None]
    assert torch.allclose(block(x, time), straight + h, atol=1e-5)


def test_blocks_begin_as_the_identity():
    block = ResidualBlock(8, 8, 4, 0.0)
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(block(x, torch.randn(2, 4)), x)
    assert torch.equal(Attention(8)(x), x)


def test_dropout_keeps_the_mean_and_draws_only_in_training():
    block = awake(ResidualBlock(4, 4, 4, dropout=0.3))
    x, time = torch.randn(1, 4, 3, 3), torch.zeros(1, 4)
    torch.manual_seed(0)
    block.train()
    with torch.no_grad():
        many = block(x.expand(20_000, -1, -1, -1), time.expand(20_000, -1))
        assert not torch.equal(many[0], many[1])
        whole = block.eval()(x, time)[0]
    error = many.std(0) / len(many) ** 0.5
    assert bool(((many.mean(0) - whole).abs() < 5 * error + 1e-5).all())  # the last conv is linear in what is dropped
    assert torch.equal(block(x, time), block(x, time))


def test_learned_variance_has_its_own_channels():
    """2C channels: at the zero start the variance is the geometric mean of its bounds, and then moves with them."""
    noise_schedule = schedules.linear(50)
    network = UNet(2, 4, **TINY)
    denoiser, x = Denoiser(network, noise_schedule, V), torch.randn(2, 2, 8, 8).double()
    with torch.no_grad():
        prediction = denoiser(x, 30)
        low, high = fixedsmall(noise_schedule, prediction, 30, 29), beta(noise_schedule, prediction, 30, 29)
        middle = Ancestral(learned)(noise_schedule, x, prediction, 30, 29).var
        assert torch.allclose(middle, (low * high).sqrt().expand_as(x))
        last = network.head[-1]
        for value, bound in ((1.0, high), (-1.0, low)):
            last.bias[2:] = value  # of the variance's channels alone
            moved = denoiser(x, 30)
            assert torch.allclose(Ancestral(learned)(noise_schedule, x, moved, 30, 29).var, bound.expand_as(x))
            assert torch.equal(moved.x0, prediction.x0)
    plain = Denoiser(UNet(2, 2, **TINY), noise_schedule, V)(x, 30)
    assert plain.range_mix is None
    with pytest.raises(ValueError, match="2C output channels"):
        Ancestral(learned)(noise_schedule, x, plain, 30, 29)


def test_gradients_reach_every_parameter_of_the_papers_shape():
    network = awake(UNet(3, 3, width=8, dropout=0.1, classes=3, attention=(1,))).train()
    x, labels = torch.randn(3, 3, 16, 16), torch.tensor([0, 1, 2])
    network(x, torch.tensor([1.0, 500.0, 1000.0]), labels).square().mean().backward()
    asleep = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not asleep
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters())


def test_training_can_leave_the_zero_start():
    """Two plain gradient steps wake what lies behind the zero layers."""
    network = UNet(1, 1, **TINY)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    torch.manual_seed(0)
    x, target = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = (network(x, torch.tensor([10.0, 900.0])) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(p.grad.any() for p in network.parameters())
    assert losses[-1] < 0.9 * losses[0]


def test_the_network_of_diffusers_with_the_same_weights():
    """UNet2DModel in the shape of its DDPM checkpoints (one head, sines first, symmetric padding): same output."""
    diffusers = pytest.importorskip("diffusers")
    theirs = awake(
        diffusers.UNet2DModel(
            sample_size=8,
            in_channels=3,
            out_channels=3,
            block_out_channels=(128, 256),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=None,
            norm_eps=1e-6,
            norm_num_groups=32,
            flip_sin_to_cos=False,
            freq_shift=1,
            downsample_padding=1,
        ),
        scale=0.02,
    )
    ours = UNet(3, 3, width=128, multipliers=(1, 2), blocks=1, attention=(1,)).eval()
    weights = {}

    def copy(name, *modules):
        for kind in ("weight", "bias"):
            value = torch.cat([getattr(module, kind).detach() for module in modules])
            weights[f"{name}.{kind}"] = value.reshape(ours.get_parameter(f"{name}.{kind}").shape)

    def stage(name, residual, attention=None):
        pairs = {"norm1": "norm1", "conv1": "conv1", "time": "time_emb_proj", "norm2": "norm2", "conv2": "conv2"}
        for mine, other in pairs.items():
            copy(f"{name}.block.{mine}", getattr(residual, other))
        if residual.conv_shortcut is not None:
            copy(f"{name}.block.shortcut", residual.conv_shortcut)
        if attention is not None:
            copy(f"{name}.attention.norm", attention.group_norm)
            copy(f"{name}.attention.qkv", attention.to_q, attention.to_k, attention.to_v)
            copy(f"{name}.attention.out", attention.to_out[0])

    copy("time.0", theirs.time_embedding.linear_1)
    copy("time.2", theirs.time_embedding.linear_2)
    copy("stem", theirs.conv_in)
    first, second = theirs.down_blocks
    stage("down.0", first.resnets[0])
    copy("down.1", first.downsamplers[0].conv)
    stage("down.2", second.resnets[0], second.attentions[0])
    stage("middle.0", theirs.mid_block.resnets[0], theirs.mid_block.attentions[0])
    stage("middle.1", theirs.mid_block.resnets[1])
    first, second = theirs.up_blocks
    stage("up.0", first.resnets[0], first.attentions[0])
    stage("up.1", first.resnets[1], first.attentions[1])
    copy("up.2.conv", first.upsamplers[0].conv)
    stage("up.3", second.resnets[0])
    stage("up.4", second.resnets[1])
    copy("head.0", theirs.conv_norm_out)
    copy("head.2", theirs.conv_out)
    assert sum(value.numel() for value in weights.values()) == sum(p.numel() for p in theirs.parameters())
    ours.load_state_dict(weights)  # strict: every one of ours is given

    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    for time in (0.0, 1.0, 417.0, 999.0):
        times = torch.tensor([time, time / 2])
        with torch.no_grad():
            expected = theirs(x, times).sample
            assert float(expected.std()) > 0.05
            assert torch.allclose(ours(x, times), expected, atol=2e-4 * float(expected.abs().max()))


def test_half_precision_weights_still_run():
    network = awake(UNet(1, 1, **TINY)).bfloat16()
    output = network(torch.randn(1, 1, 8, 8).bfloat16(), torch.tensor([999.0]))
    assert output.dtype == torch.bfloat16
    assert bool(output.isfinite().all())
