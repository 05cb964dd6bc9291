"""Torch modules, optimisers and averages of weights."""
