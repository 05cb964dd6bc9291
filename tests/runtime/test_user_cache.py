"""The cache keeps its bound, and nothing of others."""

import os
import threading
import time

from ancestral.runtime import user_cache


def entry(cache, number, hours, size=1000, kind="features"):
    folder = cache / kind / f"{number:032x}"
    (folder / "piece").mkdir(parents=True)
    (folder / "piece" / "x").write_bytes(b"0" * size)
    used = time.time() - 3600 * hours
    os.utime(folder, (used, used))
    return folder


def test_the_entries_used_longest_ago_go_first(tmp_path):
    old, older, new = (entry(tmp_path, n, hours) for n, hours in enumerate((5, 9, 2)))
    sample = entry(tmp_path, 3, 7, kind="samples")
    assert user_cache.trim(tmp_path, 4000) == 4000
    assert user_cache.trim(tmp_path, 2500) == 2000
    assert [one.exists() for one in (older, sample, old, new)] == [False, False, True, True]
    user_cache.used(old)
    assert user_cache.trim(tmp_path, 1500) == 1000
    assert [one.exists() for one in (old, new)] == [True, False]


def test_what_is_in_use_and_what_is_of_others_stays(tmp_path):
    now = entry(tmp_path, 0, 0.5)
    (tmp_path / "features" / "notes").mkdir()
    (tmp_path / "features" / "notes" / "x").write_bytes(b"0" * 9000)
    (tmp_path / "features" / ".removed-of-a-killed-command").mkdir()
    other = entry(tmp_path, 1, 90, kind="other")
    assert user_cache.trim(tmp_path, 10) == 1000
    assert now.exists()
    assert other.exists()
    assert sorted(path.name for path in (tmp_path / "features").iterdir()) == [now.name, "notes"]
    assert user_cache.trim(tmp_path / "none") == 0


def test_commands_at_once_trim_alike(tmp_path):
    for number in range(40):
        entry(tmp_path, number, 10 + number)
    threads = [threading.Thread(target=user_cache.trim, args=(tmp_path, 5000)) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    left = sorted(path.name for path in (tmp_path / "features").iterdir())
    assert left == [f"{number:032x}" for number in range(5)]
