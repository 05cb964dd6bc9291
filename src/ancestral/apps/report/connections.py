"""Section 7, what the model connects to: score, Langevin, energies, autoregression, progressive lossy compression."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ancestral.apps.report import connections_compression, connections_frequency, connections_langevin
from ancestral.apps.report.connections_compression import QUALITY
from ancestral.apps.report.connections_energy import (
    SHOWN,
    WALKED,
    Edges,
    Plane,
    draw_edges,
    draw_slices,
    few_held_out,
    several,
)
from ancestral.apps.report.part import Number, Part, mean_of
from ancestral.apps.report.quality_advice import settings
from ancestral.apps.report.subject import Subject
from ancestral.data.source_paths import typed
from ancestral.diffusion.processes.levels import HALF_RANGE
from ancestral.evaluation import image_formats
from ancestral.runtime.text import quoted

LEVELS = (-4.0, -2.0, 0.0, 2.0, 4.0)  # log SNRs of the table of the score's errors

Row = Sequence[Number | str]


def part(subject: Subject) -> Part:
    """Each connection measured on this model."""
    plane = Plane(subject)
    found = Part()
    _score(subject, plane, found)
    _langevin(subject, plane, found)
    _energies(plane, found)
    _order(subject, found)
    _compression(subject, found)
    found.facts["measured"], found.facts["few_held_out"] = set(found.numbers), few_held_out(subject)
    found.facts["exact"] = subject.run is None
    found.facts["run"] = "RUN" if subject.run is None else quoted(str(subject.run))
    read = [f"--set {quoted(one)}" for one in settings(subject.config, subject.facts) if one.startswith("data.")]
    found.facts["source"] = "DATA" if subject.run is None else " ".join([typed(subject.source), *read])
    found.facts["compressible"] = not subject.config.model.conditional
    found.facts["shown_next"] = subject.average_width is None
    found.facts["dimensions"] = math.prod(subject.shape)
    return found


def dsm(subject: Subject) -> Tensor:
    """Each image's L_simple: the squared error of eps, the mean over all times trained at and over dimensions, (B,)."""
    elbo = subject.elbo
    return (of_eps(subject) * elbo.weight).sum(1) / elbo.weight.sum(1)


def of_eps(subject: Subject) -> Tensor:
    """Squared error of eps at each term of the bound: SNR_t times that of x0, (B, K)."""
    return subject.elbo.mse * subject.schedule.snr(subject.elbo.t)


def _score(subject: Subject, plane: Plane, found: Part) -> None:
    again = "ancestral.apps.report.connections.of_eps"
    found.numbers["dsm"] = mean_of(dsm(subject), "", "ancestral.apps.report.connections.dsm")
    slices = [plane.slice(information) for information in SHOWN]
    found.figures["score"] = lambda words: draw_slices(slices, plane, words)
    errors, log_snr, rows = of_eps(subject), subject.schedule.log_snr(subject.elbo.t), []
    for level in LEVELS:
        near = ((log_snr - level).abs() < 1) & ~subject.elbo.last
        seen = near.any(1)
        if not seen.any():
            continue
        # The terms of one image are alike: each image counts once.
        eps, x0 = ((one * near).sum(1)[seen] / near.sum(1)[seen] for one in (errors, subject.elbo.mse))
        t = Number(subject.at(level), "", "ancestral.diffusion.processes.noise_schedule.NoiseSchedule.log_snr")
        rmse = Number(float(x0.mean().sqrt()) * HALF_RANGE, "", again)
        rows.append([Number(level, "", t.again), t, mean_of(eps, "", again), rmse])
    found.tables["levels"] = rows
    of_noise, of_image = ([row[column].value for row in rows] for column in (2, 3))
    found.facts["image_in_order"] = of_image == sorted(of_image, reverse=True)
    found.facts["noise_last"] = len(rows) > 1 and of_noise[-1] == max(of_noise)


