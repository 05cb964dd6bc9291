"""Work beside a training, which it must never end: previews, pictures, plots, trackers, calibration, logs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ancestral.errors import UserError

STRICT = "ANCESTRAL_STRICT"  # set by the tests: an error that is neither the disk's nor the user's is raised


@contextmanager
def beside(what: str, warn: Callable[[str], None]) -> Iterator[None]:
    """Context manager: an error in it is passed to `warn` as one line, and training goes on. Ctrl-C passes."""
    try:
        yield
    except Exception as error:
        if STRICT in os.environ and not isinstance(error, UserError | OSError):
            raise
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        with suppress(Exception):  # the screen may be what is broken
            warn(f"{what}: left out ({kind}{' '.join(str(error).split())[:300]}); training goes on")
