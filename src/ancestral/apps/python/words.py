"""Errors in the words of Python, where the command's name its options."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

from ancestral.errors import UserError
from ancestral.runs.config import known_keys
from ancestral.runs.sampling_options import OPTIONS

_P = ParamSpec("_P")
_R = TypeVar("_R")
_OTHER = {"bytes": "size", "fresh": "fresh=True", "lossy": "lossy=True"}
_COMMAND = re.compile(r"(ancestral [a-z][^;]*)")  # as it is typed in a shell


def names_parameters(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, its errors in the words of Python."""
    own = set(signature(function).parameters)
    settings = [key.partition(".")[2] for key in known_keys()] if "settings" in own else []
    names = {name.replace("_", "-"): name for name in (*OPTIONS, *settings, *own, "device")}
    names |= {"out": "path"} if "path" in own else {}
    names |= {option: name for option, name in _OTHER.items() if name.partition("=")[0] in own}
    names["from"] = "begin_with" if "begin_with" in own else "model"

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            error.args = (in_python(str(error), names),)
            raise

    return call


def in_python(message: str, names: Mapping[str, str]) -> str:
    """A message with parameters in the place of the command's options, by `names`; commands that it quotes stay."""
    return "".join(part if _COMMAND.fullmatch(part) else _spoken(part, names) for part in _COMMAND.split(message))


def _spoken(text: str, names: Mapping[str, str]) -> str:
    text = re.sub(r"--set (?:\w+\.)?(\w+)", r"\1", text)
    text = re.sub(r"=(true|false)\b", lambda found: f"={found[1].capitalize()}", text)
    text = re.sub(r"--(budget|guide|images|steps) (\+\w+|early)", r'\1="\2"', text)
    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda option: names.get(option[1], option[0]), text)
