"""Every long command: what Ctrl-C leaves of it, its exit code and one true line; and that it says how far it is."""

import shutil
import signal

import numpy as np
import pytest

from ancestral.apps.cli.main import ANEW, KEPT, VERBS
from ancestral.compression import calibration
from ancestral.data.pictures import png
from ancestral.evaluation import agree_command
from ancestral.networks.unet import UNet
from ancestral.runtime import console, verified_folder
from conftest import run_command

CPU = ("--device", "cpu")
STEPS = ("--steps", 2, "--batch-size", 2, *CPU)
MEASURE = ("--num-images", 4, "--batch-size", 2, *CPU)
COMMANDS = {  # with {run}, {out}, which holds files of an earlier command, and {in}, three images
    "sample": ("{run}", "--out", "{out}", "--num-images", 4, *STEPS),
    "edit": ("vary", "{run}", "{in}/0.png", "--out", "{out}/sheet.png", "--num-images", 2, "--steps", 4, *CPU),
    "tune-steps": ("{run}", "--steps", 3, "--num-images", 2, *CPU),
    "evaluate": ("{run}", "--terms", 3, "--out", "{out}", *MEASURE),
    "metrics": (
        "{run}",
        "--network",
        "pixels",
        "--cache",
        "{out}/.cache",
        "--out",
        "{out}",
        "--num-images",
        20,
        *STEPS,
    ),
    "rd": ("{run}", "--steps", 3, "--out", "{out}", *MEASURE),
    "likelihood": ("{run}", "--rtol", 0.1, "--atol", 0.1, *MEASURE),
    "agree": ("{run}", "--num-images", 2, "--steps", 3),
    "explain": ("{run}", "--out", "{out}/report.html", "--num-images", 4, *CPU),
    "compress": ("{run}", "{in}/0.png", "--out", "{out}/0.anc", *CPU),
    "decompress": ("{run}", "{in}/0.anc", "--out", "{out}/0.png", *CPU),
    "archive": ("{run}", "{in}/images.npy", "--out", "{out}/x.archive", "--steps", 3, "--block", 2),
    "unarchive": ("{run}", "{in}/x.archive", "--out", "{out}/back"),
}
WRITTEN = {  # where they write over what is there
    "edit": "out/sheet.png",
    "tune-steps": "run/tuned.json",
    "evaluate": "out/evaluation.json",
    "metrics": "out/metrics-pixels.json",
    "rd": "out/rate_distortion.json",
    "likelihood": "run/likelihood.json",
    "agree": "run/agreement-3.json",
    "explain": "out/report.html",
    "compress": "out/0.anc",
    "decompress": "out/0.png",
    "archive": "out/x.archive",
}
NO_NETWORK = {
    "train",
    "distill",
    "import",
    "export",
    "push",
    "serve",
}  # below; trainings and a server have tests of their own


def test_no_command_is_forgotten():
    assert COMMANDS.keys() | NO_NETWORK == {verb.name for verb in VERBS}


class Calls:
    """Counts calls of the network, and sends Ctrl-C in the place of one."""

    def __init__(self, monkeypatch):
        self.count, self.stop, forward = 0, 0, UNet.forward

        def counted(*arguments, **named):
            self.count += 1
            if self.count == self.stop:
                signal.raise_signal(signal.SIGINT)
            return forward(*arguments, **named)

        monkeypatch.setattr(UNet, "forward", counted)

    def of(self, folder, verb, stop=0):
        """(what the command has ended with, its calls)."""
        self.count, self.stop = 0, stop
        folders = {name: folder / name for name in ("run", "out", "in")}
        arguments = [str(one).format(**folders) for one in COMMANDS[verb]]
        return run_command(verb, *arguments), self.count


@pytest.fixture(scope="module")
def prepared(trained_run, tmp_path_factory):
    """A run with its codebook, and images for it."""
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copytree(trained_run, folder / "run")
    (folder / "out").mkdir()
    (folder / "in").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    np.save(folder / "in" / "images.npy", images)
    (folder / "in" / "0.png").write_bytes(png(images[0]))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("NODES", 12), ("IMAGES", 16), ("AT_THE_END", 32), ("HELD_OUT", 8)):
            patch.setattr(calibration, name, value)
        result = run_command(
            "compress", folder / "run", folder / "in" / "0.png", "--out", folder / "in" / "0.anc", *CPU
        )
        assert result.exit_code == 0, result.output
    packed = ("--out", folder / "in" / "x.archive", "--steps", 3, "--block", 2)
    assert run_command("archive", folder / "run", folder / "in" / "images.npy", *packed).exit_code == 0
    return folder


