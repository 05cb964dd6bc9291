"""What replaces results: the old set whole or the new one, whenever it is killed; names that can all be written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ancestral.compression import archive_command, calibration
from ancestral.compression.archive_format import Archive
from ancestral.data.pictures import png, read_png, sheet
from ancestral.errors import UserError
from ancestral.evaluation import agree_command
from ancestral.runs import checkpoint, lock
from ancestral.runtime import file_names, result_files, verified_folder
from ancestral.runtime.result_files import Results, held
from ancestral.sampling import command
from conftest import TINY, run_command

OLD = {"grid.png": b"old grid", "0.png": b"old 0", "1.png": b"old 1", "2.png": b"old 2", "film.gif": b"old film"}
NEW = {"0.png": b"new 0", "in/1.png": b"new 1", "1.png": b"old 1", "grid.png": b"new grid"}
USERS = {"notes.txt": b"the user's", "3.png": b"the user's too"}
COVERS = ("grid.png", "film.gif")


class Killed(BaseException):
    """Stands for a process that ends here."""


class Kill:
    """After so many changes of the file system none is made any more, as of a process that was killed."""

    def __init__(self, monkeypatch, after):
        self.left = after
        for owner, name in (
            *((os, name) for name in ("mkdir", "unlink", "replace", "link", "rmdir", "rename")),
            (verified_folder, "write_flushed"),
        ):
            monkeypatch.setattr(owner, name, self.counted(name, getattr(owner, name)))

    def counted(self, name, change):
        def called(*arguments, **named):
            if self.left <= 0:
                if name == "write_flushed" and self.left == 0:
                    arguments[0].write_bytes(arguments[1][: len(arguments[1]) // 2])  # torn
                self.left = -1
                raise Killed
            self.left -= 1
            return change(*arguments, **named)

        return called


def content(root):
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not {".results", ".job"} & set(name.split("/"))}


def put(root, files):
    for name, inside in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(inside)


@pytest.mark.parametrize("linked", [False, True])
def test_whenever_a_swap_is_killed_there_is_the_old_set_or_the_new(tmp_path, monkeypatch, linked):
    wholes, finished, after = (USERS | OLD, USERS | NEW), False, 0
    seen = set()
    while not finished:
        root = tmp_path / str(after)
        put(root, USERS)
        results = Results(root, root / ".results" / "x")
        assert results.replace(OLD.items(), COVERS) == []
        put(root / ".job", NEW)
        new = {name: root / ".job" / name for name in NEW} if linked else NEW
        with monkeypatch.context() as patch:
            Kill(patch, after)
            try:
                results.replace(new.items(), COVERS)
                finished = True
            except Killed:
                pass
        now = content(root)
        planned = (results.state / "plan.json").exists()
        if not planned:
            assert now in wholes
        if "grid.png" in now:  # never beside images of another set
            assert now in wholes
        assert USERS.items() <= now.items()
        seen.add(wholes.index(now) if now in wholes else "between")
        with monkeypatch.context() as patch:  # killed again while it goes on
            Kill(patch, after % 5)
            with suppress(Killed):
                results.finish()
        Results(root, results.state).finish()
        assert content(root) == (USERS | NEW if planned else now)
        assert [path.name for path in results.state.iterdir()] == ["set.json"]
        after += 1
    assert seen == {0, 1, "between"}
    assert after > 15


EXPORT = ("--set", "diffusion.clock=zero-based", "--set", "model.groups=4")


@pytest.fixture(scope="module")
def two_models(tmp_path_factory):
    """Two colour runs that diffusers can hold."""
    folder = tmp_path_factory.mktemp("models")
    pixels = np.random.default_rng(1).integers(0, 256, (24, 8, 8, 3), np.uint8)
    np.savez(folder / "images.npz", images=pixels)
    for name, variance, steps in (("old", "fixedsmall", 1), ("new", "fixedlarge", 2)):
        settings = (*TINY, *EXPORT, "--set", f"diffusion.variance={variance}")
        made = ("--preset", "tiny", "--steps", steps, "--out", folder / name, *settings)
        result = run_command("train", folder / "images.npz", *made)
        assert result.exit_code == 0, result.output
    return folder


def killed_everywhere(tmp_path, monkeypatch, prepare, command):
    """(a folder, what `command` there has returned, or None where it was killed) for each change of the file system."""
    result, after = None, 0
    while result is None:
        root = tmp_path / str(after)
        root.mkdir(parents=True)
        prepare(root)
        with monkeypatch.context() as patch:  # its locks are those of a process that is no more
            patch.setattr(result_files, "_locked", lambda path: (os.open(os.devnull, os.O_RDONLY), ""))
            patch.setattr(lock, "_started", lambda process: "a process that was killed")
            Kill(patch, after)
            with suppress(Killed):
                result = command(root)
        yield root, result
        after += 1
    assert result.exit_code == 0, result.output
    assert after > 5


def test_whenever_an_export_is_killed_there_is_the_old_model_or_the_new(two_models, tmp_path, monkeypatch):
    wholes = []
    for name in ("old", "new"):
        assert run_command("export", two_models / name, "--out", tmp_path / name).exit_code == 0
        wholes.append(content(tmp_path / name))
    seen = set()
    for root, _ in killed_everywhere(
        tmp_path / "killed",
        monkeypatch,
        lambda root: shutil.copytree(tmp_path / "old", root, dirs_exist_ok=True),
        lambda root: run_command("export", two_models / "new", "--out", root),
    ):
        planned = (root / ".results" / "export" / "plan.json").exists()
        now = content(root)
        assert planned or now in wholes
        seen.add(wholes.index(now) if now in wholes else "between")
        again = run_command("export", two_models / "new", "--out", root)
        assert again.exit_code == 0, again.output
        assert content(root) == wholes[1]
    assert seen == {0, 1, "between"}


def test_whenever_an_import_is_killed_there_is_no_run_or_a_whole_one(two_models, tmp_path, monkeypatch):
    for root, _ in killed_everywhere(
        tmp_path, monkeypatch, lambda root: None, lambda root: run_command("import", two_models / "new", "--out", root)
    ):
        whole = bool(checkpoint.folders(root))
        again = run_command("import", two_models / "new", "--out", root)
        assert again.exit_code == (2 if whole else 0), again.output
        assert not whole or "holds a run already" in again.output
        found = verified_folder.read(checkpoint.folders(root)[0])
        expected = verified_folder.read(checkpoint.folders(two_models / "new")[-1])
        assert found["model.safetensors"] == expected["model.safetensors"]
        assert not [path for path in (root / "checkpoints").iterdir() if path.name.startswith(".")]


def test_whenever_agree_is_killed_archive_and_numbers_are_of_one_measurement(run, tmp_path, monkeypatch):
    monkeypatch.setattr(agree_command, "MEASURES", {"of nothing": lambda model, x0, times, noise: torch.zeros(len(x0))})
    compressed, made = agree_command.compressed, []

    def once(*arguments):
        made.append(made[0] if made else compressed(*arguments))
        return made[0]

    monkeypatch.setattr(agree_command, "compressed", once)
    monkeypatch.setattr(agree_command, "expanded", lambda *arguments: arguments[1] and pixels[0])
    pixels = []
    measured = agree_command._measured
    monkeypatch.setattr(agree_command, "_measured", lambda *given: pixels.append(given[3]) or measured(*given))
    names = ("agreement-3.archive", "agreement-3.json")
    old = dict.fromkeys(names, b"old")
    for root, _ in killed_everywhere(
        tmp_path,
        monkeypatch,
        lambda root: (shutil.copytree(run / "run", root, dirs_exist_ok=True), put(root, old)),
        lambda root: run_command("agree", root, "--num-images", 2, "--steps", 3),
    ):
        state = root / ".results" / "agreement-3"
        now = [(root / name).exists() and (root / name).read_bytes() != b"old" for name in names]
        assert (state / "plan.json").exists() or now in ([False, False], [True, True])
        Results(root, state).finish()
        now = [(root / name).read_bytes() != b"old" for name in names]
        assert now in ([False, False], [True, True])
    assert now == [True, True]


@pytest.mark.parametrize("old", [None, b"old"])
def test_whenever_a_file_is_killed_it_is_the_old_or_the_new(tmp_path, monkeypatch, old):
    """What `archive`, `explain`, `tune-steps` and `compress` of one image write."""
    after, seen = 0, []
    while not seen or seen[-1] != b"new content":
        path = tmp_path / str(after) / "file"
        put(path.parent, {} if old is None else {"file": old})
        with monkeypatch.context() as patch:
            Kill(patch, after)
            with suppress(Killed):
                verified_folder.write_file(path, b"new content")
        seen.append(path.read_bytes() if path.exists() else None)
        after += 1
    assert set(seen) == {old, b"new content"}


WRITER = """
import sys
from pathlib import Path
from ancestral.runtime import resumable_job
from ancestral.runtime.distributed import Processes

