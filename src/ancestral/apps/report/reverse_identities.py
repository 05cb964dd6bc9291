"""What one step of the reverse process leaves to learn, in each form that the paper gives it, on the same draws.

KL(q(x_s | x_t, x0) || p(x_s | x_t)) with the posterior's own variance, by Eqs. 8, 10 and 12 and by the error of x0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ancestral.apps.report.part import Number, Part, Text
from ancestral.apps.report.subject import Subject
from ancestral.diffusion.denoisers.denoiser import Prediction
from ancestral.diffusion.denoisers.targets import EPS, TARGETS, X0, V
from ancestral.diffusion.objectives.losses import elbo_weight
from ancestral.diffusion.objectives.statistics import mean_and_error
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.transitions import Ancestral, beta, fixedsmall, optimal

IMAGES = 32
# What a target is in terms of x0 and eps; of another one, that it is some of both.
FORMULAS = {
    "eps": r"$\epsilon$",
    "x0": "$x_0$",
    "v": r"$\sqrt{\bar\alpha_t}\,\epsilon - \sqrt{1-\bar\alpha_t}\,x_0$",
    "score": r"$-\epsilon / \sqrt{1-\bar\alpha_t}$",
    "flow": r"$\epsilon - x_0$",
    "mean": r"$\tilde\mu_t(x_t, x_0)$",
}
OTHER = r"$a_t x_0 + b_t \epsilon$"


class Look(NamedTuple):
    """Held-out images at one t, and what the model says of them; s = t-1."""

    t: int
    x0: Tensor
    eps: Tensor
    x_t: Tensor
    prediction: Prediction


class Forms(NamedTuple):
    """One term in nats an image, each (B,), by five formulas; and two identities' largest differences."""

    kl: Tensor
    means: Tensor  # Eq. 8
    mean_of_eps: Tensor  # Eqs. 9 and 10
    eps: Tensor  # Eqs. 11 and 12
    x0: Tensor  # by the signal-to-noise ratios
    x0_gap: float  # Eq. 15
    mean_gap: float  # Eq. 11


def part(subject: Subject) -> Part:
    """The forms at one t, the targets' errors there, and the variances that a step may have."""
    seen = look(subject)
    found, again = forms(subject, seen), "ancestral.apps.report.reverse_identities.forms"
    nats = {
        "kl": "ancestral.diffusion.processes.normal.Normal.kl",
        "means": again,
        "mean_of_eps": again,
        "eps": again,
        "x0": "ancestral.diffusion.objectives.losses.elbo_weight",
    }
    numbers = {f"term_{name}": Number(float(getattr(found, name).mean()), "nats", how) for name, how in nats.items()}
    numbers |= {
        "x0_gap": Number(found.x0_gap, "", "ancestral.diffusion.denoisers.targets.Target.x0"),
        "mean_gap": Number(found.mean_gap, "", "ancestral.diffusion.samplers.transitions.Ancestral"),
        "look": Number(seen.t, "", "ancestral.diffusion.processes.noise_schedule.NoiseSchedule.alpha_bar"),
        "look_images": Number(len(seen.x0), "images", again),
    }
    numbers |= _variances(subject, seen)
    facts = {"variance": subject.variance, "jumps": "jump_to" in numbers}
    return Part(numbers, {}, {"targets": _targets(subject, seen)}, facts)


def look(subject: Subject) -> Look:
    """The model at the time trained at that is nearest to where half of the signal is gone, and has a t-1 >= 1."""
    times = [t for t in subject.times if t >= 2]
    t = min(times, key=lambda one: abs(one - subject.half))
    shown = subject.test.spread(IMAGES)
    x0 = subject.x0(shown)
    eps = Streams(subject.seed, "explain-identities", range(len(x0))).normal(subject.shape).to(x0)
    x_t = subject.schedule.marginal(x0, t).sample(eps)
    with torch.no_grad():
        return Look(t, x0, eps, x_t, subject.conditioned(shown)(x_t, t))


