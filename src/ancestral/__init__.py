"""Denoising diffusion probabilistic models, exact like the paper.

The rooms: `diffusion` (the mathematics), `networks`, `data`, `runs`, `training`, `sampling`, `compression`,
`evaluation`, `apps`. This file imports nothing of them, so that `ancestral --help` answers before torch would have
loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from ancestral.diffusion.denoisers.denoiser import Denoiser

__version__ = "0.1.0"


def from_pretrained(source: str | Path, device: str = "cpu") -> Denoiser:
    """A model in evaluation mode: of a run, a published or a diffusers folder, or of USER/NAME[@REVISION] on the hub.

    Args:
        source: the folder, or the name; a folder of that name comes first.
        device: auto, cpu, cuda, cuda:1 or mps.

    Raises:
        UserError: when there is none, or it is damaged or of a kind unknown here.
    """
    from ancestral.runs.hub import hub

    return hub.from_pretrained(source, device)
