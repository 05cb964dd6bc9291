"""Denoising diffusion probabilistic models, exact like the paper.

The public names live in their modules: `from ancestral.schedule import linear`, `from ancestral.walk import walk`. This
file imports nothing, so that `ancestral --help` answers before torch would have loaded.
"""

__version__ = "0.1.0"
