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
from ancestral.diffusion.editing.inverse_problems import METHODS, Observation
from ancestral.diffusion.editing.operators import Known, Operator, box_means, gaussian_blur, grey
from ancestral.diffusion.objectives.statistics import psnr
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.loop import Step, from_model, walk
from ancestral.diffusion.samplers.solvers import FLOW_SOLVER
from ancestral.diffusion.samplers.transitions import begin
from ancestral.errors import UserError
from ancestral.runs import build
from ancestral.runs.memory_need import need_for_gradient
from ancestral.runs.open import device_of
from ancestral.runs.registry import choose
from ancestral.runs.sampling_options import SamplingOptions
from ancestral.runtime.console import screen
from ancestral.sampling.editor import VARIANTS, Editor, FileEditor, Sources, Walk

ROUNDING = 1 / (255 * 3**0.5)  # standard deviation of a byte's rounding on [-1, 1]


def with_new_noise(options: SamplingOptions) -> SamplingOptions:
    """With new noise at each step where no way to step is named: what goes astray is then mended further down."""
    return options if options.step_named else replace(options, eta=1.0)


def along_the_flow(options: SamplingOptions) -> SamplingOptions:
    """By the flow where no way to step is named: what it encodes, it decodes."""
    return options if options.step_named else replace(options, solver=FLOW_SOLVER)


class Edit(NamedTuple):
    """A walk that changes given images."""

    calls: int  # of the network
    walk: Walk


def _calls(editor: Editor, times: list[int]) -> int:
    return len(begin(editor.sampler.move, editor.schedule, times)[1]) - 1


def nearest_trained(editor: Editor, t: int) -> int:
    """The time nearest to t that the model was trained at."""
    return min(build.training_grid(editor.saved.config)[:-1], key=lambda own: abs(own - t))


def _below(editor: Editor, at: int | None, share: float) -> list[int]:
    """The walk from t = `at` on, or from this share of T, as nearly as the model was trained there."""
    nearest = nearest_trained(editor, round(share * editor.schedule.T) if at is None else at)
    try:
        times = below(editor.schedule, editor.sampler.times, nearest if at is None else at)
    except ValueError as error:
        raise UserError(f"--at: {error}") from None
    if times[0] != nearest:
        few = build.most_steps(editor.saved.config)
        raise UserError(f"--at: the model was trained at {few} times only, not at {at}; the nearest is {nearest}")
    return times


def inpaint(
    folder: Path, sources: Sources, options: SamplingOptions, calls: int, *, mask: Path, jump: int, resamples: int
) -> None:
    """Draw what is white in a mask anew and keep the rest to the byte (RePaint)."""
    editor = FileEditor(folder, with_new_noise(options), sources, calls)
    x0, known = editor.read_all(), editor.read_mask(mask)
    edit = repainted(editor, x0, known, jump, resamples)
    editor.need_free(len(sources.paths), sources.num_images)
    editor.write({"image": x0, "kept": torch.where(known, x0, 0.0)}, editor.draw(len(x0), *edit))


def repainted(editor: Editor, x0: Tensor, known: Tensor, jump: int, resamples: int) -> Edit:
    """Inpainting of images (N, C, H, W), of which `known` (1, H, W) is kept.

    Raises:
        UserError: for a solver with a memory, or a jump that is too long.
    """
    sampler = editor.sampler
    if not callable(sampler.move):
        raise UserError("--solver: a walk that goes up again takes steps without a memory: euler or euler-ancestral")
    method = Resampled(sampler.move, jump, resamples)
    try:
        calls = len(begin(method, editor.schedule, sampler.times)[1]) - 1
    except ValueError as error:
        raise UserError(f"--jump: {error}") from None

    def steps(rows: Tensor, numbers: list[int], predictor: Predictor) -> Iterator[Step]:
        given, region = x0[rows], editor.streams("known", numbers)
        begun = editor.schedule.marginal(given, sampler.times[0]).sample(editor.to_state(region.normal(editor.shape)))
        draw = from_model(editor.streams("reverse", numbers))
        draw = known_region(editor.schedule, given, known, region, draw)
        return walk(predictor, torch.where(known, begun, editor.latents(numbers)), sampler.times, method, draw)

    return Edit(calls, steps)


