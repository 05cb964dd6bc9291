"""The equations of the report, each once, as LaTeX; and LaTeX as MathML, which browsers draw themselves."""

from __future__ import annotations

import re
from functools import cache

from ancestral.errors import missing

try:
    from latex2mathml.converter import convert
except ImportError:
    raise missing("ancestral explain", "latex2mathml", "explain") from None

# By name: (number in Ho et al. 2020, or "", LaTeX). The text says `{{ eq("name") }}`; at %% a line may break.
EQUATIONS: dict[str, tuple[str, str]] = {
    # What diffusion models are
    "latent": (
        "1",
        r"p_\theta(x_0) = \int p_\theta(x_{0:T})\, dx_{1:T},%% "
        r"p_\theta(x_{0:T}) = p(x_T) \prod_{t=1}^{T} p_\theta(x_{t-1} \mid x_t)",
    ),
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
        r"%% = \sqrt{\bar\alpha_t}\, x_0%% + \sqrt{\alpha_t (1-\bar\alpha_{t-1})}\, \epsilon'"
        r" + \sqrt{\beta_t}\, \epsilon_t",
    ),
    "variances_add": ("", r"\alpha_t (1-\bar\alpha_{t-1}) + \beta_t = 1 - \bar\alpha_t"),
    "snr": ("", r"\mathrm{SNR}_t = \frac{\bar\alpha_t}{1-\bar\alpha_t}"),
    "kl_to_noise": (
        "",
        r"\mathrm{KL}\left(q(x_t \mid x_0)\ \Vert\ \mathcal{N}(0, I)\right)"
        r"%% = \frac{1}{2} \sum_i \left(\bar\alpha_t\, x_{0,i}^2 - \bar\alpha_t - \log(1-\bar\alpha_t)\right)",
    ),
    "posterior": (
        "6",
        r"q(x_{t-1} \mid x_t, x_0)%% = \mathcal{N}\left(x_{t-1};\ \tilde\mu_t(x_t, x_0),\ \tilde\beta_t I\right)",
    ),
    "posterior_mean": (
        "7",
        r"\tilde\mu_t(x_t, x_0) = \frac{\sqrt{\bar\alpha_{t-1}}\, \beta_t}{1-\bar\alpha_t}\, x_0"
        r"%% + \frac{\sqrt{\alpha_t}\, (1-\bar\alpha_{t-1})}{1-\bar\alpha_t}\, x_t",
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
        r"p_\theta(x_{t-1} \mid x_t)%% = \mathcal{N}\left(x_{t-1};\ \mu_\theta(x_t, t),\ \Sigma_\theta(x_t, t)\right)",
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
    "x_t_of_eps": ("4", r"x_t(x_0, \epsilon) = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1-\bar\alpha_t}\, \epsilon"),
    "term_mean_of_eps": (
        "10",
        r"= \frac{1}{2\sigma_t^2} \bigg\| \frac{1}{\sqrt{\alpha_t}} \left(x_t"
        r" - \frac{\beta_t}{\sqrt{1-\bar\alpha_t}}\, \epsilon\right)%% - \mu_\theta(x_t, t) \bigg\|^2",
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
    # The network
    "sinusoids": (
        "",
        r"\mathrm{waves}(t) = \left(\sin \omega_k t,\ \cos \omega_k t\right),%%"
        r" 1 = \omega_0 > \cdots > \omega_{K-1} \approx 10^{-4}",
    ),
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
        r"=\ \mathbb{E}_q\bigg[-\log p(x_T)%%-\sum_{t\geq 1}"
        r"\log\frac{p_\theta(x_{t-1} \mid x_t)}{q(x_t \mid x_{t-1})}\bigg]",
    ),
    "elbo_split": (
        "19",
        r"=\ \mathbb{E}_q\bigg[-\log p(x_T)%%-\sum_{t>1}\log\frac{p_\theta(x_{t-1} \mid x_t)}{q(x_t \mid x_{t-1})}"
        r"%%-\log\frac{p_\theta(x_0 \mid x_1)}{q(x_1 \mid x_0)}\bigg]",
    ),
    "elbo_markov": (
        "",
        r"=\ \mathbb{E}_q\bigg[-\log p(x_T)%%-\sum_{t>1}\log\frac{p_\theta(x_{t-1} \mid x_t)}{q(x_t \mid x_{t-1},x_0)}"
        r"%%-\log\frac{p_\theta(x_0 \mid x_1)}{q(x_1 \mid x_0)}\bigg]",
    ),
    "bayes_rule": (
        "",
        r"q(x_t \mid x_{t-1},x_0)=\frac{q(x_{t-1} \mid x_t,x_0)\ q(x_t \mid x_0)}{q(x_{t-1} \mid x_0)}",
    ),
    "elbo_bayes": (
        "20",
        r"=\ \mathbb{E}_q\bigg[-\log p(x_T)%%-\sum_{t>1}\log\left(\frac{p_\theta(x_{t-1} \mid x_t)}"
        r"{q(x_{t-1} \mid x_t,x_0)}\cdot\frac{q(x_{t-1} \mid x_0)}{q(x_t \mid x_0)}\right)"
        r"%%-\log\frac{p_\theta(x_0 \mid x_1)}{q(x_1 \mid x_0)}\bigg]",
    ),
    "telescope": (
        "",
        r"\sum_{t>1}\log\frac{q(x_{t-1} \mid x_0)}{q(x_t \mid x_0)}=\log\frac{q(x_1 \mid x_0)}{q(x_T \mid x_0)}",
    ),
    "elbo_telescoped": (
        "21",
        r"=\ \mathbb{E}_q\bigg[-\log\frac{p(x_T)}{q(x_T \mid x_0)}%%-\sum_{t>1}\log\frac{p_\theta(x_{t-1} \mid x_t)}"
        r"{q(x_{t-1} \mid x_t,x_0)}%%-\log p_\theta(x_0 \mid x_1)\bigg]",
    ),
    "elbo_kl": (
        "5, 22",
        r"=\ \mathbb{E}_q\bigg[D_{\mathrm{KL}}(q(x_T \mid x_0)\,\|\,p(x_T))"
        r"%%+\sum_{t>1}D_{\mathrm{KL}}(q(x_{t-1} \mid x_t,x_0)\,\|\,p_\theta(x_{t-1} \mid x_t))"
        r"%%-\log p_\theta(x_0 \mid x_1)\bigg]",
    ),
    "elbo_names": ("", r"=\ L_T+\sum_{t>1}L_{t-1}+L_0"),
    "tower": (
        "",
        r"\mathbb{E}_{q(x_{t-1} \mid x_t,x_0)}"
        r"\left[\log\frac{q(x_{t-1} \mid x_t,x_0)}{p_\theta(x_{t-1} \mid x_t)}\right]"
        r"%%=D_{\mathrm{KL}}(q(x_{t-1} \mid x_t,x_0)\,\|\,p_\theta(x_{t-1} \mid x_t))",
    ),
    "decoder": (
        "13",
        r"p_\theta(x_0 \mid x_1)%%=\prod_{i=1}^{D}\int_{\delta_-(x_0^i)}^{\delta_+(x_0^i)}"
        r"\mathcal{N}(x;\ \mu_\theta^i(x_1,1),\ \sigma_1^2)\,dx",
    ),
    # Reduced variance
    "total_variance": (
        "",
        r"\mathrm{Var}\left[\log\frac{q}{p_\theta}\right]%%=\mathrm{Var}\left[D_{\mathrm{KL}}(q\,\|\,p_\theta)\right]"
        r"%%+\mathbb{E}\left[\mathrm{Var}\left[\log\frac{q}{p_\theta}\ \middle|\ x_t\right]\right]",
    ),
    "error_of_means": (
        "8",
        r"L_{t-1}%%=\mathbb{E}_q\left[\frac{1}{2\sigma_t^2}\left\|\tilde\mu_t(x_t,x_0)-\mu_\theta(x_t,t)\right\|^2\right]+C",
    ),
    "error_of_eps": (
        "12",
        r"L_{t-1}-C%%=\mathbb{E}_{x_0,\epsilon}\left[\frac{\beta_t^2}{2\sigma_t^2\alpha_t(1-\bar\alpha_t)}"
        r"\left\|\epsilon-\epsilon_\theta(x_t,t)\right\|^2\right]",
    ),
    "error_of_x0": (
        "",
        r"L_{t-1}%%=\mathbb{E}_{x_0,\epsilon}"
        r"\left[\frac{\mathrm{SNR}_{t-1}-\mathrm{SNR}_t}{2}\left\|x_0-\hat x_0\right\|^2\right]"
        r"%%(\sigma_t^2=\tilde\beta_t)",
    ),
    "simple": (
        "14",
        r"L_{\mathrm{simple}}=\mathbb{E}_{t,x_0,\epsilon}\left[\left\|\epsilon-\epsilon_\theta(x_t,t)\right\|^2\right]",
    ),
    # One reverse step
    # Connections
    "connect_score": (
        "",
        r"\nabla_{x_t} \log q(x_t) = -\frac{\mathbb{E}[\epsilon \mid x_t]}{\sqrt{1-\bar\alpha_t}}"
        r" \approx -\frac{\epsilon_\theta(x_t, t)}{\sqrt{1-\bar\alpha_t}}",
    ),
    "connect_langevin": ("", r"x' = x + h\, \nabla_x \log q(x) + \sqrt{2h}\, z, \quad z \sim \mathcal{N}(0, I)"),
    "connect_path": ("", r"\log q(x_b) - \log q(x_a) = \int_a^b \nabla_x \log q(x) \cdot dx"),
    "connect_orders": (
        "16",
        r"L = \mathrm{KL}\left(q(x_T) \,\|\, p(x_T)\right)%% + \mathbb{E}_q\bigg[ \sum_{t \ge 1}"
        r" \mathrm{KL}\left(q(x_{t-1} \mid x_t) \,\|\, p_\theta(x_{t-1} \mid x_t)\right) \bigg]%% + H(x_0)",
    ),
}
# What the converter does not know: (what it makes, what is meant).
_MENDED = [
    # TeX sets a thin space between such a name and what it is applied to, unless that is in brackets.
    (r"(<mi>(?:log|exp|sin|cos)</mi>)(?=<m(?:i|n|sub|sup|subsup|over|frac)\b)", r'\1<mspace width="0.1667em" />'),
    (r"<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>"),  # "is distributed as" is a relation, not a letter
    # The bars of a norm whose ends are on two lines: as tall as what they enclose.
    (r"<mo minsize[^>]*>\\\|<", '<mo stretchy="true" minsize="2.5em">&#x02016;<'),
    # After an opening bracket, a comma or a relation a minus is a sign.
    (
        r"(<mo[^>]*>(?:[(\[]|&#x0(?:0028|007B|002C|003D|2248|2264);)</mo>)<mo>(?=&#x02212;</mo>)",
        r'\1<mo form="prefix">',
    ),
]
_FIRST = re.compile(r"(<math[^>]*><mrow>)<mo>")
# A displayed sum within brackets has its limit below it too.
_LIMIT = re.compile(r"<msub>(<mo>&#x02211;</mo><mrow>(?:(?!</?m(?:row|sub)\b).)*</mrow>)</msub>")
_INLINE = re.compile(r"(?<!\\)\$([^$\n]+)\$([.,;:!?)。，、；：！？）]*)")


