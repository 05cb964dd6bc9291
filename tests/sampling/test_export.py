"""Exported models draw, where this package cannot be imported, what the run draws from the same noise."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ancestral.apps.report.subject import of_run
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.sample import finish, latents
from ancestral.diffusion.samplers.solvers import SOLVERS
from ancestral.errors import UserError
from ancestral.runs.sampling_options import SamplingOptions
from ancestral.runtime.encode import json_bytes
from ancestral.sampling import export
from ancestral.sampling.command import conditions
from ancestral.sampling.round_trip import round_trip
from ancestral.sampling.sampler import Sampler
from ancestral.sampling.table import TableSampler
from conftest import TINY, run_command

ROOT = Path(__file__).parents[2]
CLOSE = 2e-4  # on [-1, 1]: a fortieth of a byte's step


@pytest.fixture(scope="module")
def guidable(colour_digits, tmp_path_factory):
    """A run of coloured digits with labels, some of which were dropped."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    root = tmp_path_factory.mktemp("guidable")
    np.savez(root / "digits.npz", images=np.load(colour_digits), labels=digits.target)
    conditional = ("--set", "model.labels=true", "--set", "model.condition_dropout=0.3")
    result = run_command(
        "train", root / "digits.npz", "--preset", "tiny", "--steps", 30, "--out", root / "run", *TINY, *conditional
    )
    assert result.exit_code == 0, result.output
    return root / "run"


def drawn(run, count, **options):
    """(images, labels, noise) of a run: what it draws, and all noise on the way."""
    sampler = Sampler(run, SamplingOptions(**options), "cpu")
    cond = conditions(sampler.saved, None, None, count)
    images = finish(sampler.walk(range(count), cond, lambda count: None))
    shape, noise = sampler.saved.facts.shape, Streams(0, "reverse", range(count))
    noises = [latents(shape, 0, range(count)), *(noise.normal(shape) for _ in sampler.visits)]
    return (
        images.numpy(),
        cond.get("labels", torch.zeros(count, dtype=torch.int64)).numpy(),
        torch.stack(noises).numpy(),
    )


FAR = {
    "guidance": 2.0,
    "guidance_interval": (-2.0, 5.0),
    "eta": 1.0,
    "steps": 8,
}  # some steps guided, all but one noisy


@pytest.mark.parametrize(
    ("form", "run", "options"),
    [("onnx", "trained_run", {}), ("onnx", "guidable", FAR), ("torch", "guidable", FAR)],
)
def test_files_draw_the_same_images_where_this_package_is_not(form, run, options, request, tmp_path):
    if form == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    run = request.getfixturevalue(run)
    texts = {"guidance_interval": "-2:5"}
    named = [
        str(part) for name, one in options.items() for part in (f"--{name.replace('_', '-')}", texts.get(name, one))
    ]
    result = run_command("export", run, "--out", tmp_path, "--format", form, *named)
    assert result.exit_code == 0, result.output
    assert str(ROOT).encode() not in b"".join(path.read_bytes() for path in tmp_path.glob("[a-z]*.*"))
    images, labels, noise = drawn(run, 3, **options)
    facts = json.loads((tmp_path / "sampler.json").read_text())
    given = {"noise": noise[: facts["draws"]].astype(np.float32)} | ({"labels": labels} if facts["classes"] else {})
    np.savez(tmp_path / "in.npz", **given)
    hidden = {"onnx": ("ancestral", "torch"), "torch": ("ancestral", "onnxruntime")}[form]
    alone = f"import sys; sys.modules |= dict.fromkeys({hidden})\n"
    probe = "import numpy as np, draw; from pathlib import Path\n"
    probe += "np.save('out.npy', draw.draw(Path(), dict(np.load('in.npz'))))\n"
    subprocess.run([sys.executable, "-c", alone + probe], cwd=tmp_path, check=True, timeout=120)
    assert np.abs(np.load(tmp_path / "out.npy") - images).max() < CLOSE
    assert images.std() > 0.1  # and they are not one grey
    probe = "import runpy; sys.argv[1:] = ['3']; runpy.run_path('draw.py', run_name='__main__')"
    subprocess.run([sys.executable, "-c", alone + probe], cwd=tmp_path, check=True, timeout=120)
    probe = probe.replace("['3']", "['3', '0', 'cat']")
    said = subprocess.run(
        [sys.executable, "-c", alone + probe], cwd=tmp_path, timeout=120, capture_output=True, text=True
    )
    assert said.returncode == 2
    assert said.stderr.splitlines()[-1].endswith("and the name of a class (see --help)")
    with Image.open(tmp_path / "images.png") as shown:
        assert shown.size == (24, 8)
        assert shown.mode == {1: "L", 3: "RGB"}[images.shape[1]]


