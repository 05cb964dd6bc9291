"""An editing session: load images, run a sampler on them in batches, write a contact sheet and single PNGs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ancestral.data import decode, pictures
from ancestral.data.inventory import counted
from ancestral.data.pixels import to_bytes, to_unit
from ancestral.diffusion.denoisers.denoiser import Predictor
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.loop import Step
from ancestral.diffusion.samplers.sample import finish, latents, trajectory
from ancestral.errors import UserError
from ancestral.runs.conditions import Conditions, class_of
from ancestral.runs.open import Opener, device_of, open_gaussian, state_type
from ancestral.runs.sampling_options import OWN, SamplingOptions
from ancestral.runtime import verified_folder
from ancestral.runtime.console import advancing, screen
from ancestral.runtime.file_names import need_other
from ancestral.runtime.result_files import held
from ancestral.sampling.sampler import Sampler

Walk = Callable[[Tensor, list[int], Predictor], Iterator[Step]]
MIDDLE, GREY, UNSURE = 128, 64, 0.1  # of a mask: white from here on; so far from both ends, and a share, is no mask
VARIANTS = 1 << 20  # stream numbers set apart for each image


@dataclass(frozen=True)
class Sources:
    """The images to edit, and how they are read and shown."""

    paths: Sequence[Path]  # of the images
    fit: bool  # cut the middle square and scale it, instead of refusing another size
    out: Path  # where the sheet goes; the edited images go into a folder beside it, named like it
    num_images: int  # variants of each
    device: str  # by name


class Editor:
    """Changes given images by a run's model.

    Args:
        folder: the run.
        options: of drawing.
        device: by name.
        opener: of the run.
        calls: steps where the options name none, as of a `Sampler`.

    Raises:
        UserError: when the run cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        options: SamplingOptions,
        device: str,
        opener: Opener = open_gaussian,
        calls: int | None = None,
    ) -> None:
        clip = options.clip or OWN  # an x0 that is corrected runs away where nothing clips it
        self.options, self.sampler = options, Sampler(folder, replace(options, clip=clip), device, opener, calls)
        self.saved, self.model = self.sampler.saved, self.sampler.model
        self.schedule, self.shape = self.model.schedule, self.saved.facts.shape
        if self.saved.config.model.embedding:
            raise UserError("ancestral edit: this model takes vectors, which cannot be given here yet")
        self.label = class_of(self.saved.config, self.saved.facts, options.label)
        if self.saved.config.model.labels and self.label is None:
            names = ", ".join(self.saved.facts.trained)
            raise UserError(f"--label: this model draws classes; name the one of the images: {names}")
        self.open_streams = self.sampler.open_streams

    def kept_region(self, mask: np.ndarray, name: str) -> Tensor:
        """Where the image is known, bool (1, H, W): black in the mask, bytes (H, W, 1); white is to be drawn.

        Raises:
            UserError: when it is all of one kind.
        """
        drawn = mask[..., 0] >= MIDDLE
        if not drawn.any():
            raise UserError(f"{name}: nothing is white in this mask, so there is nothing to draw; white is drawn anew")
        if drawn.all():
            raise UserError(f"{name}: all of this mask is white, so nothing is kept; use ancestral sample instead")
        return torch.from_numpy(~drawn)[None].to(device_of(self.model))

    def to_state(self, x: Tensor) -> Tensor:
        """In the type and on the device of the loop's states."""
        return x.to(device_of(self.model), state_type(self.model))

    def latents(self, numbers: Sequence[int]) -> Tensor:
        """x_T of these numbers."""
        return self.to_state(latents(self.shape, self.options.seed, numbers, self.open_streams))

    def streams(self, purpose: str, numbers: Sequence[int]) -> Streams:
        """Noise for these numbers."""
        return self.open_streams(self.options.seed, purpose, numbers)

    def trajectory(
        self, predictor: Predictor, start: Tensor, times: Sequence[int], numbers: Sequence[int]
    ) -> Iterator[Step]:
        """The reverse process from `start` with noise for these numbers."""
        return trajectory(
            predictor, start, times, self.sampler.move, self.options.seed, numbers, streams=self.open_streams
        )

    def predictor(self, count: int) -> Predictor:
        """The model for a batch of so many images, under their label."""
        cond: Conditions = {}
        if self.label is not None:
            cond["labels"] = torch.full((count,), self.label, device=device_of(self.model))
        return self.sampler.predictor(cond)

    def draw_variants(self, jobs: int, variants: int, calls: int, walk: Walk) -> Tensor:
        """The results (jobs, variants, C, H, W) of a walk for each of `jobs` rows and each variant, batch by batch.

        Args:
            jobs: rows.
            variants: of each.
            calls: of the network, in a walk.
            walk: takes rows (B,), the numbers of their random streams and a predictor.
        """
        pairs = [(row, variant) for row in range(jobs) for variant in range(variants)]
        drawn = []
        with advancing(f"{calls} steps", len(pairs) * calls) as advance:
            for piece in self.sampler.pieces(len(pairs)):
                part = pairs[piece.start : piece.stop]
                rows = torch.tensor([row for row, _ in part], device=device_of(self.model))

                def watched(steps: Iterator[Step], count: int = len(part)) -> Iterator[Step]:
                    for step in steps:
                        advance(count)
                        yield step

                numbers = [row * VARIANTS + variant for row, variant in part]
                drawn.append(finish(watched(walk(rows, numbers, self.predictor(len(part))))).cpu())
        return torch.cat(drawn).reshape(jobs, variants, *self.shape)


