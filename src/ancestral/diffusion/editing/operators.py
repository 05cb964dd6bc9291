"""Linear measurements of an image, y = A x + noise: each is its singular value decomposition A = U diag(s) V^T.

Averages of boxes, blurs and grey values act on channels, rows and columns apart, so their decomposition is that of
three small matrices. From it follow A, its adjoint, its pseudo-inverse and every ridge. y is on [-1, 1] like x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ancestral.diffusion.processes.types import untyped

_RANK = 1e-12  # singular values below this share of the greatest are zero
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey (ITU-R BT.601, as image files are converted)


class Operator:
    """A linear measurement. A subclass says how to turn into the singular bases and back.

    Args:
        singular: the singular values, of the shape of an image's coordinates in them, zeros allowed.
    """

    def __init__(self, singular: Tensor) -> None:
        self.singular = singular

    def to_left(self, y: Tensor) -> Tensor:
        """U^T y."""
        return y

    def from_left(self, u: Tensor) -> Tensor:
        """U u."""
        return u

    def to_right(self, x: Tensor) -> Tensor:
        """V^T x."""
        return x

    def from_right(self, v: Tensor) -> Tensor:
        """V v."""
        return v

    def __call__(self, x: Tensor) -> Tensor:
        """A x. x: (B, ...)."""
        return self.from_left(self.singular.to(x) * self.to_right(x))

    def in_range(self, y: Tensor) -> Tensor:
        """The part of y that is A x of some x: U U^T y, of the singular values above 0."""
        return self.from_left(torch.where(self.singular.to(y) > 0, self.to_left(y), 0.0))

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y. y: (B, ...)."""
        return self.from_right(self.singular.to(y) * self.to_left(y))

    def ridge(self, y: Tensor, x_var: Tensor, y_var: float) -> Tensor:
        """A^T (x_var A A^T + y_var I)^+ y: what moves x towards y when x varies by x_var and y by y_var.

        Args:
            y: (B, ...).
            x_var: broadcasts against the singular values.
            y_var: 0 is allowed, and what A does not see stays where it is.
        """
        singular = self.singular.to(y)
        weight = torch.where(singular > 0, singular / (x_var * singular.square() + y_var), 0.0)
        return self.from_right(weight * self.to_left(y))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^+ y, the smallest of the x nearest to what was measured."""
        return self.ridge(y, torch.ones((), dtype=y.dtype, device=y.device), 0.0)


class Known(Operator):
    """Some elements are seen and the others are not: A = diag(known), y is 0 where nothing is seen.

    Args:
        known: bool, broadcasts against an image.
    """

    def __init__(self, known: Tensor) -> None:
        super().__init__(known.cpu().double())


class Separable(Operator):
    """One matrix for each axis of an image: y_abc = sum_ijk M1_ai M2_bj M3_ck x_ijk; with one matrix, any operator.

    Args:
        matrices: (m, n) each, for the axes after the batch in order.
    """

    def __init__(self, *matrices: Tensor) -> None:
        parts: list[tuple[Tensor, Tensor, Tensor]] = [
            untyped.linalg.svd(matrix.double(), full_matrices=False) for matrix in matrices
        ]
        self.left, self.right = [u for u, _, _ in parts], [vh for _, _, vh in parts]
        singular = parts[0][1]
        for _, more, _ in parts[1:]:
            singular = singular[..., None] * more
        super().__init__(torch.where(singular > _RANK * singular.max(), singular, 0.0))

    def to_left(self, y: Tensor) -> Tensor:
        """U^T y."""
        return _along(y, [u.mT for u in self.left])

    def from_left(self, u: Tensor) -> Tensor:
        """U u."""
        return _along(u, self.left)

    def to_right(self, x: Tensor) -> Tensor:
        """V^T x."""
        return _along(x, self.right)

    def from_right(self, v: Tensor) -> Tensor:
        """V v."""
        return _along(v, [vh.mT for vh in self.right])


def _along(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    for axis, matrix in enumerate(matrices, 1):
        x = (x.movedim(axis, -1) @ matrix.to(x).mT).movedim(-1, axis)
    return x


def box_means(shape: Sequence[int], factor: int) -> Separable:
    """The mean of each box of factor x factor pixels: an image of a smaller size. shape: (C, H, W).

    Raises:
        ValueError: unless the factor divides both sides.
    """
    channels, height, width = shape
    if height % factor or width % factor:
        raise ValueError(f"a factor of {factor} does not divide {height}x{width}")
    return Separable(
        _eye(channels), *(_eye(side // factor).repeat_interleave(factor, 1) / factor for side in shape[1:])
    )


def gaussian_blur(shape: Sequence[int], width: float) -> Separable:
    """A Gaussian of standard deviation `width` pixels, cut at four of these, mirrored at borders. shape: (C, H, W)."""
    channels, *sides = shape
    return Separable(_eye(channels), *(_blur(side, width) for side in sides))


def _blur(side: int, width: float) -> Tensor:
    reach = math.ceil(4 * width)
    offset = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offset.double() / width) ** 2)
    index = (torch.arange(side)[:, None] + offset) % (2 * side)
    mirrored = torch.where(index < side, index, 2 * side - 1 - index)
    return torch.zeros(side, side, dtype=torch.float64).scatter_add(
        1, mirrored, (kernel / kernel.sum()).repeat(side, 1)
    )


def grey(shape: Sequence[int]) -> Separable:
    """Colours to grey values. shape: (3, H, W).

    Raises:
        ValueError: unless the image has three channels.
    """
    channels, height, width = shape
    if channels != 3:
        raise ValueError(f"grey values are of images with 3 channels, these have {channels}")
    return Separable(torch.tensor([LUMA], dtype=torch.float64), _eye(height), _eye(width))


def _eye(side: int) -> Tensor:
    return torch.eye(side, dtype=torch.float64)
