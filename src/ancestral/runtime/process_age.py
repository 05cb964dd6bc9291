"""How long this process has run: what a budget of wall time begins with."""

from __future__ import annotations

import os
import time
from pathlib import Path


def process_age() -> float:
    """Seconds since the process was started; where the system does not tell, those that it has computed."""
    try:
        ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]  # field 22: its start, since boot
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        return time.process_time()
