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
    "connect_score": (
        "",
        r"\nabla_{x_t} \log q(x_t) = -\frac{\mathbb{E}[\epsilon \mid x_t]}{\sqrt{1-\bar\alpha_t}}"
        r" \approx -\frac{\epsilon_\theta(x_t, t)}{\sqrt{1-\bar\alpha_t}}",
    ),
    "connect_simple": (
        "14",
        r"L_{\mathrm{simple}} = \mathbb{E}_{t, x_0, \epsilon}\left\| \epsilon - \epsilon_\theta"
        r"\left(\sqrt{\bar\alpha_t}\, x_0 + \sqrt{1-\bar\alpha_t}\, \epsilon,\ t\right) \right\|^2",
    ),
    "connect_step": (
        "11",
        r"\mu_\theta(x_t, t) = \frac{1}{\sqrt{\alpha_t}}\left( x_t - \frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\,"
        r" \epsilon_\theta(x_t, t) \right)",
    ),
    "connect_langevin": ("", r"x' = x + h\, \nabla_x \log q(x) + \sqrt{2h}\, z, \quad z \sim \mathcal{N}(0, I)"),
    "connect_path": ("", r"\log q(x_b) - \log q(x_a) = \int_a^b \nabla_x \log q(x) \cdot dx"),
    "connect_orders": (
        "16",
        r"L = \mathrm{KL}\left(q(x_T) \,\|\, p(x_T)\right) + \mathbb{E}_q\left[ \sum_{t \ge 1}"
        r" \mathrm{KL}\left(q(x_{t-1} \mid x_t) \,\|\, p_\theta(x_{t-1} \mid x_t)\right) \right] + H(x_0)",
    ),
    "connect_picture": (
        "15",
        r"x_0 \approx \hat x_0"
        r" = \left( x_t - \sqrt{1-\bar\alpha_t}\, \epsilon_\theta(x_t) \right) / \sqrt{\bar\alpha_t}",
    ),
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
