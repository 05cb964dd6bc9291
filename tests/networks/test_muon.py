"""Muon: orthogonal updates of matrices, AdamW's for the rest."""

import pytest
import torch
from torch import nn

from ancestral.errors import UserError
from ancestral.networks.muon import NEWTON_SCHULZ, Muon, orthogonal
from ancestral.runs import build, config

RATES = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}


def drawn(*shapes):
    """Matrices of these shapes."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def test_the_orthogonal_factor_keeps_the_directions_and_levels_the_sizes():
    matrices = drawn((20, 64), (64, 20), (32, 32), (20, 30), (1, 40))
    for matrix, found in zip(matrices, orthogonal(matrices), strict=True):
        left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
        # The quintic is odd in X: singular vectors stay, in each of them only the singular value moves.
        inside = left.mT @ found @ right.mT
        levels = inside.diagonal()
        assert torch.allclose(inside, torch.diag(levels), atol=1e-10)
        clear = sizes > 0.05 * sizes.norm()
        assert ((levels > 0.6) & (levels < 1.3))[clear].all()


@pytest.mark.parametrize("shape", [(32, 288), (288, 32), (48, 48)])
def test_steps_multiplied_with_each_other_are_those_taken_one_by_one(shape):
    left, sizes, right = torch.linalg.svd(drawn(shape)[0], full_matrices=False)
    sizes = sizes / sizes.norm() * torch.logspace(0, -4, len(sizes), dtype=torch.float64)
    hard = left * sizes @ right  # singular values over five orders of magnitude
    expected = hard / hard.norm()
    for a, b, c in NEWTON_SCHULZ:
        gram = expected @ expected.mT
        expected = a * expected + b * gram @ expected + c * gram @ gram @ expected
    assert torch.allclose(orthogonal([hard])[0], expected, atol=1e-9)
    assert torch.allclose(orthogonal([hard.float()])[0].double(), expected, atol=1e-3)


def test_a_matrix_moves_by_the_orthogonal_factor_of_its_momentum_and_a_vector_as_in_adamw():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 3, 3))  # the second is an image's: AdamW
    twin = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 3, 3))
    twin.load_state_dict(network.state_dict())
    muon, adam = Muon(network.parameters(), **RATES), torch.optim.AdamW(twin.parameters(), **RATES)
    momentum, expected = torch.zeros(32, 16, 3, 3), network[0].weight.detach().clone()
    for _ in range(3):
        before = network[0].weight.detach().clone()
        gradients = [torch.randn_like(one) for one in network.parameters()]
        for model, optimizer in ((network, muon), (twin, adam)):
            for one, gradient in zip(model.parameters(), gradients, strict=True):
                one.grad = gradient.clone()
            optimizer.step()
        momentum = 0.95 * momentum + 0.05 * gradients[0]
        ahead = 0.05 * gradients[0] + 0.95 * momentum  # Nesterov's
        update = orthogonal([ahead.flatten(1)])[0].reshape(expected.shape)
        expected = (1 - 0.01 * 0.1) * expected - 0.01 * 0.2 * 144**0.5 * update
    assert torch.allclose(network[0].weight, expected, atol=1e-6)
    assert not torch.allclose(network[0].weight, twin[0].weight, atol=1e-3)
    for name in ("0.bias", "1.weight", "1.bias"):
        assert torch.equal(network.get_parameter(name), twin.get_parameter(name))
    # Gradients are still there for whoever looks at them, and an update of a matrix is as large as AdamW's are.
    assert all(one.grad is not None for one in network.parameters())
    moved = network[0].weight.detach() - (1 - 0.01 * 0.1) * before
    assert float(moved.square().mean().sqrt() / 0.01) == pytest.approx(0.2, rel=0.35)


def test_a_state_goes_on():
    torch.manual_seed(0)
    one, other = nn.Linear(16, 32), nn.Linear(16, 32)
    other.load_state_dict(one.state_dict())
    first, second = Muon(one.parameters(), **RATES), Muon(other.parameters(), **RATES)

    def update(network, optimizer, seed):
        torch.manual_seed(seed)
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()

    for optimizer, network in ((first, one), (second, other)):
        update(network, optimizer, 1)
    again = Muon(other.parameters(), **RATES)
    again.load_state_dict(second.state_dict())
    update(one, first, 2)
    update(other, again, 2)
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)


def test_divided_weights_are_refused():
    options = config.TrainOptions(optimizer="muon", parallel="fsdp")
    with pytest.raises(UserError, match="whole matrices"):
        build.optimizer(nn.Linear(16, 16), options)
