"""Models from elsewhere pass one gate: what is absurd is refused in one line, before a run is made."""

import json
import math
import re
import shutil
import subprocess
import time
from hashlib import sha256

import pytest
import safetensors.torch
import torch

from ancestral.diffusion.denoisers.calibrated import BUCKETS
from ancestral.errors import UserError
from ancestral.runs import checkpoint
from ancestral.runs.config import Config, DiffusionOptions, ModelOptions
from ancestral.runs.facts import Facts
from ancestral.runs.hub import diffusers, hub, import_checks
from ancestral.runtime import verified_folder
from conftest import run_command

ODD = (None, True, -1, 0, 10**9, 10**30, 1.5, math.nan, math.inf, "x", [], {}, [16], [[16]], [10**9], ["x"], [None] * 9)
NETWORK = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 16], "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4, "norm_eps": 1e-5, "attention_head_dim": 8, "dropout": 0.0, "downsample_padding": 1,
    "flip_sin_to_cos": True, "freq_shift": 0, "num_class_embeds": None,
}  # fmt: skip
SCHEDULER = {
    "num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02,
    "trained_betas": None, "prediction_type": "epsilon", "variance_type": "fixed_small", "clip_sample": True,
    "clip_sample_range": 1.0, "thresholding": False, "rescale_betas_zero_snr": False,
}  # fmt: skip
FILES = {"unet/config.json": NETWORK, "scheduler/scheduler_config.json": SCHEDULER}
TENSORS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def weights():
    """Theirs, of NETWORK: as an export writes them."""
    config = Config(
        "x",
        ModelOptions(
            8, (1, 2), 1, (1,), 0.0, groups=4, norm_eps=1e-5, head_width=8, cosine_first=True, frequency_shift=0
        ),
        DiffusionOptions(variance="fixedsmall", clock="zero-based"),
    )
    return config, {
        name: torch.randn(one.shape) / 10
        for name, one in import_checks.tensors_of(config, Facts((1, 8, 8)), "x").items()
    }


@pytest.fixture
def folder(weights, tmp_path):
    """A diffusers folder that is imported."""
    config, ours = weights
    checkpoint.save_imported(
        tmp_path / "ours", checkpoint.Checkpoint(tmp_path, 0, config, Facts((1, 8, 8)), ours, {}, {}, None)
    )
    diffusers.export_run(tmp_path / "ours", tmp_path / "theirs")
    for file, values in FILES.items():
        (tmp_path / "theirs" / file).write_text(json.dumps(values))
    return tmp_path / "theirs"


def changed(folder, file, text):
    (folder / file).write_text(text)
    began = time.process_time()
    result = run_command("import", folder, "--out", folder.parent / "run")
    assert time.process_time() - began < 5
    return result


@pytest.mark.parametrize(("file", "field"), [(file, field) for file, values in FILES.items() for field in values])
def test_absurd_values_are_refused_by_field_or_really_open(folder, file, field):
    """17 values for each of 26 fields."""
    refused = 0
    for value in ODD:
        result = changed(folder, file, json.dumps({**FILES[file], field: value}))
        run = folder.parent / "run"
        if result.exit_code == 0:
            opened = run_command("sample", run, "--out", run.parent / "out", "--num-images", "1", "--steps", "2")
            assert opened.exit_code == 0, (field, value, opened.output)
            shutil.rmtree(run)
            continue
        assert (result.exit_code, len(result.output.splitlines())) == (2, 1), (field, value, result.output)
        said = result.output.partition(f"{file.rpartition('/')[2]}: ")[2] or result.output
        assert any(re.search(rf"\b{word}\b", said) for word in (field, "JSON", "has shape", "tensor [a-z]")), (
            value,
            result.output,
        )
        assert not run.exists()
        refused += 1
    assert refused >= len(ODD) - 3


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", "null", '{"sample_size": 1e999}', '"x"'])
def test_what_is_no_configuration(folder, text):
    for file in FILES:
        result = changed(folder, file, text)
        assert (result.exit_code, len(result.output.splitlines())) == (2, 1)
        assert file in result.output
        changed(folder, file, json.dumps(FILES[file]))
        shutil.rmtree(folder.parent / "run", ignore_errors=True)


def test_what_carries_no_digest_is_said_with_its_sha256_and_kept(folder):
    run = folder.parent / "run"
    result = run_command("import", folder, "--out", run)
    assert result.exit_code == 0, result.output
    digests = {name: sha256((folder / name).read_bytes()).hexdigest() for name in (*FILES, TENSORS)}
    said = result.output.splitlines()[1:]
    assert said[0] == hub.UNCHECKED
    assert set(said[1:]) == {f"  {digest}  {name}" for name, digest in digests.items()}
    assert checkpoint.open_run(run)[0].state["read"] == digests
    again = run_command("import", run, "--out", folder.parent / "again")
    assert again.exit_code == 0, again.output
    assert hub.UNCHECKED not in again.output  # a run has digests
    assert checkpoint.open_run(folder.parent / "again")[0].state["read"] == digests


def test_files_that_the_hub_s_cache_names_by_their_digests_are_checked(folder):
    """As the hub's library lays them out: large files by SHA-256, small ones by git's SHA-1 of `blob SIZE NUL ...`."""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for name in (*FILES, TENSORS):
        content = (folder / name).read_bytes()
        git = subprocess.run(["git", "hash-object", folder / name], capture_output=True, text=True, check=True)
        blob = blobs / (sha256(content).hexdigest() if name == TENSORS else git.stdout.strip())
        (folder / name).rename(blob)
        (folder / name).symlink_to(blob)
    result = run_command("import", folder, "--out", folder.parent / "run")
    assert (result.exit_code, len(result.output.splitlines())) == (0, 1), result.output
    for name, old, new in ((TENSORS, None, None), ("unet/config.json", b"1e-05", b"2e-05")):
        blob = (folder / name).resolve()
        content = blob.read_bytes()
        blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if old is None else content.replace(old, new))
        result = run_command("import", folder, "--out", folder.parent / "other")
        assert (result.exit_code, len(result.output.splitlines())) == (2, 1), result.output
        assert f"{folder / name}: damaged (its digest" in result.output.replace("\n", "")
        blob.write_bytes(content)
    assert not (folder.parent / "other").exists()