def graphs(graph):
    """A graph of ONNX, and those inside its nodes."""
    yield graph
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type.name == "GRAPH":
                yield from graphs(attribute.as_graph())


def convolutions(graph):
    """The type and the name of the weights of each convolution; those in 8 bits must be the graph's own."""
    for node in graph:
        if node.op_type == "Conv":
            weight = node.inputs[1]
            if (from_ := weight.producer()) is not None:
                assert from_.op_type == "DequantizeLinear"
                assert node.inputs[0].producer().op_type == "DequantizeLinear"
                assert [one.op_type for one, _ in node.outputs[0].uses()] == ["QuantizeLinear"]
                weight = from_.inputs[0]
                assert weight.name in graph.initializers  # elsewhere onnxruntime computes in float32
            yield weight.const_value.dtype.name, weight.name


NEAR = 1.5  # of 255 on average, from the images in float32


@pytest.mark.parametrize(("run", "options"), [("trained_run", {}), ("guidable", {**FAR, "guidance_interval": "-2:5"})])
def test_an_export_in_8_bits_has_whole_numbers_for_weights_and_draws_nearly_the_same(run, options, request, tmp_path):
    pytest.importorskip("onnxruntime")
    ir, run = pytest.importorskip("onnxscript").ir, request.getfixturevalue(run)
    named = [str(part) for name, one in options.items() for part in (f"--{name.replace('_', '-')}", one)]
    result = run_command("export", run, "--out", tmp_path, "--format", "onnx", "--precision", "int8", *named)
    assert result.exit_code == 0, result.output
    options = {**options, **({"guidance_interval": (-2.0, 5.0)} if options else {})}
    sampler = Sampler(run, SamplingOptions(**options), "cpu")
    facts = json.loads((tmp_path / "sampler.json").read_text())
    assert facts["int8_calls"] == len(facts["steps"]) - 2 == sampler.steps - 2
    (network,) = graphs(ir.load(tmp_path / "network-int8.onnx").graph)
    found = list(convolutions(network))
    names = [name for kind, name in found if kind == "FLOAT"]
    assert [name for _, name in (found[0], found[-1])] == [names[0], names[-1]]  # the ends
    assert all(".shortcut." in name for name in names[1:-1])
    assert {kind for kind, _ in found} == {"FLOAT", "INT8"}
    per_graph = [[kind for kind, _ in convolutions(one)] for one in graphs(ir.load(tmp_path / "sampler.onnx").graph)]
    expected = [kind for kind, _ in found]
    calls = [expected] * sampler.guidance.calls + [["FLOAT"] * len(expected)] * sampler.guidance.calls
    assert [one for one in per_graph if one] == calls  # a graph for each network, and for each that guides it
    images, labels, noise = drawn(run, 3, **options)
    given = {"noise": noise[: facts["draws"]].astype(np.float32)} | ({"labels": labels} if facts["classes"] else {})
    np.savez(tmp_path / "in.npz", **given)
    probe = "import sys; sys.modules |= dict.fromkeys(('ancestral', 'torch')); import numpy as np, draw, pathlib\n"
    probe += "np.save('out.npy', draw.draw(pathlib.Path(), dict(np.load('in.npz'))))\n"
    subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, check=True, timeout=120)
    apart = np.abs(np.load(tmp_path / "out.npy") - images).mean() * 127.5
    assert 0 < apart < NEAR
    assert f"int8 in {sampler.steps - 2} of {sampler.steps} calls: images are" in result.output


WAYS = [
    *({"solver": name} for name in SOLVERS),
    {"variance": "fixedlarge", "steps": "all"},
    {"eta": 0.5, "clip": "none"},
]


