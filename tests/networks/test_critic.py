"""The critic: its weights' bound against the singular values themselves, its conditions, and any size of image."""

import pytest
import torch

from ancestral.networks.critic import Critic, largest_singular_value


@pytest.mark.parametrize("kind", ["random", "flat", "rank 1", "one row"])
def test_the_bound_is_near_the_largest_singular_value(kind):
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(1 if kind == "one row" else 96, 200, generator=generator)
    if kind == "flat":
        matrix = 3 * torch.linalg.qr(matrix.mT).Q.mT
    if kind == "rank 1":
        matrix = matrix[:, :1] @ matrix[:1]
    found, largest = float(largest_singular_value(matrix)), float(torch.linalg.matrix_norm(matrix, 2))
    assert largest * (1 - 1e-4) <= found <= largest * len(matrix) ** (1 / 32) * (1 + 1e-4)


@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (3, 32, 32), (3, 64, 48), (1, 7, 9), (3, 8, 8), (1, 4, 64), (1, 200, 2)], ids=str
)
def test_it_takes_any_size_and_each_layer_is_bounded(shape):
    critic = Critic(shape)
    assert critic(torch.zeros(2, *shape)).shape == (2,)
    for layer in (*critic.layers, critic.score):
        if (weight := getattr(layer, "weight", None)) is not None:
            assert 0.8 < float(torch.linalg.matrix_norm(weight.detach().flatten(1), 2)) <= 1 + 1e-4


@pytest.mark.parametrize("channels", [1, 3])
def test_conditions_count_unless_they_are_dropped(channels):
    critic = Critic((channels, 8, 8), classes=3, embedding=5, augmentation=4)
    x = torch.rand(2, channels, 8, 8, generator=torch.Generator().manual_seed(2)) - 0.5
    plain, cond = critic(x), {"labels": torch.tensor([0, 2]), "embedding": torch.ones(2, 5)}
    both = torch.tensor([True, True])
    assert torch.equal(critic(x, dropped=both, **cond), plain)
    for name, value in {**cond, "augmentation": torch.ones(2, 4)}.items():
        assert bool((critic(x, **{name: value}) != plain).all())
    assert not torch.equal(critic(x, dropped=both, augmentation=torch.ones(2, 4)), plain)
    one = critic(x, dropped=torch.tensor([True, False]), **cond)
    assert torch.equal(one, torch.where(torch.tensor([True, False]), plain, critic(x, **cond)))
