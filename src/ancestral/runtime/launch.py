"""`--processes N`: the same command on several processes of this machine, on torch's own elastic launcher."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from ancestral.runtime.signals import STOPPED, TRAINING
from ancestral.runtime.text import shown

EXIT_FILE = "ANCESTRAL_EXIT_FILE"  # holds the exit code of the first process to end in order, of each attempt
_WORLD_SIZE = "WORLD_SIZE"  # torchrun sets it for the processes, and LOCAL_RANK
_ATTEMPT = "TORCHELASTIC_RESTART_COUNT"  # set for the processes: how often they were begun again
_REFUSED = "refused"  # in the exit file, after the code
_PATIENCE = "600"  # seconds that processes have to save when they are told to stop, where torch gives 30


def launch(processes: int, restarts: int, arguments: Sequence[str]) -> int:
    """Run `python -m ancestral ARGUMENTS` on so many processes; returns the exit code.

    What torchrun does, with the store that lets a gloo group begin again after a process was lost, and with the
    processes' own exit code where they agree on one.
    """
    folder = tempfile.mkdtemp(prefix="ancestral-")
    os.environ[EXIT_FILE] = str(Path(folder) / "exit")
    # Read by the launcher's agent: without it restarted processes dial the dead one's port.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _PATIENCE)
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
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        for rank, code in codes.items():
            if code < 0 and -code != signal.SIGTERM:  # which the launcher stops the others with, after that
                click.echo(shown(_killed(rank, -code, processes, arguments[0])), err=True)
                return 1
        if (code := reported_exit(restarts)) is not None:  # what the others ended with is its consequence
            return code
        return STOPPED if set(codes.values()) == {STOPPED} else 1
    except SignalException as stop:
        reported = (reported_exit(number) for number in range(restarts, -1, -1))
        return next((code for code in reported if code is not None), 128 + stop.sigval)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        del os.environ[EXIT_FILE]
    return 0


def _killed(rank: int, number: int, processes: int, command: str) -> str:
    """What to say of a process that the signal of this number has ended."""
    named = f"process {rank} (counted from 0) of the {processes}"
    cause = ", as the system does where memory runs out" if number == signal.SIGKILL else ""
    mend = "; its last checkpoint is kept: the same command goes on from there" if command in TRAINING else ""
    return f"error: {named} was killed by {signal.Signals(number).name}{cause}{mend}"


def attempt() -> int:
    """How often a launcher has begun this process again after one of them was lost."""
    return int(os.environ.get(_ATTEMPT, 0))


def reports_exit(code: int, *, refused: bool = False) -> bool:
    """Write the exit code, if no other process of the command has; whether this one is to print why.

    What was `refused` would be so again.
    """
    path = os.environ.get(EXIT_FILE)
    if path is None:
        return True
    try:
        with open(f"{path}-{attempt()}", "x") as file:
            file.write(f"{code} {_REFUSED}" if refused else str(code))
    except OSError:
        return False
    return True


def stopped() -> NoReturn:
    """End as a training that was stopped and has saved."""
    reports_exit(STOPPED)
    sys.exit(STOPPED)


def reported_exit(of: int | None = None) -> int | None:
    """The exit code that a process of this command has written in its own attempt or that one, or None."""
    try:
        return int(_reported(attempt() if of is None else of).partition(" ")[0])
    except (KeyError, OSError, ValueError):
        return None


def _reported(of: int) -> str:
    return Path(f"{os.environ[EXIT_FILE]}-{of}").read_text()


def need_new_attempt() -> None:
    """Exit silently if the previous attempt ended with a user error: a restart would fail the same way.

    Out-of-memory and disk errors are retried, and so is an attempt that was stopped because another process was lost.
    """
    before = reported_exit(attempt() - 1) if attempt() else None
    if before is not None and _reported(attempt() - 1).endswith(_REFUSED):
        reports_exit(before, refused=True)
        sys.exit(before)


def is_child() -> bool:
    """Whether a launcher has started this process as one of several."""
    return _WORLD_SIZE in os.environ


def world_size() -> int:
    """How many processes a launcher has started, on all machines; 1 where none has."""
    return int(os.environ.get(_WORLD_SIZE, "1"))


def is_first() -> bool:
    """Whether this is the one process, or the first of several, which speaks for all."""
    return not is_child() or os.environ.get("RANK", "0") == "0"


def on_several_machines() -> bool:
    """Whether the processes of a launcher are not all here."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size())) < world_size()


def local_rank() -> int:
    """Which of its machine's processes this is."""
    return int(os.environ.get("LOCAL_RANK", "0"))