def _langevin(subject: Subject, plane: Plane, found: Part) -> None:
    images = several(subject).spread(connections_langevin.CHAINS)
    levels = [connections_langevin.wander(subject, images, plane.time(information)) for information in SHOWN]
    again, share = "ancestral.diffusion.samplers.langevin.langevin", connections_langevin.SHARE
    for name, one in zip(("high", "low"), levels, strict=True):
        found.numbers[f"t_{name}"] = Number(
            one.t, "", "ancestral.diffusion.processes.noise_schedule.NoiseSchedule.log_snr"
        )
        found.numbers[f"forgotten_{name}"] = mean_of(one.forgotten, "", again)
        found.facts[f"forgets_{name}"] = float(one.forgotten.mean()) > 0.5
    found.numbers["moved"] = mean_of(levels[1].moved, "", again)
    found.numbers["moved_law"] = Number(math.sqrt(2 * share + share**2), "", again)
    found.facts["share"] = f"{share:g}"
    calls = len(subject.times) - 1
    found.facts["pc_steps"], found.facts["langevin_steps"] = min(20, calls), min(200, calls)
    found.facts["long"] = calls > 2 * found.facts["pc_steps"]
    found.numbers["steps"] = Number(connections_langevin.SHOWN[-1], "", again)
    ways = connections_langevin.drawn(subject)
    found.figures["chains"] = lambda words: connections_langevin.draw_chains(levels, 3, words)
    found.figures["ways"] = lambda words: connections_langevin.draw_ways(ways, words)


def _energies(plane: Plane, found: Part) -> None:
    edges = [plane.edges(information) for information in WALKED]
    again = "ancestral.diffusion.denoisers.denoiser.score"
    found.figures["edges"] = lambda words: draw_edges(edges, words)
    found.tables["edges"] = [_row(one, again) for one in edges]
    last = edges[-1]
    found.numbers["to_b"] = mean_of(torch.from_numpy(last.to_b), "nats", again)
    found.numbers["left"] = Number(float(np.sqrt(np.square(last.left).mean())), "nats", again)
    share = found.numbers["left"].value / max(float(last.way.mean()), 1e-9)
    found.numbers["left_share"] = Number(100 * share, "%", again)
    found.facts["valley"] = last.between < 0
    found.numbers["draws"] = Number(len(last.left), "", again)


def _row(one: Edges, again: str) -> Row:
    return (
        Number(one.t, "", "ancestral.diffusion.processes.noise_schedule.NoiseSchedule.log_snr"),
        mean_of(torch.from_numpy(one.to_b), "nats", again),
        Number(float(one.way.mean()), "nats", again),
        Number(float(np.sqrt(np.square(one.left).mean())), "nats", again),
    )


