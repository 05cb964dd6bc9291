"""What predicts: a network, with what its output means and how it is given the noise level."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ancestral.diffusion.denoisers.targets import Target
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.types import Advance, Time, on, over, per_image

Model = TypeVar("Model", bound=nn.Module)
Clip = Callable[[Tensor], Tensor]

Clock = Callable[[Tensor, int], Tensor]  # what a network is given for t, given T
CLOCKS: dict[str, Clock] = {
    "paper": lambda t, T: t * (1000 / T),  # the paper's scale, whatever T is
    "zero-based": lambda t, T: t - 1.0,  # of networks that were trained with t = 0 .. T-1
}


class Prediction(NamedTuple):
    """What is believed of the clean image, given x_t. All of x_t's shape, or None where nobody knows."""

    x0: Tensor
    eps: Tensor  # always consistent with x0: x_t = signal x0 + noise eps
    x0_var: Tensor | None = None  # Var[x0 | x_t]
    range_mix: Tensor | None = None  # 0: the reverse variance beta~, 1: beta


class Predictor(Protocol):
    """Anything that the loop can walk with: a Denoiser, an exact oracle, a guided or conditioned wrapper."""

    @property
    def schedule(self) -> Gaussian:
        """The forward process."""
        ...

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        """Predict the clean image from x_t (B, ...) at one time or at one time an image."""
        ...


class Wrapped:
    """What predictors share that ask another one, under its schedule.

    Args:
        predictor: the other one.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    @property
    def schedule(self) -> Gaussian:
        """The forward process of the predictor that is asked."""
        return self.predictor.schedule


def predict(x0: Tensor, x_t: Tensor, schedule: Gaussian, t: Time, **more: Tensor | None) -> Prediction:
    """Complete an estimate of x0 with the eps that agrees with it."""
    eps = (x_t - over(schedule.signal(t), x_t) * x0) / over(schedule.noise(t), x_t)
    return Prediction(x0, eps, **more)


def with_x0(prediction: Prediction, x0: Tensor, x_t: Tensor, schedule: Gaussian, t: Time) -> Prediction:
    """The same prediction with another x0, and the eps that agrees with it."""
    return predict(x0, x_t, schedule, t, x0_var=prediction.x0_var, range_mix=prediction.range_mix)


def score(prediction: Prediction, schedule: Gaussian, t: Time) -> Tensor:
    """grad_x log q(x_t) = -eps / noise_t, where x0 = E[x0 | x_t] (section 3.2). Shape of x_t."""
    return -prediction.eps / over(schedule.noise(t), prediction.eps)


def unclipped(x0: Tensor) -> Tensor:
    """x0 as it was predicted."""
    return x0


def clip_static(x0: Tensor) -> Tensor:
    """x0 clamped to the data's range [-1, 1] (reference name: `clip_denoised`)."""
    return x0.clamp(-1, 1)


def clip_dynamic(x0: Tensor, quantile: float = 0.995) -> Tensor:
    """x0 divided by its own `quantile` of |x0| where that exceeds 1 (Saharia et al. 2022, section 2.3)."""
    each = [one.quantile(quantile) for one in x0.flatten(1).abs()]  # torch's takes 2^24 values at a time
    limit = per_image(torch.stack(each).clamp(min=1), x0)
    return x0.clamp(-limit, limit) / limit


def within(clip: Clip, limit: float) -> Clip:
    """The same clip; the static one to [-limit, limit]."""
    return clip if limit == 1 or clip is not clip_static else lambda x0: clip(x0 / limit) * limit


CLIPS: dict[str, Clip] = {"none": unclipped, "static": clip_static, "dynamic": clip_dynamic}


def with_network(model: Model, network: nn.Module) -> Model:
    """A model (a Denoiser, or with its face) with another network; the one given is left as it is."""
    other = copy.copy(model)
    vars(other)["_modules"] = dict(model.named_children()) | {"network": network}
    return other


