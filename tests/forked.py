"""Several processes of one training, forked from one that has imported everything: `in_processes(4, body)`."""

import os
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path


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

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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
