"""The command from outside: the main job, and bad input in one line with exit code 2."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import ancestral
from ancestral.apps.cli.main import main
from ancestral.compression import choices, completion, compress_command, file_header
from ancestral.diffusion.samplers.grids import GRIDS
from ancestral.diffusion.samplers.solvers import DEFAULT_CALLS, default_solver
from ancestral.runs import checkpoint, export_choices, tuned_times
from ancestral.runs.config import PRESETS
from ancestral.runs.open import open_model
from ancestral.runtime.signals import catch_stop
from ancestral.sampling import export
from codec_toy import GOLDEN
from conftest import TINY, run_command

pytest.importorskip("sklearn")


def pixels(folder):
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("0*.png"))]


def test_the_main_job(any_run, tmp_path):
    assert (any_run / "loss.png").stat().st_size > 5000
    entries = [json.loads(line) for line in (any_run / "metrics.jsonl").read_text().splitlines()]
    assert entries[-1]["images"] == 30 * 16
    out = tmp_path / "samples"
    result = run_command("sample", any_run, "--num-images", 5, "--steps", 4, "--out", out, "--film", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert {image.shape[:2] for image in pixels(out)} == {(8, 8)}
    assert {image.shape[2:] for image in pixels(out)} == {(3,) if "colour" in str(any_run) else ()}
    assert len(pixels(out)) == 5
    assert {"grid.png", "film.png", "film.gif"} <= {path.name for path in out.iterdir()}
    result = run_command("evaluate", any_run, "--num-images", 20, "--terms", 10, "--device", "cpu")
    assert result.exit_code == 0, result.output
    report = json.loads((any_run / "evaluation.json").read_text())
    bits = {name: value["mean"] for name, value in report["bits_per_dim"].items()}
    assert bits["bound, bits/dim"] == pytest.approx(bits["L_T"] + bits["L_1:T-1"] + bits["L_0"])
    assert report["bits_per_dim"]["bound, bits/dim"]["standard_error"] > 0
    assert "png files" in bits


def test_samples_do_not_depend_on_the_batch_size(any_run, tmp_path):
    for name, batch, count in (("a", 5, 5), ("b", 2, 3)):
        arguments = ("--steps", 3, "--seed", 4, "--batch-size", batch, "--out", tmp_path / name, "--device", "cpu")
        assert run_command("sample", any_run, "--num-images", count, *arguments).exit_code == 0
    for one, other in zip(pixels(tmp_path / "a"), pixels(tmp_path / "b"), strict=False):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--steps", "all"),
        ("--eta", 1, "--steps", 5),
        ("--variance", "optimal", "--steps", 5, "--grid", "karras"),
        ("--precision", "bfloat16", "--steps", 3),
    ],
)
def test_every_kind_of_sampling(any_run, tmp_path, options):
    run = shutil.copytree(any_run, tmp_path / "run")
    result = run_command("sample", run, "--num-images", 1, *options, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert pixels(run / "samples")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("preset", ["tiny", "absorbing"])
def test_what_is_quick_is_drawn_and_the_whole_chain_where_it_is_asked_for(tmp_path, preset, channels):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, channels), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images)
    run = tmp_path / "run"
    trained = run_command(
        *("train", tmp_path / "data.npz", "--preset", preset, "--steps", 2, "--out", run, *TINY),
        *("--set", "diffusion.T=48"),
    )
    assert trained.exit_code == 0, trained.output
    own = {"tiny": ("--variance", "optimal"), "absorbing": ()}[preset]
    few = {"tiny": ("--solver", default_solver(DEFAULT_CALLS)), "absorbing": ()}[preset]
    drawn, calls = {}, {"default": 20, "few": 20, "all": 48, "own": 48}
    for name, options in {
        "default": (),
        "few": (*few, "--steps", 20),
        "all": ("--steps", "all"),
        "own": own or ("--steps", 48),
    }.items():
        arguments = ("--num-images", 2, *options, "--out", tmp_path / name, "--device", "cpu")
        result = run_command("sample", run, *arguments)
        assert result.exit_code == 0, result.output
        assert f"{calls[name]} network calls each" in result.output
        assert ("the whole chain, of 48 steps: --steps all" in result.output) == (name == "default")
        drawn[name] = np.stack(pixels(tmp_path / name))
    assert np.array_equal(drawn["default"], drawn["few"])
    assert np.array_equal(drawn["all"], drawn["own"])
    assert not np.array_equal(drawn["default"], drawn["all"])


def test_a_chain_shorter_than_the_default_is_drawn_whole(tmp_path):
    run = tmp_path / "run"
    assert (
        run_command(
            *("train", "digits", "--preset", "tiny", "--steps", 2, "--out", run, *TINY, "--set", "diffusion.T=5")
        ).exit_code
        == 0
    )
    assert "5 network calls each" in run_command("sample", run, "--num-images", 1, "--device", "cpu").output


def test_all_that_names_the_default_names_the_same():
    for command in ("sample", "metrics"):
        assert f"{DEFAULT_CALLS} when left out" in " ".join(run_command(command, "--help").output.split())
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "solvers.md").read_text()
    assert f"Left out, they are {DEFAULT_CALLS} steps of `{default_solver(DEFAULT_CALLS)}`" in text


def test_the_default_solvers_and_eta_0_is_ddim(any_run, tmp_path):
    drawn = {}
    for name, options in {
        "19": ("--steps", 19),
        "19 of the flow": ("--steps", 19, "--solver", "unipc3"),
        "20": (),
        "20 with noise": ("--steps", 20, "--solver", "dpm++2m-sde"),
        "eta": ("--steps", 5, "--eta", 0),
        "euler": ("--steps", 5, "--solver", "euler"),
    }.items():
        arguments = ("--num-images", 2, *options, "--out", tmp_path / f"x{name}", "--device", "cpu")
        assert run_command("sample", any_run, *arguments).exit_code == 0
        drawn[name] = np.stack(pixels(tmp_path / f"x{name}"))
    assert np.array_equal(drawn["19"], drawn["19 of the flow"])
    assert np.array_equal(drawn["20"], drawn["20 with noise"])
    assert np.array_equal(drawn["eta"], drawn["euler"])
    assert len(np.unique([drawn[name] for name in ("19", "20", "eta")], axis=0)) == 3


def test_ten_tuned_steps_have_noise_as_twenty_have(any_run, tmp_path):
    for steps, solver in ((9, "unipc3"), (10, "dpm++2m-sde")):
        tuned_times.save(
            any_run, checkpoint.latest(any_run)[0], None, [1000, *range(900, 900 - 50 * steps + 50, -50), 0]
        )
        drawn = []
        for named in ((), ("--solver", solver)):
            out = tmp_path / f"{steps}{len(named)}"
            line = ("--num-images", 2, "--steps", steps, "--grid", "tuned", *named, "--out", out, "--device", "cpu")
            assert run_command("sample", any_run, *line).exit_code == 0
            drawn.append(np.stack(pixels(out)))
        assert np.array_equal(*drawn)
    (any_run / "tuned.json").unlink()


def test_the_same_command_again_says_it_is_complete(trained_run):
    result = run_command("train", "digits", "--preset", "tiny", "--steps", 30, "--out", trained_run, *TINY)
    assert result.exit_code == 0
    assert "complete" in result.output


def test_the_largest_seed_works(tmp_path):
    arguments = ("--seed", 2**32 - 1, "--steps", 1, "--out", tmp_path / "run")
    assert run_command("train", "digits", "--preset", "tiny", *arguments, *TINY).exit_code == 0


def test_fresh_moves_the_old_run_aside(trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    result = run_command("train", "digits", "--preset", "tiny", "--steps", 2, "--out", run, "--fresh", *TINY)
    assert result.exit_code == 0, result.output
    assert len(list(tmp_path.glob("run-before-*/checkpoints"))) == 1


def test_fresh_moves_nothing_where_there_is_no_run(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "notes.txt").write_text("mine")
    options = ("--steps", 1, "--out", tmp_path / "work", "--fresh", *TINY)
    result = run_command("train", "digits", "--preset", "tiny", *options)
    assert result.exit_code == 0, result.output
    assert ((tmp_path / "work" / "notes.txt").read_text(), list(tmp_path.glob("work-*"))) == ("mine", [])


def test_another_average_width_can_be_rebuilt(any_run, tmp_path):
    """Of those kept it is itself; the images are of its weights."""
    drawn = {}
    for width in (0.05, 0.08, 0.1):
        options = ("--num-images", 1, "--steps", 2, "--average-width", width, "--device", "cpu")
        result = run_command("sample", any_run, *options, "--out", tmp_path / f"{width}")
        assert result.exit_code == 0, result.output
        (drawn[width],) = pixels(tmp_path / f"{width}")
        assert np.array_equal(drawn[width], ancestral.load(any_run, "cpu").sample(1, steps=2, average_width=width)[0])
    assert len({image.tobytes() for image in drawn.values()}) == 3
    newest = max((any_run / "averages").iterdir())
    for width in (0.05, 0.1):
        kept = load_file(newest / f"{width:g}.safetensors")
        found = open_model(any_run, "cpu", width)[1].network.state_dict()
        assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in kept.items())


def test_dry_run_lists_every_setting_and_trains_nothing(tmp_path):
    result = run_command(
        "train", "digits", "--out", tmp_path / "run", "--preset", "tiny", "--dry-run", "--budget", "1m", *TINY,
        "--set", "train.channels_last=auto", "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "train.channels_last = auto: float32 " in result.output.replace("\n", " ")
    assert 'train.channels_last = "auto"' in result.output
    assert "train.average_widths = [0.05, 0.1]" in result.output
    assert "images/s" in result.output
    assert not (tmp_path / "run").exists()


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path):
    command = [sys.executable, "-m", "ancestral", "train", "digits", "--preset", "tiny", "--steps", "100000", *TINY]
    command += ["--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert any("images seen" in line for line in process.stdout)  # reads up to it
        process.terminate()
        rest = process.stdout.read()
        assert process.wait(60) == 75, rest
    assert "the same command goes on" in rest
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_only_a_second_ctrl_c_stops_at_once():
    with catch_stop() as stop_requested:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop_requested()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_every_command_says_what_it_does_in_one_whole_line():
    lines = run_command("--help").output.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert len(lines) == len(main.commands)
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)


def test_help_names_every_preset_and_grid_and_does_not_load_torch():
    text = run_command("train", "--help").output + run_command("sample", "--help").output
    assert all(name in text for name in [*PRESETS, *GRIDS])
    probe = "import sys; from click.testing import CliRunner; from ancestral.apps.cli.main import main; "
    probe += "CliRunner().invoke(main, ['train', '--help']); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_names_that_are_offered_before_torch_are_those_of_the_tables():
    assert tuple(completion.FINISHES) == choices.FINISHES
    assert set(export_choices.FORMATS) == {"diffusers", *export.FORMATS}
    assert {one for form in export.FORMATS.values() for one in form.precisions} <= set(export_choices.PRECISIONS)
    offered = next(one for one in main.commands["train"].params if one.name == "preset").help
    for text in (offered, ancestral.train.__doc__):
        named = re.search(r"\bimages, likelihood, [^.]+\.", text)[0]
        assert set(re.findall(r"[a-z0-9-]+", named)) - {"or"} == set(PRESETS)


def test_wrong_settings_are_refused_without_torch():
    probe = "import sys; from click.testing import CliRunner; from ancestral.apps.cli.main import main; "
    probe += "r = CliRunner().invoke(main, ['train', 'digits', '--out', 'x', '--set', 'train.batchsize=3']); "
    probe += "sys.exit(('torch' in sys.modules) or r.exit_code != 2)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


TRAIN = ("train", "digits", "--preset", "tiny", "--steps", "2", *TINY, "--out", "{tmp}/run")

# (arguments, what the one line must name); {run} is a trained run, {copy} a copy of it, {tmp} an empty folder.
BAD = [
    (("trian",), "did you mean 'train'"),
    (("train", "digits"), "--out"),
    (("train",), "DATA"),
    (("train", "absent", "--out", "{tmp}/run"), "absent"),
    (("train", "{tmp}", "--out", "{tmp}/run"), "no images"),
    ((*TRAIN, "--preset", "image"), "did you mean 'images'"),
    ((*TRAIN, "--set", "train.learning_rat=1"), "did you mean 'train.learning_rate'"),
    ((*TRAIN, "--set", "train.learning_rate"), "key=value"),
    ((*TRAIN, "--set", "train.learning_rate=fast"), "train.learning_rate"),
    ((*TRAIN, "--set", "train.learning_rate=-1"), "train.learning_rate"),
    ((*TRAIN, "--set", "train.batch_size=0"), "train.batch_size"),
    ((*TRAIN, "--set", "train.batch_size=2.5"), "train.batch_size"),
    (
        (*TRAIN, "--set", "train.precision=float8"),
        "train.precision: Invalid enum value 'float8'; choose from: auto, float32, ",
    ),
    ((*TRAIN, "--set", "train.channels_last=yes"), "choose from: true, false, auto"),
    ((*TRAIN, "--set", "train.optimizer=muons"), "train.optimizer: unknown name 'muons'; did you mean 'muon'?"),
    ((*TRAIN, "--set", "data.channels=7"), "choose from: 1, 3, 4"),
    ((*TRAIN, "--set", "train.average=2"), "train.average"),
    ((*TRAIN, "--set", "train.average_widths=0.5,0.1"), "0.28"),
    ((*TRAIN, "--set", "model.multipliers=1,x"), "model.multipliers"),
    ((*TRAIN, "--set", "model.multipliers=1,2,2,2,2"), "divide by 16"),
    ((*TRAIN, "--set", "model.attention=7"), "model.attention"),
    ((*TRAIN, "--set", "model.dropout=1.5"), "model.dropout"),
    ((*TRAIN, "--set", "diffusion.T=0"), "diffusion.T"),
    ((*TRAIN, "--set", "diffusion.schedule=cosin"), "did you mean 'cosine'"),
    ((*TRAIN, "--set", "diffusion.target=epsilon"), "diffusion.target"),
    ((*TRAIN, "--set", "diffusion.objective=mse"), "diffusion.objective"),
    ((*TRAIN, "--set", "diffusion.times=never"), "diffusion.times"),
    ((*TRAIN, "--set", "diffusion.variance=learned"), "diffusion.objective=hybrid"),
    ((*TRAIN, "--set", "diffusion.clip=hard"), "diffusion.clip"),
    ((*TRAIN, "--set", "diffusion.train_steps=5000"), "1000"),
    ((*TRAIN, "--set", "diffusion.schedule=linear-zero-snr", "--set", "diffusion.target=eps"), "use 'v'"),
    ((*TRAIN, "--set", "diffusion.schedule=linear-zero-snr", "--set", "diffusion.T=1"), "T >= 2"),
    ((*TRAIN, "--set", "data.background=nocolour"), "nocolour"),
    ((*TRAIN, "--set", "data.bad_images=maybe"), "data.bad_images"),
    ((*TRAIN, "--set", "data.holdout=1.5"), "data.holdout"),
    ((*TRAIN, "--size", "5"), "data.size"),
    ((*TRAIN, "--budget", "10 minutes"), "10m"),
    ((*TRAIN, "--budget", "10m"), "one of them"),
    ((*TRAIN, "--steps", "0"), "--steps"),
    ((*TRAIN, "--seed", "-1"), "--seed"),
    ((*TRAIN, "--seed", "5", "--set", "train.seed=7"), "--set train.seed: is given by --seed too"),
    ((*TRAIN, "--batch-size", "4", "--set", "train.batch_size=16"), "--batch-size too; leave one out"),
    ((*TRAIN, "--set", "model.groups=3"), "model.groups: 3 do not divide the"),
    ((*TRAIN, "--set", "model.multipliers=[0.01,1]"), "model.multipliers: 0.01"),
    (("rd", "{run}", "--grid", "quadratic"), "--grid: says where fewer steps than all lie"),
    (
        ("likelihood", "{run}", "--dequantisation", "uniform", "--variance", "fixedsmall"),
        "--variance: is of the last step",
    ),
    (("explain", "--out", "{tmp}/e.html", "--device", "cpu"), "--device: is of a run"),
    (("explain", "--out", "{tmp}/e.html", "--num-images", "1000"), "--num-images: at most 256 without RUN"),
    (("serve", "{run}", "--host", "192.168..1.5"), "--host 192.168..1.5"),
    ((*TRAIN, "--device", "gpu"), "auto, cpu"),
    ((*TRAIN, "--learning-rate", "1e30"), "not finite"),
    (("train", "{tmp}/flat.npz", "--set", "model.labels=true", "--out", "{tmp}/run"), "no labels"),
    (("train", "digits", "--preset", "tiny", "--steps", "30", *TINY, "--seed", "9", "--out", "{run}"), "train.seed"),
    (("train", "digits", "--preset", "tiny", "--steps", "40", *TINY, "--out", "{run}"), "another length (--steps 30"),
    (("sample", "{tmp}/none"), "no such run"),
    (("sample", "{tmp}"), "holds no checkpoint"),
    (("sample", "{run}", "--steps", "2000"), "T = 1000"),
    (("sample", "{run}", "--steps", "5", "--grid", "trail"), "did you mean 'trailing'"),
    (("sample", "{run}", "--variance", "tiny"), "--variance"),
    (("sample", "{run}", "--variance", "fixedsmall", "--eta", "0"), "leave one out"),
    (("sample", "{run}", "--variance", "learned", "--steps", "2"), "2C"),
    (("sample", "{run}", "--eta", "2"), "--eta"),
    (("sample", "{run}", "--steps", "none"), "neither a number of steps"),
    (("sample", "{run}", "--steps", "0"), "neither a number of steps"),
    (("sample", "{run}", "--steps", "all", "--grid", "tuned"), "for how many --steps"),
    (("sample", "{run}", "--steps", "all", "--grid", "karras"), "--grid: says where fewer steps than all lie"),
    (("sample", "{run}", "--label", "3"), "without labels"),
    (("sample", "{run}", "--num-images", "0"), "--num-images"),
    (("sample", "{run}", "--average-width", "0.9"), "--average-width"),
    (("evaluate", "{run}", "mnist"), "(1, 28, 28)"),
    (("evaluate", "{run}", "absent"), "absent"),
    ((*TRAIN, "--set", "train.seed=-3"), "train.seed"),
    (("evaluate", "{run}", "--terms", "1"), "--terms"),
    (("evaluate", "{run}", "--terms", "1001"), "--terms"),
    (("evaluate", "{copy:config.json}"), "config.json"),
    (("sample", "{copy:model.safetensors}"), "model.safetensors"),
    (("sample", "{copy:manifest.json}"), "manifest.json"),
]


def prepared(argument, trained_run, tmp_path):
    """The argument with its folders, each made as it says."""
    if argument.startswith("{copy:"):
        copy = shutil.copytree(trained_run, tmp_path / "copy")
        for checkpoint in (copy / "checkpoints").iterdir():
            (checkpoint / argument[6:-1]).write_bytes(b"damaged")
        return str(copy)
    return argument.replace("{tmp}", str(tmp_path)).replace("{run}", str(trained_run))


@pytest.mark.parametrize(("arguments", "named"), BAD, ids=[" ".join(arguments)[-60:] for arguments, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_2(arguments, named, trained_run, tmp_path):
    np.savez(tmp_path / "flat.npz", images=np.zeros((8, 28, 28), np.uint8))
    if "no images" in named:
        (tmp_path / "flat.npz").unlink()
    before = {path: path.stat().st_mtime_ns for path in trained_run.rglob("*") if path.is_file()}
    result = run_command(*(prepared(argument, trained_run, tmp_path) for argument in arguments))
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    lines = [line for line in result.output.splitlines() if line.lower().startswith("error")]
    assert len(lines) == 1, result.output
    assert named in lines[0]
    after = {path: path.stat().st_mtime_ns for path in trained_run.rglob("*") if path.is_file()}
    changed = {path for path in after if after[path] != before.get(path)}
    assert {path.parent.name for path in changed} <= {"samples", "owners"}  # who wanted the run is on record


def test_a_report_that_is_refused_leaves_no_folder(tmp_path):
    assert run_command("explain", tmp_path / "none", "--out", tmp_path / "a" / "b" / "r.html").exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_command_of_commands_shows_its_help():
    output = run_command("edit").output
    assert "Commands:" in output.splitlines()
    assert "\\n" not in output


def test_what_is_no_picture_is_said_before_a_model_is_measured(trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run", ignore=shutil.ignore_patterns("codec"))
    (tmp_path / "notes.txt").write_text("no picture")
    for verb in ("compress", "decompress"):
        result = run_command(verb, run, tmp_path / "notes.txt", "--out", tmp_path / "folder")
        assert result.exit_code == 2, result.output
        assert "notes.txt" in result.output
        assert not (run / "codec").exists()


def test_there_are_enough_cases():
    assert len(BAD) >= 40


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = run_command("train", "digits", "--preset", "tiny", "--steps", 2, *TINY, "--out", tmp_path / "file" / "run")
    assert result.exit_code == 2
    assert "cannot be written" in result.output


@pytest.mark.skipif(not Path("/dev/full").exists() or os.name != "posix", reason="needs Linux")
def test_a_full_disk(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    script = (  # without bytecode: Python takes a file that was cut short for written, and fails to read it ever after
        "import resource, signal, sys; sys.dont_write_bytecode = True; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); from ancestral.apps.cli.main import main; main()"
    )
    command = [sys.executable, "-c", script, "train", "digits", "--preset", "tiny", "--steps", "2", *TINY]
    result = subprocess.run([*command, "--out", str(tmp_path / "run")], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert "File too large" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "run").rglob(".writing-*"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == (soft, hard)


def test_images_that_cannot_be_written(trained_run, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = run_command("sample", trained_run, "--num-images", 1, "--steps", 1, "--out", tmp_path / "file" / "x")
    assert result.exit_code == 2
    assert "cannot be read or written" in result.output


def test_commands_are_the_ones_the_readme_names():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    named = {words.split()[0] for words in re.findall(r"`([a-z][^`]*)`", readme)}
    assert {name for name in main.commands if f"ancestral {name}" not in readme} <= named


@pytest.fixture(scope="module")
def measured_run(tmp_path_factory, trained_run):
    """A copy of the run, measured quickly, and four images with their files."""
    from ancestral.compression import calibration

    folder = tmp_path_factory.mktemp("codec")
    shutil.copytree(trained_run, folder / "run")
    generator = np.random.default_rng(0)
    for number, size in enumerate([(8, 8), (8, 8), (8, 8), (11, 20)]):
        Image.fromarray(generator.integers(0, 256, size, np.uint8)).save(folder / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("NODES", 12), ("IMAGES", 16), ("AT_THE_END", 32), ("HELD_OUT", 8)):
            patch.setattr(calibration, name, value)
        result = run_command(
            *("compress", folder / "run", *sorted(folder.glob("*.png")), "--out", folder / "files", "--device", "cpu")
        )
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_compress_and_decompress(measured_run):
    folder, output = measured_run
    files = sorted((folder / "files").glob("*.anc"))
    assert len(files) == 4
    assert output.count("lossless") == 4
    assert "network calls" in output
    result = run_command("decompress", folder / "run", *files, "--out", folder / "back", "--device", "cpu")
    assert result.exit_code == 0, result.output
    for path in sorted(folder.glob("*.png")):
        assert np.array_equal(np.asarray(Image.open(folder / "back" / path.name)), np.asarray(Image.open(path)))
    saved, model, codebook = compress_command.opened(folder / "run", "cpu")
    codec, cut = compress_command.codec_of(model, model, saved, codebook), files[0].read_bytes()[:30]
    finished = {}
    for finish in ("mean", "ode", "sample"):
        arguments = ("--finish", finish, "--upto", 30, "--out", folder / f"{finish}.png", "--device", "cpu")
        result = run_command("decompress", folder / "run", files[0], *arguments)
        assert result.exit_code == 0, result.output
        assert f"finished by {finish}" in result.output
        finished[finish] = np.asarray(Image.open(folder / f"{finish}.png"))
        (expected,) = codec.decode([cut], completion.FINISHES[finish])
        assert np.array_equal(finished[finish], expected.pixels[..., 0])
    assert len({pixels.tobytes() for pixels in finished.values()}) == 3
    for name, number in choices.PROFILES.items():
        arguments = ("--profile", name, "--out", folder / f"{name}.anc", "--device", "cpu")
        assert run_command("compress", folder / "run", folder / "0.png", *arguments).exit_code == 0
        assert file_header.parse((folder / f"{name}.anc").read_bytes())[0].profile == number
    arguments = ("--lossy", "--out", folder / "lossy.png", "--device", "cpu")
    assert "lossy: " in run_command("decompress", folder / "run", files[3], *arguments).output
    arguments = ("--bytes", 20, "--out", folder / "cut.anc", "--device", "cpu")
    assert "20 bytes" in run_command("compress", folder / "run", folder / "0.png", *arguments).output
    assert (folder / "cut.anc").read_bytes() == files[0].read_bytes()[:20]
    result = run_command("compress", folder / "run", folder / "0.png", "--out", folder / "0.png", "--device", "cpu")
    assert result.exit_code == 2
    assert "one of the files to be read" in result.output
    for verb, source, out, kind in (("compress", "0.png", "x.png", ".anc"), ("decompress", files[0], "x.jpg", ".png")):
        result = run_command(verb, folder / "run", folder / source, "--out", folder / out, "--device", "cpu")
        assert result.exit_code == 2
        assert f"and what is written is {kind}; name it so" in " ".join(result.output.split())
        assert not (folder / out).exists()


def wide_png():
    """8x8, 16 bits a value, grey as RGB: Pillow writes none."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(8 * bytes(1 + 48))))
    parts = [struct.pack(">I", len(body)) + name + body for name, body in (*chunks, (b"IEND", b""))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(part + struct.pack(">I", zlib.crc32(part[4:])) for part in parts)


def test_what_cannot_be_compressed_is_named(measured_run, trained_run):
    folder, _ = measured_run
    (folder / "bad").mkdir()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "bad" / "colour.png")
    Image.new("RGBA", (8, 8), (1, 1, 1, 9)).save(folder / "bad" / "clear.png")
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(folder / "bad" / "deep.png")
    Image.new("CMYK", (8, 8), (1, 2, 3, 4)).save(folder / "bad" / "print.tif")
    frames = [Image.new("L", (8, 8), level) for level in (0, 9)]
    frames[0].save(folder / "bad" / "film.gif", save_all=True, append_images=frames[1:])
    (folder / "bad" / "wide.png").write_bytes(wide_png())
    (folder / "bad" / "text.anc").write_text("hello")
    (folder / "bad" / "short.anc").write_bytes((folder / "files" / "0.anc").read_bytes()[:5])
    for verb, name, word in (
        ("compress", "colour.png", "has colour"),
        ("compress", "clear.png", "transparency"),
        ("compress", "deep.png", "8 bits"),
        ("compress", "print.tif", "CMYK"),
        ("compress", "film.gif", "several frames"),
        ("compress", "wide.png", "8 bits"),
        ("decompress", "text.anc", "not a file"),
        ("decompress", "short.anc", "cut within its header"),
    ):
        out = folder / "bad" / "out"
        result = run_command(verb, folder / "run", folder / "bad" / name, "--out", out, "--device", "cpu")
        assert result.exit_code == 2, result.output
        assert word in result.output
        assert name in result.output
        assert len(result.output.strip().splitlines()[-1]) < 250