class Encoder(NamedTuple):
    """How two images become states at t, and how these are mixed.

    `encode` takes the editor, the images (2, C, H, W), the times and the stream numbers, and gives (B, 2, C, H, W).
    """

    encode: Callable[[Editor, Tensor, list[int], list[int]], Tensor]
    mix: Callable[[Tensor, Tensor, Tensor], Tensor]  # the share shaped (B, 1, 1, 1)
    depth: float  # t / T when no t is named
    step: Callable[[SamplingOptions], SamplingOptions]
    varies: bool = True  # from one variant to the next


def _noised(first: str, second: str) -> Callable[[Editor, Tensor, list[int], list[int]], Tensor]:
    def encode(editor: Editor, x0: Tensor, times: list[int], numbers: list[int]) -> Tensor:
        eps = torch.stack([editor.streams(name, numbers).normal(editor.shape) for name in (first, second)], 1)
        return editor.schedule.marginal(x0.expand(eps.shape), times[0]).sample(editor.to_state(eps))

    return encode


def _inverted(editor: Editor, x0: Tensor, times: list[int], numbers: list[int]) -> Tensor:
    return inverted(editor.predictor(2), x0, times).expand(len(numbers), -1, -1, -1, -1)


ENCODERS: dict[str, Encoder] = {
    "noise": Encoder(_noised("first", "second"), mix, 0.5, with_new_noise),  # the paper's
    "shared": Encoder(_noised("first", "first"), mix, 0.5, with_new_noise),
    "inversion": Encoder(_inverted, slerp, 1.0, along_the_flow, varies=False),
}


def interpolate(
    folder: Path, sources: Sources, options: SamplingOptions, calls: int, *, at: int | None, frames: int, encoder: str
) -> None:
    """Go from one image to the other through mixed states at t (the paper's section 4.4): a row for each variant."""
    way = choose(ENCODERS, encoder, "--encoder")
    if not way.varies and sources.num_images > 1:
        raise UserError(f"--num-images: --encoder {encoder} has one way between two images; leave it out")
    editor = FileEditor(folder, way.step(options), sources, calls)
    ends = editor.read_all()
    editor.need_free(sources.num_images, frames)
    edit = between(editor, ends, way, at, frames, sources.num_images)
    mixed = editor.draw(frames, *edit).transpose(0, 1)
    first, last = (end.expand(len(mixed), -1, -1, -1) for end in ends)
    shares = [f"{share:.0%}" for share in torch.linspace(0, 1, frames).tolist()]
    editor.write({"first": first}, mixed, {"last": last}, shares)


def between(editor: Editor, ends: Tensor, way: Encoder, at: int | None, frames: int, variants: int) -> Edit:
    """`frames` images from one of `ends` (2, C, H, W) to the other, through states at t = `at`.

    Raises:
        UserError: unless 1 <= t <= T.
    """
    times = _below(editor, at, way.depth)
    states = way.encode(editor, ends, times, list(range(variants)))

    def steps(rows: Tensor, numbers: list[int], predictor: Predictor) -> Iterator[Step]:
        numbers = [number % VARIANTS for number in numbers]  # the same noise for every frame
        first, second = states[numbers].unbind(1)
        start = way.mix(first, second, editor.to_state(rows / (frames - 1)).reshape(-1, 1, 1, 1))
        return editor.trajectory(predictor, start, times, numbers)

    return Edit(_calls(editor, times), steps)


def vary(
    folder: Path, sources: Sources, options: SamplingOptions, calls: int, *, at: int | None, strength: float
) -> None:
    """Noise the images up to t and draw them down from there (SDEdit)."""
    editor = FileEditor(folder, with_new_noise(options), sources, calls)
    x0, times = editor.read_all(), _below(editor, at, strength)
    editor.need_free(len(sources.paths), sources.num_images)

    def steps(rows: Tensor, numbers: list[int], predictor: Predictor) -> Iterator[Step]:
        eps = editor.to_state(editor.streams("forward", numbers).normal(editor.shape))
        start = editor.schedule.marginal(x0[rows], times[0]).sample(eps)
        return editor.trajectory(predictor, start, times, numbers)

    editor.write({"image": x0}, editor.draw(len(x0), _calls(editor, times), steps))


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


