"""Kill a training run at random instants, again and again, and compare its end with that of a run left alone.

Run: python tests/kill_harness.py [KILLS] [SEED] [FOLDER]. Prints one JSON line. Children are forked from a parent that
has imported everything and computed nothing, so that a kill costs milliseconds.
"""

import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from ancestral.data import load
from ancestral.runs import checkpoint, config, lock, metrics_log
from ancestral.training import run as training_run
from forked import import_all

UPDATES = 60
SETTINGS = {
    "model.width": 8,
    "model.dropout": 0.1,
    "train.batch_size": 8,
    "train.flip": True,
    "train.snapshots": 60,  # a save after every update
    "diffusion.times": "loss-importance",
    "diffusion.T": 10,
}


def child(folder, images):
    """Train to the end, or until killed; one thread, so that the sums are in one order."""
    torch.set_num_threads(1)
    configuration = config.resolve("digits", "tiny", SETTINGS)
    run = training_run.Run(folder, configuration, images, torch.device("cpu"), "test")
    run.owner = lock.own(folder, fail)  # the one that was killed before is dead, and that is seen at once
    run.resume()
    if not run.total:
        run.begin(UPDATES * configuration.train.batch_size)
    list(run.train(lambda: False))
    run.owner.release()


def fail(line):
    raise AssertionError(line)


def fork(folder, images):
    process = os.fork()
    if process == 0:
        try:
            child(folder, images)
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return process


def position(folder):
    """Images seen at the newest checkpoint, without reading it."""
    found = [int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]
    return max(found, default=0)


def digest(folder):
    """Of every tensor of the last checkpoint, by name."""
    saved, problems = checkpoint.latest(folder)
    if problems:
        raise AssertionError(problems)
    total = hashlib.sha256()
    for name, tensor in sorted({**saved.tensors, **{f"model/{k}": v for k, v in saved.weights.items()}}.items()):
        total.update(name.encode() + tensor.numpy().tobytes())
    return total.hexdigest()


def records(folder):
    """What was logged, but for how long it took. Whether there was time for a preview too depends on the clock."""
    entries = metrics_log.read_metrics(folder / "metrics.jsonl")
    clocked = ("seconds", "held_out_bits_per_dim", "held_out_bits_by_tenth_of_t")
    return [{key: value for key, value in entry.items() if key not in clocked} for entry in entries]


def main(kills=20, seed=0, where=None):
    """Returns what happened, for a test to judge."""
    import_all()
    root = Path(where or tempfile.mkdtemp())
    images = load.load("digits", load.DataOptions(limit=64))
    draw = random.Random(seed)
    for name in ("straight", "killed"):
        (root / name).mkdir(parents=True)
    started = time.monotonic()
    os.waitpid(fork(root / "straight", images), 0)
    whole = time.monotonic() - started
    done, inside_save, backwards, restarts, before_any, logs_differ, best = 0, 0, 0, 0, 0, 0, 0
    while done < kills:
        process = fork(root / "killed", images)
        time.sleep(
            draw.uniform(0, whole * draw.choice((1 / 6, 1 / 6, 1)))
        )  # some get to their end, others hardly begin
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        restarts += 1
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                raise AssertionError("the run failed by itself")
            # It got to its end first: begin another one, which must get there too.
            if digest(root / "killed") != digest(root / "straight"):
                raise AssertionError("the weights differ")
            logs_differ += records(root / "killed") != records(root / "straight")
            (root / "killed").rename(root / f"finished-{restarts}")
            (root / "killed").mkdir()
            best = 0
            continue
        done += 1
        before_any += position(root / "killed") == 0
        inside_save += bool(list((root / "killed").rglob(".writing-*")))
        backwards += position(root / "killed") < best
        best = position(root / "killed")
    _, status = os.waitpid(fork(root / "killed", images), 0)
    logs_differ += records(root / "killed") != records(root / "straight")
    return {
        "kills": done,
        "before any checkpoint": before_any,
        "inside a save": inside_save,
        "went backwards": backwards,
        "runs finished": len(list(root.glob("finished-*"))) + 1,
        "weights equal": status == 0 and digest(root / "killed") == digest(root / "straight"),
        "stray files": len(list(root.rglob(".*"))),
        "records of a log": len(records(root / "straight")),
        "logs that differ": logs_differ,
        "seconds": round(time.monotonic() - started, 1),
    }


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:3]), *sys.argv[3:])))
