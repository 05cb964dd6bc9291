"""What an image was before it was measured: samples of x0 given y = A x0 + noise, by published methods.

A method makes of a predictor and a measurement a predictor and a draw for the loop. Most correct the predicted x0: with
Cov[x0 | x_t] taken as C and the noise of y Gaussian of variance y_var, Bayes' rule for Gaussians is

    E[x0 | x_t, y] = x0_hat + C A^T (A C A^T + y_var I)^-1 (y - A x0_hat),   C = noise_t^2 / signal_t  d x0_hat / d x_t

where the second is an identity (Tweedie's formula, differentiated). They differ in what they put for either C. What is
corrected is clipped as the predictor itself clips: without that a network's walk runs away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Clip, Prediction, Predictor, Wrapped, predict, unclipped, with_x0
from ancestral.diffusion.editing.operators import Operator
from ancestral.diffusion.processes.gaussian import Gaussian
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.processes.types import Time, over, per_image, untyped
from ancestral.diffusion.samplers.loop import GaussianDraw, Move, from_model


class Observation(NamedTuple):
    """What was seen of x0: y (B, ...) = operator(x0) + noise of variance y_var, on the scale [-1, 1]."""

    operator: Operator
    y: Tensor
    y_var: float

    def residual(self, x0: Tensor) -> Tensor:
        """y - A x0."""
        return self.y.to(x0) - self.operator(x0)


class GuidedWalk(NamedTuple):
    """A predictor and a draw that lead the walk to what was measured."""

    predictor: Predictor
    draw: GaussianDraw


Guide = Callable[[Predictor, Observation, Streams, Clip], GuidedWalk]


class Method(NamedTuple):
    """How a walk is led, and what that asks of who calls it."""

    guide: Guide
    own_steps: bool = False  # its draw is a reverse step of its own
    gradient: bool = False  # the predictor is differentiated, so that a call keeps what a backward pass needs


Spread = Callable[[Gaussian, Prediction, Time], Tensor]  # r_t^2: what C is taken for where it is r_t^2 I


def of_unit_data(schedule: Gaussian, prediction: Prediction, t: Time) -> Tensor:
    """noise_t^2, which is Var[x0 | x_t] of N(m, I) data: the published choice."""
    return over(schedule.noise_var(t), prediction.x0)


class _Differentiable:
    """A prediction with autograd enabled under the loop's `no_grad`, so that v^T J can be taken."""

    def __init__(self, predictor: Predictor, x_t: Tensor, t: Time) -> None:
        self.x_t = x_t.detach().requires_grad_()
        with torch.enable_grad():
            self.prediction = predictor(self.x_t, t)
        self.x0 = self.prediction.x0.detach()
        signal = predictor.schedule.signal(t)
        # At zero terminal SNR x_t says nothing of x0, and neither does the gradient: no correction from it.
        scale = torch.where(signal > 0, predictor.schedule.noise_var(t) / signal, 0.0)
        self.scale = over(scale, x_t)

    def back(self, v: Tensor) -> Tensor:
        """v^T d x0_hat / d x_t, of x_t's shape."""
        x0 = self.prediction.x0
        return torch.autograd.grad(x0, self.x_t, v.to(x0), retain_graph=True)[0]

    def cov(self, v: Tensor) -> Tensor:
        """Cov[x0 | x_t] v."""
        return self.scale * self.back(v)

    def moved(self, predictor: Predictor, x0: Tensor, t: Time) -> Prediction:
        """With another x0, and eps to agree with it; without the graph."""
        more = {"x0_var": self.prediction.x0_var, "range_mix": self.prediction.range_mix}
        kept = {name: None if value is None else value.detach() for name, value in more.items()}
        return predict(x0, self.x_t.detach(), predictor.schedule, t, **kept)


class _Corrected(Wrapped):
    """What methods share that correct each predicted x0 by the measurement.

    Args:
        predictor: of x0.
        seen: the measurement.
        clip: of the corrected x0.
    """

    def __init__(self, predictor: Predictor, seen: Observation, clip: Clip) -> None:
        super().__init__(predictor)
        self.seen, self.clip = seen, clip