def test_rd_measures_prefixes_of_real_files(measured_run):
    folder, _ = measured_run
    arguments = ("--num-images", 3, "--steps", 4, "--profile", "quick", "--device", "cpu", "--out", folder / "rd")
    result = run_command("rd", folder / "run", *arguments)
    assert result.exit_code == 0, result.output
    assert "3 files, profile quick: lossless in" in result.output
    files = json.loads((folder / "rd" / "rate_distortion.json").read_text())["files"]
    sizes = [point["bytes"] for point in files["points"]]
    assert sizes == sorted(sizes)
    assert sizes[0] == files["header_bytes"] == 9
    assert files["points"][0]["payload_bits_per_dim"] == 0
    assert sizes[-1] * 8 / 64 < files["lossless_bits_per_dim"]
    assert set(files["finishes"]["psnr"]) == {"mean", "ode", "sample"}
    result = run_command("rd", folder / "run", *arguments, "--average-width", 0.1)
    assert (result.exit_code, "--average-width" in result.output) == (2, True)


def refused(folder, verb, name, *options, out=None):
    """The one line that a command ends with, whose exit code is 2."""
    out = out or folder / "hostile" / "out"
    result = run_command(verb, folder / "run", folder / "hostile" / name, "--out", out, "--device", "cpu", *options)
    assert result.exit_code == 2, (name, result.output)
    assert isinstance(result.exception, SystemExit)
    assert not list((folder / "hostile").glob("out*")), "something was written all the same"
    *warnings, last = result.output.strip().splitlines()
    assert all(line.startswith(("warning: ", "Usage: ", "Try ")) for line in warnings if line)
    assert len(last) < 300
    return last


