"""Section 8, whether the model is any good: samples, copies, bits, the course of the training, and what to try next."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ancestral.apps.report import quality_samples, quality_training
from ancestral.apps.report.connections_compression import rates
from ancestral.apps.report.part import Number, Part, Text, Words, compared, mean_of
from ancestral.apps.report.quality_advice import Case, Rule, advise
from ancestral.apps.report.subject import Subject
from ancestral.diffusion.objectives.statistics import Estimate, mean_and_error
from ancestral.evaluation import image_formats
from ancestral.runs import build
from ancestral.training import model_size

STEPS, COMPARED = 16, 192  # of the chain on which training and held-out images are compared; images of each side
FEW = 64  # images on which another variance is measured


def part(subject: Subject) -> Part:
    """Everything measured, then the rules asked."""
    found = Part()
    found.facts.update(exact=subject.run is None, own=subject.own)
    drawn = quality_samples.draw(subject)
    _samples(subject, drawn, found)
    _bits(subject, found)
    if subject.own:
        _copies(subject, drawn, found)
        _overfitting(subject, found)
    _course(subject, found)
    case = _case(subject, found)
    found.facts["advice"] = advise(case)
    _expected(subject, case, found)
    found.facts["say"] = lambda words, n, code, cite, rule: said(rule, case, words, n, code, cite)
    found.facts["measured"] = set(found.numbers)
    return found


def said(
    rule: Rule,
    case: Case,
    words: Words,
    n: Callable[[str], str],
    code: Callable[[str], str],
    cite: Callable[[str], str],
) -> Text:
    """A rule's advice in one language, with the numbers that it rests on, its source and its command."""
    parts = {name: n(name) for name in rule.quotes} | ({"source": cite(rule.source)} if rule.source else {})
    text = words["advice"][rule.name].format(do=code(rule.do(case)), **parts)
    if rule.longer and "gain" not in rule.quotes:
        expected = "longer" in case.numbers
        text += words["longer"]["expected"].format(gain=n("longer")) if expected else words["longer"]["unknown"]
    return Text(text)


def _samples(subject: Subject, drawn: quality_samples.Drawn, found: Part) -> None:
    steps = ["--steps", str(drawn.steps) if drawn.steps < len(subject.times) - 1 else "all"]
    again = subject.command("sample", *steps)
    found.numbers["per_second"] = Number(drawn.per_second, "images/s", again)
    found.numbers["steps"] = Number(drawn.steps, "", again)
    found.numbers["all_steps"] = Number(len(subject.times) - 1, "", again)
    found.numbers["slow"] = Number((len(subject.times) - 1) / drawn.steps / drawn.per_second, "s", again)
    if drawn.missed is not None:
        mean, error = mean_and_error(drawn.missed)
        again = "ancestral.apps.report.quality_samples.draw"
        found.numbers["missed"] = Number(mean, "", again, error)
        found.numbers["missed_share"] = Number(100 * mean / max(drawn.apart, 1e-9), "%", again)
        found.numbers["fine"] = Number(quality_samples.FINE, "", again)
    measured = quality_samples.metrics(subject, drawn)
    found.tables["metrics"] = []
    if measured is not None:
        steps = measured.steps if (measured.steps or math.inf) < len(subject.times) - 1 else "all"
        shown = ["--steps", str(steps)]
        network = [] if measured.network == "lite0" else ["--network", measured.network]
        again = subject.command("metrics", "--num-images", str(measured.images), *shown, *network)
        if measured.kept:  # the file says how its images were drawn
            again = f"{subject.run}/metrics-{measured.network}.json"
        found.facts.update(network=measured.network, kept=measured.kept, few=measured.few)
        found.numbers["compared"] = Number(measured.images, "images", again)
        found.numbers["metric_steps"] = Number(measured.steps or len(subject.times) - 1, "", again)
        found.tables["metrics"] = [
            (name, *(_estimate(sides[side], again) if side in sides else "–" for side in quality_samples.SIDES))
            for name, sides in measured.by_name.items()
            if name != "is"  # it asks for ImageNet's classes, which a good model of other images need not have
        ]
        if {"train", "floor"} <= set(measured.by_name.get("kid", {})):
            kid = measured.by_name["kid"]
            found.numbers["kid"] = _estimate(kid["train"], again)
            found.numbers["kid_floor"] = _estimate(kid["floor"], again)
            if "recall" in measured.by_name:
                recall = measured.by_name["recall"]
                found.numbers["recall"] = _estimate(recall["train"], again)
                found.numbers["recall_floor"] = _estimate(recall["floor"], again)
            found.facts["like"] = kid["train"].value - 3 * kid["train"].error <= max(kid["floor"].value, 0)