# States that a step looks at: x, and the predictions of the steps before that its order asks for. UniPC's corrector
# adds the state that it corrects; two-stage methods remember where the step began.
MEMORY = {
    **dict.fromkeys(("dpm++2s", "dpm++2m", "dpm++2m-sde", "heun", "heun-churn"), 2),
    **dict.fromkeys(("dpm++3m", "deis3", "unipc2"), 3),
    **dict.fromkeys(("ipndm4", "lms4", "unipc3"), 4),
}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
def test_the_table_of_every_solver_takes_its_steps(way, guidable):
    options = {**way} if way.get("steps") == "all" else {"steps": 7, "grid": "log-snr", **way}
    sampler = Sampler(guidable, SamplingOptions(**options), "cpu")
    facts = json.loads(json_bytes(export.facts(sampler, TableSampler(sampler.model.network, sampler))))
    images, labels, noise = drawn(guidable, 2, **options)
    labels = torch.from_numpy(labels)
    states = np.repeat(noise[:1], len(facts["steps"][0]["next"]), axis=0)
    for step in facts["steps"]:
        x, time = torch.from_numpy(states[0]).float(), torch.full((2,), step["time"])
        with torch.no_grad():
            output = sampler.model.network(x=x, time=time, labels=labels).double().numpy()
        x0 = step["x0"][0] * output + step["x0"][1] * states[0]
        x0 = x0 if facts["limit"] is None else x0.clip(-facts["limit"], facts["limit"])
        states = np.tensordot(step["next"], np.stack([*states, x0, noise[step["draw"]]]), 1)
    assert np.abs(states[0] - images).max() < CLOSE
    assert len(states) <= MEMORY.get(way.get("solver"), 1)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (("--format", "onnx", "--steps", "all", "--variance", "optimal"), "optimal"),
        (("--format", "torch", "--clip", "dynamic"), "dynamic clipping"),
        (("--format", "torch", "--timestep-spacing", "leading"), "--timestep-spacing: is of a diffusers folder"),
        (("--steps", 5), "--steps: a diffusers folder has no solver of ours"),
        (("--grid", "karras"), "--grid: a diffusers folder has no solver of ours"),
        (("--format", "tflite"), "tflite"),
        (("--format", "torch", "--precision", "int8"), "--precision int8: is of --format onnx"),
        (("--precision", "int8"), "--precision int8: is of --format onnx; a diffusers folder has float32 weights"),
        (
            ("--format", "onnx", "--precision", "int8", "--steps", 2),
            "--precision int8: the last 2 calls stay in float32, and this sampler has 2 in all",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(named, said, trained_run, tmp_path):
    result = run_command("export", trained_run, "--out", tmp_path / "out", *named)
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "train", "said"),
    [
        ("digits", ("--preset", "absorbing"), "diffusion.chain is absorbing; only Gaussian noise is exported"),
        ("vectors.npz", ("--preset", "tiny", "--set", "model.embedding=true"), "model.embedding is true"),
    ],
)
@pytest.mark.parametrize("form", ["onnx", "torch", "diffusers"])
def test_runs_that_cannot_be_exported_are_refused(data, train, said, form, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    np.savez("vectors.npz", images=random.integers(0, 256, (40, 8, 8), np.uint8), embeddings=random.random((40, 3)))
    result = run_command("train", data, *train, "--steps", 1, "--out", "run", *TINY)
    assert result.exit_code == 0, result.output
    result = run_command("export", "run", "--out", "out", "--format", form)
    assert result.exit_code == 2
    assert said in result.output.replace("\n", " ")
    assert "leaves with" not in result.output  # as it does not, in any form
    assert not (tmp_path / "out").exists()


def test_what_is_another_s_is_refused_before_anything_is_traced(trained_run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TableSampler", lambda *given: pytest.fail("worked before it looked"))
    (tmp_path / "sampler.pt2").write_bytes(b"another's")
    result = run_command("export", trained_run, "--out", tmp_path, "--format", "torch")
    assert (result.exit_code, "sampler.pt2: is there already" in result.output) == (2, True), result.output
    assert [path.name for path in tmp_path.iterdir()] == ["sampler.pt2"]


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_no_older_checkpoint_leaves_where_the_newest_is_damaged(form, trained_run, tmp_path):
    shutil.copytree(trained_run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "999999999").mkdir()
    result = run_command("export", tmp_path / "run", "--out", tmp_path / "out", "--format", form)
    assert result.exit_code == 2, result.output
    assert "move that checkpoint away to take the one before it" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_weights_too_large_for_a_file_are_refused(trained_run, tmp_path, monkeypatch):
    monkeypatch.setitem(export.FORMATS, "onnx", replace(export.FORMATS["onnx"], limit=1000, needs=()))
    with pytest.raises(UserError, match="GB of weights, too many for a file of --format onnx; use torch"):
        export.export(trained_run, tmp_path / "out", SamplingOptions(), "onnx")


@pytest.mark.parametrize("named", [{"label": "1"}, {"guidance": 2.0, "guide": "other"}])
def test_what_the_files_would_not_heed_is_refused(named, trained_run, tmp_path):
    with pytest.raises(UserError, match=f"{list(named)[-1]}: is not exported"):
        export.export(trained_run, tmp_path / "out", SamplingOptions(**named), "torch")
    assert not (tmp_path / "out").exists()


def test_a_model_of_few_calls_leaves_with_its_own_steps(trained_run, tmp_path):
    for name, objective in (("again", "consistency"), ("fast", "progressive")):
        chosen = ("--set", f"diffusion.objective={objective}")
        result = run_command("distill", trained_run, "--out", tmp_path / name, "--steps", 1, *chosen)
        assert result.exit_code == 0, result.output
        sampler = Sampler(tmp_path / name, SamplingOptions(), "cpu", export.opened)
        whole = TableSampler(sampler.model.network, sampler)
        schedule, (start, between, _) = sampler.model.schedule, sampler.visits
        signal, noise = float(schedule.signal(between)), float(schedule.noise(between))
        kept = noise / float(schedule.noise(start))
        expected = {  # of x, x0, noise: Song et al. 2023, algorithm 1; Song et al. 2021, Eq. 12 with eta = 0
            "consistency": (2, [0, signal, noise]),
            "progressive": (1, [kept, signal - float(schedule.signal(start)) * kept, 0]),
        }
        first, last = whole.rows.next
        assert whole.draws == expected[objective][0]
        assert torch.allclose(first, torch.tensor(expected[objective][1]).double())
        assert torch.allclose(last, torch.tensor([[0, 1, 0]]).double())


@pytest.fixture(scope="module")
def philox_run(tmp_path_factory):
    """As one begun on an accelerator, where its random numbers are drawn."""
    pytest.importorskip("sklearn")
    run = tmp_path_factory.mktemp("philox") / "run"
    options = ("--preset", "tiny", "--steps", 3, "--set", "train.stream=philox")
    result = run_command("train", "digits", *options, "--out", run, *TINY)
    assert result.exit_code == 0, result.output
    return run


def test_what_draws_beside_sample_begins_at_the_runs_own_noise(philox_run):
    """Where 8 bits are compared, in a report, and in the film of the page."""
    sampler = Sampler(philox_run, SamplingOptions(steps=4, seed=5), "cpu")
    first = next(sampler.walk(range(2), {}, lambda count: None)).x_t
    assert not torch.equal(first, latents(sampler.saved.facts.shape, 5, range(2)))
    assert torch.equal(torch.from_numpy(export.given(sampler, 1, range(2))["noise"])[0], first.float())
    subject = of_run(philox_run, None, 8, 5, "cpu", None)
    assert torch.equal(subject.latents(range(2)), first)
    steps = list(subject.walk(range(2), 4))
    assert torch.equal(steps[-1].x_s, finish(sampler.walk(range(2), {}, lambda count: None)))
    x0 = subject.x0(subject.test.take([0]))
    film = round_trip(subject.schedule, x0, subject.latents([0]), subject.walk([0], 4))
    T = subject.schedule.T
    left = film.there[-1] - subject.schedule.signal(T) * x0[0]
    assert torch.allclose(left / subject.schedule.noise(T), film.back[0], atol=1e-6)