@pytest.fixture(scope="module")
def hostile(measured_run):
    """The folder of `measured_run` with files that are none."""
    folder, _ = measured_run
    bad = folder / "hostile"
    bad.mkdir()
    whole = (folder / "files" / "0.anc").read_bytes()
    large = bytearray((folder / "0.png").read_bytes())
    large[16:24] = (60000).to_bytes(4, "big") * 2
    large[29:33] = zlib.crc32(large[12:29]).to_bytes(4, "big")
    contents = {
        "empty.anc": b"",
        "picture.anc": (folder / "0.png").read_bytes(),
        "flipped.anc": whole[:30] + bytes([whole[30] ^ 4]) + whole[31:],
        "more.anc": whole + b"x",
        "other.anc": (GOLDEN / "trellis.anc").read_bytes(),
        "empty.png": b"",
        "half.png": (folder / "0.png").read_bytes()[:50],
        "file.png": whole,
        "large.png": bytes(large),
    }
    for name, content in contents.items():
        (bad / name).write_bytes(content)
    Image.new("L", (5000, 4000)).save(bad / "wide.png")
    return folder


@pytest.mark.parametrize(
    ("verb", "name", "word"),
    [
        ("decompress", "empty.anc", "cut within its header, after 0 bytes"),
        ("decompress", "picture.anc", "not a file that ancestral compress has written"),
        ("decompress", "flipped.anc", "damaged"),
        ("decompress", "more.anc", "too many"),
        ("decompress", "other.anc", "made with model 01234567"),
        ("decompress", "", "empty.anc: cut within its header"),
        ("decompress", "absent.anc", "does not exist"),
        ("compress", "empty.png", "not an image"),
        ("compress", "half.png", "damaged or truncated"),
        ("compress", "file.png", "not an image"),
        ("compress", "large.png", "over the limit of 32000000 pixels; raise data.max_pixels"),
        ("compress", "wide.png", "4000x5000"),
        ("compress", "", "is a directory"),
        ("compress", "absent.png", "does not exist"),
    ],
)
def test_files_that_are_none_end_in_one_line(hostile, verb, name, word):
    line = refused(hostile, verb, name)
    assert word in line
    assert (name or "hostile") in line


