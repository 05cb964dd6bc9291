"""Several processes on one machine through torchrun and gloo: the same images, the same weights, one writer."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ancestral.errors import UserError
from ancestral.runs import build, checkpoint, config, lock
from ancestral.runtime import distributed, launch
from ancestral.runtime.distributed import Processes, tree_sum
from ancestral.training.gradient_sync import Exact, open_formats
from conftest import TINY, run_command
from forked import ranks

pytest.importorskip("sklearn")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def one_thread():
    """As each of several processes has, for the one beside them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def command(*arguments, processes=1):
    """What `ancestral ...` prints: one process is this, several are forked as torchrun begins them."""
    if processes == 1:
        done = run_command(*arguments)
        assert done.exit_code == 0, done.output
        return done.stdout
    codes, printed, errors = zip(*ranks(processes, "ancestral", *arguments), strict=True)
    assert set(codes) == {0}, printed + errors
    return "".join(printed)


def launched(*arguments, processes):
    """What `ancestral ... --processes N` prints: the launcher and all of them begin anew."""
    line = [sys.executable, "-m", "ancestral", *map(str, arguments), "--processes", str(processes)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=ONE_THREAD, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def train(colour_digits):
    """`ancestral train` on so many processes: what it printed and its last checkpoint."""

    def trained(processes, run, *options, steps=6, by=command):
        job = ("train", colour_digits, "--preset", "tiny", *TINY, "--steps", steps, "--out", run, *options)
        return by(*job, processes=processes), checkpoint.latest(run)[0]

    return trained


def drop_last_checkpoint(run):
    newest = sorted((run / "checkpoints").iterdir())
    assert len(newest) == 2
    shutil.rmtree(newest[-1])


def test_two_processes_train_as_one_does(tmp_path, train):
    printed, two = train(2, tmp_path / "two", by=launched)
    _, one = train(1, tmp_path / "one")
    assert printed.count("images of 8x8x3") == 1  # one of them speaks
    assert two.images == one.images == 6 * 16
    for name, value in one.tensors.items():
        assert torch.allclose(value, two.tensors[name], atol=1e-5), name
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert len(logs[0]) == len(logs[1])


def test_exact_mode_gives_the_same_bits_on_one_and_two_and_across_a_change(tmp_path, train):
    exact = ("--set", "train.exact_shards=4", "--set", "diffusion.times=loss-importance", "--set", "model.dropout=0.1")
    _, one = train(1, tmp_path / "one", *exact)
    _, two = train(2, tmp_path / "two", *exact)
    assert one.tensors.keys() == two.tensors.keys()
    for name, value in one.tensors.items():
        assert torch.equal(value, two.tensors[name]), name
    for name, value in one.weights.items():
        assert torch.equal(value, two.weights[name]), name
    for processes in (1, 4):  # the last part of the run on two is done again by one, and by four
        drop_last_checkpoint(tmp_path / "two")
        _, continued = train(processes, tmp_path / "two", *exact)
        assert all(torch.equal(value, continued.tensors[name]) for name, value in one.tensors.items()), processes


def test_a_run_that_begins_with_a_model_is_the_same_on_two_processes(tmp_path, train, colour_run):
    """Also where each holds a part of the weights; and it goes on, with the model it began with on the first alone."""
    origin = ("--from", colour_run)
    _, one = train(1, tmp_path / "one", *origin, steps=2)
    for engine in ("all-reduce", "fsdp"):
        more = (*origin, "--set", f"train.parallel={engine}")
        said, two = train(2, tmp_path / engine, *more, steps=2)
        assert said.count(f"begins with the weights of {colour_run}") == 1
        assert two.state["origin"] == one.state["origin"]
        for name, value in one.tensors.items():
            assert torch.allclose(value, two.tensors[name], atol=1e-5), (engine, name)
    drop_last_checkpoint(tmp_path / "fsdp")
    _, again = train(2, tmp_path / "fsdp", *more, steps=2)
    assert again.images == two.images
    for name, value in two.weights.items():
        assert torch.allclose(value, again.weights[name], atol=1e-5), name


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_the_engines_of_torch_train_as_one_process_does_and_resume_on_it(tmp_path, train, engine):
    options = ("--set", f"train.parallel={engine}", "--set", "train.micro_batch=3")  # the last has 2 images
    _, two = train(2, tmp_path / "two", *options)
    _, one = train(1, tmp_path / "one", *options)
    drop_last_checkpoint(tmp_path / "two")
    _, continued = train(1, tmp_path / "two", *options)
    for name, value in one.tensors.items():
        assert value.shape == two.tensors[name].shape
        assert torch.allclose(value, two.tensors[name], atol=1e-5), name
        assert torch.allclose(value, continued.tensors[name], atol=1e-5), name


def test_fsdp_refuses_the_layout_that_it_cannot_divide():
    options = config.TrainOptions(parallel="fsdp", channels_last=True)
    with pytest.raises(UserError, match="channels_last"):
        open_formats(options, torch.device("cpu"), Processes(0, 2))
    automatic = config.TrainOptions(parallel="fsdp", channels_last="auto")
    assert open_formats(automatic, torch.device("cpu"), Processes(0, 2)) == [("float32", False)]
    assert open_formats(automatic, torch.device("cpu"), Processes()) == [("float32", False), ("float32", True)]


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [str(build.device(name)) for name in ("auto", "cuda", "cuda:0", "cpu")] == [
        "cuda:1",
        "cuda:1",
        "cuda:0",
        "cpu",
    ]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="'cuda:2' is not available"):
        build.device("cuda")


