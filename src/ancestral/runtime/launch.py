"""`--processes N`: the same command on several processes of this machine, on torch's own elastic launcher."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from ancestral.runtime.signals import STOPPED, TRAINING

EXIT_FILE = "ANCESTRAL_EXIT_FILE"  # holds the exit code of the first process to end in order


def launch(processes: int, restarts: int, arguments: Sequence[str]) -> int:
    """Run `python -m ancestral ARGUMENTS` on so many processes; returns the exit code.

    What torchrun does, with the store that lets a gloo group begin again after a process was lost, and with the
    processes' own exit code where they agree on one.
    """
    folder = tempfile.mkdtemp(prefix="ancestral-")
    os.environ[EXIT_FILE] = str(Path(folder) / "exit")
    # Read by the launcher's agent: without it restarted processes dial the dead one's port.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes print their own errors
    plan = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
    )
    try:
        elastic_launch(plan, sys.executable)("-m", "ancestral", *arguments)
    except ChildFailedError as error:
        if (code := reported_exit()) is not None:  # what the others ended with is its consequence
            return code
        codes = {failure.exitcode for failure in error.failures.values()}
        return STOPPED if codes == {STOPPED} else 1
    except SignalException as stop:
        return STOPPED if arguments[0] in TRAINING else 128 + stop.sigval
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        del os.environ[EXIT_FILE]
    return 0


def reports_exit(code: int) -> bool:
    """Write the exit code, if no other process of the command has; whether this one is to print why."""
    path = os.environ.get(EXIT_FILE)
    if path is None:
        return True
    try:
        with open(path, "x") as file:
            file.write(str(code))
    except OSError:
        return False
    return True


def reported_exit() -> int | None:
    """The exit code that a process of this command has written, or None."""
    try:
        return int(Path(os.environ[EXIT_FILE]).read_text())
    except (KeyError, OSError, ValueError):
        return None


def is_child() -> bool:
    """Whether a launcher has started this process as one of several."""
    return "WORLD_SIZE" in os.environ
