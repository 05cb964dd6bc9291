"""Let pairs of trainers race for one run folder, again and again, also over the lock of a dead one.

Run: python tests/lock_harness.py [PAIRS] [ROUNDS]. Prints one JSON line. PAIRS are of whole trainings; a ROUND is eight
processes that want to own one folder, from which nobody, one who left, or a dead process was the owner before.
"""

import json
import os
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from ancestral.apps.cli.main import main as ancestral
from ancestral.errors import UserError
from ancestral.runs import lock
from forked import import_all

TRAIN = (
    "--preset",
    "tiny",
    "--steps",
    "100",
    "--device",
    "cpu",
    "--set",
    "model.width=8",
    "--set",
    "train.batch_size=8",
)
RACERS = 8


def fork(work, gate):
    """A process that waits for the gate to close, does the work and exits with what it returns."""
    process = os.fork()
    if process == 0:
        code = 99
        try:
            os.close(gate[1])
            os.read(gate[0], 1)  # returns when the parent closes its end
            code = work()
        finally:
            os._exit(code)
    return process


def race(*work):
    """The exit codes of these, begun at the same moment."""
    gate = os.pipe()
    racers = [fork(one, gate) for one in work]
    os.close(gate[0])
    time.sleep(0.05)
    os.close(gate[1])
    return [os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in racers]


def trainer(folder, said):
    """`ancestral train`, in this process."""

    def work():
        torch.set_num_threads(1)
        with open(said, "w") as file, redirect_stdout(file), redirect_stderr(file):
            try:
                ancestral(["train", "digits", "--out", str(folder), *TRAIN])
            except SystemExit as ended:
                return ended.code
        return 98

    return work


def wanting(folder, hold):
    """Own the folder and hold it until the others have tried: 0, or 2 where that is refused."""

    def work():
        try:
            lock.own(folder)
        except UserError:
            return 2
        time.sleep(hold)
        return 0

    return work


def die(folder):
    """Leave a folder whose owner was killed."""
    race(lambda: (lock.own(folder), os._exit(7)))


def leave(folder):
    """Leave a folder whose owner has left."""
    lock.own(folder).release()


def main(pairs=4, rounds=30):
    """Returns what happened, for a test to judge."""
    import_all()
    root = Path(tempfile.mkdtemp())
    trained, named, won = [], 0, []
    for pair in range(pairs):
        folder = root / f"pair-{pair}"
        if pair % 2:
            die(folder)
        said = [root / f"pair-{pair}-{side}.txt" for side in "ab"]
        trained.append(sorted(race(*(trainer(folder, one) for one in said))))
        named += sum("is being trained by process" in one.read_text() for one in said)
    for number in range(rounds):
        folder = root / f"round-{number}"
        (folder.mkdir, lambda folder=folder: leave(folder), lambda folder=folder: die(folder))[number % 3]()
        won.append(race(*[wanting(folder, 0.5)] * RACERS).count(0))
    return {
        "pairs": pairs,
        "one trained, one refused": trained.count([0, 2]),
        "named the other": named,
        "rounds": rounds,
        "exactly one owner": won.count(1),
        "others": [codes for codes in trained if codes != [0, 2]] + [count for count in won if count != 1],
    }


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:3]))))