def test_numbers_of_bytes_that_cannot_be(hostile):
    shutil.copy(hostile / "0.png", hostile / "hostile" / "good.png")
    shutil.copy(hostile / "files" / "0.anc", hostile / "hostile" / "good.anc")
    for number, word in ((0, "0 is not in the range"), (1, "good.png needs 9 bytes for its header"), (8, "needs 9")):
        assert word in refused(hostile, "compress", "good.png", "--bytes", number)
    for number, word in ((0, "0 is not in the range"), (1, "cut within its header"), (8, "cut within its header")):
        assert word in refused(hostile, "decompress", "good.anc", "--upto", number)
    for verb, name, option in (("compress", "good.png", "--bytes"), ("decompress", "good.anc", "--upto")):
        out = hostile / f"whole-{verb}{'.anc' if verb == 'compress' else '.png'}"
        arguments = (option, 10**6, "--out", out, "--device", "cpu")
        result = run_command(verb, hostile / "run", hostile / "hostile" / name, *arguments)
        assert (result.exit_code, "lossless" in result.output) == (0, True), result.output


def test_paths_that_cannot_be_written(hostile):
    (hostile / "a file").write_text("kept")
    for verb, name in (("compress", "0.png"), ("decompress", "files/0.anc")):
        for out in (hostile / "a file" / "x.anc", hostile / "a file"):
            line = refused(hostile, verb, f"../{name}", out=out)
            assert "a file" in line
    assert (hostile / "a file").read_text() == "kept"