class _Spread(_Corrected):
    """What methods share that take C to be of the size r_t^2.

    Args:
        predictor: of x0.
        seen: the measurement.
        clip: of the corrected x0.
        spread: r_t^2.
    """

    def __init__(
        self, predictor: Predictor, seen: Observation, clip: Clip = unclipped, spread: Spread = of_unit_data
    ) -> None:
        super().__init__(predictor, seen, clip)
        self.spread = spread


class Ddnm(_Spread):
    """C = r_t^2 I in both places, and no gradient (Wang et al. 2023, DDNM).

    Without noise it is their Eq. 13: the predicted x0 with what was measured put in its place. Noise is weighed as
    Bayes' rule has it, where their Eq. 17 has a scale of its own.
    """

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        """Predict x0 given x_t and y."""
        prediction = self.predictor(x_t, t)
        r2, x0 = self.spread(self.schedule, prediction, t), prediction.x0
        x0 = self.clip(x0 + r2 * self.seen.operator.ridge(self.seen.residual(x0), r2, self.seen.y_var))
        return with_x0(prediction, x0, x_t, self.schedule, t)


class PiGdm(_Spread):
    """C = r_t^2 I inside the inverse, the true one before it (Song et al. 2023, PiGDM, Eq. 7): exact for N(m, v I)."""

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        """Predict x0 given x_t and y."""
        linear = _Differentiable(self.predictor, x_t, t)
        r2 = self.spread(self.schedule, linear.prediction, t)
        v = self.seen.operator.ridge(self.seen.residual(linear.x0), r2, self.seen.y_var)
        return linear.moved(self.predictor, self.clip(linear.x0 + linear.cov(v)), t)


class Mmps(_Corrected):
    """The true C in both places, the inverse by conjugate gradients (Rozet et al. 2024, MMPS, Algorithm 3).

    Exact for every Gaussian. A call costs one pass forward and one backward for each iteration and one more.

    Args:
        predictor: of x0.
        seen: y_var must be positive.
        clip: of the corrected x0.
        iterations: of conjugate gradients; as many as A C A^T has distinct eigenvalues are exact for Gaussian data. A
            network's C is not quite symmetric, and two measured better than five.
    """

    def __init__(self, predictor: Predictor, seen: Observation, clip: Clip = unclipped, iterations: int = 2) -> None:
        super().__init__(predictor, seen, clip)
        self.iterations = iterations

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        """Predict x0 given x_t and y."""
        linear, operator = _Differentiable(self.predictor, x_t, t), self.seen.operator

        def product(v: Tensor) -> Tensor:
            return operator(linear.cov(operator.adjoint(v))) + self.seen.y_var * v

        v = conjugate_gradients(product, self.seen.residual(linear.x0), self.iterations)
        return linear.moved(self.predictor, self.clip(linear.x0 + linear.cov(operator.adjoint(v))), t)