@cache
def mathml(latex: str, display: str = "inline") -> str:
    """MathML of a LaTeX formula; its source is the alternative text."""
    made = convert(latex, display=display)
    for pattern, meant in _MENDED:
        made = re.sub(pattern, meant, made)
    if display == "block":
        made = _LIMIT.sub(r"<munder>\1</munder>", made)
    return made.replace("<math ", f'<math alttext="{_attribute(latex)}" ', 1)


def equation(name: str) -> str:
    """A displayed equation with its number in the paper."""
    number, latex = EQUATIONS[name]
    label = f'<span class="eqn">({number})</span>' if number else ""
    first, *others = (mathml(part.strip(), "block") for part in latex.split("%%"))
    # What a later part begins with stands between two terms, whether or not the line breaks there.
    parts = "".join([first, *(_FIRST.sub(r'\1<mo form="infix">', part, count=1) for part in others)])
    return f'<div class="equation" data-equation="{name}"><div class="parts">{parts}</div>{label}</div>'


def inline(text: str) -> str:
    """Text with each $...$ as MathML, which keeps the punctuation behind it on its line."""
    return _INLINE.sub(
        lambda found: f'<span class="nb">{mathml(found[1])}{found[2]}</span>' if found[2] else mathml(found[1]), text
    )


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
