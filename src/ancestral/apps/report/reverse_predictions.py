"""What the model predicts at each t: one image looked at closely, and the errors of x0, of eps and of its target."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ancestral.apps.report import plots
from ancestral.apps.report.part import Number, Part, Words, compared
from ancestral.apps.report.reverse_identities import guess_errors
from ancestral.apps.report.subject import Subject
from ancestral.diffusion.denoisers.targets import TARGETS
from ancestral.diffusion.objectives.statistics import mean_and_error
from ancestral.diffusion.processes.levels import HALF_RANGE
from ancestral.diffusion.processes.streams import Streams
from ancestral.runtime.plots import ACCENT, SECOND

COLUMNS, SHADE = 8, 3.0  # times; eps of so many standard deviations is white, or black


class Errors(NamedTuple):
    """Squared errors a pixel in K parts of t, least noise first; float64 (K,)."""

    t: Tensor  # mean in each part
    value: Tensor
    error: Tensor  # standard error of the mean over images


def part(subject: Subject) -> Part:
    """The strip of one image and the curves of the bound's own draws."""
    schedule, guessed = subject.schedule, guess_errors(subject)
    spread = float(guessed.mean())
    target = TARGETS[subject.config.diffusion.target]
    x0 = errors(subject, torch.ones_like(subject.elbo.mse))
    eps = errors(subject, schedule.snr(subject.elbo.t))
    own = errors(subject, target.error_scale(schedule, subject.elbo.t) ** 2)
    a, b = target.coefficients(schedule, x0.t.round().long())
    curves = {"x0": (x0, torch.full_like(x0.t, spread)), "eps": (eps, torch.ones_like(eps.t))}
    curves |= {target.name: (own, a**2 * spread + b**2)}
    strip, times = _strip(subject)
    elbo = subject.elbo
    noisiest = int(elbo.t.double().mean(0).argmax())
    bits, bits_error = mean_and_error(elbo.bits((elbo.terms * elbo.weight)[:, noisiest]))
    again = "ancestral.apps.report.reverse_predictions.errors"
    return Part(
        numbers={
            "data_variance": Number(spread, "", "ancestral.apps.report.reverse_identities.guess_errors"),
            "guess_grey": Number(
                HALF_RANGE * spread**0.5, "grey levels", "ancestral.apps.report.reverse_identities.guess_errors"
            ),
            "low_t": Number(round(float(x0.t[0])), "", again),
            "high_t": Number(round(float(x0.t[-1])), "", again),
            "x0_low": _grey(x0, 0, again),
            "x0_high": _grey(x0, -1, again),
            "noisy_bits": Number(bits, "bits/dim", "ancestral.diffusion.objectives.elbo.elbo", bits_error),
            "noisy_steps": Number(round(float(elbo.weight[0, noisiest])), "", again),
            "eps_low": Number(float(eps.value[0]), "", again, float(eps.error[0])),
            "eps_high": Number(float(eps.value[-1]), "", again, float(eps.error[-1])),
        },
        figures={
            "predicted": lambda words: _predicted(strip, times, words),
            "errors": lambda words: _errors(curves, words),
        },
        facts={
            "own_panel": target.name not in ("x0", "eps"),
            "conditional": subject.config.model.conditional,
            "against_guess": compared(elbo.mse[:, noisiest] - guessed),
            "ends_change": bool(eps.value[0] > eps.value[-1]),
        },
    )


def errors(subject: Subject, scale: Tensor) -> Errors:
    """scale times the squared error of x0 in the bound's draws, by part of t.

    Every error is one of x0: (x0 - x0_hat)^2 SNR is that of eps, and `Target.error_scale` squared times it a target's.
    """
    elbo = subject.elbo
    values = elbo.mse * scale
    order = elbo.t.double().mean(0).argsort()
    deviation = torch.tensor([mean_and_error(part)[1] for part in values.T], dtype=torch.float64)
    return Errors(elbo.t.double().mean(0)[order], values.mean(0)[order], deviation[order])


def _grey(of: Errors, index: int, again: str) -> Number:
    rmse = HALF_RANGE * float(of.value[index]) ** 0.5
    return Number(rmse, "grey levels", again, rmse * float(of.error[index] / of.value[index]) / 2 if rmse else None)


def _strip(subject: Subject) -> tuple[Tensor, list[int]]:
    """x_t, x0 predicted, eps predicted and true eps of one image: (4, times, C, H, W)."""
    times = subject.moments(COLUMNS)[::-1]
    shown = subject.test.take([len(subject.test) // 2] * len(times))
    x0, t = subject.x0(shown), torch.tensor(times)
    eps = Streams(subject.seed, "explain-predicted", times).normal(subject.shape).to(x0)
    x_t = subject.schedule.marginal(x0, t).sample(eps)
    with torch.no_grad():
        prediction = subject.conditioned(shown)(x_t, t)
    return torch.stack([x_t, prediction.x0, prediction.eps / SHADE, eps / SHADE]), times


def _predicted(strip: Tensor, times: list[int], words: Words) -> str:
    return plots.sheet(plots.pixels(strip), [f"t = {times[0]}", *map(str, times[1:])], words["rows"]["predicted"])


def _errors(curves: dict[str, tuple[Errors, Tensor]], words: Words) -> str:
    figure, panels = plots.axes(words["axes"]["t"], "", len(curves), 1.9)
    for on, (name, (found, constant)) in zip(panels, curves.items(), strict=True):
        seen = found.value > 0  # the eps of pure noise is known exactly, and zero has no place on a log axis
        t, value = found.t[seen], found.value[seen]
        on.plot(t, value, color=ACCENT, label=words["axes"]["model"])
        low = (value - found.error[seen]).clamp(min=value.min() / 10)
        on.fill_between(t, low, value + found.error[seen], color=ACCENT, alpha=0.25, linewidth=0)
        on.plot(found.t, constant, color=SECOND, linestyle="--", label=words["axes"]["guess"])
        plots.logarithmic(on.yaxis)
        on.set_ylabel(words["axes"]["mse_of"].format(name=name))
    plots.legend(panels[0])
    return plots.svg(figure)