def pictures(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def test_sampling_and_evaluating_are_shared_and_go_on_where_they_stopped(any_run, tmp_path):
    size = ("--steps", 3, "--batch-size", 4, "--device", "cpu", "--variance", "fixedsmall")
    job = ("--num-images", 20, *size, "--film")
    command("sample", any_run, *job, "--out", tmp_path / "one")
    command("sample", any_run, *job, "--out", tmp_path / "two", processes=2)
    assert len(pictures(tmp_path / "one")) == 22  # and the sheets
    assert pictures(tmp_path / "one") == pictures(tmp_path / "two")

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "two").glob("0*.png")}
    (tmp_path / "two" / "000009.png").unlink()
    (tmp_path / "two" / ".job" / "00000008-00000011" / "000009.png").write_bytes(b"half a picture")
    shutil.rmtree(tmp_path / "two" / ".job" / "00000016-00000019")
    command("sample", any_run, *job, "--out", tmp_path / "two")
    assert pictures(tmp_path / "one") == pictures(tmp_path / "two")
    again = {int(path.stem) for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert again == {*range(8, 12), *range(16, 20)}

    command("sample", any_run, "--num-images", 8, *size, "--out", tmp_path / "two", "--seed", 1)
    drawn = {name: content for name, content in pictures(tmp_path / "two").items() if name[0] == "0"}
    assert len(drawn) == 8  # none of the other job's are left
    assert not set(pictures(tmp_path / "one").values()) & set(drawn.values())

    measure = ("--num-images", 30, "--terms", 5, "--batch-size", 4, "--device", "cpu")
    printed = [command("evaluate", any_run, *measure, processes=many) for many in (1, 2)]
    assert printed[0] == printed[1]

    compare = ("--network", "pixels", "--num-images", 30, "--steps", 3, "--batch-size", 4, "--device", "cpu")
    places = {name: ("--out", tmp_path / name, "--cache", tmp_path / f"{name}-cache") for name in ("one", "two")}
    command("metrics", any_run, *compare, *places["one"])
    command("metrics", any_run, *compare, *places["two"], processes=2)
    assert len({(tmp_path / name / "metrics-pixels.json").read_bytes() for name in ("one", "two")}) == 1


def test_a_process_that_dies_is_begun_again_by_the_launcher(tmp_path, colour_digits):
    line = ["train", str(colour_digits), "--preset", "tiny", "--steps", "60", *TINY, "--out", str(tmp_path / "run")]
    line += ["--processes", "2", "--restarts", "1"]
    started = subprocess.Popen([sys.executable, "-m", "ancestral", *line], env=ONE_THREAD, stdout=subprocess.PIPE)
    with started:
        until(lambda: (tmp_path / "run" / "checkpoints").exists())
        os.kill(children(started.pid)[0], signal.SIGKILL)
        assert started.wait(120) == 0
    saved, _ = checkpoint.latest(tmp_path / "run")
    assert saved.state["complete"]


def test_a_launcher_that_is_stopped_says_75_and_has_saved(tmp_path, colour_digits):
    line = ["train", str(colour_digits), "--preset", "tiny", "--steps", "100000", *TINY, "--out", str(tmp_path / "run")]
    command_line = [sys.executable, "-m", "ancestral", *line, "--processes", "2"]
    with subprocess.Popen(command_line, env=ONE_THREAD, stdout=subprocess.PIPE, text=True) as started:
        assert any("images seen" in line for line in started.stdout)  # reads up to it
        time.sleep(1)
        started.terminate()
        assert started.wait(60) == 75
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def until(happened, seconds=60):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def children(process):
    return [int(name) for name in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_a_launcher_says_75_of_who_saves_when_stopped_and_of_no_other(monkeypatch):
    from torch.distributed.elastic.multiprocessing import SignalException

    attempts = []

    def stopped(*arguments):
        for attempt, code in enumerate(attempts.pop()):
            with monkeypatch.context() as of_a_process:
                of_a_process.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
                assert code is None or (launch.reports_exit(code) and not launch.reports_exit(2))
        raise SignalException("stopped", signal.SIGTERM)

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda plan, program: stopped)
    for name in ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "OMP_NUM_THREADS", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"):
        monkeypatch.setenv(name, "1")  # and as before again
    for ended_with, code in (([75], 75), ([143], 143), ([None], 143), ([2, 75], 75), ([75, None], 75)):
        attempts.append(ended_with)
        assert launch.launch(2, 1, ("train", "x")) == code


def test_only_what_was_refused_is_not_begun_again(monkeypatch, tmp_path):
    monkeypatch.setenv(launch.EXIT_FILE, str(tmp_path / "exit"))
    for attempt, reports in ((0, {}), (1, {"refused": False}), (2, {"refused": True})):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
        launch.need_new_attempt()
        if reports:
            assert launch.reports_exit(2, **reports)
            assert launch.reported_exit() == 2
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "3")
    with pytest.raises(SystemExit) as ended:
        launch.need_new_attempt()
    assert (ended.value.code, launch.reported_exit()) == (2, 2)


