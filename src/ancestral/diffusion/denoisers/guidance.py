"""Guidance: a prediction moved along the line from a weaker one, or up the gradient of a classifier.

    x0 = weak + scale (strong - weak)

x0, eps and the score at one x_t are affine in each other, and so is every target: this is one line in all of them, and
serves every network, schedule and solver. Scale 0 is the weak prediction and 1 the strong one, both to the bit. What is
moved is what the networks said before any clipping; the result is clipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import (
    Clip,
    Conditioned,
    Denoiser,
    Prediction,
    Predictor,
    Wrapped,
    unclipped,
    with_x0,
)
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.types import Time, over

Pair = Callable[[Tensor, Time], tuple[Prediction, Prediction]]  # from x_t and t: the strong prediction, the weak one
LogProb = Callable[[Tensor, Time, Tensor], Tensor]  # from x_t, t, labels: log p(label | x_t) in nats, (B,)
EVERYWHERE = (-math.inf, math.inf)


def beside(strong: Predictor, weak: Predictor) -> Pair:
    """Two predictors of the same forward process, neither of which should clip.

    With a smaller or less trained model as the weak one, this is autoguidance (Karras et al. 2024, Eq. 3).
    """
    return lambda x_t, t: (strong(x_t, t), weak(x_t, t))


def conditional(denoiser: Denoiser, **cond: Tensor) -> Pair:
    """A network with its conditions and the same one without: classifier-free guidance (Ho and Salimans 2022, Eq. 6).

    Both are one batch of two halves at every scale, so that no scale is computed in another way than the next. Theirs
    is w = scale - 1.

    Args:
        denoiser: its network was trained with dropped conditions; its clipping is left out.
        cond: of each image, (B, ...): labels, embedding.
    """

    denoiser = denoiser.unclipped

    def pair(x_t: Tensor, t: Time) -> tuple[Prediction, Prediction]:
        count = len(x_t)
        dropped = torch.arange(2 * count, device=x_t.device) >= count
        twice = {name: torch.cat([value, value]) for name, value in cond.items()}
        both = Conditioned(denoiser, **twice, dropped=dropped)
        predicted = both(torch.cat([x_t, x_t]), torch.as_tensor(t).expand(count).repeat(2))
        strong, weak = zip(*(((None, None) if part is None else part.chunk(2)) for part in predicted), strict=True)
        return Prediction(*strong), Prediction(*weak)

    return pair


def scale_at(schedule: Gaussian, t: Time, scale: float, interval: tuple[float, float]) -> Tensor:
    """The scale at t: 1 where log SNR is outside of the interval."""
    log_snr = schedule.log_snr(t)
    inside = (interval[0] <= log_snr) & (log_snr <= interval[1])
    return torch.where(inside, torch.full_like(log_snr, scale), 1.0)


class Guided:
    """The guided prediction; what is known of its variance is what the strong one knew.

    Args:
        pair: makes the strong and the weak prediction, such as `conditional(denoiser, labels=labels)`.
        like: a predictor of the forward process.
        scale: of the step from weak to strong.
        rescale: phi, the share in which x0 is brought back to the standard deviation that the strong x0 has in each
            image (Lin et al. 2023, Eqs. 13-16; there the output of the network, here x0, whatever the target).
        interval: of log SNR, ends included, outside of which the scale is 1 (Kynkäänniemi et al. 2024, Eq. 5; their
            sigma is exp(-log SNR / 2)).
        clip: what is done to the guided x0.
    """

    def __init__(
        self,
        pair: Pair,
        like: Predictor,
        scale: float,
        rescale: float = 0.0,
        interval: tuple[float, float] = EVERYWHERE,
        clip: Clip = unclipped,
    ) -> None:
        self.pair, self.schedule, self.scale, self.clip = pair, like.schedule, scale, clip
        self.rescale, self.interval = rescale, interval

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        """Predict from x_t (B, ...) at time t."""
        strong, weak = self.pair(x_t, t)
        weight = scale_at(self.schedule, t, self.scale, self.interval)
        # lerp, unlike the formula, is exact at both ends.
        x0 = torch.lerp(weak.x0, strong.x0, over(weight, x_t))
        grown, meant = _std(x0), _std(strong.x0)
        shrink = torch.where(grown > 0, meant / grown, 1.0)
        x0 = self.clip(x0 * (1 + self.rescale * (shrink - 1)))
        return with_x0(strong, x0, x_t, self.schedule, t)


def _std(x: Tensor) -> Tensor:
    """Of each image, (B, 1, ...)."""
    return x.std(tuple(range(1, x.ndim)), correction=0, keepdim=True)


class ClassifierGuided(Wrapped):
    """eps - scale noise_t grad log p(label | x_t): classifier guidance (Dhariwal and Nichol 2021, Algorithm 2).

    At scale 1, with the exact classifier of noisy images and an exact predictor of all of them, this is the exact
    predictor of the images of that label.

    Args:
        predictor: of all images; `denoiser.unclipped`, so that clipping comes last.
        log_prob: of each image's label, differentiable in x_t; the images of a batch must not meet in it.
        labels: int64 (B,), or whatever `log_prob` takes.
        scale: of the gradient.
        clip: what is done to the guided x0.
    """

    def __init__(
        self, predictor: Predictor, log_prob: LogProb, labels: Tensor, scale: float = 1.0, clip: Clip = unclipped
    ) -> None:
        super().__init__(predictor)
        self.log_prob, self.labels, self.scale, self.clip = log_prob, labels, scale, clip

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        """Predict from x_t (B, ...) at time t; where alpha_bar is 0 no classifier knows anything."""
        prediction = self.predictor(x_t, t)
        with torch.inference_mode(mode=False), torch.enable_grad():
            x = x_t.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_prob(x, t, self.labels).sum(), x)
        signal, noise_var = self.schedule.signal(t), self.schedule.noise_var(t)
        step, known = over(self.scale * noise_var / signal, x_t), over(signal, x_t) > 0
        x0 = self.clip(prediction.x0 + torch.where(known, step * gradient, 0.0))
        return with_x0(prediction, x0, x_t, self.schedule, t)
