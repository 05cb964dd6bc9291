"""Publishing and loading: what would be uploaded, the same bits back, every refusal in one line. Nothing is sent."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import ancestral
from ancestral.diffusion.denoisers.denoiser import Denoiser
from ancestral.diffusion.samplers.grids import trailing
from ancestral.diffusion.samplers.sample import sample
from ancestral.diffusion.samplers.solvers import SOLVERS
from ancestral.errors import UserError
from ancestral.runs import build, checkpoint
from ancestral.runs.config import to_json
from ancestral.runs.hub import hub
from ancestral.runtime import verified_folder
from conftest import run_command

huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


REAL = {name: inspect.signature(getattr(huggingface_hub.HfApi, name)) for name in ("create_repo", "upload_folder")}


class Service:
    """The three calls that publishing makes, kept in folders laid out as the library's own cache."""

    def __init__(self, cache):
        self.cache, self.private, self.error = cache, {}, None

    def create_repo(self, name, *, private, exist_ok):
        REAL["create_repo"].bind(self, name, private=private, exist_ok=exist_ok)
        assert exist_ok
        if self.error is not None:
            raise self.error
        place = name if "/" in name else f"somebody/{name}"
        self.private.setdefault(place, private)
        return SimpleNamespace(repo_id=place)

    def model_info(self, name):
        return SimpleNamespace(private=self.private[name])

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        REAL["upload_folder"].bind(self, repo_id=repo_id, folder_path=folder_path, commit_message=commit_message)
        place = self.cache / f"models--{repo_id.replace('/', '--')}"
        shutil.copytree(folder_path, place / "snapshots" / COMMIT)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(COMMIT)

    def folder(self, name):
        return self.cache / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT


@pytest.fixture
def service(tmp_path, monkeypatch):
    made = Service(tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(made.cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    return made


def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def unmeasured(run, folder):
    """A copy without what other tests have measured of a run that all share."""
    return shutil.copytree(run, folder, ignore=shutil.ignore_patterns("evaluation.json", "metrics-*.json"))


@pytest.fixture
def evaluated(trained_run, tmp_path):
    run = unmeasured(trained_run, tmp_path / "digits")
    assert run_command("evaluate", run, "--num-images", 8, "--terms", 4, "--device", "cpu").exit_code == 0
    return run


def metadata(card):
    parsed = huggingface_hub.ModelCard(card)
    return {name: value for name, value in parsed.data.to_dict().items() if value}, parsed.text


def test_pushed_and_loaded_again_to_the_bit(any_run, service, tmp_path, monkeypatch):
    result = run_command("push", any_run, "somebody/digits")
    assert result.exit_code == 0, result.output
    assert "somebody/digits" in result.output
    assert service.private == {"somebody/digits": True}
    there = service.folder("somebody/digits")
    names = {"README.md", "manifest.json", "config.json", "model.safetensors", "state.json", "calibration.safetensors"}
    assert {path.name for path in there.iterdir()} == names  # no optimiser, no image, no path

    offline(monkeypatch)
    saved, _ = checkpoint.open_run(any_run)
    published = replace(saved.config, source=Path(saved.config.source).name)
    found = hub.load("somebody/digits")
    assert (found.config, found.facts, found.images) == (published, saved.facts, saved.images)
    assert found.weights.keys() == saved.weights.keys()
    assert all(torch.equal(value, saved.weights[name]) for name, value in found.weights.items())
    assert torch.equal(found.calibration, saved.calibration)

    model, own = ancestral.load("somebody/digits").denoiser, build.trained(saved, any_run, torch.device("cpu"))
    assert isinstance(model, Denoiser)
    grid = trailing(model.schedule, 3)
    drawn, expected = (sample(one, saved.facts.shape, 2, grid, SOLVERS["unipc3"]) for one in (model, own))
    assert torch.equal(drawn, expected)

    for source in ("hf:somebody/digits", f"hf:somebody/digits@{COMMIT}", there):
        run = tmp_path / f"run{len(str(source))}"
        result = run_command("import", source, "--out", run)
        assert result.exit_code == 0, result.output
        again, _ = checkpoint.open_run(run)
        assert to_json(again.config, again.facts) == to_json(published, saved.facts)
        assert all(torch.equal(value, saved.weights[name]) for name, value in again.weights.items())
        assert torch.equal(again.calibration, saved.calibration)
        options = ("--num-images", 2, "--variance", "optimal", "--steps", 3, "--device", "cpu", "--out")
        for model_folder, name in ((run, "a"), (any_run, "b")):
            assert run_command("sample", model_folder, *options, run / name).exit_code == 0
        assert (run / "a" / "grid.png").read_bytes() == (run / "b" / "grid.png").read_bytes()


def test_a_run_and_a_diffusers_folder_load_as_well(any_run, tmp_path):
    saved, _ = checkpoint.open_run(any_run)
    weights = ancestral.load(any_run).denoiser.network.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in saved.weights.items())
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(32, 32), down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2, layers_per_block=1,
    )  # fmt: skip
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "theirs")
    x = torch.randn(2, 3, 8, 8)
    output = ancestral.load(tmp_path / "theirs").denoiser.output(x, 500)
    assert torch.allclose(output, network(x, 499).sample, atol=1e-5)


