"""Small generators of other families, for comparison: adversarial, autoencoding, and a normalizing flow.

Each is a network that draws images on [-1, 1] from keyed noise, and a way to learn. Training counts images as
`ancestral.training.trainer` does: image n, its row and its noise are functions of (seed, n), and so are the weights
in the end.
"""

from baselines.flow import Flow
from baselines.gan import Adversarial
from baselines.training import Learning, Likelihood, Method, drawing_part, load, planned, save, train
from baselines.vae import Vae

METHODS: dict[str, Method] = {
    "gan": Method(Adversarial, peak=1e-3, decay=0.5, batch=32),
    "vae": Method(lambda shape: Likelihood(Vae(shape)), peak=6e-3, decay=0.7, batch=64),
    "flow": Method(lambda shape: Likelihood(Flow(shape)), peak=1.5e-2, decay=0.7, batch=64),
}

__all__ = [
    "METHODS",
    "Adversarial",
    "Flow",
    "Learning",
    "Likelihood",
    "Method",
    "Vae",
    "drawing_part",
    "load",
    "planned",
    "save",
    "train",
]
