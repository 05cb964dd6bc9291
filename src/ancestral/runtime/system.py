"""What differs between machines: locks of files, processes by number, folders on the disk, cores, memory that ends."""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

try:
    import fcntl
except ImportError:
    fcntl = None
WINDOWS = fcntl is None
_BEYOND = 2**30  # Windows keeps others from reading what is locked: a byte that no such file has
_GROUP = "/sys/fs/cgroup"
_MAY_ASK, _STILL_RUNS, _REFUSED = 0x1000, 259, 5  # of Windows' OpenProcess, GetExitCodeProcess and GetLastError

# In what CUDA raises as torch.OutOfMemoryError, its cuBLAS and cuDNN, MPS and the CPU as a RuntimeError.
_OUT_OF_MEMORY = ("out of memory", "t allocate memory", "not enough memory", "_STATUS_ALLOC_FAILED")
_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def out_of_memory(error: Exception) -> bool:
    """Whether a device or the machine has no more memory."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def free_memory() -> int | None:
    """Bytes that this machine, and the group of processes that this one is in, can still give; None where none says."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    with suppress(OSError, ValueError):  # no such group, or "max"
        most, used = (int(Path(_GROUP, name).read_text()) for name in ("memory.max", "memory.current"))
        facts = dict(line.split() for line in Path(_GROUP, "memory.stat").read_text().splitlines())
        free = min(free, most - used + int(facts.get("inactive_file", 0)))  # copies of files give way
    return free


def each(make: Callable[[_Item], _Made], items: Iterable[_Item]) -> list[_Made]:
    """What `make` gives of each, in order, made on all cores: for what lets go of the interpreter, as Pillow does."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(make, items))


def try_lock(descriptor: int) -> bool:
    """Lock a file that is open for writing, until it is closed or its process ends; False where another holds it."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            windows: Any = importlib.import_module("msvcrt")  # whose contents pyright knows on Windows only
            os.lseek(descriptor, _BEYOND, os.SEEK_SET)
            try:
                windows.locking(descriptor, windows.LK_NBLCK, 1)
            finally:
                os.lseek(descriptor, 0, os.SEEK_SET)
    except (BlockingIOError, PermissionError):
        return False
    return True


def runs(process: int) -> bool:
    """Whether a process of this number runs here."""
    if WINDOWS:  # where os.kill(process, 0) sends Ctrl-C
        return _runs_on_windows(process)
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _runs_on_windows(process: int) -> bool:
    kernel: Any = getattr(ctypes, "windll").kernel32  # noqa: B009 # pyright knows it on Windows only
    handle = kernel.OpenProcess(_MAY_ASK, False, process)
    if not handle:
        return kernel.GetLastError() == _REFUSED  # of another user
    try:
        code = ctypes.c_ulong()
        return bool(kernel.GetExitCodeProcess(handle, ctypes.byref(code))) and code.value == _STILL_RUNS
    finally:
        kernel.CloseHandle(handle)


def flush_folder(folder: Path) -> None:
    """Have the disk know what is in the folder; Windows opens no folder, and NTFS keeps its own journal of names."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        if WINDOWS:
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