def _copies(subject: Subject, drawn: quality_samples.Drawn, found: Part) -> None:
    near, again = quality_samples.neighbours(subject, drawn), "ancestral.evaluation.sample_metrics.copies"
    found.numbers["searched"] = Number(len(near.searched), "images", again)
    for name, one in (("near", near.samples), ("near_held_out", near.held_out)):
        found.numbers[name] = Number(float(one.distances[:, 0].median()), "", again)
    held_out = subject.images.test.spread(len(drawn.images))
    found.figures["neighbours"] = lambda words: quality_samples.draw_neighbours(near, drawn, held_out, words)
    found.figures["ratios"] = lambda words: quality_samples.draw_ratios(near, words)
    if near.repeated.any():
        found.numbers["repeated"] = Number(int(near.repeated.sum()), "images", again)
        found.numbers["repeated_share"] = Number(100 * float(near.repeated.double().mean()), "%", again, digits=2)
    if near.repeated.all():
        return
    copied = near.copied
    found.numbers["copied"] = Number(100 * copied.value, "%", again, 100 * copied.error or None)
    found.numbers["copied_usual"] = Number(
        100 * near.usual, "%", "ancestral.apps.report.quality_samples.Neighbours", digits=2
    )
    found.facts["copies"] = copied.value - 3 * copied.error > 3 * near.usual


def _bits(subject: Subject, found: Part) -> None:
    again = subject.evaluation
    own = mean_of(subject.elbo.bits_per_dim, "bits/dim", again)
    found.numbers["bound"] = own
    found.numbers["L_T"] = mean_of(subject.elbo.parts["L_T"], "bits/dim", again)
    shortest = "ancestral.evaluation.image_formats.shortest_bits_per_dim"
    found.numbers["lossless"] = mean_of(subject.shortest, "bits/dim", shortest)
    found.numbers["excess"] = mean_of(subject.against_formats, "bits/dim", shortest)
    found.facts["against_formats"] = compared(subject.against_formats)
    if (of_formats := found.numbers["lossless"].value) > 0:
        ratio = own.value / of_formats
        _, off = mean_and_error(subject.elbo.bits_per_dim - ratio * subject.shortest)
        found.numbers["saved"] = Number(100 * abs(1 - ratio), "%", shortest, 100 * off / of_formats)
    rows = [("bound", own), *((name, Number(value, "bits/dim", again)) for name, value in subject.formats.items())]
    found.tables["lossless"] = [*rows, ("shortest", found.numbers["lossless"])]
    late, off = rates(subject.elbo, subject.times[0]).late_share
    found.numbers["late"] = Number(
        100 * late, "%", "ancestral.apps.report.connections_compression.rates", 100 * off or None
    )
    if subject.saved is not None and subject.variance != "optimal" and subject.saved.calibration is not None:
        few = subject.test.spread(FEW)
        moves = (subject.move, build.transition(subject.saved, "optimal"))
        own, best = (subject.bound(few, move, subject.times, subject.terms).bits_per_dim for move in moves)
        costs = own - best
        found.numbers["variance_costs"] = mean_of(costs, "bits/dim", "ancestral.apps.report.subject.Subject.bound")


