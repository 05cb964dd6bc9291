"""The names that the options of an export take, for commands that offer them before torch is imported."""

from __future__ import annotations

FORMATS = ("diffusers", "onnx", "torch")  # a folder of diffusers; the others are keys of `sampling.export.FORMATS`
SPACINGS = ("leading", "trailing", "linspace")  # of the times of a diffusers pipeline
PRECISIONS = ("float32", "int8")  # of the network in an ONNX file
