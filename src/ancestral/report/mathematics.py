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
    "nll": ("", r"\mathbb{E}\left[-\log p_\theta(x_0)\right]"),
    "marginalised": (
        "",
        r"=\ \mathbb{E}\left[-\log \mathbb{E}_{q(x_{1:T} \mid x_0)}"
        r"\left[\frac{p_\theta(x_{0:T})}{q(x_{1:T} \mid x_0)}\right]\right]",
    ),
    "elbo": ("3, 17", r"\leq\ \mathbb{E}_q\left[-\log\frac{p_\theta(x_{0:T})}{q(x_{1:T} \mid x_0)}\right]\ =:\ L"),
    "elbo_steps": (
        "18",
        r"=\ \mathbb{E}_q\left[-\log p(x_T)-\sum_{t\geq 1}"
        r"\log\frac{p_\theta(x_{t-1} \mid x_t)}{q(x_t \mid x_{t-1})}\right]",
    ),
    "elbo_split": (
        "19",
        r"=\ \mathbb{E}_q\left[-\log p(x_T)-\sum_{t>1}\log\frac{p_\theta(x_{t-1} \mid x_t)}{q(x_t \mid x_{t-1})}"
        r"-\log\frac{p_\theta(x_0 \mid x_1)}{q(x_1 \mid x_0)}\right]",
    ),
    "elbo_markov": (
        "",
        r"=\ \mathbb{E}_q\left[-\log p(x_T)-\sum_{t>1}\log\frac{p_\theta(x_{t-1} \mid x_t)}{q(x_t \mid x_{t-1},x_0)}"
        r"-\log\frac{p_\theta(x_0 \mid x_1)}{q(x_1 \mid x_0)}\right]",
    ),
    "bayes_rule": (
        "",
        r"q(x_t \mid x_{t-1},x_0)=\frac{q(x_{t-1} \mid x_t,x_0)\ q(x_t \mid x_0)}{q(x_{t-1} \mid x_0)}",
    ),
    "elbo_bayes": (
        "20",
        r"\begin{array}{l}=\ \mathbb{E}_q\left[-\log p(x_T)-\sum_{t>1}\log\left(\frac{p_\theta(x_{t-1} \mid x_t)}"
        r"{q(x_{t-1} \mid x_t,x_0)}\cdot\frac{q(x_{t-1} \mid x_0)}{q(x_t \mid x_0)}\right)\right.\\"
        r"\quad\left.-\log\frac{p_\theta(x_0 \mid x_1)}{q(x_1 \mid x_0)}\right]\end{array}",
    ),
    "telescope": (
        "",
        r"\sum_{t>1}\log\frac{q(x_{t-1} \mid x_0)}{q(x_t \mid x_0)}=\log\frac{q(x_1 \mid x_0)}{q(x_T \mid x_0)}",
    ),
    "elbo_telescoped": (
        "21",
        r"=\ \mathbb{E}_q\left[-\log\frac{p(x_T)}{q(x_T \mid x_0)}-\sum_{t>1}\log\frac{p_\theta(x_{t-1} \mid x_t)}"
        r"{q(x_{t-1} \mid x_t,x_0)}-\log p_\theta(x_0 \mid x_1)\right]",
    ),
    "elbo_kl": (
        "5, 22",
        r"\begin{array}{l}=\ \mathbb{E}_q\left[D_{\mathrm{KL}}(q(x_T \mid x_0)\,\|\,p(x_T))\right.\\"
        r"\quad+\sum_{t>1}D_{\mathrm{KL}}(q(x_{t-1} \mid x_t,x_0)\,\|\,p_\theta(x_{t-1} \mid x_t))"
        r"\left.-\log p_\theta(x_0 \mid x_1)\right]\end{array}",
    ),
    "elbo_names": ("", r"=\ L_T+\sum_{t>1}L_{t-1}+L_0"),
    "tower": (
        "",
        r"\mathbb{E}_{q(x_{t-1} \mid x_t,x_0)}"
        r"\left[\log\frac{q(x_{t-1} \mid x_t,x_0)}{p_\theta(x_{t-1} \mid x_t)}\right]"
        r"=D_{\mathrm{KL}}(q(x_{t-1} \mid x_t,x_0)\,\|\,p_\theta(x_{t-1} \mid x_t))",
    ),
    "decoder": (
        "13",
        r"p_\theta(x_0 \mid x_1)=\prod_{i=1}^{D}\int_{\delta_-(x_0^i)}^{\delta_+(x_0^i)}"
        r"\mathcal{N}(x;\ \mu_\theta^i(x_1,1),\ \sigma_1^2)\,dx",
    ),
    # Reduced variance
    "total_variance": (
        "",
        r"\mathrm{Var}\left[\log\frac{q}{p_\theta}\right]=\mathrm{Var}\left[D_{\mathrm{KL}}(q\,\|\,p_\theta)\right]"
        r"+\mathbb{E}\left[\mathrm{Var}\left[\log\frac{q}{p_\theta}\ \middle|\ x_t\right]\right]",
    ),
    "error_of_means": (
        "8",
        r"L_{t-1}=\mathbb{E}_q\left[\frac{1}{2\sigma_t^2}\left\|\tilde\mu_t(x_t,x_0)-\mu_\theta(x_t,t)\right\|^2\right]+C",
    ),
    "error_of_eps": (
        "12",
        r"L_{t-1}-C=\mathbb{E}_{x_0,\epsilon}\left[\frac{\beta_t^2}{2\sigma_t^2\alpha_t(1-\bar\alpha_t)}"
        r"\left\|\epsilon-\epsilon_\theta(x_t,t)\right\|^2\right]",
    ),
    "error_of_x0": (
        "",
        r"L_{t-1}=\mathbb{E}_{x_0,\epsilon}"
        r"\left[\frac{\mathrm{SNR}_{t-1}-\mathrm{SNR}_t}{2}\left\|x_0-\hat x_0\right\|^2\right]"
        r"\quad(\sigma_t^2=\tilde\beta_t)",
    ),
    "simple": (
        "14",
        r"L_{\mathrm{simple}}=\mathbb{E}_{t,x_0,\epsilon}\left[\left\|\epsilon-\epsilon_\theta(x_t,t)\right\|^2\right]",
    ),
    # One reverse step
    # Connections
}
_INLINE = re.compile(r"(?<!\\)\$([^$\n]+)\$([.,;:!?)。，、；：！？）]*)")


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
    """Text with each $...$ as MathML, which keeps the punctuation behind it on its line."""
    return _INLINE.sub(
        lambda found: f'<span class="nb">{mathml(found[1])}{found[2]}</span>' if found[2] else mathml(found[1]), text
    )


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
