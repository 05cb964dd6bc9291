"""Loss spikes, and a loss that has risen for good."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WINDOW = 64  # updates


class LossMonitor:
    """Compares each update's loss with those of the last `WINDOW` updates.

    Args:
        spike: a loss is a spike when it is so many times the largest of the window; None: never.
    """

    def __init__(self, spike: float | None) -> None:
        self.spike = spike
        self.losses = torch.zeros(WINDOW, dtype=torch.float64)
        self.updates = 0
        self.lowest = math.inf  # median of any window so far

    def is_spike(self, loss: float) -> bool:
        """Whether this loss is a spike."""
        return self.spike is not None and self.updates >= WINDOW and loss > self.spike * float(self.losses.max())

    def add(self, loss: float) -> None:
        """Add the loss of an applied update."""
        self.losses[self.updates % WINDOW] = loss
        self.updates += 1
        if self.updates % WINDOW == 0:
            self.lowest = min(self.lowest, float(self.losses.median()))

    @property
    def over_lowest(self) -> float:
        """The median of the window over the lowest it has been, at least 1; far above 1 the run diverges."""
        return (
            max(1.0, float(self.losses.median()) / self.lowest) if self.updates >= WINDOW and self.lowest > 0 else 1.0
        )

    def state(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint."""
        return {
            "losses": self.losses,
            "taken": torch.tensor(self.updates),
            "lowest": torch.tensor(self.lowest, dtype=torch.float64),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Load the result of `state`."""
        self.losses = state["losses"].clone()
        self.updates, self.lowest = int(state["taken"]), float(state["lowest"])
