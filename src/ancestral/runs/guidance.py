"""How a run's model is guided, from the options of a command: every way to draw asks here for its predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ancestral.diffusion.denoisers.calibrated import Calibrated
from ancestral.diffusion.denoisers.denoiser import Conditioned, Denoiser, Predictor
from ancestral.diffusion.denoisers.guidance import EVERYWHERE, Guided, beside, conditional, scale_at
from ancestral.errors import UserError
from ancestral.runs import build, checkpoint
from ancestral.runs.checkpoint import Checkpoint
from ancestral.runs.compute_format import laid_out
from ancestral.runs.conditions import Conditions, for_model
from ancestral.runs.config import Config
from ancestral.runs.open import device_of, newest_whole
from ancestral.runs.process_kinds import need_gaussian
from ancestral.runs.sampling_options import OPTIONS, SamplingOptions

_MEND = (  # for a model trained here, and for one of diffusers
    "train with --set model.condition_dropout=0.1",
    "if one of its classes is the unconditional (null) class, import it again with --null-class N",
)
_OTHERWISE = "name a weaker model with --guide, or an early average of this one with --guide early"

EARLY = "early"  # in place of a path: an early average of the same run
SHARE = 0.25  # of its images, which that average has seen


class Guide:
    """A weaker model, from a run or from a kept average of one (RUN/averages/IMAGES).

    Args:
        path: of the run or the average.
        channels_last: how its weights lie in memory.
        strong: the checkpoint that it guides.
        model: that checkpoint's model.

    Raises:
        UserError: when it cannot be opened, or is of other images, another forward process or other classes.
    """

    def __init__(self, path: Path, channels_last: bool, strong: Checkpoint, model: Denoiser) -> None:
        saved = checkpoint.open_average(path) if checkpoint.is_average(path) else newest_whole(path)
        need_gaussian(saved.config, f"--guide {path}")
        self.config: Config = saved.config
        self.model = build.trained(saved, path, device_of(model))
        laid_out(self.model.network, channels_last)
        self.digest = checkpoint.digest(saved)
        if saved.facts.shape != strong.facts.shape:
            raise UserError(f"--guide {path}: its images are {saved.facts.shape}, the model's {strong.facts.shape}")
        if not torch.equal(self.model.schedule.log_alpha_bar, model.schedule.log_alpha_bar):
            raise UserError(
                f"--guide {path}: was trained with another diffusion.schedule, diffusion.shift or diffusion.T"
            )
        own, other = saved.config.model, strong.config.model
        if own.labels and not (other.labels and saved.facts.class_names == strong.facts.class_names):
            raise UserError(f"--guide {path}: its classes are not those of the model that it would guide")
        if own.embedding and not (other.embedding and saved.facts.embedding == strong.facts.embedding):
            raise UserError(f"--guide {path}: its embeddings are not those of the model that it would guide")


class Guidance:
    """A model and what guides it, if anything does.

    Args:
        options: of drawing.
        saved: the checkpoint.
        model: its model.
        channels_last: how weights lie in memory, the model's and the guide's.

    Raises:
        UserError: when the model cannot be guided so.
    """

    def __init__(self, options: SamplingOptions, saved: Checkpoint, model: Denoiser, channels_last: bool) -> None:
        self.scale = options.guidance
        self.rescale = options.guidance_rescale or 0.0
        self.interval = options.guidance_interval or EVERYWHERE
        self.saved, self.model = saved, model
        if self.scale is not None:
            need_gaussian(saved.config, "--guidance")
        conditions, path = saved.config.model, options.guide
        if self.scale is None:
            idle = [name for name in options.given if OPTIONS[name].needs == "guidance"]
            if idle:
                raise UserError(f"--{idle[0].replace('_', '-')}: says how to guide; add --guidance SCALE")
        elif path is None and not conditions.conditional:
            raise UserError(
                "--guidance: this model was trained without labels; train with --set model.labels=true "
                f"--set model.condition_dropout=0.1, or {_OTHERWISE}"
            )
        elif path is None and not conditions.condition_dropout:
            raise UserError(
                "--guidance: this model always had its conditions in training, so it has no unconditional half; "
                f"{_MEND[saved.config.source.startswith('diffusers:')]}, or {_OTHERWISE}"
            )
        self.note = ""  # what was understood, where more was left open than a path
        if path == EARLY:
            path = checkpoint.early_average(saved, SHARE)
            self.note = f"--guide {EARLY}: {path}, of {saved.images:,} images seen"
        self.guide = None if path is None else Guide(Path(path), channels_last, saved, model)

    @property
    def calls(self) -> int:
        """Of a network, for one prediction."""
        return 1 if self.scale is None else 2

    def scale_at(self, t: int) -> float:
        """The scale at t: 1 where nothing guides."""
        return 1.0 if self.scale is None else float(scale_at(self.model.schedule, t, self.scale, self.interval))

    @property
    def settings(self) -> dict[str, Any]:
        """What the images depend on, as JSON."""
        return {
            "guidance": self.scale,
            "guidance_rescale": self.rescale,
            "guidance_interval": None if self.interval == EVERYWHERE else list(self.interval),
            "guide": None if self.guide is None else self.guide.digest,
        }

    def predictor(self, cond: Conditions) -> Predictor:
        """The model under these conditions, guided as asked and, where it was measured, its own error known.

        That error is the conditional prediction's.
        """
        table = self.saved.calibration
        if self.scale is None:
            return build.predictor(self.model, table, **cond)
        if self.guide is None:
            pair = conditional(self.model, **cond)
        else:
            weaker, own = self.guide.model, for_model(cond, self.guide.config)
            pair = beside(Conditioned(self.model.unclipped, **cond), Conditioned(weaker.unclipped, **own))
        guided = Guided(pair, self.model, self.scale, self.rescale, self.interval, self.model.clip)
        return guided if table is None else Calibrated(guided, table)