cache, turns = Path(sys.argv[1]), 20
sys.stdin.readline()
for turn in range(turns):
    settings = {"turn": turn}
    job = resumable_job.Job(resumable_job.cache_folder(cache, settings), settings, Processes())
    work = resumable_job.pieces(12, 4)
    job.run(work, lambda piece: {"a": bytes(piece) * 2000, "b": b"%d" % turn}, lambda _, kept: "a" in kept)
    assert [kept["a"] for kept in job.results(work)] == [bytes(piece) * 2000 for piece in work]
"""


def test_two_that_fill_one_cache_at_once_do_not_disturb_each_other(tmp_path):
    """As two equal `metrics` commands do."""
    line = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen(line, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for one in writers:
            one.stdin.write("go\n")
            one.stdin.flush()
        said = [one.communicate(timeout=60)[1] for one in writers]
    finally:
        for one in writers:
            one.kill()
    assert [one.returncode for one in writers] == [0, 0], said
    assert not list(tmp_path.rglob(".*"))
    for folder in tmp_path.iterdir():
        assert all(verified_folder.read(piece) for piece in folder.iterdir())
        assert len(list(folder.iterdir())) == 4


def test_who_is_late_leaves_what_is_whole_and_replaces_what_is_not(tmp_path, monkeypatch):
    piece = tmp_path / "piece"
    rename = Path.rename

    def overtaken(content):
        def renamed(path, target):
            if path.name.startswith(".writing"):
                monkeypatch.setattr(Path, "rename", rename)
                verified_folder.write(piece, content)
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", renamed)

    for others in ({"a": b"1"}, {"a": b"2"}):
        overtaken(others)
        verified_folder.write(piece, {"a": b"1"})
        assert verified_folder.read(piece) == {"a": b"1"}
        assert [path.name for path in tmp_path.iterdir()] == ["piece"]
        shutil.rmtree(piece)
    verified_folder.write(piece, {"a": b"1"})
    inode = piece.stat().st_ino
    verified_folder.write(piece, {"a": b"1"})
    assert piece.stat().st_ino == inode
    (piece / "a").write_bytes(b"3")  # under a manifest that says otherwise
    verified_folder.write(piece, {"a": b"1"})
    assert verified_folder.read(piece) == {"a": b"1"}


def test_a_set_that_cannot_be_made_leaves_the_old_one(tmp_path):
    results = Results(tmp_path, tmp_path / ".results" / "x")
    results.replace(OLD.items(), COVERS)

    def torn():
        yield "0.png", b"new"
        raise verified_folder.Damaged("of a piece")

    with pytest.raises(verified_folder.Damaged):
        results.replace(torn())
    (tmp_path / ".results" / "x" / "in the way").mkdir()
    assert content(tmp_path) == OLD


def test_what_the_user_has_changed_or_put_there_is_not_touched(tmp_path):
    results = Results(tmp_path, tmp_path / ".results" / "x")
    results.replace(OLD.items(), COVERS)
    results.need_free(OLD)
    (tmp_path / "2.png").write_bytes(b"retouched")
    (tmp_path / "9.png").write_bytes(b"a file of the user's")
    for name, word in (("2.png", "changed since"), ("9.png", "already"), ("9.png/a.png", "its folder is a file")):
        with pytest.raises(UserError, match=word):
            results.need_free([name])
    assert results.replace(NEW.items(), COVERS) == [tmp_path / "2.png"]
    assert content(tmp_path) == NEW | {"2.png": b"retouched", "9.png": b"a file of the user's"}


def test_a_hostile_record_reaches_nothing_outside(tmp_path):
    (tmp_path / "outside").write_bytes(b"kept")
    digest = verified_folder.sha256(b"kept").hexdigest()
    state = tmp_path / "out" / ".results" / "x"
    for plan in (
        {"files": {"../outside": digest}},
        {"files": {str(tmp_path / "outside"): digest}},
        {"files": {"a": digest}, "gone": {"../outside": digest}},
        {"files": {"a": digest}, "covers": ["../outside"]},
        {"files": 3},
        [[[]]],
        b'{"fi\xb0es": {}}',
        b"[" * 100_000,
    ):
        written = plan if isinstance(plan, bytes) else json.dumps(plan).encode()
        put(state, {"new/0": b"written", "plan.json": written, "set.json": written})
        Results(tmp_path / "out", state).finish()
        Results(tmp_path / "out", state).replace({"b": b"b"}.items())
        assert content(tmp_path) == {"outside": b"kept", "out/b": b"b"}


def test_one_writer_at_a_time_and_no_folder_for_nothing(tmp_path):
    with held(tmp_path / "a" / "b", "x"):
        with pytest.raises(UserError, match=f"another command is writing there .process {os.getpid()} on "):
            held(tmp_path / "a" / "b", "x").__enter__()
        with held(tmp_path / "a" / "b", "y"):
            pass
    assert not (tmp_path / "a").exists()
    with held(tmp_path, "x") as results:
        results.add({"c/d.png": b"d"}.items())
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_file_is_whole_whatever_its_name_and_leftovers_go(tmp_path):
    path = tmp_path / ("é" * 127)  # 254 bytes
    verified_folder.write_file(path, b"one")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait(timeout=60)
    own = str(verified_folder._own_name(path, "writing").name)
    left, others = (own.replace(f"-{os.getpid()}-", f"-{pid}-") for pid in (dead.pid, os.getppid()))
    put(tmp_path, {left: b"half", others: b"another's"})
    verified_folder.write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert [one.name for one in tmp_path.glob(".writing-*")] == [others]


@pytest.mark.parametrize(
    ("listed", "word"),
    [
        (["/etc/x.png"], "absolute"),
        (["a/../../x.png"], "outside"),
        (["../x.png"], "outside"),
        ([""], "empty"),
        (["a//b.png"], "empty part"),
        (["./b.png"], "empty part"),
        (["a\nb.png"], "control"),
        (["a\x1b[31mb.png"], "control"),
        (["a\x00b.png"], "control"),
        (["a\u202egnp.exe"], "control"),
        (["a\\b.png"], "has one of"),
        (["C:x.png"], "has one of"),
        (["con.png"], "Windows"),
        (["a/LPT1.b.png"], "Windows"),
        (["nul"], "Windows"),
        (["a./b.png"], "Windows"),
        (["a .png "], "Windows"),
        (["é" * 126 + ".png"], "255 bytes"),
        (["a" * 252 + ".png"], "255 bytes"),
        (["a/" * 2100 + "b.png"], "path of more"),
        (["a.png", "b.png", "a.png"], "over 'a.png'"),
        (["a.png", "A.PNG"], "over 'a.png'"),
        (["\u00e9.png", "e\u0301.png"], "over"),
        (["stra\u00dfe.png", "STRASSE.png"], "over"),
        (["a.png", "A.png/b.png"], "folder"),
    ],
)
def test_names_that_cannot_all_be_written_are_refused(tmp_path, listed, word):
    with pytest.raises(UserError, match=word) as caught:
        file_names.need_writable_names(listed, tmp_path, Path("file"), "mend it")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
    assert "mend it" in str(caught.value)


def test_names_that_can_are_taken_and_can_be_written(tmp_path):
    listed = [
        "a.png",
        "b/a.png",
        "b/c/a.png",
        "a b.png",
        "é" * 125 + ".png",
        "console.png",
        ".x.png",
        "a.b.png",
        "[b].png",
    ]
    file_names.need_writable_names(listed, tmp_path, Path("file"), "")
    with held(tmp_path, "x") as results:
        results.add((name, b"x") for name in listed)
    assert content(tmp_path).keys() == set(listed)


@pytest.fixture(scope="module", params=["grey", "colour"])
def run(request, tmp_path_factory, trained_run):
    """A run whose images are 8x8, and five images for it."""
    folder = tmp_path_factory.mktemp(request.param)
    channels = {"grey": 1, "colour": 3}[request.param]
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, channels), np.uint8)
    for number, image in enumerate(pixels[:5]):
        (folder / f"{number}.png").write_bytes(png(image))
    if channels == 1:
        shutil.copytree(trained_run, folder / "run")
        return folder
    np.savez(folder / "colour.npz", images=pixels)
    made = ("--preset", "tiny", "--steps", 5, "--out", folder / "run", *TINY)
    result = run_command("train", folder / "colour.npz", *made)
    assert result.exit_code == 0, result.output
    return folder


DRAW = ("--steps", 2, "--batch-size", 2, "--device", "cpu")


def sample(run, out, *more, exit_code=0):
    result = run_command("sample", run / "run", "--out", out, *DRAW, *more)
    assert result.exit_code == exit_code, result.output
    return result.output


def sheet_of(out):
    """The sheet that the numbered images make."""
    return sheet(np.stack([read_png(path) for path in sorted(out.glob("[0-9]*.png"))]))


def test_a_stopped_sample_leaves_the_older_one_whole_and_goes_on(run, tmp_path, monkeypatch):
    sample(run, tmp_path / "alone", "--num-images", 4, "--seed", 1)
    out = tmp_path / "out"
    sample(run, out, "--num-images", 6, "--film")
    put(out, {"mine.txt": b"mine", "000100.png": b"mine too"})
    before = content(out)
    assert before["grid.png"] == sheet(np.stack([read_png(out / f"{n:06d}.png") for n in range(6)]))
    walks, calls = command.keep_frames, []

    def counted(*arguments, stop=True):
        calls.append(1)
        if stop and len(calls) == 2:
            raise KeyboardInterrupt
        return walks(*arguments)

    monkeypatch.setattr(command, "keep_frames", counted)
    run_command("sample", run / "run", "--out", out, *DRAW, "--num-images", 4, "--seed", 1)
    assert content(out) == before
    monkeypatch.setattr(command, "keep_frames", lambda *arguments: counted(*arguments, stop=False))
    sample(run, out, "--num-images", 4, "--seed", 1)
    assert len(calls) == 3  # of two pieces one was kept
    assert content(out) == content(tmp_path / "alone") | {"mine.txt": b"mine", "000100.png": b"mine too"}

    inodes = {path: path.stat().st_ino for path in out.glob("0*.png")}
    sample(run, out, "--num-images", 6, "--seed", 1)
    assert len(calls) == 4  # what was drawn is kept when it grows
    assert {path: path.stat().st_ino for path in inodes} == inodes
    sample(run, out, "--num-images", 2, "--seed", 1)
    assert len(calls) == 4
    assert sorted(content(out)) == ["000000.png", "000001.png", "000100.png", "grid.png", "mine.txt"]


def test_a_sample_does_not_go_over_files_of_the_users(run, tmp_path):
    put(tmp_path, {"000001.png": b"mine"})
    assert "is there already" in sample(run, tmp_path, "--num-images", 2, exit_code=2)
    assert content(tmp_path) == {"000001.png": b"mine"}


def test_of_two_samples_at_once_one_is_refused_and_a_killed_one_leaves_all(trained_run, tmp_path):
    draw = ("--num-images", "2", "--device", "cpu", "--out", str(tmp_path))
    assert run_command("sample", trained_run, *draw, "--steps", 2).exit_code == 0
    before = content(tmp_path)
    longer = [sys.executable, "-m", "ancestral", "sample", str(trained_run), *draw, "--steps", "1000", "--seed", "3"]
    first = subprocess.Popen([*longer, "--num-images", "4096", "--batch-size", "2"], stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while not list((tmp_path / ".results").glob("*.lock")) and time.monotonic() < end:
            time.sleep(0.02)
        result = run_command("sample", trained_run, *draw, "--steps", 3)
        assert (result.exit_code, f"(process {first.pid} on" in result.output) == (2, True), result.output
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait(timeout=60)
    assert content(tmp_path) == before
    assert run_command("sample", trained_run, *draw, "--steps", 3).exit_code == 0
    assert content(tmp_path)["grid.png"] == sheet_of(tmp_path)


def test_an_edit_replaces_the_one_before_it(run, tmp_path):
    out, mine = tmp_path / "sheet.png", {"sheet/mine.png": b"mine"}

    def vary(count, *more):
        pictures = [run / f"{number}.png" for number in range(count)]
        result = run_command("edit", "vary", run / "run", *pictures, "--out", out, *DRAW, *more)
        assert result.exit_code == 0, result.output

    vary(3, "--num-images", 2)
    put(tmp_path, mine)
    assert len(content(tmp_path)) == 8
    vary(2)
    assert sorted(content(tmp_path)) == ["sheet.png", "sheet/000-000.png", "sheet/001-000.png", "sheet/mine.png"]


def test_evaluate_leaves_no_files_of_an_earlier_one(run, tmp_path):
    measure = ("--num-images", 4, "--terms", 3, "--device", "cpu", "--out", tmp_path)
    assert run_command("evaluate", run / "run", *measure, "--per-image").exit_code == 0
    assert {"per_image.csv", "surprising.png", "evaluation.json", "bound.csv", "bound.png"} <= content(tmp_path).keys()
    put(tmp_path, {"mine.csv": b"mine"})
    assert run_command("evaluate", run / "run", *measure).exit_code == 0
    rest = {name for name in content(tmp_path) if not name.startswith(".")}
    assert rest == {"evaluation.json", "bound.csv", "bound.png", "mine.csv"}


def packed(run, source, out, *more):
    return run_command("archive", run / "run", source, "--out", out, "--steps", 3, *more)


def test_an_archive_of_a_folder_says_what_it_leaves_out_and_gives_all_back(run, tmp_path):
    source = tmp_path / "source"
    put(source, {"train/a.png": (run / "0.png").read_bytes(), "test/a.png": (run / "1.png").read_bytes()})
    put(source, {"b.png": (run / "2.png").read_bytes(), ".hidden.png": b"", "notes.txt": b"", ".in/x.png": b""})
    result = packed(run, source, tmp_path / "x.archive")
    assert result.exit_code == 0, result.output
    assert "left out, hidden: .hidden.png, .in\n" in result.output.replace(".in, .hidden.png", ".hidden.png, .in")
    assert "left out, .txt is no image format that is read: notes.txt" in result.output
    assert run_command("unarchive", run / "run", tmp_path / "x.archive", "--out", tmp_path / "back").exit_code == 0
    assert sorted(content(tmp_path / "back")) == ["b.png", "test/a.png", "train/a.png"]
    for name in content(tmp_path / "back"):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "back" / name)), np.asarray(Image.open(source / name)))
    before = content(tmp_path / "back")
    (tmp_path / "back" / "b.png").unlink()
    result = run_command("unarchive", run / "run", tmp_path / "x.archive", "--out", tmp_path / "back")
    assert (result.exit_code, "is there already" in result.output) == (2, True)
    assert content(tmp_path / "back") == {name: inside for name, inside in before.items() if name != "b.png"}


def test_one_image_is_an_archive(run, tmp_path):
    pixels = read_png(run / "3.png")
    np.save(tmp_path / "one.npy", pixels[None])
    np.savez(tmp_path / "one.npz", images=pixels[None])
    put(tmp_path, {"folder/3.png": (run / "3.png").read_bytes()})
    for source in (tmp_path / "one.npy", tmp_path / "one.npz", tmp_path / "folder", run / "3.png"):
        file, back = tmp_path / f"{source.name}.archive", tmp_path / f"{source.name}.back"
        result = packed(run, source, file)
        assert result.exit_code == 0, result.output
        assert run_command("unarchive", run / "run", file, "--out", back).exit_code == 0
        (path,) = back.iterdir()
        assert path.name == ("000000.png" if source.suffix[:3] == ".np" else "3.png")
        assert np.array_equal(read_png(path), pixels)


def test_names_that_would_become_one_are_refused_before_the_work(run, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for suffix, number in ((".bmp", 0), (".bmp.png", 1)):
        Image.open(run / f"{number}.png").save(tmp_path / "in" / f"x{suffix}")
    monkeypatch.setattr(archive_command, "compressed", lambda *arguments: pytest.fail("worked before it looked"))
    result = packed(run, tmp_path / "in", tmp_path / "x.archive")
    assert (result.exit_code, "'x.bmp.png'" in result.output) == (2, True), result.output
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_archive_with_such_names_is_read_as_npz_and_nothing_else_is_written(run, tmp_path):
    """Files made before, or by others: names are checked before anything is decoded."""
    file = tmp_path / "x.archive"
    np.savez(tmp_path / "two.npz", images=np.stack([read_png(run / f"{number}.png") for number in (0, 1)]))
    assert packed(run, tmp_path / "two.npz", file).exit_code == 0
    made = Archive.of_bytes(file.read_bytes())
    for listed in (("x.bmp", "x.bmp.png"), ("../a.png", "b.png"), ("a", "A"), ("a\x1b.png", "b")):
        file.write_bytes(Archive(made.setting, 2, made.block, listed, made.blocks).to_bytes())
        result = run_command("unarchive", run / "run", file, "--out", tmp_path / "back")
        assert (result.exit_code, "FILE.npz" in result.output) == (2, True), result.output
        assert not (tmp_path / "back").exists()
        assert run_command("unarchive", run / "run", file, "--out", tmp_path / "back.npz").exit_code == 0
        with np.load(tmp_path / "back.npz") as found:
            assert np.array_equal(found["images"], np.load(tmp_path / "two.npz")["images"])
            assert found["names"].tolist() == list(listed)


def test_the_shared_case_of_equal_stems(tmp_path):
    maker = Path(__file__).parents[3] / "shared" / "cases" / "make.py"
    if not maker.exists():
        pytest.skip("no ../shared/cases here")
    subprocess.run(
        [sys.executable, str(maker), str(tmp_path)], check=True, capture_output=True, cwd=tmp_path, timeout=60
    )
    source = tmp_path / "same-stem"
    assert len(list(source.iterdir())) == 8
    listed = sorted(map(file_names.as_png, (path.name for path in source.iterdir())))
    with pytest.raises(UserError, match=r"'x0.bmp.png', would be written over 'x0.bmp.png'"):
        file_names.need_writable_names(listed, tmp_path, source, "")


def test_all_that_is_compressed_comes_back_under_its_name(run, tmp_path, monkeypatch):
    for name, value in (("NODES", 12), ("IMAGES", 16), ("AT_THE_END", 32), ("HELD_OUT", 8)):
        monkeypatch.setattr(calibration, name, value)
    sources = [tmp_path / "in" / name for name in ("a.png", "a.bmp", "A.tif", "b.bmp.png", "c.bmp")]
    (tmp_path / "in").mkdir()
    for number, path in enumerate(sources):
        Image.open(run / f"{number}.png").save(path)
    options = ("--device", "cpu")
    result = run_command("compress", run / "run", *sources, "--profile", "quick", "--out", tmp_path / "files", *options)
    assert result.exit_code == 0, result.output
    assert sorted(content(tmp_path / "files")) == ["A.tif.anc", "a.bmp.anc", "a.png.anc", "b.bmp.anc", "c.anc"]
    result = run_command("decompress", run / "run", tmp_path / "files", "--out", tmp_path / "back", *options)
    assert result.exit_code == 0, result.output
    back = {"a.png": "a.png", "a.bmp": "a.bmp.png", "A.tif": "A.tif.png", "b.bmp.png": "b.bmp.png", "c.bmp": "c.png"}
    assert sorted(content(tmp_path / "back")) == sorted(back.values())
    for name, given in back.items():
        was, now = (np.asarray(Image.open(path)) for path in (tmp_path / "in" / name, tmp_path / "back" / given))
        assert np.array_equal(was, now)
    before = content(tmp_path)
    (tmp_path / "two").mkdir()
    shutil.copy(sources[0], tmp_path / "two" / "a.png")
    for files, word in (([sources[0], tmp_path / "two" / "a.png"], "written over"), (sources[:2], "already")):
        result = run_command("compress", run / "run", *files, "--out", tmp_path / "files", *options)
        assert (result.exit_code, word in result.output) == (2, True), result.output
    (tmp_path / "none").mkdir()
    result = run_command("decompress", run / "run", tmp_path / "none", "--out", tmp_path / "x", *options)
    assert (result.exit_code, "has no .anc files" in result.output) == (2, True)
    assert content(tmp_path) == before | {"two/a.png": sources[0].read_bytes()}


def test_an_archive_is_never_of_scaled_values(run, tmp_path):
    deep = np.stack([read_png(run / f"{number}.png").astype(np.uint16) * 15 for number in range(3)])
    np.save(tmp_path / "deep.npy", deep)
    result = packed(run, tmp_path / "deep.npy", tmp_path / "x.archive")
    assert (result.exit_code, "8 bits" in result.output) == (2, True), result.output


def test_a_folder_whose_writer_died_between_its_renames_is_there_again(tmp_path, monkeypatch):
    """As the disk then refuses, there is nothing else."""
    folder = tmp_path / "piece"
    verified_folder.write(folder, {"a": b"first"})
    process = os.fork()
    if process == 0:
        monkeypatch.setattr(Path, "rename", lambda path, target: (os.rename(path, target), os._exit(0)))
        verified_folder.write(folder, {"a": b"second"})
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert not folder.exists()

    def refuse(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(verified_folder, "write_flushed", refuse)
    with pytest.raises(verified_folder.Unwritable):
        verified_folder.write(folder, {"a": b"third"})
    assert verified_folder.read(folder)["a"] == b"first"
