"""Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal, so that no direction is left behind.

A weight of a convolution is the matrix (outputs, inputs x kernel). Vectors and scalars, and matrices with a side below
16, such as the image's or that of few labels, are AdamW's, with the same learning rate: an orthogonal update is scaled
to the size that AdamW's have (Liu et al. 2025, section 2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

untyped: Any = torch  # for its functions on lists, which have no annotations
MOMENTUM = 0.95
SIZE = 0.2  # root mean square of an update of AdamW, in learning rates
NARROW = 16  # a matrix with a side below it is AdamW's
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5  # coefficients of a quintic that brings singular values near 1


def orthogonal(matrices: Tensor) -> Tensor:
    """The orthogonal factor of each matrix, about: singular values between 0.7 and 1.2. (..., m, n) to the same.

    X <- (a + b G + c G^2) X with G = X X^T, five times. Each step is a polynomial of the first G, so they are
    multiplied with each other, which are small and square, and meet X once.
    """
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-12)
    gram = x @ x.mT
    product = one = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
    for a, b, c in NEWTON_SCHULZ:
        factor = a * one + b * gram + c * gram @ gram
        product, gram = factor @ product, factor @ gram @ factor
    x = product @ x
    return x if wide else x.mT


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
        gradients = {one: one.grad for one in self.matrices if one.grad is not None}
        rate, decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for one in gradients:
            by_shape.setdefault(one.shape, []).append(one)
            one.grad = None
        for shape, alike in by_shape.items():
            for one in alike:
                if not self.state[one]:  # AdamW looks for a step in every state that it loads
                    self.state[one].update(step=torch.zeros(()), momentum=torch.zeros_like(one))
            momenta, slopes = [self.state[one]["momentum"] for one in alike], [gradients[one] for one in alike]
            untyped._foreach_lerp_(momenta, slopes, 1 - MOMENTUM)
            sums = untyped._foreach_lerp(slopes, momenta, MOMENTUM)
            updates = orthogonal(torch.stack([one.flatten(1) for one in sums]))
            scale = SIZE * max(updates.shape[1:]) ** 0.5
            untyped._foreach_mul_(alike, 1 - rate * decay)
            untyped._foreach_add_(alike, [one.reshape(shape) for one in updates], alpha=-rate * scale)
        result = super().step(closure)
        for one, gradient in gradients.items():
            one.grad = gradient
        return result
