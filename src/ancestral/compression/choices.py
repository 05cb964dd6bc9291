"""The names that the codec's options take, for commands and pages that offer them before torch is imported."""

from __future__ import annotations

from typing import Literal, get_args

Profile = Literal["chunks", "quick", "small", "smallest"]
PROFILES: dict[str, int] = dict(zip(get_args(Profile), range(4), strict=True))  # by name, the number in a file
FINISHES = ("mean", "ode", "sample")  # keys of `completion.FINISHES`
