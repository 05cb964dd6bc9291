"""What a forward process is: a schedule and the distributions of its states; `gaussian` and `absorbing` are the two."""

from __future__ import annotations

from typing import Protocol, TypeVar

from torch import Tensor

from ancestral.diffusion.processes.normal import Likelihood
from ancestral.diffusion.processes.types import Time


class Distribution(Protocol):
    """The distribution of a state."""

    def sample(self, eps: Tensor) -> Tensor:
        """A state, from standard normal `eps` of its shape."""
        ...


Dist = TypeVar("Dist", bound=Distribution)  # a Normal, or the Change of an absorbing process


class Process(Protocol[Dist]):
    """A forward process from clean data, t = 0, to T; s < t."""

    @property
    def T(self) -> int:  # noqa: N802
        """Number of steps."""
        ...

    def noise_var(self, t: Time) -> Tensor:
        """1 - alpha_bar_t."""
        ...

    def marginal(self, x0: Tensor, t: Time) -> Dist:
        """q(x_t | x0). x0: (B, ...)."""
        ...

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Dist:
        """q(x_t | x_s)."""
        ...

    def posterior(self, x_t: Tensor, x0: Tensor, t: Time, s: Time) -> Dist:
        """q(x_s | x_t, x0)."""
        ...

    def end(self, like: Tensor) -> Dist:
        """p(x_T), in the shape, type and device of `like`."""
        ...

    def shown(self, x_t: Tensor) -> Tensor:
        """A state as a picture."""
        ...

    def prior(self, x0: Tensor, t: int) -> Tensor:
        """L_T in nats an image, for a walk that begins at t. Shape (B,)."""
        ...

    def term(self, p: Dist, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor, likelihood: Likelihood) -> Tensor:
        """L_{t-1} in nats an image of the reverse step p, or where s = 0 the decoder's L_0. Shape (B,)."""
        ...
