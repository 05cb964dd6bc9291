"""The score in the plane through three held-out images, and log densities along the edges of their triangle.

x = signal m + noise eps,  m in the plane, eps at right angles to it:
noise^2 / signal score = x0_hat - m, in the plane
log q(x_b) - log q(x_a) = integral from a to b of score . dx
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from scipy.integrate import cumulative_simpson
from torch import Tensor

from ancestral.apps.report import plots
from ancestral.apps.report.part import Words
from ancestral.apps.report.subject import BATCH, Subject
from ancestral.data.dataset import ImageSet, joined
from ancestral.data.pixels import to_bytes
from ancestral.diffusion.denoisers.denoiser import score
from ancestral.diffusion.processes.streams import Streams
from ancestral.runtime.plots import ACCENT, INK, SECOND

ACROSS, POINTS, DRAWS = 13, 33, 4  # arrows a side, points an edge, noises
SHOWN, WALKED = (2.0, 1000.0), (2.0, 100.0)  # SNR d^2 of the arrows and of the edges, d the distance of two images
_LETTERS = ("A", "B", "C")


@dataclass(frozen=True)
class Slice:
    """The pull of the score on the plane at one time: arrows (N, 2) at points (N, 2), distances on [-1, 1]."""

    t: int
    log_snr: float
    points: np.ndarray
    pull: np.ndarray


@dataclass(frozen=True)
class Edges:
    """log q at one time around the triangle A B C A, in nats above that at A: (DRAWS, 3 POINTS - 2)."""

    t: int
    log_snr: float
    log_q: np.ndarray

    @property
    def left(self) -> np.ndarray:
        """What is left after the round, (DRAWS,): 0 for the score of any density."""
        return self.log_q[:, -1]

    @property
    def way(self) -> np.ndarray:
        """The length of the way up and down, (DRAWS,)."""
        return np.abs(np.diff(self.log_q, axis=1)).sum(1)

    @property
    def to_b(self) -> np.ndarray:
        """log q(B) - log q(A), (DRAWS,)."""
        return self.log_q[:, POINTS - 1]

    @property
    def between(self) -> float:
        """How far the middles of the edges are above the means of their ends: below 0 where there are valleys."""
        ends, middles = self.log_q[:, :: POINTS - 1], self.log_q[:, (POINTS - 1) // 2 :: POINTS - 1]
        return float((middles - (ends[:, :-1] + ends[:, 1:]) / 2).mean())


class Plane:
    """Three images of the held-out part as the corners of a triangle; of one class, where the model takes it."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.corners = subject, three(subject)
        x0 = subject.x0(self.corners)
        self.x0, flat = x0, x0.flatten(1).cpu().double()
        self.middle = flat.mean(0)
        self.axes = torch.linalg.qr((flat[1:] - flat[0]).T).Q.T  # (2, D)
        self.at = ((flat - self.middle) @ self.axes.T).numpy()
        self.squared = max(float(torch.pdist(flat).square().mean()), 1e-3)

    def time(self, information: float) -> int:
        """The time at which SNR d^2 is this."""
        return self.subject.at(float(np.log(information / self.squared)))

    def predicted(self, x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """(x0, score) at states (N, C, H, W), under the condition of the first corner."""
        x0, scores = [], []
        for part in x_t.split(BATCH):
            model = self.subject.conditioned(self.corners.take([0] * len(part)))
            with torch.no_grad():
                prediction = model(part, t)
            x0.append(prediction.x0)
            scores.append(score(prediction, self.subject.schedule, t))
        return torch.cat(x0), torch.cat(scores)

    def slice(self, information: float) -> Slice:
        """Arrows on a grid about the triangle."""
        t, schedule = self.time(information), self.subject.schedule
        low, high = self.at.min(0), self.at.max(0)
        margin = max(0.3 * (high - low).max(), 1e-3)  # of three images that are one there is a point
        sides = [np.linspace(one - margin, other + margin, ACROSS) for one, other in zip(low, high, strict=True)]
        points = np.stack(np.meshgrid(*sides), -1).reshape(-1, 2)
        eps = Streams(self.subject.seed, "explain-plane", [0]).normal(self.subject.shape).flatten().to(self.middle)
        eps = eps - (eps @ self.axes.T) @ self.axes
        m = self.middle + torch.from_numpy(points).to(self.middle) @ self.axes
        x_t = (float(schedule.signal(t)) * m + float(schedule.noise(t)) * eps).to(self.x0)
        x0, _ = self.predicted(x_t.reshape(-1, *self.subject.shape), t)
        pull = ((x0.flatten(1).cpu().double() - m) @ self.axes.T).numpy()
        return Slice(t, float(schedule.log_snr(t)), points, pull)

    def edges(self, information: float) -> Edges:
        """log q from corner to corner, with DRAWS noises that stay as they are on the way."""
        t, schedule = self.time(information), self.subject.schedule
        return Edges(t, float(schedule.log_snr(t)), around(self, t))


def around(plane: Plane, t: int) -> np.ndarray:
    """The integral of the score around the triangle by Simpson's rule, (DRAWS, 3 POINTS - 2) in nats."""
    found = [np.zeros((DRAWS, 1))]
    for states in states_around(plane, t):
        along = (states[:, -1] - states[:, 0]).flatten(1).cpu().double()
        _, scores = plane.predicted(states.flatten(0, 1), t)
        slope = (scores.reshape(DRAWS, POINTS, -1).cpu().double() * along[:, None]).sum(2).numpy()
        gained = cumulative_simpson(slope, dx=1 / (POINTS - 1), axis=1)
        found.append(found[-1][:, -1:] + gained)
    return np.concatenate(found, 1)


def states_around(plane: Plane, t: int) -> list[Tensor]:
    """x_t along each edge, (DRAWS, POINTS, C, H, W): the mean moves from corner to corner, the noise does not."""
    schedule, subject = plane.subject.schedule, plane.subject
    eps = Streams(subject.seed, "explain-edges", range(DRAWS)).normal(subject.shape).to(plane.x0)
    weight = torch.linspace(0, 1, POINTS).to(plane.x0).reshape(-1, 1, 1, 1)
    found = []
    for first in range(3):
        m = (1 - weight) * plane.x0[first] + weight * plane.x0[(first + 1) % 3]
        found.append(float(schedule.signal(t)) * m + float(schedule.noise(t)) * eps[:, None])
    return found


def several(subject: Subject) -> ImageSet:
    """The held-out images, of the largest class where the model takes one; those of both parts, where they are few."""
    pool = joined(subject.images) if few_held_out(subject) else subject.images.test
    alike = _alike(subject, pool)
    return alike if len(alike) > 1 else pool


def few_held_out(subject: Subject) -> bool:
    """Whether the held-out images are too few, so that images to train on are among those shown."""
    return len(_alike(subject, subject.images.test)) < 3


def _alike(subject: Subject, images: ImageSet) -> ImageSet:
    if not subject.config.model.labels or images.labels is None:
        return images
    return images.take(np.flatnonzero(images.labels == np.bincount(images.labels).argmax()))


def three(subject: Subject) -> ImageSet:
    """Three images far from each other."""
    pool = several(subject).spread(16)
    flat = torch.from_numpy(np.asarray(pool.images[:])).flatten(1).double()
    distances, chosen = torch.cdist(flat, flat), [0]
    while len(chosen) < 3:
        chosen.append(int(distances[chosen].min(0).values.argmax()))
    return pool.take(chosen)


def draw_slices(slices: list[Slice], plane: Plane, words: Words) -> str:
    """Arrows to where the score pulls, and the images at their points."""
    figure, panels = plots.axes("", "", len(slices), 3.1)
    images = to_bytes(plane.x0)
    for axes, one in zip(panels, slices, strict=True):
        _arrows(axes, one)
        size = np.ptp(one.points[:, 0]) / 14
        for (x, y), image, letter in zip(plane.at, images, _LETTERS, strict=True):
            high = size * image.shape[0] / image.shape[1]
            shown = image.squeeze(2) if image.shape[2] == 1 else image
            axes.imshow(shown, "gray", extent=(x - size, x + size, y - high, y + high), zorder=3, vmin=0, vmax=255)
            axes.text(x + 1.15 * size, y, letter, color=INK, fontsize=10, va="center", zorder=4)
        axes.set_title(_at(words, one.t, one.log_snr), fontsize=9, color=INK, loc="left")
        axes.set_xlim(one.points[:, 0].min() - size, one.points[:, 0].max() + size)
        axes.set_ylim(one.points[:, 1].min() - size, one.points[:, 1].max() + size)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    return plots.svg(figure)


def draw_edges(edges: list[Edges], words: Words) -> str:
    """log q around the triangle, the mean over the noises."""
    figure, panels = plots.axes("", words["axes"]["log_q"], len(edges), 1.9)
    x = np.linspace(0, 3, 3 * POINTS - 2)
    for axes, one, colour in zip(panels, edges, (ACCENT, SECOND), strict=True):
        axes.plot(x, one.log_q.T, color=colour, linewidth=0.6, alpha=0.4)
        axes.plot(x, one.log_q.mean(0), color=colour, linewidth=1.8)
        axes.axhline(0, color=plots.FAINT, linewidth=0.8)
        axes.set_xticks(range(4), [*_LETTERS, _LETTERS[0]])
        axes.set_title(_at(words, one.t, one.log_snr), fontsize=9, color=INK, loc="left")
    return plots.svg(figure)


def _at(words: Words, t: int, log_snr: float) -> str:
    return f"t = {t}, {words['axes']['log_snr']} = {log_snr:.1f}".replace("-", "\N{MINUS SIGN}")


def _arrows(axes: Axes, one: Slice) -> None:
    """At most as long as the grid is wide, long ones less than their length says, so that short ones are seen."""
    length = np.linalg.norm(one.pull, axis=1, keepdims=True)
    wide = np.ptp(one.points[:, 0]) / (ACROSS - 1)
    shown = one.pull / np.maximum(length, 1e-9) * wide * 0.95 * np.sqrt(length / max(length.max(), 1e-9))
    options = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.005, "headwidth": 4.5, "color": ACCENT}
    axes.quiver(*one.points.T, *shown.T, pivot="middle", **options)
