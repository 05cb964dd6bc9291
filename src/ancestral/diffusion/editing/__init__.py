"""Inpainting, interpolation and inverse problems."""