def conjugate_gradients(product: Callable[[Tensor], Tensor], right: Tensor, iterations: int) -> Tensor:
    """v with product(v) = right, for a symmetric positive operator of each image (Hestenes and Stiefel 1952).

    An image stops where its residual is nothing, or where the operator is found not to be positive. right: (B, ...).
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return per_image((a * b).flatten(1).sum(1), a)

    v, left = torch.zeros_like(right), right
    direction, size = right, dot(right, right)
    goes_on, tiny = size > 0, 1e-20 * size
    for _ in range(iterations):
        image = product(direction)
        curvature = dot(direction, image)
        goes_on = goes_on & (curvature > 0) & (size > tiny)
        step = torch.where(goes_on, size / curvature, 0.0)
        v, left = v + step * direction, left - step * image
        size, before = dot(left, left), size
        direction = left + torch.where(goes_on, size / before, 0.0) * direction
    return v


class Dps(Wrapped):
    """Down the gradient of |y - A x0_hat| after each draw (Chung et al. 2023, DPS, Algorithm 1); predictor and draw.

    Args:
        predictor: of x0.
        seen: the measurement; its noise is not asked for.
        scale: zeta', the length of a step for a gradient of length 1.
    """

    def __init__(self, predictor: Predictor, seen: Observation, scale: float = 1.0) -> None:
        super().__init__(predictor)
        self.seen, self.scale = seen, scale
        self.gradient: Tensor | None = None

    def __call__(self, x_t: Tensor, t: Time) -> Prediction:
        """The prediction as it is; the gradient is kept for the draw."""
        linear = _Differentiable(self.predictor, x_t, t)
        residual = self.seen.residual(linear.x0)
        norms: Tensor = untyped.norm(residual.flatten(1), dim=1)
        length = per_image(norms.clamp(min=1e-12), residual)
        self.gradient = -linear.back(self.seen.operator.adjoint(residual / length))
        return linear.moved(self.predictor, linear.x0, t)

    def after(self, draw: GaussianDraw) -> GaussianDraw:
        """What `draw` chooses, moved against the gradient of the prediction that it was made from."""

        def moved(move: Move[Prediction, Normal]) -> Tensor:
            assert self.gradient is not None, "the loop predicts before it draws"
            return draw(move) - self.scale * self.gradient

        return moved


def from_spectrum(seen: Observation, predictor: Predictor, noise: Streams, eta: float = 1.0) -> GaussianDraw:
    """x_s by the singular values: DDRM (Kawar et al. 2022, Eqs. 7-8) with eta_b = 1. The transition is not asked.

    What was measured better than the noise of x_s is taken from y, with noise added up to that of x_s; the rest is
    drawn about the predicted x0.

    Args:
        seen: the measurement.
        predictor: whose schedule it is.
        noise: of the draws.
        eta: the share of new noise: 0.85 in their tables; 1, all of it, measured better here.
    """
    schedule, operator = predictor.schedule, seen.operator

    def draw(move: Move[Prediction, Normal]) -> Tensor:
        x0, z = move.prediction.x0, noise.normal(move.x_t.shape[1:]).to(move.x_t)
        singular = operator.singular.to(z)
        # In DDRM's units the state is x / signal and the noise sigma = noise / signal.
        sigma = over(schedule.noise(move.s) / schedule.signal(move.s), z)
        free = x0 + sigma * ((1 - eta**2) ** 0.5 * move.prediction.eps + eta * z)
        mean, z_v, v = operator.to_right(x0), operator.to_right(z), operator.to_right(free)
        y = operator.to_right(operator.pseudo_inverse(seen.y.to(z)))
        y_std = seen.y_var**0.5 / singular.clamp(min=1e-300)
        vague = mean + sigma * ((1 - eta**2) ** 0.5 * (y - mean) / y_std.clamp(min=1e-300) + eta * z_v)
        sharp = y + (sigma.square() - y_std.square()).clamp(min=0).sqrt() * z_v
        chosen = torch.where(singular > 0, torch.where(sigma < y_std, vague, sharp), v)
        return over(schedule.signal(move.s), z) * (free + operator.from_right(chosen - v))

    return draw


def _dps(predictor: Predictor, seen: Observation, noise: Streams, clip: Clip) -> GuidedWalk:
    guided = Dps(predictor, seen)
    return GuidedWalk(guided, guided.after(from_model(noise)))


def _ddrm(predictor: Predictor, seen: Observation, noise: Streams, clip: Clip) -> GuidedWalk:
    return GuidedWalk(predictor, from_spectrum(seen, predictor, noise))


def _correcting(kind: type[Ddnm | PiGdm | Mmps]) -> Guide:
    return lambda predictor, seen, noise, clip: GuidedWalk(kind(predictor, seen, clip), from_model(noise))


METHODS = {
    "ddnm": Method(_correcting(Ddnm)),
    "pigdm": Method(_correcting(PiGdm), gradient=True),
    "mmps": Method(_correcting(Mmps), gradient=True),
    "dps": Method(_dps, gradient=True),
    "ddrm": Method(_ddrm, own_steps=True),
}
