"""Section 5, reduced variance: what the KL form saves, and what L_simple leaves out of the bound."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ancestral.apps.report import plots, variance_losses
from ancestral.apps.report.part import Number, Part, Words
from ancestral.apps.report.subject import Subject
from ancestral.diffusion.objectives.elbo_derivation import noise_variance, random_terms_variance
from ancestral.diffusion.objectives.losses import elbo_weight
from ancestral.diffusion.objectives.statistics import mean_and_error
from ancestral.runtime.plots import ACCENT, SECOND

ERROR = 0.01  # bits/dim
_FORMS = ("kl", "regrouped", "plain")
_WAYS = (*(f"{form}_{way}" for way in ("every", "random") for form in _FORMS), "kl_chain", "regrouped_chain")
NOISE, RANDOM = (
    "ancestral.diffusion.objectives.elbo_derivation.noise_variance",
    "ancestral.diffusion.objectives.elbo_derivation.random_terms_variance",
)


def part(subject: Subject) -> Part:
    """Spreads of single terms and of the whole bound; the two losses and where they look."""
    single, totals, weights, shares = (
        _Single(subject),
        _totals(subject),
        _Weights(subject),
        variance_losses.measured(subject),
    )
    images = float(subject.elbo.bits_per_dim.std()) if len(subject.test) > 1 else 0.0
    return Part(
        numbers={
            **single.numbers(),
            **totals,
            **weights.numbers(),
            **shares.numbers(),
            "images_std": Number(images, "bits/dim", subject.evaluation),
            "error": Number(ERROR, "bits/dim", RANDOM, digits=1),
            "pairs": Number(len(subject.chained), "images", NOISE),
            "terms": Number(subject.terms, "", subject.evaluation),
        },
        figures={"single": single.drawn, "weights": weights.drawn, "losses": shares.losses, "effort": shares.by_tenth},
        tables={
            "single": single.rows(),
            "totals": [
                [f"way {way}", *(replace(totals[f"{kind}_{way}"], unit="") for kind in ("calls", "std", "need"))]
                for way in _WAYS
            ],
            "effort": shares.rows(),
        },
        facts={
            "run": subject.model is not None,
            "some_times": subject.terms < len(subject.times) - 1,
            "more_at_noise": single.more_at_noise(),
            "chain_calmer": totals["std_regrouped_chain"].value < totals["std_kl_every"].value,
            "choice_dominates": totals["choice"].value > 50,
            "objective": subject.config.diffusion.objective,
            "times": subject.config.diffusion.times,
            **shares.facts(),
        },
    )


class _Single:
    """One term at a known t: its standard deviation by the draw of the noise alone, bits/dim, of three forms."""

    def __init__(self, subject: Subject) -> None:
        chains, later = subject.chains, slice(None, -1)  # the step to bytes has no KL
        self.t, unit = chains.t[later], (math.log(2) * subject.elbo.dimensions) ** 2
        self.var = {name: noise_variance(getattr(chains, name)[:, later]).mean(0) / unit for name in _FORMS}
        self.law = self.var["kl"] + chains.averaged[:, later].mean(0) / unit

    def numbers(self) -> dict[str, Number]:
        every = {name: float(var.mean().sqrt()) for name, var in self.var.items()}
        made = {f"single_{name}": Number(value, "bits/dim", NOISE) for name, value in every.items()}
        again = "ancestral.diffusion.objectives.elbo_derivation.log_ratio_variance"
        return made | {
            "single_law": Number(float(self.law.mean().sqrt()), "bits/dim", again),
            "ratio_regrouped": Number(every["regrouped"] / every["kl"], "", NOISE, digits=3),
            "ratio_plain": Number(every["plain"] / every["kl"], "", NOISE, digits=3),
        }

    def rows(self) -> list[list[Number | str]]:
        """At some times: means over the times about them, since a few chains know little of a single one."""
        T, rows = int(self.t[0]), []
        for centre in sorted({T, round(T / 2), round(T / 5), round(T / 20), round(T / 100), int(self.t[-1])}):
            near = (self.t >= 0.85 * centre) & (self.t <= 1.15 * centre)
            if not near.any():
                continue
            std = {name: float(var[near].mean().sqrt()) for name, var in self.var.items()}
            low, high = int(self.t[near].min()), int(self.t[near].max())
            ratio = Number(std["regrouped"] / std["kl"] if std["kl"] else math.inf, "", NOISE, digits=3)
            shown = str(low) if low == high else f"{low}–{high}"
            rows.append([shown, *(Number(std[name], "", NOISE, digits=3) for name in _FORMS), ratio])
        return rows

    def more_at_noise(self) -> bool:
        """Whether the KL form saves more in the noisier half of the times."""
        noisy = self.t > self.t.median()
        ratios = [float(self.var["regrouped"][some].mean() / self.var["kl"][some].mean()) for some in (noisy, ~noisy)]
        return ratios[0] > ratios[1]

    def drawn(self, words: Words) -> str:
        figure, (on,) = plots.axes(words["axes"]["t_log"], words["axes"]["std_of_term"], height=3.2)
        for name, colour in zip(_FORMS, (ACCENT, SECOND, plots.FAINT), strict=True):
            times, var = plots.by_log_t(self.t, self.var[name])
            on.plot(times, var**0.5, color=colour, label=words["axes"][f"form_{name}"])
        times, law = plots.by_log_t(self.t, self.law)
        on.plot(times, law**0.5, ":", color=plots.THIRD, linewidth=2, label=words["axes"]["form_law"])
        for axis in (on.xaxis, on.yaxis):
            plots.logarithmic(axis)
        plots.legend(on)
        return plots.svg(figure)


def _totals(subject: Subject) -> dict[str, Number]:
    """Of each way to estimate one image's bound: network calls, the draws' standard deviation, calls for ERROR."""
    chains, unit = subject.chains, math.log(2) * subject.elbo.dimensions
    lines, steps = chains.lines, len(chains.t)
    forms = {name: getattr(chains, name) for name in _FORMS}
    variances = {
        # The states of a chain depend on each other, but each by itself is as good as a fresh one.
        **{f"{name}_every": (noise_variance(terms).sum(1), steps, NOISE) for name, terms in forms.items()},
        **{
            f"{name}_random": (random_terms_variance(terms, subject.widths), subject.terms, RANDOM)
            for name, terms in forms.items()
        },
        "kl_chain": (noise_variance(lines["kl"]), steps, NOISE),
        "regrouped_chain": (noise_variance(lines["telescoped"]), steps, NOISE),
    }
    made = {}
    for way, (variance, calls, again) in variances.items():
        ends = noise_variance(chains.log_p_end) if way.startswith("plain") else 0.0  # -log p(x_T) is drawn too
        bits = (variance + ends) / unit**2
        mean = max(float(bits.mean()), 0.0)
        std = mean**0.5
        error = mean_and_error(bits)[1] / (2 * std) if std else None
        made[f"std_{way}"] = Number(std, "bits/dim", again, error)
        made[f"calls_{way}"] = Number(calls, "", again)
        made[f"need_{way}"] = Number(_rounded(calls * max(1.0, mean / ERROR**2)), "", again)
    shared = torch.cat([subject.widths.repeat_interleave(subject.widths), torch.ones(1)])  # a call, by so many steps
    by_choice = 1 - float((noise_variance(chains.kl) * shared).sum(1).mean() / unit**2) / (
        made["std_kl_random"].value ** 2 or 1.0
    )
    needs = [max(ERROR, made[f"std_{form}_every"].value) ** 2 for form in ("regrouped", "kl")]
    return made | {
        "choice": Number(100 * max(by_choice, 0.0) if subject.terms < steps else 0.0, "%", RANDOM, digits=3),
        "saved": Number(needs[0] / needs[1], "", NOISE, digits=3),
    }


def _rounded(calls: float) -> float:
    """Two digits: more a few chains do not know."""
    return float(round(calls, 1 - math.floor(math.log10(calls))))


class _Weights:
    """w_t of Eqs. 8 and 12 for both fixed variances, where s > 0."""

    def __init__(self, subject: Subject) -> None:
        schedule = subject.schedule
        t, s = torch.tensor(subject.times[:-2]), torch.tensor(subject.times[1:-1])
        self.x0 = elbo_weight(schedule, t, s)
        finite = schedule.snr(t) > 0  # at zero terminal SNR the error of eps says nothing of x0
        self.t, self.x0, self.later = t[finite], self.x0[finite], schedule.snr(t)[finite]
        self.small = self.x0 / self.later
        self.large = self.small * (schedule.noise_var(s) / schedule.noise_var(t))[finite]

    def numbers(self) -> dict[str, Number]:
        again = "ancestral.diffusion.objectives.losses.elbo_weight"
        values: dict[str, float | Tensor] = {
            "w_early_t": int(self.t[-1]),
            "w_late_t": int(self.t[0]),
            "w_early": self.small[-1],
            "w_late": self.small[0],
            "w_ratio": self.small.max() / self.small.min(),
            "w_x0_early": self.x0[-1],
            "w_x0_late": self.x0[0],
        }
        return {name: Number(float(value), "", again) for name, value in values.items()}

    def drawn(self, words: Words) -> str:
        figure, (eps, x0) = plots.axes(words["axes"]["t_log"], "", 2, 2.3)
        eps.plot(self.t, self.small, color=ACCENT, label=r"$\sigma_t^2 = \tilde{\beta}_t$")
        eps.plot(self.t, self.large, color=SECOND, label=r"$\sigma_t^2 = \beta_t$")
        eps.axhline(1, color=plots.FAINT, linestyle=":", label="$L_{simple}$")
        eps.set_ylabel(words["axes"]["weight_eps"])
        plots.legend(eps)
        x0.plot(self.t, self.x0, color=ACCENT)
        x0.set_ylabel(words["axes"]["weight_x0"])
        for one in (eps, x0):
            plots.logarithmic(one.xaxis)
            plots.logarithmic(one.yaxis)
        return plots.svg(figure)