def test_a_flipped_exponent_is_refused(folder):
    tensors = safetensors.torch.load_file(folder / TENSORS)
    name = "conv_in.weight"
    tensors[name].view(torch.int32).flatten()[3] ^= 1 << 30  # times 2^128
    safetensors.torch.save_file(tensors, folder / TENSORS)
    result = run_command("import", folder, "--out", folder.parent / "run")
    assert (result.exit_code, len(result.output.splitlines())) == (2, 1), result.output
    assert re.search(rf"{TENSORS}: damaged\? {name} holds \d", result.output)
    assert not (folder.parent / "run").exists()


def test_a_network_whose_output_overflows_is_refused(weights, tmp_path):
    config, ours = weights
    ours = {**ours, "head.0.bias": torch.full((8,), 1e38), "head.2.weight": torch.full((1, 8, 3, 3), 1e3)}
    with pytest.raises(UserError, match="output is not finite"):
        import_checks.passed(checkpoint.Checkpoint(tmp_path, 0, config, Facts((1, 8, 8)), ours, {}, {}, None))


def test_what_leaves_a_run_fits_its_configuration(weights, tmp_path):
    """A tensor that is missing would be missing from the export too."""
    config, ours = weights
    name = "stem.weight"
    for changed in ({key: one for key, one in ours.items() if key != name}, {**ours, name: ours[name][None]}):
        run = tmp_path / str(len(changed))
        saved = checkpoint.Checkpoint(tmp_path, 0, config, Facts((1, 8, 8)), changed, {}, {}, None)
        checkpoint.save_imported(run, saved)
        with pytest.raises(UserError, match=rf"model\.safetensors: .*{name}"):
            diffusers.export_run(run, tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_another_class_is_refused_by_name(folder):
    result = changed(folder, "unet/config.json", json.dumps({**NETWORK, "_class_name": "UNet2DConditionModel"}))
    assert result.exit_code == 2
    assert "UNet2DConditionModel" in result.output


ATTENTION = "mid_block.attentions.0.to_q.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"conv_in.weight": (3, 3, 1, 8)}, "conv_in.weight has shape"),
        ({"conv_in.weight": None}, "no tensor conv_in.weight"),
        ({"other": (1,)}, "unknown tensor other"),
        ({ATTENTION.replace("to_q", "query"): (16, 16)}, "name the same tensor"),
        ({ATTENTION: (16, 16, 1, 1)}, "to_q.weight has shape"),
        ({"conv_in.bias": torch.full((8,), math.nan)}, "conv_in.bias is not finite"),
        ({"conv_in.bias": torch.full((8,), math.inf)}, "conv_in.bias is not finite"),
        ({"conv_in.bias": torch.ones(8, dtype=torch.int32)}, "conv_in.bias holds"),
        ({"conv_in.bias": torch.full((8,), 1e300, dtype=torch.float64)}, "conv_in.bias holds 1e+300"),
        ({"conv_in.bias": torch.full((8,), -2e6)}, "conv_in.bias holds 2e+06"),
    ],
    ids=str,
)
def test_weights_fit_to_the_name_and_shape(folder, change, said):
    tensors = safetensors.torch.load_file(folder / TENSORS)
    for name, value in change.items():
        tensors[name] = torch.zeros(value) if isinstance(value, tuple) else value
    safetensors.torch.save_file({name: one for name, one in tensors.items() if one is not None}, folder / TENSORS)
    result = run_command("import", folder, "--out", folder.parent / "run")
    assert (result.exit_code, len(result.output.splitlines())) == (2, 1), result.output
    assert said in result.output
    assert not (folder.parent / "run").exists()


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"model": {"width": 10**9}}, "width"),
        ({"model": {"blocks": 10**9}}, "blocks"),
        ({"model": {"multipliers": [2**16] * 16}}, "model"),
        ({"model": {"attention": [9]}}, "attention"),
        ({"diffusion": {"T": 10**9}}, "T"),
        ({"diffusion": {"T": 10}}, "x0_var"),
        ({"diffusion": {"schedule": "none"}}, "schedule"),
        ({"model": {"groups": 3}}, "model.groups: 3 do not divide"),
    ],
    ids=str,
)
def test_published_folders_pass_it_too(weights, tmp_path, document, said):
    config, ours = weights
    facts = Facts((1, 8, 8))
    saved = checkpoint.Checkpoint(tmp_path, 0, config, facts, ours, {}, {}, torch.zeros(1001, BUCKETS))
    hub.write(saved, tmp_path / "published", "card")
    assert run_command("import", tmp_path / "published", "--out", tmp_path / "good").exit_code == 0
    files = verified_folder.read(tmp_path / "published")
    settings = json.loads(files["config.json"])
    for group, values in document.items():
        settings["config"][group] |= values
    verified_folder.write(tmp_path / "published", {**files, "config.json": json.dumps(settings).encode()})
    began = time.process_time()
    result = run_command("import", tmp_path / "published", "--out", tmp_path / "run")
    assert time.process_time() - began < 5
    assert (result.exit_code, len(result.output.splitlines())) == (2, 1), result.output
    assert said in result.output
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError):
        hub.load(tmp_path / "published")
