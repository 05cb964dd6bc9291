"""What differs between systems, where Windows is stood in for: no fcntl, fewer signals, folders that do not open."""

import os
import subprocess
import sys

import pytest

from ancestral.runtime import system

# A module of a stand-in: what is missing there is gone before anything of ours is imported.
WINDOWS = '''
import ctypes, os, shutil, signal, sys, types
import matplotlib.font_manager, rich.console, scipy.special, torch, torch.utils.flop_counter, torch._dynamo
import multiprocessing as mp

for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty"):
    sys.modules[name] = None
locked = set()

def locking(descriptor, mode, count):
    """A byte range of one file is locked once, as in msvcrt."""
    file = (os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR))
    if file in locked:
        raise PermissionError(13, "Permission denied")
    locked.add(file)

sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
for name in [one for one in dir(signal) if one.startswith("SIG") and one not in
             ("SIGINT", "SIGTERM", "SIGABRT", "SIGFPE", "SIGILL", "SIGSEGV", "SIG_DFL", "SIG_IGN")]:
    delattr(signal, name)
signal.SIGBREAK = signal.Signals(21)  # an existing number, to be caught
for name in ("O_NONBLOCK", "O_DIRECTORY", "fork", "forkpty", "getuid", "geteuid", "uname", "statvfs", "mkfifo",
             "sched_getaffinity"):
    delattr(os, name)
opened, killed = os.open, []

def open_file(path, flags, mode=0o777, **rest):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return opened(path, flags, mode, **rest)

def kill(process, number):
    raise AssertionError("os.kill(process, 0) is Ctrl-C on Windows")

class Kernel:
    """Processes 1 (another user's) and this one run."""
    def OpenProcess(self, access, inherit, process): return process if process == os.getpid() else 0
    def GetLastError(self): return 5 if self.asked == 1 else 87
    def GetExitCodeProcess(self, handle, code): code._obj.value = 259; return 1
    def CloseHandle(self, handle): pass

kernel = Kernel()
ask = kernel.OpenProcess
def remember(access, inherit, process):
    kernel.asked = process
    return ask(access, inherit, process)
kernel.OpenProcess = remember
ctypes.windll = types.SimpleNamespace(kernel32=kernel)
os.open, os.kill = open_file, kill
shutil._use_fd_functions = False
'''
DO = """
import importlib, pkgutil
from pathlib import Path
import ancestral
from ancestral.apps.cli.main import main
from ancestral.runtime import system, signals

assert system.WINDOWS
assert signals._SIGNALS == [signal.SIGINT, signal.SIGTERM, signal.SIGBREAK]
assert system.runs(os.getpid()) and system.runs(1) and not system.runs(2)
missing = []
for module in pkgutil.walk_packages(ancestral.__path__, "ancestral."):
    try:
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    except ImportError as error:
        missing.append(str(error))
assert not any("fcntl" in one or "resource" in one or "pwd" in one for one in missing), missing
out = Path(sys.argv[1])
tiny = ["--device", "cpu", "--set", "model.width=8", "--set", "train.batch_size=16", "--set", "train.workers=1"]
def run(*line):
    code = main.main([*map(str, line)], standalone_mode=False)
    assert not code, (line, code)
run("train", "digits", "--preset", "tiny", *tiny, "--steps", 2, "--out", out / "run")
run("train", "digits", "--preset", "tiny", *tiny, "--steps", "+2", "--out", out / "run")
run("sample", out / "run", "--num-images", 2, "--steps", 2, "--out", out / "images")
locked.clear()  # as the system does when a file is closed
run("sample", out / "run", "--num-images", 2, "--steps", 2, "--seed", 1, "--out", out / "images")
print("ran")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the real one")
def test_everything_imports_and_a_training_runs_where_windows_is_stood_in_for(tmp_path):
    pytest.importorskip("sklearn")
    line = [sys.executable, "-c", WINDOWS + DO, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("ran")
    assert (tmp_path / "images" / "000001.png").is_file()


def test_a_process_runs_until_it_has_ended():
    assert system.runs(os.getpid())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(60)
    assert not system.runs(ended.pid)


def test_a_lock_has_one_holder(tmp_path):
    first, second = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    assert system.try_lock(first)
    assert not system.try_lock(second)
    os.close(first)
    assert system.try_lock(second)
    os.close(second)
