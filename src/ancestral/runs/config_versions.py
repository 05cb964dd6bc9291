"""Convert configurations of earlier versions to the present schema: the same numbers."""

from __future__ import annotations

from typing import Any

_VARIANCES = {"small": "fixedsmall", "large": "beta"}  # `large` was beta_1 at t = 1 too, unlike `fixedlarge`


def updated(config: Any) -> Any:
    """The configuration of a run in the present schema where an earlier one is known; anything else as it is."""
    return _from_1(config) if isinstance(config, dict) and config.get("schema") == 1 else config


def _from_1(config: dict[str, Any]) -> dict[str, Any]:
    """Schema 1: the fixed variances had other names."""
    diffusion = config.get("diffusion")
    if isinstance(diffusion, dict) and isinstance(diffusion.get("variance"), str):
        variance = diffusion["variance"]
        # An absorbing chain has no variance: there it is a preset's word, which still is that preset's.
        named = _VARIANCES.get(variance, variance) if diffusion.get("chain", "gaussian") == "gaussian" else "fixedlarge"
        diffusion = {**diffusion, "variance": named}
    return {**config, "diffusion": diffusion, "schema": 2} if "diffusion" in config else {**config, "schema": 2}


def variance_as_begun(asked: str, begun: Any) -> str:
    """What a variance means in the command that began this configuration and is given again: names have changed since.

    Args:
        asked: as the command says it, or its preset today.
        begun: the configuration as it was written when the run began.
    """
    if not isinstance(begun, dict) or begun.get("schema") != 1 or not isinstance(begun.get("diffusion"), dict):
        return asked
    variance = begun["diffusion"].get("variance")
    same = isinstance(variance, str) and asked in (variance, f"fixed{variance}")
    return _from_1(begun)["diffusion"]["variance"] if same else asked