def test_a_process_that_is_killed_is_named_whatever_the_others_end_with(tmp_path, colour_digits):
    line = ["train", str(colour_digits), "--preset", "tiny", "--steps", "100000", *TINY, "--out", str(tmp_path / "run")]
    command_line = [sys.executable, "-m", "ancestral", *line, "--processes", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command_line, env=ONE_THREAD, **pipes) as started:
        assert any("images seen" in line for line in started.stdout)  # reads up to it
        os.kill(children(started.pid)[1], signal.SIGKILL)
        _, said = started.communicate(timeout=60)
    assert started.returncode == 1
    assert "(counted from 0) of the 2 was killed by SIGKILL, as the system does where memory runs out" in said


def test_a_tree_has_one_order():
    parts = [torch.tensor(value) for value in (1e8, 1.0, -1e8, 1.0)]
    assert float(tree_sum(parts)) == float((parts[0] + parts[1]) + (parts[2] + parts[3]))
    halves = [tree_sum(parts[:2]), tree_sum(parts[2:])]
    assert torch.equal(tree_sum(halves), tree_sum(parts))


def test_shares_are_the_batch():
    shares = [list(Processes(rank, 4).share(range(100, 116))) for rank in range(4)]
    assert [number for share in shares for number in share] == list(range(100, 116))


@pytest.mark.parametrize(
    ("size", "batch", "shards", "named"),
    [(3, 16, None, "train.batch_size"), (2, 16, 3, "power of two"), (4, 16, 2, "multiple"), (1, 24, 16, "divides")],
)
def test_sizes_that_do_not_divide_are_refused(size, batch, shards, named):
    with pytest.raises(UserError, match=named):
        distributed.need_divisible(Processes(0, size), batch, shards)


def test_wrong_shards_are_one_line(tmp_path):
    options = ("--steps", 2, "--out", tmp_path / "run", "--set", "train.exact_shards=3")
    result = run_command("train", "digits", "--preset", "tiny", *TINY, *options)
    assert result.exit_code == 2
    assert "train.exact_shards: 3 must be a power of two" in result.output
    both = ("--set", "train.exact_shards=2", "--set", "train.parallel=fsdp")
    result = run_command("train", "digits", "--preset", "tiny", *TINY, *options[:-2], *both)
    assert (result.exit_code, "train.parallel=fsdp another way" in result.output) == (2, True), result.output


REFUSING = """
import os
from ancestral.data import load as data
from ancestral.errors import UserError
load = data.load
def only_one(*given):
    if os.environ.get("RANK") == "0":
        raise UserError("x.png: cannot be read")
    return load(*given)
data.load = only_one
"""


@pytest.mark.parametrize("how", ["all", "one"])
def test_a_refusal_of_several_is_2_and_said_once(tmp_path, colour_digits, how):
    """All refuse (settings that do not divide), or the one that reads the images for all, while the others wait.

    What was refused is not begun again.
    """
    line = ["train", str(colour_digits), "--preset", "tiny", "--steps", "6", *TINY, "--out", str(tmp_path / "run")]
    line += ["--processes", "2", "--restarts", "2", *(("--set", "train.exact_shards=3") if how == "all" else ())]
    environment = dict(ONE_THREAD)
    if how == "one":
        (tmp_path / "sitecustomize.py").write_text(REFUSING)
        environment["PYTHONPATH"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "ancestral", *line],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=240,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert said.count("error: ") == 1, said
    assert ("exact_shards: 3" if how == "all" else "x.png: cannot be read") in said
    assert "Traceback" not in said


def test_processes_share_one_lock_and_a_second_command_is_refused_once(tmp_path, colour_digits):
    own = lock.own(tmp_path / "run")
    line = ["train", str(colour_digits), "--preset", "tiny", "--steps", "6", *TINY, "--out", str(tmp_path / "run")]
    line = [sys.executable, "-m", "ancestral", *line, "--processes", "2"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=ONE_THREAD, timeout=240)
    own.release()
    assert done.returncode == 2, done.stderr
    assert done.stderr.count(f"is being trained by process {os.getpid()}") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("shards", [1, 2])
def test_a_network_that_an_objective_leaves_out_has_no_gradient(shards):
    """As a critic while consistency comes first."""
    network, critic = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    exact, x = Exact(network, Processes(), critic), torch.arange(8.0).reshape(4, 2)
    exact.begin()
    for part in x.chunk(shards):
        network(part).sum().backward()
        exact.end_shard()
    exact.finish()
    assert torch.equal(network.weight.grad, x.sum(0, keepdim=True))
    assert critic.weight.grad is None
