"""What `ancestral edit` does, once its options are known to be right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ancestral.data.pixels import to_bytes, to_unit
from ancestral.diffusion.denoisers.denoiser import Predictor
from ancestral.diffusion.editing.edits import Resampled, below, inverted, known_region, mix, slerp
from ancestral.diffusion.editing.inverse_problems import METHODS, Measurement
from ancestral.diffusion.editing.operators import Known, Operator, box_means, gaussian_blur, grey
from ancestral.diffusion.objectives.statistics import psnr
from ancestral.diffusion.processes.schedule import NoiseSchedule
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.loop import Step, from_model, walk
from ancestral.diffusion.samplers.sample import trajectory
from ancestral.diffusion.samplers.transitions import begin
from ancestral.errors import UserError
from ancestral.runs.build import choose
from ancestral.runtime.console import screen
from ancestral.sampling.image_session import VARIANTS, Bench, Desk, Sources, Work
from ancestral.sampling.sampler import How

ROUNDING = 1 / (255 * 3**0.5)  # standard deviation of a byte's rounding on [-1, 1]


def with_new_noise(how: How) -> How:
    """With new noise at each step where no way to step is named: what goes astray is then mended further down."""
    return how if _named(how) else replace(how, eta=1.0)


def _named(how: How) -> bool:
    return how.solver is not None or how.variance is not None or how.eta is not None


class Edit(NamedTuple):
    """A walk that changes given images."""

    calls: int  # of the network
    work: Work


def _calls(desk: Bench, times: list[int]) -> int:
    return len(begin(desk.drawing.move, desk.schedule, times)[1]) - 1


def _below(schedule: NoiseSchedule, grid: list[int], t: int) -> list[int]:
    try:
        return below(schedule, grid, t)
    except ValueError as error:
        raise UserError(f"--at: {error}") from None


def inpaint(folder: Path, how: How, sources: Sources, *, mask: Path, jump: int, resamples: int) -> None:
    """Draw what is white in a mask anew and keep the rest to the byte (RePaint)."""
    desk = Desk(folder, with_new_noise(how), sources)
    x0, known = desk.read_all(), desk.read_mask(mask)
    edit = repainted(desk, x0, known, jump, resamples)
    desk.write([x0, torch.where(known, x0, 0.0)], desk.draw(len(x0), *edit))


def repainted(bench: Bench, x0: Tensor, known: Tensor, jump: int, resamples: int) -> Edit:
    """Inpainting of images (N, C, H, W), of which `known` (1, H, W) is kept.

    Raises:
        UserError: for a solver with a memory, or a jump that is too long.
    """
    drawing = bench.drawing
    if not callable(drawing.move):
        raise UserError("--solver: a walk that goes up again takes steps without a memory: euler or euler-ancestral")
    method = Resampled(drawing.move, jump, resamples)
    try:
        calls = len(begin(method, bench.schedule, drawing.times)[1]) - 1
    except ValueError as error:
        raise UserError(f"--jump: {error}") from None

    def work(rows: Tensor, numbers: list[int], predictor: Predictor) -> Iterator[Step]:
        given, region = x0[rows], bench.streams("known", numbers)
        begun = bench.schedule.marginal(given, drawing.times[0]).sample(bench.place(region.normal(bench.shape)))
        draw = from_model(bench.streams("reverse", numbers))
        draw = known_region(bench.schedule, given, known, region, draw)
        return walk(predictor, torch.where(known, begun, bench.latents(numbers)), drawing.times, method, draw)

    return Edit(calls, work)


class Encoder(NamedTuple):
    """How two images become states at t, and how these are mixed.

    `encode` takes the bench, the images (2, C, H, W), the times and the stream numbers, and gives (B, 2, C, H, W).
    """

    encode: Callable[[Bench, Tensor, list[int], list[int]], Tensor]
    mix: Callable[[Tensor, Tensor, Tensor], Tensor]  # the share shaped (B, 1, 1, 1)
    depth: float  # t / T when no t is named
    step: Callable[[How], How]


def _noised(first: str, second: str) -> Callable[[Bench, Tensor, list[int], list[int]], Tensor]:
    def encode(desk: Bench, x0: Tensor, times: list[int], numbers: list[int]) -> Tensor:
        eps = torch.stack([desk.streams(name, numbers).normal(desk.shape) for name in (first, second)], 1)
        return desk.schedule.marginal(x0.expand(eps.shape), times[0]).sample(desk.place(eps))

    return encode


def _inverted(desk: Bench, x0: Tensor, times: list[int], numbers: list[int]) -> Tensor:
    return inverted(desk.predictor(2), x0, times).expand(len(numbers), -1, -1, -1, -1)


ENCODERS: dict[str, Encoder] = {
    "noise": Encoder(_noised("first", "second"), mix, 0.5, with_new_noise),  # the paper's
    "shared": Encoder(_noised("first", "first"), mix, 0.5, with_new_noise),
    "inversion": Encoder(_inverted, slerp, 1.0, lambda how: how),  # what the flow encodes, the flow decodes
}


def interpolate(folder: Path, how: How, sources: Sources, *, at: int | None, frames: int, encoder: str) -> None:
    """Go from one image to the other through mixed states at t (the paper's section 4.3): a row for each variant."""
    way = choose(ENCODERS, encoder, "--encoder")
    desk = Desk(folder, way.step(how), sources)
    ends = desk.read_all()
    edit = between(desk, ends, way, at, frames, sources.num_images)
    mixed = desk.draw(frames, *edit).transpose(0, 1)
    first, last = (end.expand(len(mixed), -1, -1, -1) for end in ends)
    desk.write([first], mixed, [last])


def between(bench: Bench, ends: Tensor, way: Encoder, at: int | None, frames: int, variants: int) -> Edit:
    """`frames` images from one of `ends` (2, C, H, W) to the other, through states at t = `at`.

    Raises:
        UserError: unless 1 <= t <= T.
    """
    t = max(1, round(way.depth * bench.schedule.T)) if at is None else at
    times = _below(bench.schedule, bench.drawing.times, t)
    states = way.encode(bench, ends, times, list(range(variants)))

    def work(rows: Tensor, numbers: list[int], predictor: Predictor) -> Iterator[Step]:
        numbers = [number % VARIANTS for number in numbers]  # the same noise for every frame
        first, second = states[numbers].unbind(1)
        start = way.mix(first, second, bench.place(rows / (frames - 1)).reshape(-1, 1, 1, 1))
        return trajectory(predictor, start, times, bench.drawing.move, bench.how.seed, numbers)

    return Edit(_calls(bench, times), work)


def vary(folder: Path, how: How, sources: Sources, *, at: int | None, strength: float) -> None:
    """Noise the images up to t and draw them down from there (SDEdit)."""
    desk = Desk(folder, with_new_noise(how), sources)
    x0, top = desk.read_all(), desk.schedule.T
    times = _below(desk.schedule, desk.drawing.times, max(1, round(strength * top)) if at is None else at)

    def work(rows: Tensor, numbers: list[int], predictor: Predictor) -> Iterator[Step]:
        eps = desk.place(desk.streams("forward", numbers).normal(desk.shape))
        start = desk.schedule.marginal(x0[rows], times[0]).sample(eps)
        return trajectory(predictor, start, times, desk.drawing.move, how.seed, numbers)

    desk.write([x0], desk.draw(len(x0), _calls(desk, times), work))


@dataclass(frozen=True)
class Damage:
    """What was done to the images, as the command takes it."""

    task: str
    factor: int
    blur: float
    missing: float
    mask: Path | None
    noise: float
    degraded: bool


def _missing(desk: Desk, damage: Damage) -> Operator:
    if damage.mask is not None:
        return Known(desk.read_mask(damage.mask))
    if damage.degraded:
        raise UserError("--mask: say which pixels are missing, white in a PNG of the image's size")
    chance = torch.special.ndtr(desk.streams("missing", [0]).normal(desk.shape[1:]))  # pyright: ignore[reportUnknownMemberType]
    return Known(chance >= damage.missing)


TASKS: dict[str, Callable[[Desk, Damage], Operator]] = {
    "super-resolution": lambda desk, damage: box_means(desk.shape, damage.factor),
    "deblur": lambda desk, damage: gaussian_blur(desk.shape, damage.blur),
    "colour": lambda desk, damage: grey(desk.shape),
    "missing": _missing,
}


def measured(operator: Operator, x0: Tensor, noise: float, streams: Streams) -> Measurement:
    """What an 8-bit file of A x0 and noise of this standard deviation on [-1, 1] would hold. x0: (B, C, H, W)."""
    y = operator(x0)
    return _from_file(operator, to_unit(to_bytes(y + noise * streams.normal(y.shape[1:]).to(y))), noise)


def _from_file(operator: Operator, y: Tensor, noise: float) -> Measurement:
    return Measurement(operator, y, noise**2 + ROUNDING**2)


def restore(folder: Path, how: How, sources: Sources, damage: Damage, *, method: str) -> None:
    """Sample the images that may have been before they were damaged; first damage them, unless they are."""
    make, way = choose(TASKS, damage.task, "--task"), choose(METHODS, method, "--method")
    if damage.mask is not None and damage.task != "missing":
        raise UserError(f"--mask: says which pixels are missing, and --task is {damage.task}; leave it out")
    if method == "ddrm" and _named(how):
        raise UserError("--method ddrm: has steps of its own; leave out --solver, --eta and --variance")
    desk = Desk(folder, with_new_noise(how), sources)
    try:
        operator = make(desk, damage)
    except ValueError as error:
        raise UserError(f"--task {damage.task}: {error}") from None
    shape = tuple(operator(desk.place(torch.zeros(1, *desk.shape))).shape[1:])
    clean = None if damage.degraded else desk.read_all()
    if clean is None:
        seen = _from_file(operator, desk.read_all(shape), damage.noise)
    else:
        seen = measured(operator, clean, damage.noise, desk.streams("noise", range(len(clean))))
    y = desk.place(seen.y)

    def work(rows: Tensor, numbers: list[int], predictor: Predictor) -> Iterator[Step]:
        noise, given = desk.streams("reverse", numbers), seen._replace(y=y[rows])
        means = way(predictor, given, noise, desk.model.clip)
        return walk(means.predictor, desk.latents(numbers), desk.drawing.times, desk.drawing.move, means.draw)

    results = desk.draw(len(y), _calls(desk, desk.drawing.times), work)
    scale = [big // small for big, small in zip(desk.shape[1:], shape[1:], strict=True)]
    shown = y.repeat_interleave(scale[0], 2).repeat_interleave(scale[1], 3).expand(-1, desk.shape[0], -1, -1)
    desk.write([shown] if clean is None else [clean, shown], results)
    if clean is not None:
        pairs = ((results, clean.cpu()[:, None]), (results.mean(1), clean.cpu()))
        each, mean = (psnr((x.clamp(-1, 1) - x0).square().mean((-3, -2, -1)), peak=2) for x, x0 in pairs)
        screen.print(f"PSNR {float(each.mean()):.2f} dB, of the mean of an image's results {float(mean.mean()):.2f} dB")