def test_the_card_holds_what_was_measured_and_only_that(evaluated, service):
    report = json.loads((evaluated / "evaluation.json").read_text())
    other = {"network": "lite0", "drawing": {"model": "another"}, "metrics": {"fd": {"test": {"value": 812.5}}}}
    (evaluated / "metrics-other.json").write_text(json.dumps(other))
    other["drawing"] = {"model": report["model"], "average_width": 0.1}
    (evaluated / "metrics-width.json").write_text(json.dumps(other))
    other["drawing"] |= {"average_width": None, "times": [1000, 500, 0], "solver": "unipc3", "variance": "small"}
    (evaluated / "metrics-elsewhere.json").write_text(json.dumps({**other, "data": "mnist"}))
    other |= {"data": "digits", "network": {"network": "lite0", "side": 112}}
    other["metrics"]["fd"]["test"] = {"value": 3.25, "standard_error": 0.5}
    (evaluated / "metrics-lite0.json").write_text(json.dumps(other))
    (evaluated / "metrics-flat.json").write_text(json.dumps({"fd-flat": {"mean": 1.5}, "kid": {"mean": float("nan")}}))
    (evaluated / "metrics-broken.json").write_text("{")
    refused = run_command("push", evaluated, "digits", "--license", "cc0-1.0")
    assert refused.exit_code == 2
    assert "metrics-broken.json" in refused.output
    (evaluated / "metrics-broken.json").unlink()
    assert run_command("push", evaluated, "digits", "--license", "cc0-1.0").exit_code == 0
    head, text = metadata((service.folder("somebody/digits") / "README.md").read_text())
    assert head == {
        "library_name": "ancestral",
        "license": "cc0-1.0",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["ddpm", "diffusion", "denoising-diffusion"],
        "metrics": ["bits_per_dim", "fd", "fd-flat"],
    }
    bound = report["bits_per_dim"]["bound, bits/dim"]
    shown = f"{bound['mean']:.4g} | {bound['standard_error']:.2g} | {bound['largest_share']:.1%}"
    assert f"| bits_per_dim: bound, bits/dim | {shown} |" in text
    assert "| | value | standard error | largest image |\n|---|---|---|---|\n" in text
    assert "| fd: test | 3.25 | 0.5 |" in text
    assert "| fd-flat | 1.5 |  |" in text
    assert "812.5" not in text
    assert "nan" not in text
    assert "variance optimal" in text
    assert "(network lite0, steps 2, solver unipc3)" in text