def network_inputs(network: nn.Module, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """x in the type of the network's weights; the time (B,) on its device in float32, float64 for such weights."""
    like = next(network.parameters(), x).dtype
    return x.to(like), on(x.device, time, torch.promote_types(like, torch.float32))


class Denoiser(nn.Module):
    """A network as a predictor of x0.

    Args:
        network: maps (x_t, time, **cond) to C channels in the units of `target`, or to 2C channels, the last
            C of which place the reverse variance between its bounds (Nichol and Dhariwal 2021, Eq. 15).
            `time` is a float vector (B,), what the clock makes of t.
        schedule: the forward process it was trained for.
        target: what its output means.
        clip: what is done to each predicted x0, seen in every prediction; training never clips.
        clock: what the network is given for t; t * 1000 / T in the paper's.

    Raises:
        ValueError: when the target does not determine x0 somewhere on the schedule.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Gaussian,
        target: Target,
        clip: Clip = unclipped,
        clock: Clock = CLOCKS["paper"],
    ) -> None:
        super().__init__()
        target.check(schedule)
        self.network, self.schedule, self.target, self.clip, self.clock = network, schedule, target, clip, clock

    def output(self, x_t: Tensor, t: Time, **cond: Tensor) -> Tensor:
        """The network's raw output, in x_t's type. x_t: (B, C, H, W)."""
        x, time = network_inputs(self.network, x_t, self.clock(torch.as_tensor(t).expand(len(x_t)), self.schedule.T))
        return self.network(x, time, **cond).to(x_t.dtype)

    def interpret(self, output: Tensor, x_t: Tensor, t: Time, clip: Clip = unclipped) -> Prediction:
        """What an output of the network says about x0."""
        channels = x_t.shape[1]
        mix = (output[:, channels:] + 1) / 2 if output.shape[1] == 2 * channels else None
        x0 = clip(self.target.x0(output[:, :channels], x_t, self.schedule, t))
        return predict(x0, x_t, self.schedule, t, range_mix=mix)

    def forward(self, x_t: Tensor, t: Time, **cond: Tensor) -> Prediction:
        """Predict x0 from x_t (B, C, H, W) at time t, clipped as this denoiser says."""
        return self.interpret(self.output(x_t, t, **cond), x_t, t, self.clip)

    def predict_unclipped(self, x_t: Tensor, t: Time, **cond: Tensor) -> Prediction:
        """As `forward` without the clip, as training sees it."""
        return self.interpret(self.output(x_t, t, **cond), x_t, t)

    @property
    def unclipped(self) -> Denoiser:
        """The same network before it clips, for what clips its own result."""
        return Denoiser(self.network, self.schedule, self.target, clock=self.clock)


class Conditioned:
    """A denoiser with its conditions filled in: `Conditioned(denoiser, labels=labels)`."""

    def __init__(self, denoiser: Denoiser, **cond: Tensor) -> None:
        self.denoiser, self.schedule, self.cond = denoiser, denoiser.schedule, cond

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        """Predict under these conditions."""
        return self.denoiser(x_t, t, **self.cond)


class InParts(Wrapped):
    """As `Conditioned`, x0 and eps only, so many images in one call of the network: no more memory than these take."""

    def __init__(self, predictor: Denoiser | Predictor, size: int, **cond: Tensor) -> None:
        super().__init__(predictor)
        self.size, self.cond = size, cond

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        """Predict under these conditions."""
        parts = [slice(start, start + self.size) for start in range(0, len(x_t), self.size)]
        times = [t if isinstance(t, int) or t.ndim == 0 else t[part] for part in parts]
        cond = [{name: value[part] for name, value in self.cond.items()} for part in parts]
        own = [self.predictor(x_t[part], time, **more).x0 for part, time, more in zip(parts, times, cond, strict=True)]
        return predict(torch.cat(own), x_t, self.schedule, t)


def images_per_call(most: int, height: int, width: int) -> int:
    """How many images of (height, width) meet the network in one call: `most` of up to 64x64 pixels, fewer of larger.

    So that a call takes no more memory than `most` images of 64x64 do; at least one.
    """
    return max(1, min(most, most * 64**2 // (height * width)))


class Watched(Wrapped):
    """A predictor that counts its calls, and gives the number of images of each to `advance` before it is made."""

    def __init__(self, predictor: Predictor, advance: Advance) -> None:
        super().__init__(predictor)
        self.advance, self.calls = advance, 0

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        """As the predictor."""
        self.calls += 1
        self.advance(len(x_t))
        return self.predictor(x_t, t)