def forms(subject: Subject, seen: Look) -> Forms:
    """The same term by every formula, each from its own symbols."""
    schedule, (t, x0, eps, x_t, prediction) = subject.schedule, seen
    q = schedule.posterior(x_t, x0, t, t - 1)
    p = Ancestral(fixedsmall)(schedule, x_t, prediction, t, t - 1)
    beta, noise_var = float(schedule.beta[t - 1]), float(schedule.noise_var(t))
    alpha, variance = 1 - beta, float(schedule.gain(t, t - 1) * schedule.noise_var(t - 1))

    def mean_by(noise: Tensor) -> Tensor:
        return (x_t - beta / noise_var**0.5 * noise) / alpha**0.5

    def squared(difference: Tensor) -> Tensor:
        return difference.square().flatten(1).sum(1)

    return Forms(
        kl=q.kl(p).flatten(1).sum(1),
        means=squared(q.mean - p.mean) / (2 * variance),
        mean_of_eps=squared(mean_by(eps) - p.mean) / (2 * variance),
        eps=beta**2 / (2 * variance * alpha * noise_var) * squared(eps - prediction.eps),
        x0=float(elbo_weight(schedule, torch.tensor(t), torch.tensor(t - 1))) * squared(x0 - prediction.x0),
        x0_gap=float((EPS.x0(prediction.eps, x_t, schedule, t) - prediction.x0).abs().max()),
        mean_gap=float((mean_by(prediction.eps) - p.mean).abs().max()),
    )


def guess_errors(subject: Subject) -> Tensor:
    """Squared error a pixel of the mean training image, of each held-out image, float64 (N,) on the CPU."""
    at_most = subject.images.train.spread(max(16, 20_000_000 // subject.x0(subject.test.spread(1)).numel()))
    mean = subject.x0(at_most).mean(0)
    return (subject.x0(subject.test) - mean).square().flatten(1).mean(1).cpu().double()


def _targets(subject: Subject, seen: Look) -> list[list[Number | str]]:
    rows: list[list[Number | str]] = []
    spread, schedule = float(guess_errors(subject).mean()), subject.schedule
    for name, target in {"eps": EPS, "x0": X0, "v": V, **TARGETS}.items():
        if name not in ("eps", "x0", "v", subject.config.diffusion.target):
            continue
        prediction = target.of(seen.prediction.x0, seen.prediction.eps, schedule, seen.t)
        error = (prediction - target.of(seen.x0, seen.eps, schedule, seen.t)).square().flatten(1).mean(1)
        a, b = (float(one) for one in target.coefficients(schedule, seen.t))
        again = "ancestral.diffusion.denoisers.targets.TARGETS"
        mean, deviation = mean_and_error(error)
        rows.append(
            [
                name,
                Text(FORMULAS.get(name, OTHER)),
                Number(mean, "", again, deviation),
                Number(a**2 * spread + b**2, "", again),
            ]
        )
    return rows


def _variances(subject: Subject, seen: Look) -> dict[str, Number]:
    """The mean of each variance for the step t -> t-1, and for a jump over a twentieth of T."""
    schedule, again, numbers = subject.schedule, "ancestral.diffusion.samplers.transitions.VARIANCES", {}
    jump = max(1, seen.t - schedule.T // 20)
    ends = {"step": seen.t - 1} | ({"jump": jump} if jump < seen.t - 1 else {})
    for kind, s in ends.items():
        for name, variance in (("small", fixedsmall), ("optimal", optimal), ("large", beta)):
            if name == "optimal" and seen.prediction.x0_var is None:
                continue
            value = float(variance(schedule, seen.prediction, seen.t, s).mean())
            numbers[f"{name}_{kind}"] = Number(value, "", again)
    return numbers | ({"jump_to": Number(jump, "", again)} if "jump" in ends else {})