def test_one_pixel_comes_back_and_an_older_file_is_replaced(hostile):
    Image.fromarray(np.array([[77]], np.uint8)).save(hostile / "one.png")
    for verb, source, out in (("compress", "one.png", "one.anc"), ("decompress", "one.anc", "back.png")):
        (hostile / out).write_bytes(b"older")
        result = run_command(verb, hostile / "run", hostile / source, "--out", hostile / out, "--device", "cpu")
        assert result.exit_code == 0, result.output
    assert np.asarray(Image.open(hostile / "back.png")).tolist() == [[77]]


def test_archives_that_are_none_end_in_one_line(hostile):
    for name in ("empty.anc", "picture.anc", "other.anc", "absent.anc", ""):
        out = hostile / "hostile" / "out.npz"
        result = run_command("unarchive", hostile / "run", hostile / "hostile" / name, "--out", out)
        assert (result.exit_code, out.exists()) == (2, False), result.output
        assert len(result.output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"), MemoryError()],
    ids=["device", "machine"],
)
def test_memory_that_runs_out_is_one_line(error, trained_run, tmp_path, monkeypatch):
    def fails(*_):
        raise error

    monkeypatch.setattr("ancestral.networks.unet.UNet.forward", fails)
    result = run_command("sample", trained_run, "--num-images", 1, "--steps", 1, "--out", tmp_path)
    assert result.exit_code == 2
    said = str(error).partition("\n")[0] or "MemoryError"
    assert f"memory has run out ({said}); take fewer images at a time (--batch-size" in result.output


