"""Processes forked from one that has imported everything: what `python ...` takes to begin is spent once.

`ranks` are several that run one command; `several` is a script in a Python of its own, within which
`in_processes(4, body)` are four of one training.
"""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

IMPORTED = [
    *("torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint", "scipy.special"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "ancestral.apps.cli.main"),
    *(f"ancestral.{name}" for name in ("training.command", "sampling.command", "evaluation.elbo_command")),
]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pytest", *IMPORTED])


def import_all():
    """What commands import when they need it, in this process: those forked from it find it there."""
    for name in IMPORTED:
        import_module(name)


class Python:
    """`python -m MODULE ARGUMENTS` with one thread."""

    def __init__(self, *arguments, **environment):
        self._reading, writing = SERVER.Pipe(duplex=False)
        self._errors = tempfile.NamedTemporaryFile("r")  # noqa: SIM115 # closed with this
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        given = ([str(one) for one in arguments], os.getcwd(), environment, writing, self._errors.name)
        self._process = SERVER.Process(target=_run, args=given)
        self._process.start()
        writing.close()
        self.stdout = os.fdopen(os.dup(self._reading.fileno()))

    def ended(self, seconds):
        """(exit code, stdout, stderr) of the whole."""
        late = threading.Timer(seconds, self._process.kill)
        late.start()
        try:
            output = self.stdout.read()
            self._process.join()
        finally:
            late.cancel()
        return self._process.exitcode, output, self._errors.read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.join()
        for one in (self.stdout, self._reading, self._errors, self._process):
            one.close()


def _run(arguments, folder, environment, output, errors):
    """What a process does that was forked to be `python -m MODULE ARGUMENTS`."""
    import torch

    from ancestral.apps.cli import main

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with open(errors, "ab", 0) as file:
        os.dup2(file.fileno(), 2)
    os.dup2(output.fileno(), 1)
    output.close()
    main.BEGAN = time.monotonic()
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__")


def ranks(count, *arguments, seconds=240):
    """`Python.ended` of each of several processes of `python -m MODULE ARGUMENTS`, begun as torchrun does."""
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with ExitStack() as stack:
        numbers = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        started = [stack.enter_context(Python(*arguments, **group, **number)) for number in numbers]
        return [one.ended(seconds) for one in started]


def free_port():
    """One that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def several(script, *arguments, seconds):
    """(stdout, stderr) of a script that forks several processes, run in a Python of its own for so long at most."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    line = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=seconds, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def say(*words):
    """Print a line in one piece, whatever others print."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def in_processes(count, body, **options):
    """Fork so many, call body(processes) in each after they have joined; returns their exit codes, -9 for a killed one.

    `options` are those of `join`. Only for a process that has computed nothing yet.
    """
    import torch

    from ancestral.runtime import distributed

    port = free_port()
    sys.stdout.flush()
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                processes = distributed.join(torch.device("cpu"), **options)
                code = body(processes) or 0
                distributed.leave()
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(code)
        children.append(child)
    return _codes(children)


def _codes(children, seconds=200):
    """The exit codes of children, which are killed once one of them has failed for five seconds, as a launcher does."""
    codes, end = {}, time.monotonic() + seconds
    while len(codes) < len(children):
        for child in set(children) - set(codes):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
                if codes[child]:
                    end = min(end, time.monotonic() + 5)
        if time.monotonic() > end:
            for child in set(children) - set(codes):
                os.kill(child, 9)
        time.sleep(0.02)
    return [codes[child] for child in children]
