"""The equations of the report, each once, as LaTeX; and LaTeX as MathML, which browsers draw themselves."""

from __future__ import annotations

import re
from functools import cache

from latex2mathml.converter import convert

# By name: (number in Ho et al. 2020, or "", LaTeX). The text says `{{ eq("name") }}`.
EQUATIONS: dict[str, tuple[str, str]] = {
    # The forward process
    "marginal": (
        "4",
        r"q(x_t \mid x_0) = \mathcal{N}\left(x_t;\ \sqrt{\bar\alpha_t}\, x_0,\ (1-\bar\alpha_t)\, I\right)",
    ),
    # The reverse process
    # The variational lower bound
    # Reduced variance
    # One reverse step
    # Connections
}
_INLINE = re.compile(r"(?<!\\)\$([^$\n]+)\$")


@cache
def mathml(latex: str, display: str = "inline") -> str:
    """MathML of a LaTeX formula; its source is the alternative text."""
    made = convert(latex, display=display)
    return made.replace("<math ", f'<math alttext="{_attribute(latex)}" ', 1)


def equation(name: str) -> str:
    """A displayed equation with its number in the paper."""
    number, latex = EQUATIONS[name]
    label = f'<span class="eqn">({number})</span>' if number else ""
    return f'<div class="equation" id="eq-{name}" data-equation="{name}">{mathml(latex, "block")}{label}</div>'


def inline(text: str) -> str:
    """Text with each $...$ as MathML."""
    return _INLINE.sub(lambda found: mathml(found[1]), text)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