def gap(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """By how much the first (values, covariates) lie above the second, were their covariates alike; standard error.

    The slope is that of both sides together. Values and covariates (N,) each.
    """
    inner = [(y - y.mean(), x - x.mean()) for y, x in (first, second)]
    y, x = (torch.cat(one) for one in zip(*inner, strict=True))
    slope = (x * y).sum() / x.square().sum().clamp(min=1e-12)
    left = [values - slope * covariate for values, covariate in (first, second)]
    (above, off), (below, other) = (mean_and_error(one) for one in left)
    # The slope is uncertain too: by that much the difference of the covariates is.
    spread = torch.cat([one - one.mean() for one in left]).square().sum() / (len(y) - 3)
    by_slope = (spread / x.square().sum().clamp(min=1e-12)).sqrt() * (first[1].mean() - second[1].mean())
    return above - below, math.hypot(off, other, float(by_slope))


def _overfitting(subject: Subject, found: Part) -> None:
    """Training images against held-out ones: few steps, every term, and images that are as hard for formats alike."""
    grid, sides = build.sampling_grid(subject.config, "log-snr", subject.few(STEPS)), []
    for name, images in (("bound_held_out", subject.images.test), ("bound_train", subject.images.train)):
        shown = images.spread(min(COMPARED, max(subject.num_images, quality_samples.LEAST)))
        values = subject.bound(shown, subject.move, grid, None).bits_per_dim
        sides.append((values, torch.from_numpy(image_formats.shortest_bits_per_dim(shown.images[:]))))
        found.numbers[name] = mean_of(values, "bits/dim", "ancestral.diffusion.objectives.elbo.elbo")
    if min(len(values) for values, _ in sides) >= quality_samples.LEAST:
        above, off = gap(*sides)
        found.numbers["gap"] = Number(above, "bits/dim", "ancestral.apps.report.quality.gap", off)
        found.facts["gap"] = "up" if above > 3 * off else "down" if above < -3 * off else "none"
    found.numbers["gap_steps"] = Number(len(grid) - 1, "", "ancestral.diffusion.samplers.grids.log_snr")
    found.numbers["train_images"] = Number(len(subject.images.train), "images", "ancestral.data.load.load")


def _course(subject: Subject, found: Part) -> None:
    log, again = subject.log, "ancestral.runs.metrics_log.read_metrics"
    found.figures["course"] = lambda words: quality_training.draw(log, words)
    found.facts.update(log=bool(log), looked=bool(quality_training.looks(log)))
    course = quality_training.course(log)
    if course is not None:
        found.numbers["fell"] = Number(100 * course.fell, "%", again, 100 * course.fell_error)
        found.numbers["gain"] = Number(100 * course.gain(2).value, "%", again, digits=2)
        found.numbers["spike"] = Number(course.spike, "", again)
        found.numbers["left_out"] = Number(course.left_out, "", again)
        found.numbers["rose"] = Number(-100 * course.fell, "%", again, 100 * course.fell_error)
        found.facts["course"] = course.ending


def _case(subject: Subject, found: Part) -> Case:
    saved = subject.saved
    if saved is not None:
        parameters = sum(tensor.numel() for tensor in saved.weights.values())
        found.numbers["parameters"] = Number(parameters, "", "ancestral.runs.build.network")
        sides, load = (len(subject.images.train), len(subject.images.test)), "ancestral.data.load.load"
        found.numbers["available"] = Number(min(sides), "images", load)
        found.numbers["train_values"] = Number(sides[0] * math.prod(subject.shape), "", load)
        if subject.own and saved.images:
            found.numbers["epochs"] = Number(
                saved.images / sides[0], "", "ancestral.runs.checkpoint.Checkpoint", digits=3
            )
    run = "RUN" if subject.run is None else str(subject.run)
    source = subject.source if subject.own else subject.config.source
    return Case(run, subject.config, subject.facts, source, None if saved is None else saved.images, found.numbers)


def _expected(subject: Subject, case: Case, found: Part) -> None:
    """What as long a training as is advised takes off the loss, by this run's records or, without, by runs like it."""
    times = next((rule.longer(case) for rule in found.facts["advice"] if rule.longer), None)
    if times is None or subject.saved is None:
        return
    course, law = quality_training.course(subject.log), model_size.law(subject.config, subject.saved.facts)
    if course is not None:
        gain = course.gain(times)
        found.numbers["longer"] = Number(
            100 * gain.value, "%", "ancestral.apps.report.quality_training.Course.gain", 100 * gain.error
        )
    elif law is not None:
        now, then = (law.loss(subject.config.model.width, subject.saved.images * one) for one in (1, times))
        if now < 1:  # that of a network which knows nothing: from fewer images on the law was not fitted
            found.numbers["longer"] = Number(
                100 * (1 - then / now), "%", "ancestral.training.model_size.Law.loss", digits=2
            )


def _estimate(one: Estimate, again: str) -> Number:
    return Number(one.value, "", again, one.error or None)
