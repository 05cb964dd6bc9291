"""Kills at random instants, and every state that a power cut can leave."""

import itertools
import os
import shutil
from pathlib import Path

import pytest

from ancestral.runtime import verified_folder
from conftest import harness

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_twenty_kills_lose_nothing():
    """The long form: python tests/kill_harness.py 200."""
    pytest.importorskip("sklearn")
    counts = harness("kill_harness.py", 20, 1)
    assert counts["kills"] == 20
    assert counts["weights equal"]
    assert counts["records of a log"] == 60
    assert counts["logs that differ"] == 0
    assert (counts["went backwards"], counts["stray files"]) == (0, 0)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_hostile_input_ends_in_a_result_or_one_line():
    """The long form: python tests/fuzz_harness.py 30000."""
    pytest.importorskip("sklearn")
    counts = harness("fuzz_harness.py", 1200, 1)
    assert counts["cases"] == 1200
    assert min(counts["refused"].values()) >= 20  # each kind has met bad input


@pytest.mark.skipif(not Path("/proc/self/statm").exists() or not hasattr(os, "fork"), reason="needs /proc and fork")
def test_compressed_files_end_in_an_image_or_one_line():
    """The long form: python tests/codec_fuzz_harness.py 20000."""
    counts = harness("codec_fuzz_harness.py", 300, 7)
    assert counts["broken"] == []
    assert sum(counts["outcomes"].values()) == counts["files"] == 300
    assert {"lossy, as cut", "refused"} <= {name.partition(": ")[2] for name in counts["outcomes"]}


class Recorder:
    """What `verified_folder.write` asks of the file system, in order."""

    def __init__(self, monkeypatch, root):
        self.operations, self.root = [], root
        fsync, mkdir, rename = os.fsync, Path.mkdir, Path.rename

        def record_fsync(descriptor):
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path.is_dir():
                self.operations.append(("flush folder", path))
            else:
                self.operations.append(("write", path, path.read_bytes()))
                self.operations.append(("flush file", path))
            fsync(descriptor)

        def record_mkdir(path, *args, **options):
            if not path.exists():
                self.operations.append(("mkdir", path))
            mkdir(path, *args, **options)

        def record_rename(path, target):
            self.operations.append(("rename", path, target))
            return rename(path, target)

        monkeypatch.setattr(verified_folder.os, "fsync", record_fsync)
        monkeypatch.setattr(Path, "mkdir", record_mkdir)
        monkeypatch.setattr(Path, "rename", record_rename)


def durable(operations):
    """Indices of operations that a later flush has made certain: data by its file's, names by their folder's."""
    certain = set()
    for now, operation in enumerate(operations):
        for before, earlier in enumerate(operations[:now]):
            if operation[0] == "flush file" and earlier[0] == "write" and earlier[1] == operation[1]:
                certain.add(before)
            if operation[0] == "flush folder" and earlier[0] in ("write", "mkdir", "rename"):
                place = earlier[2] if earlier[0] == "rename" else earlier[1]
                # The name of a file is its folder's business; its content was flushed by itself just before.
                if place.parent == operation[1]:
                    certain.add(before)
    return certain


def crash_states(operations):
    """Which operations happened, for every moment and every small choice of what the cache had not yet written."""
    for moment in range(len(operations) + 1):
        done = operations[:moment]
        certain = durable(done)
        open_ones = [i for i, operation in enumerate(done) if i not in certain and not operation[0].startswith("flush")]
        for count in range(min(3, len(open_ones)) + 1):
            for lost in itertools.combinations(open_ones, count):
                yield moment, [i for i in range(moment) if i not in lost]
            for kept in itertools.combinations(open_ones, count):
                yield moment, sorted(certain | set(kept))


def build(before, after, operations, happened, moved):
    """The file system in which just these operations happened. A lost rename leaves what follows under the old name."""
    shutil.rmtree(after, ignore_errors=True)
    shutil.copytree(before, after)
    for index in happened:
        kind, *where = operations[index]
        paths = [after / path.relative_to(moved) for path in where if isinstance(path, Path)]
        if kind == "mkdir":
            paths[0].mkdir(parents=True, exist_ok=True)
        elif kind == "write" and paths[0].parent.is_dir():
            paths[0].write_bytes(where[1])
        elif kind == "rename" and paths[0].exists() and not paths[1].exists():
            os.rename(paths[0], paths[1])


def newest(root):
    for folder in sorted((path for path in root.iterdir() if path.name.isdigit()), reverse=True):
        try:
            return folder.name, verified_folder.read(folder)
        except verified_folder.Damaged:
            continue
    return None


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", ["000000002", "000000001"], ids=["a new folder", "the same folder again"])
def test_every_state_after_a_power_cut_is_the_old_or_the_new(tmp_path, name):
    live, before = tmp_path / "live", tmp_path / "before"
    old, new = {"a": b"old a", "b": b"old b"}, {"a": b"new a", "b": b"new b", "c": b"new c"}
    live.mkdir()
    verified_folder.write(live / "000000000", {"a": b"first"})
    verified_folder.write(live / "000000001", old)
    shutil.copytree(live, before)
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(patch, live)
        verified_folder.write(live / name, new)
    operations = recorder.operations
    assert newest(live) == (name, new)
    states = 0
    for moment, happened in crash_states(operations):
        build(before, tmp_path / "after", operations, happened, live)
        found = newest(tmp_path / "after")
        allowed = [("000000001", old), (name, new), ("000000000", {"a": b"first"})]
        assert found in (allowed[1:2] if moment == len(operations) else allowed), (moment, happened)
        states += 1
    assert states > 50


def test_leftovers_of_a_killed_save_are_cleared(tmp_path):
    (tmp_path / ".writing-7").mkdir()
    (tmp_path / ".writing-7" / "a").write_bytes(b"half")
    verified_folder.clear(tmp_path)
    verified_folder.write(tmp_path / "8", {"a": b"whole"})
    assert [path.name for path in tmp_path.iterdir()] == ["8"]