def shown(root):
    """All files but those of work that goes on: by name, those whose folders are hidden left out."""
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.split("/")[1].startswith(".")}


def stopped(result, line):
    assert result.exit_code == 128 + signal.SIGINT, result.output
    said = [one for one in result.output.splitlines() if one.startswith("stopped: ")]
    assert said == [f"stopped: {line}"] == result.output.strip().splitlines()[-1:], result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("verb", COMMANDS)
def test_ctrl_c_says_what_was_kept_and_nothing_half_made_replaces_what_was_there(prepared, tmp_path, monkeypatch, verb):
    folder, calls = tmp_path / "place", Calls(monkeypatch)
    shutil.copytree(prepared, folder)
    if verb == "sample":  # which goes over nothing but its own
        assert (
            run_command(
                "sample", folder / "run", "--out", folder / "out", *STEPS, "--num-images", 2, "--seed", 9
            ).exit_code
            == 0
        )
    elif verb in WRITTEN:
        (folder / WRITTEN[verb]).write_bytes(b"what was there")
    if verb == "agree":  # one way to measure is enough
        name, measure = next(iter(agree_command.MEASURES.items()))
        monkeypatch.setattr(agree_command, "MEASURES", {name: measure})
    before = shown(folder)
    for first in (1, 2):
        result, _ = calls.of(folder, verb, first)
        stopped(result, KEPT.get(verb, ANEW))
        assert shown(folder) == before
    if verb == "explain":  # is long
        return
    shutil.copytree(folder, tmp_path / "other")
    result, every = calls.of(tmp_path / "other", verb)
    assert result.exit_code == 0, result.output
    result, _ = calls.of(folder, verb, every)
    stopped(result, KEPT.get(verb, ANEW))
    assert shown(folder) == before
    result, again = calls.of(folder, verb)
    assert result.exit_code == 0, result.output
    assert again < every if verb in KEPT else again == every
    now, straight = shown(folder), shown(tmp_path / "other")
    assert now.keys() == straight.keys()
    assert now != before
    assert {name: one for name, one in now.items() if name.endswith((".png", ".npy", ".archive", ".anc"))} == {
        name: one for name, one in straight.items() if name.endswith((".png", ".npy", ".archive", ".anc"))
    }


@pytest.mark.parametrize("verb", ["import", "export"])
def test_ctrl_c_while_a_model_is_written(tmp_path, trained_run, monkeypatch, verb):
    settings = ("--set", "diffusion.clock=zero-based", "--set", "model.groups=4", "--set", "model.width=8", *CPU)
    if verb == "export":
        made = run_command("train", "digits", "--preset", "tiny", "--steps", 1, "--out", tmp_path / "run", *settings)
        assert made.exit_code == 0, made.output
    source = tmp_path / "run" if verb == "export" else trained_run
    write, files = verified_folder.write_flushed, []

    def interrupted(path, content):
        files.append(path)
        if len(files) == 2:
            signal.raise_signal(signal.SIGINT)
        return write(path, content)

    monkeypatch.setattr(verified_folder, "write_flushed", interrupted)
    out = tmp_path / "out"
    stopped(run_command(verb, source, "--out", out), ANEW)
    assert not [path for path in out.rglob("*") if path.is_file() and path.parent.name != "owners"]
    result = run_command(verb, source, "--out", out)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("verb", sorted(COMMANDS.keys() - {"explain"}))  # whose whole measuring is under one bar
def test_every_call_of_the_network_is_made_under_a_bar_that_is_not_full(prepared, tmp_path, monkeypatch, verb):
    """So that, however long the calls take, there is a line each half minute without a terminal."""
    folder, open_bars, calls = tmp_path / "here", [], []
    shutil.copytree(prepared, folder)
    begin, end, forward = console.Progress.start, console.Progress.stop, UNet.forward

    def counted(*arguments, **named):
        calls.append(any(not task.finished for bar in open_bars for task in bar.tasks))
        return forward(*arguments, **named)

    monkeypatch.setattr(console.Progress, "start", lambda bar: open_bars.append(bar) or begin(bar))
    monkeypatch.setattr(console.Progress, "stop", lambda bar: open_bars.remove(bar) or end(bar))
    monkeypatch.setattr(UNet, "forward", counted)
    folders = {name: folder / name for name in ("run", "out", "in")}
    result = run_command(verb, *(str(one).format(**folders) for one in COMMANDS[verb]))
    assert result.exit_code == 0, result.output
    assert calls
    assert calls.count(False) <= 8  # of a few images, by which a codec looks at the network first, each way