def test_a_card_of_nothing_measured_says_so_and_older_numbers_are_left_out(trained_run, service, tmp_path):
    run = unmeasured(trained_run, tmp_path / "run")
    old = run / "metrics-old.json"
    old.write_text(json.dumps({"fd": {"mean": 77.0}}))
    os.utime(old, (1, 1))
    assert run_command("push", run, "digits").exit_code == 0
    head, text = metadata((service.folder("somebody/digits") / "README.md").read_text())
    assert "metrics" not in head
    assert head["license"] == "unknown"
    assert "Not measured." in text
    assert "77" not in text


def test_the_code_on_the_card_runs(any_run, service, monkeypatch):
    assert run_command("push", any_run, "digits").exit_code == 0
    text = (service.folder("somebody/digits") / "README.md").read_text()
    offline(monkeypatch)
    code = text.split("```python\n")[1].split("```")[0]
    assert "somebody/digits" in code
    names = {}
    exec(code, names)
    assert names["images"].array.shape == (16, 8, 8, checkpoint.open_run(any_run)[0].facts.shape[0])


def test_paths_of_this_machine_are_not_published(tmp_path, service):
    folder = tmp_path / "secret" / "cats"
    folder.mkdir(parents=True)
    for number in range(20):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(folder / f"{number}.png")
    run = tmp_path / "run"
    options = ("--preset", "tiny", "--steps", 1, "--device", "cpu", "--set", "model.width=8", "--batch-size", 4)
    cache = ("--set", f"data.cache={tmp_path / 'secret' / 'cache'}")
    result = run_command("train", folder, "--out", run, *options, *cache)
    assert result.exit_code == 0, result.output
    assert run_command("evaluate", run, "--num-images", 2, "--terms", 2, "--device", "cpu").exit_code == 0
    assert run_command("push", run, "cats").exit_code == 0
    there = service.folder("somebody/cats")
    assert not [path.name for path in there.iterdir() if b"secret" in path.read_bytes()]
    assert "Data: `cats`, 4 images seen." in (there / "README.md").read_text()
    assert json.loads((there / "config.json").read_text())["config"]["source"] == "cats"


