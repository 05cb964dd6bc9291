"""Which compute format a new run trains in, where its settings leave that open."""

from __future__ import annotations

from collections.abc import Callable

from ancestral.runs import compute_format
from ancestral.runs.compute_format import FORMATS, Timed
from ancestral.training.run import Run

SLOW = (
    "train.precision = float16 on a CPU: an update was seen to take 29 times as long as in float32; "
    "train.precision=auto takes the fastest"
)


def choose_format(run: Run, layers: Callable[..., Timed] = compute_format.layers_of) -> str | None:
    """Choose the compute format of a new run where a setting is `auto`: on a CPU the fastest, by a short measurement.

    The first process measures, for all. Returns a line that says what was chosen or that float16 is slow, or None.
    """
    training, processes = run.training, run.training.processes
    settings, device, seconds = run.config.train, training.device, {}
    automatic = [name for name in ("precision", "channels_last") if getattr(settings, name) == "auto"]
    slow = SLOW if settings.precision == "float16" and device.type == "cpu" else None
    if not automatic:
        return slow
    chosen = training.format
    if processes.first and device.type == "cpu" and len(training.formats) > 1:
        seconds = compute_format.time_formats(training.formats, layers(run.config, run.facts, device))
        chosen = compute_format.fastest(seconds)
        if len(automatic) == 2:
            run.fastest_on = compute_format.processor()
    run.use_format(FORMATS[int(processes.from_first(float(FORMATS.index(chosen))))])
    how = compute_format.describe(seconds) if seconds else "not measured on this device"
    said = f"{' and '.join(f'train.{name}' for name in automatic)} = auto: {run.training.format} ({how})"
    return said if slow is None else f"{said}; {slow}"
