"""torch's own generators, from which initial weights and dropout are drawn; all other noise is from `streams`."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

from ancestral.diffusion.processes.types import untyped


@contextmanager
def forked(device: torch.device, seed: int | None = None) -> Generator[None, None, None]:
    """Within it torch draws, from this seed where one is given; the generators of the CPU and the device then go back.

    torch's `fork_rng` knows no MPS, and its `manual_seed` seeds every device, also those that nobody puts back.
    """
    mps = torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        with untyped.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
                if device.type in ("cuda", "mps"):
                    getattr(torch, device.type).manual_seed(seed)
            yield
    finally:
        if mps is not None:
            torch.mps.set_rng_state(mps)
