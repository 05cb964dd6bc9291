"""Section 6, the reverse step, line by line: Algorithms 1 and 2 on one image, and one pixel through every line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ancestral.apps.report import notes_code, plots
from ancestral.apps.report.part import Number, Part, Words
from ancestral.apps.report.subject import Subject
from ancestral.data.pixels import to_bytes
from ancestral.diffusion.denoisers.denoiser import predict
from ancestral.diffusion.processes.levels import HALF_RANGE
from ancestral.diffusion.processes.streams import Streams
from ancestral.runs import build
from ancestral.runs.conditions import conditions_of

ROW = 0  # which of the held-out images
PURPOSE = "explain-step"
ALGORITHM_1 = (notes_code.q_sample, notes_code.p_losses)
ALGORITHM_2 = (notes_code.p_sample, notes_code.p_sample_loop)
ROUNDING = 1e-6  # two calls of a network on a graphics card may differ by it
SCHEDULE, STEP = (
    "ancestral.diffusion.processes.gaussian.Gaussian",
    "ancestral.diffusion.samplers.transitions.Ancestral",
)


def part(subject: Subject) -> Part:
    """One draw of Algorithm 1 and the step of Algorithm 2 that goes on from it."""
    taken = _taken(subject)
    return Part(
        numbers=taken.scalars | taken.at_pixel() | _in_the_notes(taken),
        figures={"step": taken.drawn},
        facts={
            "run": subject.model is not None,
            "name": subject.test.names[ROW],
            "target": subject.config.diffusion.target,
            "objective": subject.config.diffusion.objective,
            "clip": subject.config.diffusion.clip if subject.model is not None else "none",
            "variance": subject.variance,
            "colour": subject.shape[0] > 1,
            "every": taken.t - taken.s == 1,
            "clipped_here": taken.clipped_here,
            "code": _code(subject, taken),
            "training": _source(notes_code.cosine_beta_schedule, notes_code.linear_beta_schedule, *ALGORITHM_1),
            "sampling": _source(*ALGORITHM_2),
        },
    )


@dataclass(frozen=True)
class _Taken:
    """A step taken: states and beliefs of one image by name, all (C, H, W), and what is one number for all pixels."""

    t: int
    s: int
    pixel: tuple[int, int, int]  # channel, row, column
    states: dict[str, Tensor]
    again: dict[str, str]
    scalars: dict[str, Number]

    @property
    def clipped_here(self) -> bool:
        """Whether clipping changed the pixel that is followed."""
        moved = self.states["x0_raw"][self.pixel] - self.states["x0_hat"][self.pixel]
        return abs(float(moved)) > ROUNDING

    def at_pixel(self) -> dict[str, Number]:
        """What the states are at the pixel."""
        return {
            name: Number(float(state[self.pixel]), "", self.again[name], digits=6)
            for name, state in self.states.items()
        }

    def drawn(self, words: Words) -> str:
        """The images, and what the step changed, scaled to be seen."""
        change = self.states["x_s"] - self.states["x_t"]
        names = ("x0", "eps", "x_t", "x0_hat", "mean", "x_s")
        images = torch.stack([*(self.states[name] for name in names), change / (3 * change.std())])
        captions = [words["names"][f"step {name}"] for name in (*names, "change")]
        return plots.sheet(to_bytes(images)[None], captions, cell=56, marked=[self.pixel[1:]])


@torch.no_grad()
def _taken(subject: Subject) -> _Taken:
    shown, schedule = subject.test.take([ROW]), subject.schedule
    x0 = subject.x0(shown)
    noise = Streams(subject.seed, PURPOSE, [ROW])
    eps, z = (noise.normal(subject.shape).to(x0) for _ in range(2))
    t, s = _times(subject)
    x_t = schedule.marginal(x0, t).sample(eps)
    prediction = subject.conditioned(shown)(x_t, t)
    p = subject.move(schedule, x_t, prediction, t, s)
    states = {"x0": x0, "eps": eps, "x_t": x_t}
    again = {
        "x0": "ancestral.data.pixels.to_unit",
        "eps": "ancestral.diffusion.processes.streams.Streams",
        "x_t": f"{SCHEDULE}.marginal",
    }
    x0_raw, scalars = prediction.x0, _coefficients(subject, t, s)
    if subject.model is not None:
        cond = conditions_of(shown, subject.config, subject.device)
        output = subject.model.output(x_t, t, **cond)
        x0_raw = subject.model.target.x0(output[:, : len(x0[0])], x_t, schedule, t)
        states["output"], again["output"] = (
            output[:, : len(x0[0])],
            "ancestral.diffusion.denoisers.denoiser.Denoiser.output",
        )
        scalars |= _own_loss(subject, x0, t, s, eps, cond)
    eps_hat = predict(x0_raw, x_t, schedule, t).eps  # before clipping, which moves it along
    a, b = _paper(subject, t, s)
    states |= {
        "x0_raw": x0_raw,
        "eps_hat": eps_hat,
        "squared": (eps - eps_hat) ** 2,
        "x0_hat": prediction.x0,
        "mean": p.mean,
        "paper_mean": a * (x_t - b * eps_hat),
        "sigma": p.var.sqrt(),
        "z": z,
        "x_s": p.sample(z),
    }
    again |= {
        "x0_raw": "ancestral.diffusion.denoisers.targets.Target.x0",
        "eps_hat": "ancestral.diffusion.denoisers.denoiser.predict",
        "squared": "ancestral.diffusion.objectives.losses.Weighted",
        "x0_hat": "ancestral.diffusion.denoisers.denoiser.CLIPS",
        "mean": STEP,
        "paper_mean": STEP,
        "sigma": "ancestral.diffusion.samplers.transitions.VARIANCES",
        "z": "ancestral.diffusion.processes.streams.Streams",
        "x_s": "ancestral.diffusion.processes.normal.Normal.sample",
    }
    pixel = np.unravel_index(int((x0.abs() + x0_raw.abs())[0].argmin()), x0.shape[1:])
    clipped = float(((x0_raw - prediction.x0).abs() > ROUNDING).cpu().double().mean())
    channel, row, column = (int(index) for index in pixel)
    scalars |= {
        "loss": Number(float(states["squared"].mean()), "", again["squared"]),
        "clipped": Number(100 * clipped, "%", again["x0_hat"], digits=3),
        "row": Number(row, "", "ancestral.apps.report.one_step"),
        "column": Number(column, "", "ancestral.apps.report.one_step"),
        "channel": Number(channel + 1, "", "ancestral.apps.report.one_step"),
        "byte": Number(round((float(x0[0, channel, row, column]) + 1) * HALF_RANGE), "", again["x0"]),
    }
    return _Taken(
        t, s, (channel, row, column), {name: state[0].cpu().double() for name, state in states.items()}, again, scalars
    )


def _in_the_notes(taken: _Taken) -> dict[str, Number]:
    """The same step by the functions that the notes name: the pixel, the loss, and how far they are from ours."""
    states, again = taken.states, "ancestral.apps.report.notes_code"
    signal, before, noise = (states[name] for name in ("x0", "x_t", "eps"))
    of = taken.scalars
    # alpha_bar at the two ends of this step alone: the functions ask for no other.
    bars = [1.0, of["alpha_bar_s"].value, of["alpha_bar"].value]
    alphas_bar, t = torch.tensor(bars, dtype=torch.float64), 2

    def model(x_t: Tensor, t: int) -> Tensor:
        return states["eps_hat"]

    x_t = notes_code.q_sample(signal, t, noise, alphas_bar)
    loss = notes_code.p_losses(model, signal, t, noise, alphas_bar)
    mean = notes_code.p_sample(model, before, t, torch.zeros_like(before), alphas_bar)
    ours = of["of_x_t"].value * before + of["of_x0"].value * states["x0_raw"].clamp(-1, 1)
    far = max(float((x_t - before).abs().max()), float((mean - ours).abs().max()), abs(float(loss) - of["loss"].value))
    return {
        "notes_x_t": Number(float(x_t[taken.pixel]), "", f"{again}.q_sample", digits=6),
        "notes_loss": Number(float(loss), "", f"{again}.p_losses"),
        "notes_mean": Number(float(mean[taken.pixel]), "", f"{again}.p_sample", digits=6),
        "notes_far": Number(far, "", again),
    }


def _source(*functions: Callable[..., object]) -> str:
    return "\n".join(inspect.getsource(one) for one in functions).rstrip("\n")


def _times(subject: Subject) -> tuple[int, int]:
    """The step nearest to as much signal as noise, and not the last one, which ends at the mean."""
    times = torch.tensor(subject.times)
    index = int(subject.schedule.log_snr(times[:-2]).abs().argmin())
    return int(times[index]), int(times[index + 1])


def _paper(subject: Subject, t: int, s: int) -> tuple[float, float]:
    """(1 / sqrt(alpha_t), beta_t / sqrt(1 - alpha_bar_t)): the two numbers of line 4 of Algorithm 2, for any s < t."""
    log_alpha = subject.schedule.log_alpha_bar_at(t) - subject.schedule.log_alpha_bar_at(s)
    return float((-log_alpha / 2).exp()), float(-torch.expm1(log_alpha) / subject.schedule.noise(t))


def _coefficients(subject: Subject, t: int, s: int) -> dict[str, Number]:
    """What depends on the times alone."""
    schedule = subject.schedule
    of_x_t, of_x0 = schedule.posterior_coefficients(t, s)
    a, b = _paper(subject, t, s)
    gain = schedule.gain(t, s)
    values = {
        "T": (subject.times[0], "T"),
        "t": (t, "T"),
        "s": (s, "T"),
        "alpha_bar": (schedule.alpha_bar(t), "alpha_bar"),
        "alpha_bar_s": (schedule.alpha_bar(s), "alpha_bar"),
        "signal": (schedule.signal(t), "signal"),
        "noise": (schedule.noise(t), "noise"),
        "of_x_t": (of_x_t, "posterior_coefficients"),
        "of_x0": (of_x0, "posterior_coefficients"),
        "a": (a, "log_alpha_bar_at"),
        "b": (b, "log_alpha_bar_at"),
        "sigma_small": ((gain * schedule.noise_var(s)) ** 0.5, "gain"),
        "sigma_large": ((gain * schedule.noise_var(t)) ** 0.5, "gain"),
    }
    made = {name: Number(float(value), "", f"{SCHEDULE}.{how}", digits=6) for name, (value, how) in values.items()}
    if subject.model is not None:
        # x0 = of_output output + of_state x_t: the target's formula is linear, so ones and zeros give its numbers.
        one, zero = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
        target, again = subject.model.target, "ancestral.diffusion.denoisers.targets.Target.x0"
        made["of_output"] = Number(float(target.x0(one, zero, schedule, t)), "", again, digits=6)
        made["of_state"] = Number(float(target.x0(zero, one, schedule, t)), "", again, digits=6)
    return made


def _own_loss(subject: Subject, x0: Tensor, t: int, s: int, eps: Tensor, cond: dict[str, Tensor]) -> dict[str, Number]:
    assert subject.model is not None
    assert subject.saved is not None
    objective = build.objective(subject.config, subject.saved.facts, len(subject.times) - 1)
    loss = objective(subject.model, x0, torch.tensor([t]), torch.tensor([s]), eps, **cond)
    return {
        "own_loss": Number(float(loss), "", "ancestral.runs.build.objective"),
        "seen": Number(subject.saved.images, "images", "ancestral.runs.checkpoint.Checkpoint"),
    }


def _code(subject: Subject, taken: _Taken) -> str:
    """Python that takes the same step and prints the pixel."""
    if subject.run is None:
        made = f"exact(num_images={subject.num_images}, seed={subject.seed})"
        imports = ["from ancestral.apps.report.exact_subject import exact"]
    else:
        arguments = (subject.source, subject.num_images, subject.seed, str(subject.device), subject.average_width)
        made = f"of_run(Path({str(subject.run)!r}), {', '.join(map(repr, arguments))})"
        imports = ["from pathlib import Path", "", "from ancestral.apps.report.subject import of_run"]
    at = ", ".join(map(str, (0, *taken.pixel)))
    return "\n".join([
        *imports,
        "from ancestral.diffusion.processes.streams import Streams",
        "",
        f"subject = {made}",
        f"q, t, s = subject.schedule, {taken.t}, {taken.s}",
        f"shown = subject.test.take([{ROW}])",
        "x0 = subject.x0(shown)",
        f'noise = Streams({subject.seed}, "{PURPOSE}", [{ROW}])',
        "eps, z = (noise.normal(subject.shape).to(x0) for _ in range(2))",
        "",
        "x_t = q.marginal(x0, t).sample(eps)  # Eq. 4: what the network is shown",
        "prediction = subject.conditioned(shown)(x_t, t)  # x0 as the model sees it, clipped",
        "p = subject.move(q, x_t, prediction, t, s)  # Eq. 11: N(mean, sigma^2)",
        "x_s = p.sample(z)  # Algorithm 2, line 4",
        "",
        "for state in (x0, eps, x_t, prediction.x0, p.mean, p.var.sqrt(), z, x_s):",
        f"    print(float(state[{at}]))",
    ])  # fmt: skip
