"""Exported models draw, where this package cannot be imported, what the run draws from the same noise."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers.sample import finish, latents
from ancestral.diffusion.samplers.solvers import SOLVERS
from ancestral.runs.sampling_options import SamplingOptions
from ancestral.runtime.encode import json_bytes
from ancestral.sampling import draw_torch, export
from ancestral.sampling.command import conditions
from ancestral.sampling.sampler import Sampler
from conftest import TINY, run_command

CLOSE = 2e-4  # on [-1, 1]: a fortieth of a byte's step


@pytest.fixture(scope="module")
def guidable(colour_digits, tmp_path_factory):
    """A run of coloured digits with labels, some of which were dropped."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    root = tmp_path_factory.mktemp("guidable")
    np.savez(root / "digits.npz", images=np.load(colour_digits), labels=digits.target)
    told = ("--set", "model.labels=true", "--set", "model.condition_dropout=0.3")
    result = run_command(
        "train", root / "digits.npz", "--preset", "tiny", "--steps", 30, "--out", root / "run", *TINY, *told
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


@pytest.mark.parametrize(
    ("form", "run", "options"),
    [
        ("onnx", "trained_run", {}),
        ("onnx", "guidable", {"guidance": 2.0, "guidance_interval": (-2.0, 5.0), "eta": 1.0, "steps": 8}),
        ("torch", "guidable", {"guidance": 2.0, "guidance_interval": (-2.0, 5.0), "eta": 1.0, "steps": 8}),
    ],
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
    images, labels, noise = drawn(run, 3, **options)
    np.savez(tmp_path / "in.npz", labels=labels, noise=noise)
    probe = "import sys; sys.modules['ancestral'] = None; import numpy as np, draw; from pathlib import Path\n"
    probe += "given = np.load('in.npz'); to = getattr(getattr(draw, 'torch', np), 'tensor', np.array)\n"
    probe += "np.save('out.npy', np.asarray(draw.draw(Path(), map(to, given['noise']), to(given['labels']))))\n"
    if form == "onnx":
        probe = f"import sys; sys.modules['torch'] = None\n{probe}"
    subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, check=True, timeout=120)
    assert np.abs(np.load(tmp_path / "out.npy") - images).max() < CLOSE
    assert images.std() > 0.1  # and they are not one grey
    probe = "import sys, runpy; sys.modules['ancestral'] = None; sys.argv[1:] = ['3']\n"
    probe += "runpy.run_path('draw.py', run_name='__main__')"
    said = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, check=True, timeout=120, capture_output=True)
    kind, suffix = ("P5", "pgm") if images.shape[1] == 1 else ("P6", "ppm")
    assert f"images.{suffix}: 3 images" in said.stdout.decode()
    header = f"{kind} 24 8 255\n".encode()
    content = (tmp_path / f"images.{suffix}").read_bytes()
    assert content.startswith(header)
    assert len(content) == len(header) + images.size


@pytest.fixture(scope="module")
def traced(guidable, tmp_path_factory):
    """The network of a run for torch alone, loaded once."""
    folder = tmp_path_factory.mktemp("traced")
    export.export(guidable, folder, SamplingOptions(), "torch")
    return folder, torch.export.load(folder / "network.pt2")


WAYS = [
    *({"solver": name} for name in SOLVERS),
    {"variance": "fixedlarge", "steps": "all"},
    {"eta": 0.5, "clip": "none"},
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
def test_the_table_of_every_solver_takes_its_steps(way, guidable, traced, tmp_path, monkeypatch):
    _, network = traced
    monkeypatch.setattr(torch.export, "load", lambda path: network)
    options = {"steps": 7, "grid": "log-snr", **way}
    table = export.plan(Sampler(guidable, SamplingOptions(**options), "cpu"))
    (tmp_path / "sampler.json").write_bytes(json_bytes(table))
    images, labels, noise = drawn(guidable, 2, **options)
    found = draw_torch.draw(tmp_path, iter(torch.from_numpy(noise)), torch.from_numpy(labels)).numpy()
    assert np.abs(found - images).max() < CLOSE
    live = itertools.accumulate(table["steps"], lambda count, step: count + 2 - len(step["done"]), initial=0)
    if way.get("steps") == "all":
        assert max(live) == 0  # a chain that forgets keeps nothing


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (("--format", "onnx", "--steps", "all", "--variance", "optimal"), "optimal"),
        (("--format", "torch", "--clip", "dynamic"), "dynamic clipping"),
        (("--steps", 5), "--steps: a diffusers folder has no solver of ours"),
        (("--grid", "karras"), "--grid: a diffusers folder has no solver of ours"),
        (("--format", "tflite"), "tflite"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(named, said, trained_run, tmp_path):
    result = run_command("export", trained_run, "--out", tmp_path / "out", *named)
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert not (tmp_path / "out").exists()


def test_a_run_that_hides_pixels_is_refused(tmp_path):
    pytest.importorskip("sklearn")
    run = tmp_path / "run"
    result = run_command("train", "digits", "--preset", "absorbing", "--steps", 1, "--out", run, *TINY)
    assert result.exit_code == 0, result.output
    result = run_command("export", run, "--out", tmp_path / "out", "--format", "onnx")
    assert result.exit_code == 2
    assert "diffusion.chain is absorbing" in result.output.replace("\n", " ")


def test_the_plan_is_plain_numbers(trained_run):
    table = export.plan(Sampler(trained_run, SamplingOptions(), "cpu"))
    assert json.loads(json_bytes(table)) == json.loads(json.dumps(table, allow_nan=False))
    assert len(table["steps"]) == 20
