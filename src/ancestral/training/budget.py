"""A budget of wall time: what the parts of a run take here, and how many images fit into what is left.

Everything from the import of the package on counts: reading the data, measuring, updates, previews, saving, and what is
done at the end. Updates are timed as they are made; what the end takes is known from them before it begins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ancestral.runs import calibration
from ancestral.runs.calibration import CALIBRATED
from ancestral.runs.config import Config, TrainOptions
from ancestral.training import health, preview

PREVIEW_SHARE = 0.05  # of the run's time
# Largest share of a budget for calibration; fewer than CALIBRATED images are used to keep it, at least
# LEAST_CALIBRATED.
CALIBRATING_SHARE = 0.1
LEAST_CALIBRATED = 8
# Assumed time of one prediction relative to training on one image, until one is timed (a third of the operations, but
# in float32).
FORWARD = 0.5
WINDOW = 0.05  # of a budget: how far back the pace of updates is looked at
LEAST_WINDOW = 10.0  # seconds
BUSY = 0.8  # of a measured time
LAST = 1.5  # seconds: loss.png, and the end of the process
CALIBRATING, MEASURING, SAVING = "calibrating the variances", "measuring what it has learned", "saving"
ASTRAY = 0.05  # of the time left: by how much a plan may miss its end before it is corrected, and
LEAST_ASTRAY = 0.01  # of the budget at least, so that a run that nothing disturbs is left alone


@dataclass
class Pace:
    """What the parts of a run take here."""

    window: float  # seconds over which updates are averaged; those before count e times less
    spacing: int  # images from a save to the next
    calibrating: int  # predictions of each image for the calibration at the end
    measuring: int  # predictions of an image for the health at the end
    showing: int  # predictions of an image for a preview
    budget: float | None = None  # in seconds
    saving: float = 0.0  # seconds of a checkpoint
    keeping: float = 0.0  # seconds of the averages
    forward: float = FORWARD  # of the time of training an image: predicting one
    previewing: float | None = None  # seconds of a preview
    called: bool = field(default=False, init=False)  # whether a call of the network was timed
    warming: bool = field(default=False, init=False)  # whether all that was timed is the first update of a process
    _updated: bool = field(default=False, init=False)
    _images: float = field(default=0.0, init=False)
    _seconds: float = field(default=0.0, init=False)

    @property
    def timed(self) -> bool:
        """Whether any update was timed."""
        return self._seconds > 0

    @property
    def image(self) -> float:
        """Seconds of training an image, lately."""
        return self._seconds / self._images if self._images else 0.0

    def images(self, seconds: float, options: TrainOptions) -> int:
        """How many images fit in between now and the end of a leg to begin, a whole number of batches."""
        batch = options.batch_size
        # What previews cost depends on how many images lie between two.
        self.spacing = spacing(options, batch * self.updates(seconds, batch))
        return batch * self.updates(seconds, batch)

    def measured(self, images_per_second: float, seconds: float) -> None:
        """So fast were updates that were made for nothing else, for so long."""
        self._images, self._seconds = images_per_second * seconds, seconds

    def trained(self, images: float, seconds: float) -> None:
        """An update of so many images took this time; what is slow of a process's first one counts until the next.

        It counts not at all where a faster one was measured before; a first that takes less than `BUSY` of that says
        all: the machine was busy then.
        """
        first, measured, self._updated = not self._updated, self.timed, True
        if first and measured and seconds > images * self.image:
            return
        busy = first and measured and seconds < BUSY * images * self.image
        kept = 0.0 if busy or self.warming else math.exp(-seconds / self.window)
        self.warming = first and not measured
        self._images, self._seconds = self._images * kept + images, self._seconds * kept + seconds

    def predicted(self, calls: int, seconds: float) -> None:
        """So many predictions of an image in one call took this time."""
        if self.timed and seconds > 0:
            self.forward, self.called = seconds / calls / self.image, True

    def previewed(self, seconds: float) -> None:
        """A preview took this time; its predictions are in small calls and slower, and count where none was timed."""
        self.previewing = seconds
        if self.timed and seconds > 0 and not self.called:
            self.forward = seconds / self.showing / self.image

    def _predictions(self, calls: int) -> float:
        return calls * self.forward * self.image

    @property
    def calibration_images(self) -> int:
        """On how many images the variances are calibrated at the end: fewer where a budget is short for the network."""
        each = self._predictions(self.calibrating)
        if self.budget is None or each == 0:
            return CALIBRATED
        return min(CALIBRATED, max(LEAST_CALIBRATED, int(CALIBRATING_SHARE * self.budget / each)))

    @property
    def ending(self) -> dict[str, float]:
        """Seconds of each thing that is done after the last update, in order."""
        return {
            CALIBRATING: self._predictions(self.calibrating * self.calibration_images),
            MEASURING: self._predictions(self.measuring),
            SAVING: self.keeping + self.saving + LAST,
        }

    @property
    def each(self) -> float:
        """Seconds of an image, with its share of saves and previews."""
        showing = self._predictions(self.showing) if self.previewing is None else self.previewing
        shown = min(showing / self.spacing, PREVIEW_SHARE / (1 - PREVIEW_SHARE) * self.image)
        return self.image + (self.keeping + self.saving) / self.spacing + shown

    def seconds(self, images: int) -> float:
        """From now to the end, with so many images to train on."""
        return images * self.each + sum(self.ending.values())

    def updates(self, seconds: float, batch: int) -> int:
        """How many updates fit in between now and the end in so many seconds; one at least."""
        return max(1, round((seconds - sum(self.ending.values())) / (self.each * batch)))

    def astray(self, images: int, left: float) -> bool:
        """Whether so many images would end too far from the time that is left of the budget."""
        assert self.budget is not None
        return abs(self.seconds(images) - left) > max(LEAST_ASTRAY * self.budget, ASTRAY * left)


def spacing(options: TrainOptions, images: int) -> int:
    """Images from a save to the next in a leg of so many."""
    return max(options.batch_size, images // options.snapshots)


def pace(config: Config, held_out: int, planned: int, budget: float | None) -> Pace:
    """That of a run of which nothing has been timed.

    Args:
        config: of the run.
        held_out: images held out.
        planned: images of its leg; 0 when that is not known yet.
        budget: in seconds, or None.
    """
    return Pace(
        window=max(LEAST_WINDOW, WINDOW * (budget or 0.0)),
        spacing=spacing(config.train, planned),
        calibrating=calibration.calls(config),
        measuring=health.calls(config, held_out),
        showing=preview.calls(config),
        budget=budget,
    )