def refused(arguments, *named):
    result = run_command(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.output.strip().splitlines()
    assert len(lines) == 1, result.output
    assert lines[0].startswith("error: ")
    assert all(name in lines[0] for name in named), lines[0]


def test_a_repository_keeps_its_visibility(trained_run, service):
    service.private = {"somebody/open": False, "somebody/closed": True}
    refused(("push", trained_run, "open"), "somebody/open", "public already", "--public")
    refused(("push", trained_run, "closed", "--public"), "somebody/closed", "private already")
    assert not service.cache.exists()
    assert run_command("push", trained_run, "open", "--public").exit_code == 0


def test_what_prevents_publishing_is_one_line(trained_run, service, tmp_path, monkeypatch):
    refused(("push", tmp_path / "none", "x"), "no such run")
    run = shutil.copytree(trained_run, tmp_path / "run")
    newest = max((run / "checkpoints").iterdir())
    shutil.copytree(newest, newest.with_name("999999999"))
    (newest.with_name("999999999") / "model.safetensors").write_bytes(b"x")
    for leaving in (
        ("push", run, "x/y"),
        ("export", run, "--out", tmp_path / "out"),
        ("import", run, "--out", tmp_path / "in"),
    ):
        refused(leaving, "model.safetensors", "move that checkpoint away")
    service.error = ConnectionError("nobody answers\nat all")
    refused(("push", trained_run, "x/y"), "x/y: nobody answers")
    service.error = huggingface_hub.errors.HFValidationError("long text")
    refused(("push", trained_run, "x/y/z"), "USER/NAME")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    refused(("push", trained_run, "x/y"), "hf auth login")
    offline(monkeypatch)
    refused(("push", trained_run, "x/y"), "HF_HUB_OFFLINE")
    assert not service.cache.exists()


def test_what_prevents_loading_is_one_line(service, tmp_path, monkeypatch):
    run = tmp_path / "run"
    refused(("import", "hf:x/../y", "--out", run), "USER/NAME")
    refused(("import", "hf:", "--out", run), "hf:: names no model; write hf:USER/NAME")

    def absent(*_, **__):
        raise huggingface_hub.errors.RepositoryNotFoundError("404\nmore", response=response())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    refused(("import", "hf:x/y", "--out", run), "x/y: no such repository")
    monkeypatch.undo()
    offline(monkeypatch)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    refused(("import", "hf:x/y", "--out", run), "x/y: not in the cache", "HF_HUB_OFFLINE")
    with pytest.raises(UserError, match="not in the cache"):
        ancestral.load("x/y")
    refused(("import", tmp_path / "absent", "--out", run), "no such folder", "hf:USER/NAME")
    assert not run.exists()


def response():
    import httpx

    return httpx.Response(404, request=httpx.Request("GET", "https://example.org"))


def test_damaged_published_folders_are_named(trained_run, tmp_path):
    saved, _ = checkpoint.open_run(trained_run)
    for number, (file, content, named) in enumerate(
        (
            ("model.safetensors", b"x", "model.safetensors: damaged"),
            ("state.json", None, "state.json"),
            ("manifest.json", b"[]", "manifest.json"),
        )
    ):
        folder = tmp_path / str(number)
        hub.write(saved, folder, "text")
        (folder / "README.md").write_text("a card may be changed")
        assert hub.load(folder).images == saved.images
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(content)
        refused(("import", folder, "--out", tmp_path / "run"), named)
    files = checkpoint.model_files(saved)
    for number, state in enumerate((b"{}", b"[1]", b'{"images": -1}', b'{"images": "1"}')):
        verified_folder.write(tmp_path / f"s{number}", {**files, "state.json": state})
        refused(("import", tmp_path / f"s{number}", "--out", tmp_path / "run"), "state.json")
    assert not (tmp_path / "run").exists()


def test_a_part_of_a_run_is_named_as_one(trained_run, tmp_path):
    for part in ("averages", "checkpoints"):
        refused(("import", trained_run / part, "--out", tmp_path / "run"), f"is a part of the run {trained_run}")


def test_nothing_pickled_is_downloaded(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **more: asked.update(more) or str(tmp_path))
    hub.fetch("x/y@main")

    def is_asked_for(name):
        return any(fnmatch(name, pattern) for pattern in asked["allow_patterns"])

    assert asked["revision"] == "main"
    taken = ("unet/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors", "scheduler/config.json")
    assert all(map(is_asked_for, (*taken, "model.safetensors", "manifest.json", "calibration.safetensors")))
    left = ("unet/diffusion_pytorch_model.bin", "pytorch_model.bin", "model.pkl", "unet/x.fp16.safetensors", "run.py")
    assert not any(map(is_asked_for, left))


def test_the_package_loads_nothing_until_asked():
    probe = "import sys, ancestral; ancestral.__all__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_what_is_downloaded_is_shown_with_the_time_left(monkeypatch, tmp_path):
    said = []

    def download(name, *, tqdm_class, **more):  # as the library has it: the total is known file by file
        with tqdm_class(total=0, initial=0, unit="B", unit_scale=True, desc="Downloading bytes") as one:
            said.append(made[-1].lines())
            one.total = 60
            one.total += 140
            one.update(50)
            one.refresh()
            said.append([line.rpartition(",")[0] for line in made[-1].lines()])
        said.append(made[-1].lines())
        return str(tmp_path)

    class Seen(hub.Progress):
        def __init__(self):
            super().__init__()
            made.append(self)

    made = []
    monkeypatch.setattr(hub, "Progress", Seen)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (tmp_path / "x.safetensors").touch()
    hub.fetch("x/y")
    assert said == [["Downloading bytes, 0%, -:-- left"], ["Downloading bytes, 25%"], []]