class FileEditor(Editor):
    """Changes image files.

    Raises:
        UserError: when the run or an image cannot be used.
    """

    def __init__(self, folder: Path, options: SamplingOptions, sources: Sources, calls: int) -> None:
        if sources.out.suffix.lower() != ".png":
            raise UserError(f"--out: the sheet is a PNG file, and {sources.out} does not end with .png")
        self.sources = sources
        super().__init__(folder, options, sources.device, calls=calls)
        self.folder = sources.out.with_suffix("")

    def read(self, path: Path, shape: Sequence[int], white: int | None) -> np.ndarray:
        """The image as bytes (H, W, C) of this shape (C, H, W); `white` is 255 where values have more than 8 bits."""
        need_other(self.sources.out, path)
        if self.folder.resolve() == path.resolve().parent:  # it is replaced whole
            raise UserError(f"--out: {self.folder} holds one of the files to be read, {path}; choose another name")
        data, (channels, height, width) = self.saved.config.data, shape
        pixels = decode.decode_alone(path, channels, None, data.background, data.max_pixels, white=white)
        if pixels.shape[:2] == (height, width):
            return pixels
        if not self.sources.fit or height != width:
            mend = "; give --fit to cut its middle square and scale it" if height == width else "; scale it first"
            raise UserError(
                f"{path}: {pixels.shape[0]}x{pixels.shape[1]} pixels, here they must be {height}x{width}{mend}"
            )
        return decode.decode_alone(path, channels, height, data.background, data.max_pixels, white=white)

    def read_all(self, shape: Sequence[int] | None = None) -> Tensor:
        """The images on [-1, 1], (N, C, H, W), of the model's shape or another."""
        white = self.saved.config.data.white
        images = [self.read(path, shape or self.shape, white) for path in self.sources.paths]
        return self.to_state(to_unit(np.stack(images)))

    def read_mask(self, path: Path) -> Tensor:
        """As `kept_region`, of a file; it is said where it is hardly one of black and white."""
        mask = self.read(path, (1, *self.shape[1:]), None)
        between = float(((mask > GREY) & (mask < 255 - GREY)).mean())
        if between > UNSURE:
            screen.print(
                f"warning: {path}: {between:.0%} of this mask is neither black nor white; {MIDDLE} of 255 and above "
                "counts as white"
            )
        return self.kept_region(mask, str(path))

    def draw(self, jobs: int, calls: int, walk: Walk) -> Tensor:
        """As `draw_variants`, so many of each as the sources say."""
        return self.draw_variants(jobs, self.sources.num_images, calls, walk)

    def need_free(self, rows: int, variants: int) -> None:
        """Refuse, before the work, to write so many images where that cannot be, or would overwrite what is not ours.

        Raises:
            UserError: as `write` would.
        """
        verified_folder.need_writable(self.sources.out)
        with held(self.sources.out.parent, "edit", beside=self.folder) as files:
            files.need_free(self._name(row, variant) for row in range(rows) for variant in range(variants))

    def _name(self, row: int, variant: int) -> str:
        return f"{self.folder.name}/{row:03d}-{variant:03d}.png"

    def write(
        self,
        before: Mapping[str, Tensor],
        results: Tensor,
        after: Mapping[str, Tensor] | None = None,
        named: Sequence[str] = (),
    ) -> None:
        """The sheet, a row for each image, and the images.

        Args:
            before: columns of the sheet by name, (N, C, H, W).
            results: (N, variants, C, H, W).
            after: more columns.
            named: the variants; results by number when left out.
        """
        out = self.sources.out
        left, right = ([one.cpu()[:, None] for one in some.values()] for some in (before, after or {}))
        columns, count = [*left, results.cpu(), *right], results.shape[1]
        named = named or (["result"] if count == 1 else [f"result {n + 1}" for n in range(count)])
        names = [*before, *named, *(after or {})]
        sheet = torch.cat(columns, 1)
        images = {
            self._name(row, variant): pictures.png(image)
            for row, variants in enumerate(results)
            for variant, image in enumerate(to_bytes(variants))
        }
        cover = {
            out.name: pictures.sheet(to_bytes(sheet.flatten(0, 1)), sheet.shape[1], pictures.Labels(columns=names))
        }
        with held(out.parent, "edit", beside=self.folder) as files:
            files.need_free(images)
            for path in files.replace({**images, **cover}.items(), covers=cover):
                screen.print(f"kept, as it was changed since it was drawn: {path}")
        screen.print(f"{counted(len(images), 'image')}: {out}, and each in {self.folder}")
