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

from ancestral.runtime.signals import STOPPED

SPOKEN = "ANCESTRAL_SPOKEN"  # the file in which the first process to end the command in order says its exit code


def launch(processes: int, restarts: int, arguments: Sequence[str]) -> int:
    """Run `python -m ancestral ARGUMENTS` on so many processes; returns the exit code.

    What torchrun does, with the store that lets a gloo group begin again after a process was lost, and with the
    processes' own exit code where they agree on one.
    """
    place = tempfile.mkdtemp(prefix="ancestral-")
    os.environ[SPOKEN] = str(Path(place) / "spoken")
    # Read by the launcher's agent: without it restarted processes dial the dead one's port.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes speak for themselves
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
        if (code := spoken()) is not None:  # what the others ended with is its consequence
            return code
        codes = {failure.exitcode for failure in error.failures.values()}
        return STOPPED if codes == {STOPPED} else 1
    except SignalException as told:
        return STOPPED if "train" in arguments else 128 + told.sigval
    finally:
        shutil.rmtree(place, ignore_errors=True)
        del os.environ[SPOKEN]
    return 0


def speaks(code: int) -> bool:
    """Whether this process is the one to say why the command ends with this code: the first of several that asks."""
    place = os.environ.get(SPOKEN)
    if place is None:
        return True
    try:
        with open(place, "x") as file:
            file.write(str(code))
    except OSError:
        return False
    return True


def spoken() -> int | None:
    """The code that another process of this command has ended it with, in order."""
    try:
        return int(Path(os.environ[SPOKEN]).read_text())
    except (KeyError, OSError, ValueError):
        return None


def is_child() -> bool:
    """Whether a launcher has started this process as one of several."""
    return "WORLD_SIZE" in os.environ
