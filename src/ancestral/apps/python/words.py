"""Errors in the words of Python, where the command's name its options."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from ancestral.errors import UserError
from ancestral.runs.sampling_options import OPTIONS

_P = ParamSpec("_P")
_R = TypeVar("_R")
_OTHER = {"from": "begin_with", "bytes": "size", "fresh": "fresh=True"}
_SAME = {*OPTIONS, "budget", "device", "embeddings", "images", "jump", "learning_rate", "network"}
_SAME |= {"null_class", "num_images", "out", "preset", "profile", "resamples", "scheduler", "size", "terms", "track"}
_COMMAND = re.compile(r"(ancestral [a-z][^;]*)")  # as it is typed in a shell


def names_parameters(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, its errors in the words of Python."""

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            error.args = (in_python(str(error)),)
            raise

    return call


def in_python(message: str) -> str:
    """A message with parameters in the place of the command's options; commands that it quotes stay as they are."""
    return "".join(part if _COMMAND.fullmatch(part) else _spoken(part) for part in _COMMAND.split(message))


def _spoken(text: str) -> str:
    text = re.sub(r"--set (?:\w+\.)?(\w+)", r"\1", text)
    text = re.sub(r"=(true|false)\b", lambda found: f"={found[1].capitalize()}", text)
    text = re.sub(r"--(budget|guide|images|steps) (\+\w+|early)", r'\1="\2"', text)
    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", _parameter, text)


def _parameter(option: re.Match[str]) -> str:
    """The parameter of an option, if there is one."""
    name = option[1].replace("-", "_")
    return _OTHER.get(option[1], name if name in _SAME else option[0])