def _missing(editor: FileEditor, damage: Damage) -> Operator:
    if damage.mask is not None:
        return Known(editor.read_mask(damage.mask))
    if damage.degraded:
        raise UserError("--mask: say which pixels are missing, white in a PNG of the image's size")
    chance = torch.special.ndtr(editor.streams("missing", [0]).normal(editor.shape[1:]).cpu())
    return Known(chance >= damage.missing)


TASKS: dict[str, Callable[[FileEditor, Damage], Operator]] = {
    "super-resolution": lambda editor, damage: box_means(editor.shape, damage.factor),
    "deblur": lambda editor, damage: gaussian_blur(editor.shape, damage.blur),
    "colour": lambda editor, damage: grey(editor.shape),
    "missing": _missing,
}


def observed(operator: Operator, x0: Tensor, noise: float, streams: Streams) -> Observation:
    """What an 8-bit file of A x0 and noise of this standard deviation on [-1, 1] would hold. x0: (B, C, H, W)."""
    y = operator(x0)
    return _from_file(operator, to_unit(to_bytes(y + noise * streams.normal(y.shape[1:]).to(y))), noise)


def _from_file(operator: Operator, y: Tensor, noise: float) -> Observation:
    """Of what a file holds; where nothing was seen that may be anything, and none of it is taken."""
    return Observation(operator, operator.in_range(y), noise**2 + ROUNDING**2)


def restore(
    folder: Path, sources: Sources, options: SamplingOptions, calls: int, damage: Damage, *, method: str
) -> None:
    """Sample the images that may have been before they were damaged; first damage them, unless they are."""
    make, way = choose(TASKS, damage.task, "--task"), choose(METHODS, method, "--method")
    if damage.mask is not None and damage.task != "missing":
        raise UserError(f"--mask: says which pixels are missing, and --task is {damage.task}; leave it out")
    if way.own_steps and options.step_named:
        raise UserError(f"--method {method}: has steps of its own; leave out --solver, --eta and --variance")
    editor = FileEditor(folder, with_new_noise(options), sources, calls)
    try:
        operator = make(editor, damage)
    except ValueError as error:
        raise UserError(f"--task {damage.task}: {error}") from None
    shape = tuple(operator(editor.to_state(torch.zeros(1, *editor.shape))).shape[1:])
    clean = None if damage.degraded else editor.read_all()
    if clean is None:
        seen = _from_file(operator, editor.read_all(shape), damage.noise)
    else:
        seen = observed(operator, clean, damage.noise, editor.streams("noise", range(len(clean))))
    y = editor.to_state(seen.y)
    editor.need_free(len(sources.paths), sources.num_images)
    if way.gradient:
        together = min(options.batch_size, len(y) * sources.num_images)
        need_for_gradient(editor.saved.config, editor.saved.facts, together, device_of(editor.model))

    def steps(rows: Tensor, numbers: list[int], predictor: Predictor) -> Iterator[Step]:
        noise, given = editor.streams("reverse", numbers), seen._replace(y=y[rows])
        guided, draw = way.guide(predictor, given, noise, editor.model.clip)
        return walk(guided, editor.latents(numbers), editor.sampler.times, editor.sampler.move, draw)

    results = editor.draw(len(y), _calls(editor, editor.sampler.times), steps)
    scale = [big // small for big, small in zip(editor.shape[1:], shape[1:], strict=True)]
    shown = y.repeat_interleave(scale[0], 2).repeat_interleave(scale[1], 3).expand(-1, editor.shape[0], -1, -1)
    editor.write({**({} if clean is None else {"image": clean}), "damaged": shown}, results)
    if clean is not None:
        x0 = clean.cpu()[:, None]
        several = {" of an image's mean result": results.mean(1, True)} if results.shape[1] > 1 else {}
        compared = {"": results, **several, " of the damaged": shown[:, None]}
        each = {name: psnr((x.cpu().clamp(-1, 1) - x0).square().mean((2, 3, 4)), 2) for name, x in compared.items()}
        screen.print("PSNR" + ",".join(f"{name} {float(one.mean()):.2f} dB" for name, one in each.items()))
