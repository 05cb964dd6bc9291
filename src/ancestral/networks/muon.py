"""Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal, so that no direction is left behind.

A weight of a convolution is the matrix (outputs, inputs x kernel). Vectors and scalars, and matrices with a side below
16, such as the image's or that of few labels, are AdamW's, with the same learning rate: an orthogonal update is scaled
to the size that AdamW's have (Liu et al. 2025, section 2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ancestral.diffusion.processes.types import untyped

MOMENTUM = 0.95
SIZE = 0.2  # root mean square of an update of AdamW, in learning rates
NARROW = 16  # a matrix with a side below it is AdamW's
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5  # coefficients of a quintic that brings singular values near 1


def orthogonal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """The orthogonal factor of each matrix (m, n), about: singular values between 0.7 and 1.2.

    X <- X / |X|, then X <- (a + b G + c G^2) X with G = X X^T, five times. Each step is a polynomial of the first G,
    whose trace is |X|^2: they are multiplied with each other, which are small and square, all of one size at once, and
    meet X once.
    """
    wide = [one if one.shape[0] <= one.shape[1] else one.mT for one in matrices]
    by_side: dict[int, list[int]] = {}
    for index, x in enumerate(wide):
        by_side.setdefault(len(x), []).append(index)
    for indices in by_side.values():
        gram = torch.stack([wide[index] @ wide[index].mT for index in indices])
        squared = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] + 1e-24
        for index, one in zip(indices, _polynomial(gram / squared) * squared.rsqrt(), strict=True):
            wide[index] = one @ wide[index]
    return [x if x.shape == one.shape else x.mT for x, one in zip(wide, matrices, strict=True)]


def _polynomial(gram: Tensor) -> Tensor:
    """What the steps multiply X by, of its Gram matrix. (k, m, m) to the same."""
    product = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device).expand_as(gram)
    for a, b, c in NEWTON_SCHULZ:
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product, gram = factor @ product, factor @ gram @ factor
    return product


class Muon(torch.optim.AdamW):
    """AdamW, but for the matrices among the parameters.

    Args:
        parameters: all of them.
        options: of AdamW; the learning rate and the weight decay are the matrices' too.
    """

    def __init__(self, parameters: Iterable[Tensor], **options: Any) -> None:
        everything = list(parameters)
        self.matrices = [one for one in everything if one.ndim >= 2 and min(one.shape[:2]) >= NARROW]
        super().__init__(everything, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update: the matrices by Muon, then the rest by AdamW."""
        moved = [one for one in self.matrices if one.grad is not None]
        gradients = [one.grad for one in moved]
        for one in moved:
            one.grad = None
            if not self.state[one]:  # AdamW looks for a step in every state that it loads
                self.state[one].update(step=torch.zeros(()), momentum=torch.zeros_like(one))
        if moved:
            rate, decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
            momenta = [self.state[one]["momentum"] for one in moved]
            untyped._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
            updates = orthogonal([one.flatten(1) for one in untyped._foreach_lerp(gradients, momenta, MOMENTUM)])
            updates = untyped._foreach_mul(updates, [-rate * SIZE * max(one.shape) ** 0.5 for one in updates])
            untyped._foreach_mul_(moved, 1 - rate * decay)
            untyped._foreach_add_(moved, [step.reshape(one.shape) for step, one in zip(updates, moved, strict=True)])
        result = super().step(closure)
        for one, gradient in zip(moved, gradients, strict=True):
            one.grad = gradient
        return result
