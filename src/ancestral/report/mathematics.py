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
    "one_step": (
        "2",
        r"q(x_t \mid x_{t-1}) = \mathcal{N}\left(x_t;\ \sqrt{1-\beta_t}\, x_{t-1},\ \beta_t I\right)",
    ),
    "two_steps": (
        "",
        r"x_t = \sqrt{\alpha_t}\, x_{t-1} + \sqrt{\beta_t}\, \epsilon_t"
        r" = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{\alpha_t (1-\bar\alpha_{t-1})}\, \epsilon'"
        r" + \sqrt{\beta_t}\, \epsilon_t",
    ),
    "variances_add": ("", r"\alpha_t (1-\bar\alpha_{t-1}) + \beta_t = 1 - \bar\alpha_t"),
    "snr": ("", r"\mathrm{SNR}_t = \frac{\bar\alpha_t}{1-\bar\alpha_t}"),
    "kl_to_noise": (
        "",
        r"\mathrm{KL}\left(q(x_t \mid x_0)\ \Vert\ \mathcal{N}(0, I)\right)"
        r" = \frac{1}{2} \sum_i \left(\bar\alpha_t\, x_{0,i}^2 - \bar\alpha_t - \log(1-\bar\alpha_t)\right)",
    ),
    "posterior": (
        "6",
        r"q(x_{t-1} \mid x_t, x_0) = \mathcal{N}\left(x_{t-1};\ \tilde\mu_t(x_t, x_0),\ \tilde\beta_t I\right)",
    ),
    "posterior_mean": (
        "7",
        r"\tilde\mu_t(x_t, x_0) = \frac{\sqrt{\bar\alpha_{t-1}}\, \beta_t}{1-\bar\alpha_t}\, x_0"
        r" + \frac{\sqrt{\alpha_t}\, (1-\bar\alpha_{t-1})}{1-\bar\alpha_t}\, x_t",
    ),
    "posterior_variance": ("7", r"\tilde\beta_t = \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\, \beta_t"),
    "posterior_gain": (
        "",
        r"\frac{\tilde\mu}{\sqrt{\bar\alpha_s}} = (1-c)\, \frac{x_t}{\sqrt{\bar\alpha_t}} + c\, x_0,"
        r"\quad c = 1 - \frac{\mathrm{SNR}_t}{\mathrm{SNR}_s}",
    ),
    "bayes": (
        "",
        r"q(x_{t-1} \mid x_t, x_0) = \frac{q(x_{t-1} \mid x_0)\ q(x_t \mid x_{t-1})}{q(x_t \mid x_0)}",
    ),
    # The reverse process
    "reverse_chain": (
        "1",
        r"p_\theta(x_{0:T}) = p(x_T) \prod_{t=1}^{T} p_\theta(x_{t-1} \mid x_t)",
    ),
    "reverse_step": (
        "1",
        r"p_\theta(x_{t-1} \mid x_t) = \mathcal{N}\left(x_{t-1};\ \mu_\theta(x_t, t),\ \Sigma_\theta(x_t, t)\right)",
    ),
    "reverse_mean": ("", r"\mu_\theta(x_t, t) = \tilde\mu_t\left(x_t,\ \hat{x}_0(x_t, t)\right)"),
    "v": ("", r"v = \sqrt{\bar\alpha_t}\, \epsilon - \sqrt{1-\bar\alpha_t}\, x_0"),
    "x0_of_eps": (
        "15",
        r"\hat{x}_0 = \frac{x_t - \sqrt{1-\bar\alpha_t}\, \epsilon_\theta(x_t, t)}{\sqrt{\bar\alpha_t}}",
    ),
    "mean_of_eps": (
        "11",
        r"\mu_\theta(x_t, t) = \frac{1}{\sqrt{\alpha_t}} \left(x_t"
        r" - \frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\, \epsilon_\theta(x_t, t)\right)",
    ),
    "term_kl": ("", r"\mathrm{KL}\left(q(x_{t-1} \mid x_t, x_0)\ \Vert\ p_\theta(x_{t-1} \mid x_t)\right)"),
    "term_means": ("8", r"= \frac{1}{2\sigma_t^2} \left\Vert \tilde\mu_t(x_t, x_0) - \mu_\theta(x_t, t) \right\Vert^2"),
    "x_t_of_eps": ("9", r"x_t(x_0, \epsilon) = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1-\bar\alpha_t}\, \epsilon"),
    "term_mean_of_eps": (
        "10",
        r"= \frac{1}{2\sigma_t^2} \left\Vert \frac{1}{\sqrt{\alpha_t}} \left(x_t"
        r" - \frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\, \epsilon\right) - \mu_\theta(x_t, t) \right\Vert^2",
    ),
    "term_eps": (
        "12",
        r"= \frac{\beta_t^2}{2\sigma_t^2 \alpha_t (1-\bar\alpha_t)}"
        r" \left\Vert \epsilon - \epsilon_\theta(x_t, t) \right\Vert^2",
    ),
    "term_x0": (
        "",
        r"= \frac{1}{2} \left(\mathrm{SNR}_{t-1} - \mathrm{SNR}_t\right) \left\Vert x_0 - \hat{x}_0 \right\Vert^2",
    ),
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
