"""Denoising diffusion probabilistic models, exact like the paper.

The rooms: `diffusion` (the mathematics), `networks`, `runtime`, `data`, `runs`, `training`, `sampling`,
`compression`, `evaluation`, `apps`. The names of everyday work are here; each is imported when it is first asked for,
so that `ancestral --help` answers before torch would have loaded.
"""

from __future__ import annotations

import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ancestral.apps.python.images import Film, Images
    from ancestral.apps.python.model import Model, load
    from ancestral.apps.python.training import Run, distill, train
    from ancestral.diffusion.denoisers.denoiser import Denoiser
    from ancestral.diffusion.objectives.elbo import Elbo, elbo
    from ancestral.diffusion.processes.gaussian import Gaussian
    from ancestral.diffusion.processes.noise_schedule import NoiseSchedule
    from ancestral.diffusion.processes.normal import Normal
    from ancestral.diffusion.processes.schedules import SCHEDULES, cosine, linear
    from ancestral.diffusion.samplers.loop import walk
    from ancestral.diffusion.samplers.sample import latents, trajectory
    from ancestral.diffusion.samplers.solvers import SOLVERS
    from ancestral.diffusion.samplers.transitions import DDIM, Ancestral
    from ancestral.errors import UserError
    from ancestral.networks.unet import UNet

__version__ = "0.1.0"
BEGAN = time.monotonic()  # of a command: the process itself may have done other things before, such as a job's script
__all__ = [
    "DDIM",
    "SCHEDULES",
    "SOLVERS",
    "Ancestral",
    "Denoiser",
    "Elbo",
    "Film",
    "Gaussian",
    "Images",
    "Model",
    "NoiseSchedule",
    "Normal",
    "Run",
    "UNet",
    "UserError",
    "__version__",
    "cosine",
    "distill",
    "elbo",
    "latents",
    "linear",
    "load",
    "train",
    "trajectory",
    "walk",
]
_ROOMS = {
    "apps.python.images": "Film Images",
    "apps.python.model": "Model load",
    "apps.python.training": "Run distill train",
    "diffusion.denoisers.denoiser": "Denoiser",
    "diffusion.objectives.elbo": "Elbo elbo",
    "diffusion.processes.normal": "Normal",
    "diffusion.processes.gaussian": "Gaussian",
    "diffusion.processes.noise_schedule": "NoiseSchedule",
    "diffusion.processes.schedules": "SCHEDULES cosine linear",
    "diffusion.samplers.loop": "walk",
    "diffusion.samplers.sample": "latents trajectory",
    "diffusion.samplers.solvers": "SOLVERS",
    "diffusion.samplers.transitions": "DDIM Ancestral",
    "errors": "UserError",
    "networks.unet": "UNet",
}
_MODULES = {name: module for module, names in _ROOMS.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'ancestral' has no attribute '{name}'")
    found = globals()[name] = getattr(import_module(f"ancestral.{_MODULES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
