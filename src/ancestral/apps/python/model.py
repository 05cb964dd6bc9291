"""A trained model in the hand: draws, measures, edits and compresses, by the functions of the command line."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import ImageOps

from ancestral.apps.python.images import Film, Images
from ancestral.apps.python.words import names_parameters
from ancestral.compression import choices
from ancestral.data import decode, memory
from ancestral.data import load as reading
from ancestral.data.dataset import DataOptions, ImageSet
from ancestral.data.pixels import to_bytes, to_unit
from ancestral.diffusion.denoisers.denoiser import Denoiser
from ancestral.diffusion.objectives.elbo import concatenate, elbo
from ancestral.diffusion.objectives.statistics import Estimate, mean_and_error
from ancestral.diffusion.processes.types import no_advance
from ancestral.diffusion.samplers.sample import film, finish
from ancestral.errors import UserError
from ancestral.evaluation import elbo_command, sample_metrics_command
from ancestral.evaluation.measurement import Measurement
from ancestral.runs import build, calibration, checkpoint
from ancestral.runs.conditions import Conditions
from ancestral.runs.datasets import fitting, images_for
from ancestral.runs.hub import hub
from ancestral.runs.memory_need import need_for_drawing
from ancestral.runs.open import device_of, open_model
from ancestral.runs.process_kinds import chain, need_bound, need_gaussian
from ancestral.runs.registry import suggest
from ancestral.runs.sampling_options import EDIT_CALLS, JUMP, OPTIONS, RESAMPLES, SamplingOptions
from ancestral.runtime.console import advancing, screen
from ancestral.runtime.text import quoted
from ancestral.sampling import command, drawn_files, edit_command
from ancestral.sampling.editor import Editor
from ancestral.sampling.sampler import Sampler

Label = str | int | None


@names_parameters
def load(
    source: str | Path,
    device: str = "auto",
    *,
    scheduler: str | Path | None = None,
    null_class: int | None = None,
) -> Model:
    """A trained model: of a run, RUN/averages/N, a published or diffusers folder, or USER/NAME[@REVISION] on the hub.

    Args:
        source: the folder, or the name; a folder of that name comes first.
        device: auto, cpu, cuda, cuda:1 or mps.
        scheduler: of a diffusers folder without one: its scheduler_config.json, or the folder of that.
        null_class: of a diffusers network: the number of its unconditional (null) class, for guidance.

    Raises:
        UserError: when there is none, or it is damaged or of a kind unknown here.
    """
    build.device(device)
    if not _path(source):
        raise UserError(f"source: a folder, or a name on the hub, is needed, got {source!r}")
    if null_class is not None and (not isinstance(null_class, int) or isinstance(null_class, bool)):
        raise UserError(f"null_class: the number of a class is needed, got {null_class!r}")
    if scheduler is not None and (_path(scheduler) is None or not Path(scheduler).exists()):
        raise UserError(f"scheduler: a file or folder that is there is needed, got {scheduler!r}")
    process = None if scheduler is None else Path(scheduler)
    saved, path = hub.load(source, process, null_class), Path(source)
    return Model(saved, path if (path / "checkpoints").is_dir() else saved.folder, device)


class Model:
    """A trained model.

    Options of drawing are those of `ancestral sample`, by name: the fields of `SamplingOptions`.

    Args:
        saved: its checkpoint.
        folder: of the run, or of the model's files where it is of no run.
        device: by name.
    """

    def __init__(self, saved: checkpoint.Checkpoint, folder: Path, device: str = "auto") -> None:
        self.saved, self.folder, self.device = saved, folder, device

    def __repr__(self) -> str:
        channels, height, width = self.saved.facts.shape
        return f"<model of {height}x{width}x{channels} images, {self.saved.images:,} seen: {self.folder}>"

    @cached_property
    def denoiser(self) -> Denoiser:
        """The network in its setting: its `schedule`, and a prediction of x0 for any x_t and t."""
        return self._open(self.folder, self.device, None)[1]

    @property
    def edit(self) -> Editing:
        """Changes of given images."""
        return Editing(self)

    @names_parameters
    def sample(
        self,
        count: int = 16,
        *,
        steps: int | str | None = None,
        seed: int = 0,
        label: Label = None,
        guidance: float | None = None,
        embeddings: str | Path | None = None,
        **drawing: Any,
    ) -> Images:
        """Draw images: the same, to the byte, as `ancestral sample` with the same options.

        Args:
            count: how many.
            steps: network calls an image, 20 when left out; "all" for the whole chain.
            seed: of every draw; image i is a function of it and of i.
            label: class to draw, for a model with labels; all in turn when left out.
            guidance: 0 unconditional, 1 conditional, above more so.
            embeddings: a .npy file (N, E) for a model that takes vectors.
            drawing: other options of drawing.

        Raises:
            UserError: naming the option that has no meaning for this model.
        """
        sampler, cond = self._sampler(
            count, embeddings, steps=steps, seed=seed, label=label, guidance=guidance, **drawing
        )
        with advancing(f"{sampler.steps} steps", count * sampler.steps) as advance:
            parts = sampler.pieces(count)
            return Images(np.concatenate([to_bytes(finish(sampler.walk(part, cond, advance))) for part in parts]))

    @names_parameters
    def film(
        self,
        count: int = 8,
        *,
        steps: int | str | None = None,
        seed: int = 0,
        label: Label = None,
        guidance: float | None = None,
        embeddings: str | os.PathLike[str] | None = None,
        **drawing: Any,
    ) -> Film:
        """Draw images and keep how they were made; options as of `sample`."""
        sampler, cond = self._sampler(
            count, embeddings, steps=steps, seed=seed, label=label, guidance=guidance, **drawing
        )
        need_for_drawing(sampler.saved.config, sampler.saved.facts, count, device_of(sampler.model), option="count")
        times = drawn_files.film_times(sorted(set(sampler.visits), reverse=True))
        frames = film(sampler.walk(range(count), cond, no_advance), times)
        shown = frames._replace(x_t=[sampler.model.schedule.shown(x_t) for x_t in frames.x_t])
        files = drawn_files.film_files(shown)
        png, gif = (files[name] for name in drawn_files.FILM)
        states = np.stack([to_bytes(x_t) for x_t in (*shown.x_t, frames.final)])
        return Film(Images(states[-1]), states, png, gif)

    @names_parameters
    def bits_per_dim(
        self,
        data: object = None,
        *,
        num_images: int = 256,
        terms: int | None = None,
        exact: bool = False,
        variance: str | None = None,
        seed: int = 0,
        batch_size: int = 64,
    ) -> Estimate:
        """The variational bound on -log2 p(x0) a dimension, as `ancestral evaluate`: its mean and standard error.

        Args:
            data: a path or name, whose held-out part is measured, the run's own when left out; or images in memory,
                all of which are; of a model whose variance was never measured, as an imported one's, only the part
                that `train` holds out, and the rest is for the variance.
            num_images: at most so many of them, evenly spread.
            terms: of the bound that are measured an image; 50 when left out. The error of fewer than 5 says little.
            exact: every term for every image.
            variance: of the reverse process; the run's own when left out.
            seed: of every draw.
            batch_size: images at a time; changes no number.

        Raises:
            UserError: for images that the model cannot look at.
        """
        _need_count(num_images, "num_images")
        _need_count(batch_size, "batch_size")
        need_bound(self.saved.config, "bits_per_dim")
        model, saved = self.denoiser, self.saved
        if saved.calibration is None and chain(saved.config).calibrated:
            splits = self._splits(data)
            images, saved = splits.test, calibration.calibrated(saved, model, splits.train)
        else:
            images = self._images(data)
        seed = OPTIONS["seed"].checked("seed", seed)
        move, times = build.transition(saved, variance), build.training_grid(saved.config)
        terms = elbo_command.measured_terms(len(times) - 1, terms, exact, "terms")
        measurement = Measurement(saved, model, None, images.spread(num_images), batch_size, seed)
        found = [
            elbo(*measurement.batch(part), times, move, measurement.streams("evaluate", part), terms=terms)
            for part in measurement.batches
        ]
        return Estimate(*mean_and_error(concatenate(found).bits_per_dim))

    @names_parameters
    def metrics(
        self, data: object = None, *, num_images: int = 2000, network: str | Sequence[str] = "lite0", **drawing: Any
    ) -> dict[str, dict[str, Estimate]]:
        """Samples against real images, as `ancestral metrics`: by metric, then by what is compared.

        Args:
            data: with training and held-out images: a path or name, the run's own when left out; or images in memory,
                of which the part is held out that `train` holds out.
            num_images: how many on each side, at most.
            network: lite0, pixels, classifier (trained on the data's classes), or the file of the FID Inception as
                TorchScript; or several.
            drawing: options of drawing, as of `sample`.

        Raises:
            UserError: when there are too few images, or others than the model's.
        """
        _need_count(num_images, "num_images")
        options, images = _options(**drawing), self._splits(data)
        with self._run() as run, TemporaryDirectory() as out:
            return sample_metrics_command.metrics(
                run,
                options,
                data_source=None,
                num_images=num_images,
                networks=[network] if isinstance(network, str) else network,
                train_images=None,
                out=Path(out),
                cache=None,
                device=self.device,
                images=images,
                opener=self._open if run == self.folder else open_model,
            )

    @names_parameters
    def compress(self, image: object, *, profile: str = "small", size: int | None = None, data: object = None) -> bytes:
        """An image as a file that gives back its exact pixels, or the first `size` bytes of it, which are a picture.

        The first time, the model is measured on its training images. What was measured is kept in its run, and files
        are read with it: a model that is no run is refused.

        Args:
            image: a path, an image for Pillow, or a uint8 array (H, W) or (H, W, C).
            profile: quick, small or smallest: more network calls, mostly for fewer bytes; chunks: by single chunks.
            size: keep so many bytes.
            data: the training images, as of `train`; the run's own when left out.

        Raises:
            UserError: for an image that the model cannot hold without loss.
        """
        from ancestral.compression import compress_command  # needs an extra, which drawing does without

        _need_name("profile", profile, choices.PROFILES)
        if size is not None:
            _need_count(size, "size")
        with _quiet(), TemporaryDirectory() as temporary:
            source, out = _file(image, Path(temporary)), Path(temporary) / "out.anc"
            options = {"out": out, "profile": profile, "size": size, "device": self.device}
            with _named(f"{temporary}/image.png", "image"):
                compress_command.compress(self._own_run(), [source], **options, images=lambda: self._splits(data))
            return out.read_bytes()

    @names_parameters
    def decompress(
        self, content: bytes, *, finish: str = "mean", lossy: bool = False, data: object = None
    ) -> np.ndarray:
        """The image uint8 (H, W, C) of what `compress` has given, to the bit unless it is `lossy`.

        Args:
            content: of a file.
            finish: how a picture without its last steps is completed: mean, ode or sample.
            lossy: the picture that the bytes give without the exact pixels, also where they were cut.
            data: as of `compress`.

        Raises:
            UserError: when it is damaged, cut and not `lossy`, or of another model.
        """
        from ancestral.compression import compress_command  # needs an extra, which drawing does without

        _need_name("finish", finish, choices.FINISHES)
        if not isinstance(content, bytes):
            raise UserError(f"content: bytes of a compressed file are needed, got {type(content).__name__}")
        with _quiet(), TemporaryDirectory() as temporary:
            source, out = Path(temporary) / "in.anc", Path(temporary) / "out.png"
            source.write_bytes(content)
            with _named(str(source), "content"):
                (decoded,) = compress_command.decompress(
                    self._own_run(),
                    [source],
                    out=out,
                    finish=finish,
                    upto=None,
                    lossy=lossy,
                    device=self.device,
                    images=lambda: self._splits(data),
                )
        if not decoded.lossless and not lossy:
            raise UserError(f"content: was cut after {len(content)} bytes; lossy=True gives the picture that they hold")
        return decoded.pixels

    def _sampler(
        self, count: int, embeddings: str | os.PathLike[str] | None, **drawing: Any
    ) -> tuple[Sampler, Conditions]:
        """(what draws with these options, the conditions of the images).

        Raises:
            UserError: for a count that is none, and as `sample`.
        """
        _need_count(count)
        options = _options(**drawing)
        sampler = Sampler(self.folder, options, self.device, self._open)
        vectors = None if embeddings is None else Path(embeddings)
        return sampler, command.conditions(sampler.saved, options.label, vectors, count)

    def _editor(self, options: SamplingOptions, calls: int) -> Editor:
        """What edits with these options, in so many network calls an image where they name no number."""
        return Editor(self.folder, options, self.device, self._open, calls)

    def _open(self, folder: Path, device: str, average_width: float | None) -> tuple[checkpoint.Checkpoint, Denoiser]:
        return self.saved, build.trained(self.saved, folder, build.device(device), average_width)

    def _splits(self, data: object) -> reading.Splits:
        """The images of data in any form, or of the run, as `train` splits them."""
        path, options = _path(data), self.saved.config.data
        if data is not None and path is None:
            return fitting(self.saved, reading.of_any(data, options), memory.NAME)
        return images_for(self.saved, path, "give data")[1]

    def _images(self, data: object) -> ImageSet:
        if data is None or _path(data) is not None:
            return self._splits(data).test
        images = memory.image_set(data, self.saved.config.data)
        return fitting(self.saved, reading.Splits(images, images), memory.NAME).test

    @contextmanager
    def _run(self) -> Iterator[Path]:
        """The model's run; one for the time being where it is of none, or its checkpoint is there no more."""
        if self._is_run and self.saved.folder.is_dir():
            yield self.folder
            return
        with TemporaryDirectory() as temporary:
            checkpoint.save_imported(Path(temporary) / "run", self.saved)
            yield Path(temporary) / "run"

    def _own_run(self) -> Path:
        """The folder of the run whose newest checkpoint this model is.

        Raises:
            UserError: where there is none.
        """
        if not self._is_run:
            source = quoted(self.folder)
            raise UserError(
                f"{self.folder}: is no run, and only a run keeps what files are read with; make one: "
                f"ancestral import {source} --out RUN"
            )
        if not self._is_newest():
            raise UserError(f"{self.folder}: was trained on since this model was loaded; load it again")
        return self.folder

    @property
    def _is_run(self) -> bool:
        return (self.folder / "checkpoints").is_dir()

    def _is_newest(self) -> bool:
        """Whether this is what a command finds in its run."""
        return checkpoint.weights_digest(checkpoint.open_run(self.folder)[0]) == checkpoint.weights_digest(self.saved)


class Editing:
    """Changes of given images by a model."""

    def __init__(self, model: Model) -> None:
        self._model = model

    @names_parameters
    def inpaint(
        self,
        image: object,
        mask: object,
        *,
        count: int = 1,
        label: Label = None,
        steps: int | str | None = None,
        jump: int = JUMP,
        resamples: int = RESAMPLES,
        **drawing: Any,
    ) -> Images:
        """Draw what is white in a mask anew and keep the rest to the byte, as `ancestral edit inpaint`.

        Args:
            image: a path, an image for Pillow, or a uint8 array (H, W) or (H, W, C), of the model's size; colour
                becomes grey, and 16 bits 8, where the model's images are so.
            mask: the same of one channel, or a bool array (H, W): white, or True, is drawn.
            count: variants.
            label: class of the image, for a model with labels.
            steps: from T to clean images; 50 when left out, or T where that is fewer; all of them with a `variance`.
            jump: steps gone up again at a time.
            resamples: times each stretch is walked.
            drawing: other options of drawing, as of `sample`.

        Raises:
            UserError: naming what does not fit.
        """
        model = self._model
        for name, number in {"count": count, "jump": jump, "resamples": resamples}.items():
            _need_count(number, name)
        need_gaussian(model.saved.config, "inpaint")
        options = edit_command.with_new_noise(_options(steps=steps, label=label, **drawing))
        editor = model._editor(options, EDIT_CALLS["inpaint"])
        channels, height, width = editor.shape
        data = model.saved.config.data
        x0 = editor.to_state(to_unit(_pixels(image, (height, width, channels), data.white, "image", data)[None]))
        known = editor.kept_region(_pixels(mask, (height, width, 1), None, "mask", data), "mask")
        calls, walk = edit_command.repainted(editor, x0, known, jump, resamples)
        return Images(to_bytes(editor.draw_variants(1, count, calls, walk)[0]))


def _options(label: Label = None, **options: Any) -> SamplingOptions:
    for name in options:
        if name not in OPTIONS:
            raise UserError(f"{name}: unknown option of drawing; {suggest(name, OPTIONS)}")
    return SamplingOptions(label=None if label is None else str(label), **options)


def _path(data: object) -> str | None:
    """Of data on disk or on the hub; None for what is in memory."""
    return os.fspath(data) if isinstance(data, (str, os.PathLike)) else None


def _need_count(count: int, name: str = "count") -> None:
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
        raise UserError(f"{name}: must be a whole number, 1 or more, got {count!r}")


def _need_name(parameter: str, name: object, names: Collection[str]) -> None:
    if not isinstance(name, str) or name not in names:
        raise UserError(f"{parameter}: unknown {name!r}; {suggest(name, names)}")


def _pixels(image: object, shape: Sequence[int], white: int | None, name: str, options: DataOptions) -> np.ndarray:
    """One image as bytes of this shape (H, W, C); `white` is 255 in a file whose values have more than 8 bits."""
    *sides, channels = shape
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        pixels = decode.decode_alone(path, channels, None, options.background, options.max_pixels, white=white).copy()
    else:
        if isinstance(image, (np.ndarray, torch.Tensor)) and str(image.dtype).endswith("bool"):
            image = np.asarray(image).astype(np.uint8) * 255
        pixels = decode.from_pil(memory.picture(image, name), channels, None, options.background).copy()
    if pixels.shape != tuple(shape):
        raise UserError(f"{name}: {pixels.shape[0]}x{pixels.shape[1]} pixels, the model's are {sides[0]}x{sides[1]}")
    return pixels


@contextmanager
def _named(file: str, name: str) -> Iterator[None]:
    """A file that is there for a moment has the name of what it holds in what is refused."""
    try:
        yield
    except UserError as error:
        error.args = (str(error).replace(file, name),)
        raise


def _file(image: object, folder: Path) -> Path:
    """The image as a file."""
    if isinstance(image, (str, os.PathLike)):
        return Path(image)
    given = memory.picture(image, "image")
    if (frames := getattr(given, "n_frames", 1)) > 1:
        raise UserError(f"image: has {frames} frames, of which one would be kept; give one: image.copy()")
    picture = ImageOps.exif_transpose(given)  # upright, as a file of it is read
    if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        raise UserError(f"image: {picture.mode} colours change when made into RGB; convert it to RGB first")
    picture.save(folder / "image.png")
    return folder / "image.png"


@contextmanager
def _quiet() -> Iterator[None]:
    before, screen.quiet = screen.quiet, True
    try:
        yield
    finally:
        screen.quiet = before
