"""Whether a run still learns: single losses far out of line, and a loss that has risen for good."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WINDOW = 64  # updates


class Guard:
    """Compares each update's loss with the last ones.

    Args:
        spike: a loss is one when it is so many times the largest of the last `WINDOW`; None: never.
    """

    def __init__(self, spike: float | None) -> None:
        self.spike = spike
        self.losses = torch.zeros(WINDOW, dtype=torch.float64)
        self.taken = 0
        self.lowest = math.inf  # median of any window so far

    def is_spike(self, loss: float) -> bool:
        """Whether this loss is out of line with those taken in."""
        return self.spike is not None and self.taken >= WINDOW and loss > self.spike * float(self.losses.max())

    def take(self, loss: float) -> None:
        """Take in the loss of an update that was made."""
        self.losses[self.taken % WINDOW] = loss
        self.taken += 1
        if self.taken % WINDOW == 0:
            self.lowest = min(self.lowest, float(self.losses.median()))

    @property
    def risen(self) -> float:
        """The median of the last losses over the lowest it has been, at least 1; far above 1 the run unlearns."""
        return max(1.0, float(self.losses.median()) / self.lowest) if self.taken >= WINDOW and self.lowest > 0 else 1.0

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must keep."""
        return {
            "losses": self.losses,
            "taken": torch.tensor(self.taken),
            "lowest": torch.tensor(self.lowest, dtype=torch.float64),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up a state that `state` gave."""
        self.losses = state["losses"].clone()
        self.taken, self.lowest = int(state["taken"]), float(state["lowest"])
