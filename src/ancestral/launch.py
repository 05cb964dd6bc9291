"""`--processes N`: the same command on several processes of this machine, on torch's own elastic launcher."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Sequence

from ancestral.signals import STOPPED


def launch(processes: int, restarts: int, arguments: Sequence[str]) -> int:
    """Run `python -m ancestral ARGUMENTS` on so many processes; returns the exit code.

    What torchrun does, with the store that lets a gloo group begin again after a process was lost, and with the
    processes' own exit code where they agree on one.
    """
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
        codes = {failure.exitcode for failure in error.failures.values()}
        return codes.pop() if codes in ({2}, {STOPPED}) else 1
    except SignalException:
        return STOPPED
    return 0


def is_child() -> bool:
    """Whether a launcher has started this process as one of several."""
    return "WORLD_SIZE" in os.environ
