"""What the page begins with, as the report does: an image to noise, and another image back from that very noise."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from ancestral.apps.server import schemas
from ancestral.apps.server.data_uri import uri_of
from ancestral.apps.server.job import Record, going_on
from ancestral.apps.server.job_queue import Work
from ancestral.apps.server.session import ServedRun
from ancestral.data import load
from ancestral.data.pixels import to_unit
from ancestral.data.source_paths import public
from ancestral.diffusion.processes.types import no_advance
from ancestral.diffusion.samplers.loop import Step
from ancestral.errors import UserError
from ancestral.runs import build
from ancestral.runs.sampling_options import SamplingOptions
from ancestral.sampling.command import conditions
from ancestral.sampling.round_trip import FRAMES, HELD_OUT, played, round_trip, small


class FirstFilm:
    """Of an open model, made when it is first asked for and kept."""

    def __init__(self, served: ServedRun) -> None:
        self.served = served
        self._kept: dict[str, Any] | None = None
        self._making = threading.Lock()

    def film(self, body: schemas.Film) -> Work:
        """An image that was held out goes to noise, and another comes back from there."""

        def work(record: Record) -> dict[str, Any]:
            with self._making:
                if self._kept is None:
                    self._kept = self._made()
                return self._kept

        return work

    def _made(self) -> dict[str, Any]:
        config = self.served.saved.config
        images = load.load(config.source, config.data).test
        channels, height, width = self.served.shape
        if images.shape != (height, width, channels):
            raise UserError(f"film: the images at {public(config.source)} are of another size now")
        every = build.most_steps(config)
        options = SamplingOptions(steps=FRAMES if every > FRAMES else "all")
        sampler, editor = self.served.sampler(options), self.served.editor(options)
        x0 = editor.to_state(to_unit(images.spread(HELD_OUT).take([0]).images[:]))
        cond = conditions(self.served.saved, None, None, 1)
        walk = _stoppable(sampler.walk(range(1), cond, no_advance))
        made = round_trip(self.served.model.schedule, x0, editor.latents([0]), walk)
        frames, ways = played([*map(uri_of, small(made.there))], [*map(uri_of, small(made.back))], made.times)
        return {"frames": [{"image": one, "way": way, "t": t} for one, (way, t) in zip(frames, ways, strict=True)]}


def _stoppable(steps: Iterator[Step]) -> Iterator[Step]:
    for step in steps:
        going_on()
        yield step