def test_a_disk_that_is_full_names_no_file(trained_run, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ancestral.networks.unet.UNet.forward", fails)
    result = run_command("sample", trained_run, "--num-images", 1, "--steps", 1, "--out", tmp_path)
    assert result.exit_code == 2
    assert "error: cannot be read or written (No space left on device)" in result.output


def test_the_folder_one_is_in_begins_anew(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for more in ((), ("--fresh",)):
        result = run_command("train", "digits", "--preset", "tiny", "--steps", 1, *TINY, "--out", ".", *more)
        assert result.exit_code == 0, result.output
    assert len(list(tmp_path.glob("here-before-*/checkpoints/*"))) == 1


def test_a_run_below_a_folder_that_is_no_text_is_refused_before_it_begins(tmp_path, monkeypatch):
    """The path would be in the run's files, which could not be read again."""
    folder = tmp_path / "caf\udce9" / "images"
    folder.mkdir(parents=True)
    for number in range(4):
        Image.fromarray(np.full((8, 8), 60 * number, np.uint8)).save(folder / f"{number}.png")
    monkeypatch.chdir(folder.parent)
    result = run_command("train", "images", "--preset", "tiny", "--steps", 1, *TINY, "--out", tmp_path / "run")
    assert result.exit_code == 2, result.output
    assert "the path of the data is not UTF-8" in result.output
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    "line",
    [
        ("sample", "{run}", "--num-images", 1, "--guidance", "inf"),
        ("sample", "{run}", "--num-images", 1, "--guidance", "1e30"),
        ("sample", "{run}", "--num-images", 1, "--average-width", "nan"),
        ("sample", "{run}", "--num-images", 10**20),
        ("sample", "{run}", "--num-images", 1, "--processes", 100000),
        ("train", "digits", "--learning-rate", "nan"),
        ("train", "digits", "--dry-run", "--processes", 100000),
        ("train", "{run}", "--dry-run", "--size", 8),
        ("distill", "{run}", "--learning-rate", "inf"),
        ("edit", "vary", "{run}", "a.png", "--strength", "nan"),
        ("edit", "restore", "{run}", "a.png", "--task", "deblur", "--blur", "inf"),
        ("edit", "restore", "{run}", "a.png", "--task", "deblur", "--blur", "1e9"),
        ("edit", "restore", "{run}", "a.png", "--task", "missing", "--noise", "nan"),
        ("edit", "restore", "{run}", "a.png", "--task", "missing", "--missing", "nan"),
        ("likelihood", "{run}", "--rtol", "nan"),
        ("likelihood", "{run}", "--atol", "nan"),
    ],
    ids=lambda line: " ".join(map(str, line)),
)
def test_numbers_that_no_command_can_use_are_refused(line, trained_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((8, 8), 99, np.uint8)).save("a.png")
    line = [trained_run if word == "{run}" else word for word in line]
    out = () if line[0] == "likelihood" else ("--out", "out.png" if line[0] == "edit" else "out")
    result = run_command(*line, *out)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert not list(tmp_path.glob("out*/*"))
    named = next((word.lstrip("-") for word in map(str, line[-2:]) if word.startswith("--")), "")
    said = result.output.replace("_", "-").replace("\n", " ")
    assert named in said or "images are more than" in said or "is a run" in said


@pytest.mark.parametrize(
    "line",
    [
        ("edit", "vary", "{run}", "a.png", "--out", "a.png"),
        ("edit", "inpaint", "{run}", "a.png", "--mask", "mask.png", "--out", "mask.png"),
        ("edit", "vary", "{run}", "a/b.png", "--out", "a.png"),
        ("archive", "{run}", "a.npy", "--out", "a.npy"),
        ("unarchive", "{run}", "a.npz", "--out", "a.npz"),
    ],
    ids=" ".join,
)
def test_nothing_is_written_over_what_is_read(line, trained_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = Image.fromarray(np.tile(np.uint8([0, 255]), (8, 4)))
    Path("a").mkdir()
    for name in ("a.png", "mask.png", "a/b.png"):
        picture.save(name)
    np.save("a.npy", np.zeros((4, 8, 8), np.uint8))
    Path("a.npz").write_bytes(b"an archive")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    steps = ("--steps", 2) if line[0] != "unarchive" else ()
    result = run_command(*(trained_run if word == "{run}" else word for word in line), *steps)
    assert result.exit_code == 2, result.output
    assert "files to be read" in result.output.replace("\n", " ")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    "line",
    [
        ("evaluate", "{run}", "--exact", "--terms", 5),
        ("metrics", "{run}", "--no-cache", "--cache", "c"),
        ("train", "digits", "--out", "out", "--restarts", 2),
        ("edit", "restore", "{run}", "a.png", "--out", "o.png", "--task", "missing", "--factor", 3),
        ("edit", "restore", "{run}", "a.png", "--out", "o.png", "--task", "colour", "--blur", 1.5),
        (
            "edit",
            "restore",
            "{run}",
            "a.png",
            "--out",
            "o.png",
            "--task",
            "missing",
            "--mask",
            "a.png",
            "--missing",
            0.5,
        ),
    ],
    ids=lambda line: " ".join(map(str, line)),
)
def test_options_that_would_do_nothing_are_refused(line, trained_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save("a.png")
    result = run_command(*(trained_run if word == "{run}" else word for word in line))
    assert result.exit_code == 2, result.output
    assert f"{line[-2]}: " in result.output
    assert "leave it out" in result.output.replace("\n", " ")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.fixture(scope="module")
def short_chain(tmp_path_factory):
    run = tmp_path_factory.mktemp("short") / "run"
    options = ("--preset", "tiny", "--steps", 2, "--set", "diffusion.T=8", *TINY)
    result = run_command("train", "digits", *options, "--out", run)
    assert result.exit_code == 0, result.output
    return run


SHORT = {
    "archive": ("archive", "{run}", "a.npy", "--out", "a.archive"),
    "agree": ("agree", "{run}", "--num-images", 2),
    "vary": ("edit", "vary", "{run}", "a.png", "--out", "b.png"),
    "inpaint": ("edit", "inpaint", "{run}", "a.png", "--mask", "half.png", "--out", "b.png"),
    "interpolate": ("edit", "interpolate", "{run}", "a.png", "half.png", "--frames", 2, "--out", "b.png"),
    "restore": ("edit", "restore", "{run}", "a.png", "--task", "deblur", "--out", "b.png"),
}


@pytest.mark.parametrize("line", SHORT.values(), ids=SHORT)
def test_a_chain_shorter_than_the_steps_of_a_command(line, short_chain, tmp_path, monkeypatch):
    """It takes all of them where no number is named, and refuses more that are named."""
    monkeypatch.chdir(tmp_path)
    picture = np.tile(np.uint8([0, 0, 0, 0, 255, 255, 255, 255]), (8, 1))
    np.save("a.npy", picture[None].repeat(2, 0))
    for name in ("a.png", "half.png"):
        Image.fromarray(picture).save(name)
    line = [short_chain if word == "{run}" else word for word in line]
    result = run_command(*line)
    assert result.exit_code == 0, result.output
    result = run_command(*line, "--steps", 9)
    assert result.exit_code == 2
    assert "--steps: steps must be between 1 and T = 8, got 9" in result.output
