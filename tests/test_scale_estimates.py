"""What the page on scale counts, against what others have published of the same networks."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_operations_and_weights_of_the_papers_network_are_those_published(monkeypatch):
    """Ho et al. 2020: 35.7 million weights; 6.1 billion products an image (Fang et al. 2023, table 1)."""
    spec = importlib.util.spec_from_file_location("scale_estimates", ROOT / "scripts" / "scale_estimates.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "scale_estimates", module)  # dataclasses look it up
    spec.loader.exec_module(module)
    counted = module.counted(module.CASES[0])
    assert counted.parameters == pytest.approx(35.7e6, rel=0.005)
    assert counted.flops / (2 * 3) == pytest.approx(6.1e9, rel=0.03)  # a product and a sum, forward and two backward
    page = module.PAGE.read_text("utf-8")
    assert f"{counted.parameters / 1e6:,.1f} million weights, {counted.flops / 1e9:,.1f} GFLOP" in page