def _order(subject: Subject, found: Part) -> None:
    shown = connections_frequency.spectrum(subject)
    found.figures["order"] = lambda words: connections_frequency.draw(shown, words)
    own, linear = shown.half(shown.explained), shown.half(shown.linear)
    both = np.flatnonzero(np.isfinite(own) & np.isfinite(linear) & (shown.cycles > 0))
    again = "ancestral.diffusion.denoisers.denoiser.Predictor"
    for name, index in (("coarse", 0), ("middle", len(both) // 2), ("fine", -1)) if len(both) else ():
        ring = both[index]
        found.numbers[f"{name}_cycles"] = Number(float(shown.cycles[ring]), "", again)
        found.numbers[f"{name}_model"] = Number(round(float(own[ring])), "", again)
        found.numbers[f"{name}_linear"] = Number(round(float(linear[ring])), "", again)
    if len(both):
        half_at = [float(own[index]) for index in both]
        found.facts["in_order"] = half_at == sorted(half_at, reverse=True)
        found.facts["mostly"] = half_at[0] > half_at[-1]
        found.facts["ahead"] = bool((own[both] > linear[both]).all())
    T, per_step = len(subject.times) - 1, subject.elbo.bits(subject.elbo.terms * subject.elbo.weight)
    found.numbers["T"] = Number(T, "", "ancestral.runs.build.training_grid")
    high = (per_step * (subject.elbo.t > subject.schedule.T / 2)).sum(1) + subject.elbo.bits(subject.elbo.prior)
    found.numbers["first_half"] = mean_of(high, "bits/dim", "ancestral.diffusion.objectives.elbo.elbo")


def _compression(subject: Subject, found: Part) -> None:
    rates, test = connections_compression.rates(subject.elbo, subject.times[0]), subject.test
    again = "ancestral.apps.report.connections_compression.rates"
    compared = test.spread(connections_compression.COMPARED).images[:]
    formats = connections_compression.formats(compared)
    found.numbers["sent"] = mean_of(rates.sent, "bits/dim", subject.evaluation)
    share, off = rates.late_share
    found.numbers["late"] = Number(100 * share, "%", again, 100 * off or None)
    found.facts["mostly_late"] = share > 0.5
    found.numbers["rmse"] = Number(float(rates.rmse[-1]), "", again)
    found.numbers["compared"] = Number(len(compared), "images", "ancestral.evaluation.image_formats.lossy_points")
    found.numbers["quality"] = Number(QUALITY, "dB", again)
    at = {"rate_model": rates.rate_at(QUALITY)}
    for name, points in formats.items():
        curve = [(one.psnr, one.payload_bits_per_dim) for one in points if math.isfinite(one.psnr)]
        if curve:  # of one grey alone, every file is exact
            at[f"rate_{name}"] = float(np.interp(QUALITY, *zip(*curve, strict=True), left=math.nan, right=math.nan))
    sources = {
        name: again if name == "rate_model" else "ancestral.evaluation.image_formats.lossy_points" for name in at
    }
    found.numbers.update(
        {name: Number(rate, "bits/dim", sources[name]) for name, rate in at.items() if math.isfinite(rate)}
    )
    found.facts["formats"] = [name for name in formats if f"rate_{name}" in found.numbers]
    found.figures["rates"] = lambda words: connections_compression.draw_rates(rates, formats, words)
    images, again = test.spread(connections_compression.IMAGES), "ancestral.apps.report.connections_compression.receive"
    received, pixels = connections_compression.receive(subject, images), images.images[:]
    found.figures["received"] = lambda words: connections_compression.draw_received(received, pixels, words)
    found.numbers["chain"] = Number(len(received.t) - 1, "", again)
    files = connections_compression.files(subject, images)
    found.facts["files"] = files is not None
    found.tables["prefixes"] = []
    rows = _sizes(received, pixels, again)
    if files is not None:
        made = subject.command("compress", "image.png", "--out", "image.anc")
        rows.insert(
            3,
            ("anc-lossless", Number(float(files.whole[0]), "", made), Number(float(files.whole[0]), "", made), "exact"),
        )
        found.tables["prefixes"] = [
            (Number(step, "", made), Number(float(size), "", made), Number(float(shown), "", made))
            for step, (size, shown) in enumerate(zip(files.size.mean(0), files.psnr, strict=True), 1)
        ]
    found.tables["sizes"] = rows


def _sizes(received: connections_compression.Received, pixels: np.ndarray, again: str) -> list[Row]:
    """Bytes of the first image: exactly, and as a picture of QUALITY dB; whole files, and without containers."""
    unit, image = pixels[0].size / 8, pixels[:1]
    exact, rows = image_formats.lossless_bits_per_dim(image), []
    codecs = "ancestral.evaluation.image_formats"
    for name in ("png", "webp"):
        sizes = [round(exact[f"{name} {kind}"] * unit) for kind in ("files", "without container")]
        rows.append((f"{name}-lossless", *(Number(size, "", codecs) for size in sizes), "exact"))
    whole = float(received.bits[0, -1]) * unit
    rows.append(("model-exact", "–", Number(whole, "", again), "exact"))
    if (stage := received.stage(QUALITY, pixels, 0)) is not None and math.isfinite(stage[1]):
        rows.append(("model-picture", "–", Number(stage[0] * unit, "", again), Number(round(stage[1], 1), "dB", again)))
    for name, points in connections_compression.formats(image).items():
        if (point := connections_compression.at_least(points, QUALITY)) is not None:
            sizes = [round(bits * unit) for bits in point[:2]]
            shown = Number(round(point.psnr, 1), "dB", codecs) if math.isfinite(point.psnr) else "exact"
            rows.append((f"{name}-picture", *(Number(size, "", codecs) for size in sizes), shown))
    return rows
