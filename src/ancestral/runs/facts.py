"""Facts of the data that a network is built and used with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

Side = Annotated[int, Meta(ge=1, le=2**16)]


@dataclass(frozen=True)
class Facts:
    """The images' shape (C, H, W), the names of their classes, the length of their vectors."""

    shape: tuple[Side, Side, Side]
    class_names: tuple[str, ...] = ()
    embedding: int = 0
    untrained: tuple[str, ...] = ()  # classes without a training image; older runs have none

    @property
    def trained(self) -> tuple[str, ...]:
        """The classes that the model can draw."""
        return tuple(name for name in self.class_names if name not in self.untrained)
