"""Folders as people have them, written by diffusers itself: each is read as it says, or refused by name."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

import ancestral
from ancestral.errors import UserError
from ancestral.runs import build, checkpoint
from ancestral.runs.config import LATER, Config, to_json
from ancestral.runs.facts import Facts
from ancestral.runs.sampling_options import SamplingOptions
from ancestral.sampling.sampler import Sampler
from ancestral.sampling.table import TableSampler
from conftest import run_command

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")

NETWORK = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (32, 32),
    "norm_num_groups": 16,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
}
ATTENDING = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
GREY = {"in_channels": 1, "out_channels": 1}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def random_network(**changes):
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(**{**NETWORK, **changes}).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return network


def pipeline(folder, network=None, scheduler=None, **options):
    network = network or random_network()
    diffusers.DDPMPipeline(network, scheduler or diffusers.DDPMScheduler()).save_pretrained(folder, **options)
    return network


def imported(folder, *options):
    run = folder.parent / f"{folder.name}-run"
    result = run_command("import", folder, "--out", run, *options)
    assert result.exit_code == 0, result.output
    saved = checkpoint.open_run(run)[0]
    return saved, build.trained(saved, run, torch.device("cpu")), " ".join(result.output.split())


def refused(folder, *options):
    run = folder.parent / f"{folder.name}-run"
    result = run_command("import", folder, "--out", run, *options)
    assert (result.exit_code, len(result.output.splitlines())) == (2, 1), result.output
    assert not run.exists()
    return result.output


def same_outputs(model, network, shape, of_class=None, **cond):
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for t in (1, 418, model.schedule.T):
            expected = network(x, t - 1, class_labels=of_class).sample
            found = model.output(x, t, **cond)
            assert float((found - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max())), t


D, A, U, B = "DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"
LEVELS = {  # block types, three widths
    "three": ((D, D, D), (U, U, U)),
    "attends-first": ((A, D, D), (U, U, B)),
    "attends-last": ((D, D, A), (B, U, U)),
    "attends-all": ((A, A, A), (B, B, B)),
}
THREE = {"block_out_channels": (32, 32, 32)}
READ = {
    "plain": {},
    "grey": GREY,
    "two-channels": {"in_channels": 2, "out_channels": 2},
    "four-channels": {"in_channels": 4, "out_channels": 4},
    "wide": {"sample_size": (8, 16)},
    "tall": {"sample_size": [16, 8]},
    "one-level": {"block_out_channels": (32,), "down_block_types": (D,), "up_block_types": (U,)},
    "one-level-attends": {"block_out_channels": (32,), "down_block_types": (A,), "up_block_types": (B,)},
    **{name: {**THREE, "down_block_types": d, "up_block_types": u} for name, (d, u) in LEVELS.items()},
    "attention": ATTENDING,
    "one-head": {**ATTENDING, "attention_head_dim": None},
    "heads-of-16": {**ATTENDING, "attention_head_dim": 16},
    "heads-of-4": {**ATTENDING, "attention_head_dim": 4},
    "two-blocks": {"layers_per_block": 2},
    "three-blocks": {"layers_per_block": 3},
    "widths-32-64": {"block_out_channels": (32, 64)},
    "widths-32-48": {"block_out_channels": (32, 48)},
    "widths-48-32": {"block_out_channels": (48, 32)},
    "widths-64-32": {"block_out_channels": (64, 32)},
    "widths-48-80": {"block_out_channels": (48, 80), **ATTENDING},
    "widths-48-64-80": {**THREE, "block_out_channels": (48, 64, 80), "down_block_types": (D, A, D),
                        "up_block_types": (U, B, U)},
    "groups-8": {"norm_num_groups": 8},
    "groups-32": {"norm_num_groups": 32},
    "groups-1": {"norm_num_groups": 1},
    "eps": {"norm_eps": 1e-6},
    "sines-first": {"flip_sin_to_cos": False},
    "shift": {"freq_shift": 1},
    "pads-at-the-end": {"downsample_padding": 0},
    "dropout": {"dropout": 0.1},
    "swish": {"act_fn": "swish"},
    "gelu": {"act_fn": "gelu"},
    "mish": {"act_fn": "mish"},
    "relu": {"act_fn": "relu"},
    "scale-shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale-shift-attention": {"resnet_time_scale_shift": "scale_shift", **ATTENDING},
    "scale-shift-middle-norm": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8},
    "scale-shift-same-norm": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 16},
    "scale-shift-gelu": {"resnet_time_scale_shift": "scale_shift", "act_fn": "gelu"},
    "middle-norm": {"attn_norm_num_groups": 4},
    "middle-without-attention": {"add_attention": False},
    "time-width": {"time_embedding_dim": 64},
    "odd-time-width": {"time_embedding_dim": 100},
    "same-time-width": {"time_embedding_dim": 128},
    "classes": {"num_class_embeds": 4},
    "grey-classes": {**GREY, "num_class_embeds": 4},
    "class-numbers": {"class_embed_type": "timestep", "num_class_embeds": 4},
    "class-vector": {"class_embed_type": "identity"},
    "learned-variance": {"out_channels": 6},
    "grey-learned-variance": {"in_channels": 1, "out_channels": 2},
    "cifar": {**ATTENDING, "attention_head_dim": None, "norm_eps": 1e-6, "flip_sin_to_cos": False, "freq_shift": 1,
              "downsample_padding": 0},
}  # fmt: skip
REFUSED = {  # by the field that is named
    "fourier": ("time_embedding_type", {"time_embedding_type": "fourier"}),
    "learned-times": ("time_embedding_type", {"time_embedding_type": "learned", "num_train_timesteps": 1000}),
    "centred": ("center_input_sample", {"center_input_sample": True}),
    "middle-scaled": ("mid_block_scale_factor", {"mid_block_scale_factor": 2**0.5}),
    "resnet-down": ("downsample_type", {"downsample_type": "resnet", **ATTENDING}),
    "no-middle": ("mid_block_type", {"mid_block_type": None}),
    "skip-blocks": ("down_block_types", {"down_block_types": ("DownBlock2D", "ResnetDownsampleBlock2D")}),
    "other-attention": ("up_block_types", {"down_block_types": (D, A)}),
    "no-size": ("sample_size", {"sample_size": None}),
}


def test_most_configurations_of_the_network_are_read():
    assert len(READ) + len(REFUSED) >= 61
    assert len(READ) >= 50


@pytest.mark.parametrize("name", READ)
def test_outputs_are_theirs_and_come_back_from_an_export(tmp_path, name):
    fields = READ[name]
    variance = "learned_range" if name.endswith("learned-variance") else "fixed_small"
    network = pipeline(tmp_path / "theirs", random_network(**fields), diffusers.DDPMScheduler(variance_type=variance))
    saved, model, _ = imported(tmp_path / "theirs")
    kind, cond, labels = fields.get("class_embed_type"), {}, None
    if kind == "identity":
        labels = torch.randn(2, 128, generator=torch.Generator().manual_seed(4))
        cond = {"embedding": labels}
    elif "num_class_embeds" in fields:
        labels = torch.tensor([1, 3])
        cond = {"labels": labels}
    same_outputs(model, network, saved.facts.shape, labels, **cond)
    result = run_command("export", tmp_path / "theirs-run", "--out", tmp_path / "back")
    if kind == "identity":
        assert result.exit_code == 2
        assert "model.embedding" in result.output
        assert "models that take vectors are not exported" in result.output
        return
    assert result.exit_code == 0, result.output
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "back" / "unet")
    same_outputs(model, again.eval(), saved.facts.shape, labels, **cond)
    if kind is None:
        before, after = (safetensors.torch.load_file(tmp_path / one / "unet" / WEIGHTS) for one in ("theirs", "back"))
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("name", REFUSED)
def test_other_networks_are_refused_by_field(tmp_path, name):
    field, fields = REFUSED[name]
    pipeline(tmp_path / "theirs")
    path = tmp_path / "theirs" / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    assert f"config.json: {field} is" in refused(tmp_path / "theirs")


def test_settings_that_came_later_leave_older_runs_as_they_were():
    document = to_json(Config("x"), Facts((3, 8, 8)))["config"]
    assert all(name not in document[group] for group, name, _ in LATER)
    assert document["model"]["multipliers"] == (1, 2, 2, 2)
    # All that is written of a run without them was written of the first ones.
    first = json.loads((Path(__file__).parents[1] / "golden" / "run" / "config.json").read_text())["config"]
    assert {name: set(one) for name, one in document.items() if isinstance(one, dict)} == {
        name: set(one) for name, one in first.items() if isinstance(one, dict)
    }


def latent(folder):
    diffusers.LDMPipeline(
        vqvae=diffusers.VQModel(block_out_channels=(32,), norm_num_groups=32, latent_channels=3),
        unet=random_network(),
        scheduler=diffusers.DDIMScheduler(),
    ).save_pretrained(folder)


@pytest.mark.parametrize("index", [True, False])
def test_a_latent_model_is_refused(tmp_path, index):
    latent(tmp_path / "theirs")
    if not index:
        (tmp_path / "theirs" / "model_index.json").unlink()
    assert ("LDMPipeline" if index else "vqvae") in refused(tmp_path / "theirs")


@pytest.mark.parametrize(
    "kind", ["AutoencoderKL", "VQModel", "UNet2DConditionModel", "DiTTransformer2DModel", "SomethingElse"]
)
def test_another_network_is_refused_by_class(tmp_path, kind):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({"_class_name": kind, "sample_size": 8}))
    assert f'_class_name is "{kind}"' in refused(tmp_path / "theirs", "--scheduler", tmp_path)


def test_a_lora_is_refused_alone_and_said_beside_weights(tmp_path):
    pipeline(tmp_path / "theirs")
    (tmp_path / "lora").mkdir()
    for folder in ("lora", "theirs"):
        safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / folder / "pytorch_lora_weights.safetensors")
    assert "is a LoRA" in refused(tmp_path / "lora")
    assert "pytorch_lora_weights.safetensors: a LoRA beside the weights, left out" in imported(tmp_path / "theirs")[2]


def test_zero_snr_with_eps_is_refused_before_a_run_is_written(tmp_path):
    pipeline(tmp_path / "named", scheduler=diffusers.DDPMScheduler(rescale_betas_zero_snr=True))
    assert "rescale_betas_zero_snr" in refused(tmp_path / "named")
    betas = [*torch.linspace(1e-3, 0.02, 99).tolist(), 1.0]
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100, trained_betas=betas)
    pipeline(tmp_path / "given", scheduler=scheduler)
    assert "trained_betas" in refused(tmp_path / "given")


def test_one_step_is_read_and_of_nothing_but_noise_is_refused(tmp_path):
    for name, fields, field in (
        ("named", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ("given", {"trained_betas": [1.0]}, "trained_betas"),
    ):
        one = diffusers.DDPMScheduler(num_train_timesteps=1, prediction_type="sample")
        pipeline(tmp_path / name, scheduler=one)
        path = tmp_path / name / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
        assert field in refused(tmp_path / name)
    pipeline(tmp_path / "half", scheduler=diffusers.DDPMScheduler(num_train_timesteps=1, trained_betas=[0.5]))
    assert imported(tmp_path / "half")[0].config.diffusion.betas == (0.5,)


def test_weights_of_other_widths_are_kept_as_float32(tmp_path):
    network = random_network()
    pipeline(tmp_path / "eight", copy.deepcopy(network))
    path = tmp_path / "eight" / "unet" / WEIGHTS
    narrow = {name: one.to(torch.float8_e4m3fn) for name, one in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(narrow, path)
    said = imported(tmp_path / "eight")
    network.load_state_dict({name: one.float() for name, one in narrow.items()})
    same_outputs(said[1], network, (3, 8, 8))
    pipeline(tmp_path / "same", copy.deepcopy(network).double())
    assert "rounded" not in said[2] + imported(tmp_path / "same")[2]
    wide = copy.deepcopy(network).double()
    with torch.no_grad():
        wide.conv_in.weight.mul_(1 + 1e-12)
    pipeline(tmp_path / "wide", wide)
    assert "float64 weights were rounded to float32" in imported(tmp_path / "wide")[2]


def test_half_precision_and_shards_are_read(tmp_path):
    network = random_network()
    pipeline(tmp_path / "half", copy.deepcopy(network).half(), variant="fp16")
    pipeline(tmp_path / "shards", copy.deepcopy(network), max_shard_size="100KB")
    pipeline(tmp_path / "both", copy.deepcopy(network).half(), variant="fp16", max_shard_size="100KB")
    same_outputs(imported(tmp_path / "shards")[1], network, (3, 8, 8))
    same_outputs(imported(tmp_path / "half")[1], copy.deepcopy(network).half().float(), (3, 8, 8))
    same_outputs(imported(tmp_path / "both")[1], copy.deepcopy(network).half().float(), (3, 8, 8))
    assert len(list((tmp_path / "shards" / "unet").glob("*-of-*"))) > 1
    shard = sorted((tmp_path / "shards" / "unet").glob("*-of-*"))[0]
    shard.unlink()
    shutil.rmtree(tmp_path / "shards-run")
    assert shard.name in refused(tmp_path / "shards")


def test_pickled_weights_are_not_opened(tmp_path):
    pipeline(tmp_path / "theirs", safe_serialization=False)
    assert "pickled weights are not opened" in refused(tmp_path / "theirs")


def test_a_checkpoint_of_the_training_script_needs_its_scheduler_named(tmp_path):
    from diffusers.training_utils import EMAModel

    folder, network, average = tmp_path / "checkpoint-500", random_network(), random_network()
    with torch.no_grad():
        average.conv_in.weight.mul_(2)
    network.save_pretrained(folder / "unet")
    EMAModel(
        average.parameters(), decay=0.9999, use_ema_warmup=True, model_cls=diffusers.UNet2DModel,
        model_config=average.config,
    ).save_pretrained(folder / "unet_ema")  # fmt: skip
    assert "--scheduler" in refused(folder)
    diffusers.DDPMScheduler(prediction_type="sample").save_pretrained(tmp_path / "scheduler")
    assert f"--scheduler {tmp_path / 'scheduler'}" in refused(folder)
    saved, model, said = imported(folder, "--scheduler", tmp_path / "scheduler")
    assert saved.config.diffusion.target == "x0"
    assert "unet_ema" in said
    same_outputs(model, average, (3, 8, 8))
    loaded = ancestral.load(folder, "cpu", scheduler=tmp_path / "scheduler" / "scheduler_config.json")
    assert loaded.saved.config.diffusion == saved.config.diffusion
    same_outputs(loaded.denoiser, average, (3, 8, 8))
    with pytest.raises(UserError, match=r"scheduler: a file or folder that is there is needed, got 'none'"):
        ancestral.load(folder, "cpu", scheduler="none")


OLD = ("_class_name", "beta_end", "beta_schedule", "beta_start", "clip_sample", "num_train_timesteps", "trained_betas")


@pytest.mark.parametrize(
    ("fields", "target"),
    [({"tensor_format": "pt"}, "eps"), ({"predict_epsilon": True}, "eps"), ({"predict_epsilon": False}, "x0")],
    ids=str,
)
def test_fields_of_old_versions(tmp_path, fields, target):
    pipeline(tmp_path / "theirs")
    path = tmp_path / "theirs" / "scheduler" / "scheduler_config.json"
    now = json.loads(path.read_text())
    path.write_text(json.dumps({**{name: now[name] for name in OLD}, "variance_type": "fixed_large", **fields}))
    options = imported(tmp_path / "theirs")[0].config.diffusion
    assert (options.target, options.variance, options.schedule) == (target, "fixedlarge", "linear")


TRAINED = {"clip_sample": True, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
SOLVERS = {  # by class: the clip that it has when it took the place of a scheduler that clips
    "DDIM": "static",
    "DDPM": "static",
    "DPMSolverMultistep": "none",
    "DPMSolverSinglestep": "none",
    "UniPCMultistep": "none",
    "DEISMultistep": "none",
    "EulerDiscrete": "none",
    "EulerAncestralDiscrete": "none",
    "PNDM": "none",
    "IPNDM": "none",
    "LMSDiscrete": "none",
    "KDPM2Discrete": "none",
    "HeunDiscrete": "static",
}


@pytest.mark.parametrize("kind", SOLVERS)
def test_a_scheduler_in_the_place_of_another_is_of_the_same_process(tmp_path, kind):
    random_network().save_pretrained(tmp_path / "theirs" / "unet")
    swapped = getattr(diffusers, f"{kind}Scheduler").from_config(diffusers.DDPMScheduler(**TRAINED).config)
    swapped.save_pretrained(tmp_path / "theirs" / "scheduler")
    saved, model, _ = imported(tmp_path / "theirs")
    options = saved.config.diffusion
    found = (options.schedule, options.target, options.clip, options.variance, options.T)
    assert found == ("cosine", "v", SOLVERS[kind], "fixedsmall", 1000)
    if hasattr(swapped, "alphas_cumprod"):
        expected = torch.as_tensor(swapped.alphas_cumprod).double()
        assert torch.allclose(model.schedule.alpha_bar(torch.arange(1, 1001)), expected, atol=1e-6)


def test_a_scheduler_that_says_nothing_of_the_process_is_refused(tmp_path):
    random_network().save_pretrained(tmp_path / "theirs" / "unet")
    diffusers.IPNDMScheduler().save_pretrained(tmp_path / "theirs" / "scheduler")
    assert "IPNDMScheduler" in refused(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"num_train_timesteps": 200}, "betas"),
        ({"num_train_timesteps": 200, "beta_schedule": "squaredcos_cap_v2"}, "cosine"),
        ({"beta_end": 0.03}, "betas"),
        ({"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012}, "scaled-linear"),
        ({"beta_schedule": "scaled_linear"}, "betas"),
        ({"beta_schedule": "sigmoid"}, "betas"),
        ({"trained_betas": torch.linspace(2e-4, 0.03, 1000).tolist()}, "betas"),
        ({"trained_betas": torch.linspace(2e-4, 0.03, 50).tolist(), "num_train_timesteps": 50}, "betas"),
        ({"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, "linear-zero-snr"),
        ({"rescale_betas_zero_snr": True, "prediction_type": "sample", "num_train_timesteps": 300}, "betas"),
    ],
    ids=str,
)
def test_any_schedule_is_read_and_leaves_again(tmp_path, fields, name):
    scheduler = diffusers.DDPMScheduler(**fields)
    network = pipeline(tmp_path / "theirs", scheduler=scheduler)
    saved, model, _ = imported(tmp_path / "theirs")
    assert saved.config.diffusion.schedule == name
    assert saved.config.diffusion.T == scheduler.config.num_train_timesteps == model.schedule.T
    found = model.schedule.alpha_bar(torch.arange(1, model.schedule.T + 1))
    assert torch.allclose(found, scheduler.alphas_cumprod.double(), rtol=1e-3, atol=1e-6)
    same_outputs(model, network, (3, 8, 8))
    assert run_command("export", tmp_path / "theirs-run", "--out", tmp_path / "back").exit_code == 0
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path / "back").scheduler
    assert torch.allclose(again.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-3, atol=1e-6)
    assert again.config.rescale_betas_zero_snr == (name == "linear-zero-snr")
    opened = run_command(
        "sample", tmp_path / "theirs-run", "--out", tmp_path / "o", "--num-images", "1", "--steps", "3"
    )
    assert opened.exit_code == 0, opened.output


@pytest.mark.parametrize(("limit", "fields"), [(1.0, {}), (2.5, {"clip_sample_range": 2.5})])
def test_the_range_of_the_clip(tmp_path, limit, fields):
    pipeline(tmp_path / "theirs", scheduler=diffusers.DDPMScheduler(**fields))
    saved, model, _ = imported(tmp_path / "theirs")
    assert saved.config.diffusion.clip_range == limit
    sampler = Sampler(tmp_path / "theirs-run", SamplingOptions(steps=2), "cpu")
    assert TableSampler(model.network, sampler).limit == limit
    x0 = torch.linspace(-4, 4, 9, dtype=torch.float64)
    assert torch.allclose(model.clip(x0), x0.clamp(-limit, limit), rtol=1e-15)
    assert run_command("export", tmp_path / "theirs-run", "--out", tmp_path / "back").exit_code == 0
    assert diffusers.DDPMPipeline.from_pretrained(tmp_path / "back").scheduler.config.clip_sample_range == limit


def test_the_logarithm_of_a_variance_is_the_same_variance(tmp_path):
    pipeline(tmp_path / "theirs", scheduler=diffusers.DDPMScheduler(variance_type="fixed_small_log"))
    assert imported(tmp_path / "theirs")[0].config.diffusion.variance == "fixedsmall"


def test_twice_the_channels_with_a_fixed_variance_blames_the_variance(tmp_path):
    pipeline(tmp_path / "theirs", random_network(out_channels=6))
    assert "scheduler_config.json: variance_type is" in refused(tmp_path / "theirs")


@pytest.mark.parametrize("null", [0, 2, 4])
@pytest.mark.parametrize("channels", [GREY, {}], ids=["grey", "colour"])
def test_a_class_for_none_is_guided_from(tmp_path, null, channels):
    network = pipeline(tmp_path / "theirs", random_network(num_class_embeds=5, **channels))
    saved, model, said = imported(tmp_path / "theirs", "--null-class", null)
    names = [str(number) for number in range(5) if number != null]
    assert list(saved.facts.class_names) == names
    assert f"class {null} is none of the others" in said
    shape, classes = saved.facts.shape, torch.tensor([1, 3])
    same_outputs(model, network, shape, classes, labels=torch.tensor([names.index("1"), names.index("3")]))
    none = torch.tensor([True, True])
    same_outputs(model, network, shape, torch.tensor([null, null]), labels=torch.tensor([0, 1]), dropped=none)
    loaded = ancestral.load(tmp_path / "theirs", "cpu", null_class=null)
    assert loaded.saved.facts == saved.facts
    same_outputs(loaded.denoiser, network, shape, torch.tensor([null, null]), labels=torch.tensor([0, 1]), dropped=none)
    run, out = tmp_path / "theirs-run", tmp_path / "out"
    drawn = run_command("sample", run, "--out", out, "--num-images", "2", "--steps", "2", "--guidance", "2")
    assert drawn.exit_code == 0, drawn.output
    exported = run_command("export", run, "--out", tmp_path / "back")
    assert exported.exit_code == 0, exported.output
    assert "class 4 is none of the others" in exported.output
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "back" / "unet").eval()
    same_outputs(model, again, shape, torch.tensor([4, 4]), labels=torch.tensor([0, 1]), dropped=none)


def test_guidance_without_a_null_class_says_how_to_have_one(tmp_path):
    pipeline(tmp_path / "theirs", random_network(num_class_embeds=5))
    imported(tmp_path / "theirs")
    result = run_command("sample", tmp_path / "theirs-run", "--out", tmp_path / "out", "--guidance", "2")
    assert result.exit_code == 2
    assert "--null-class N" in result.output


def test_a_null_class_that_is_not_there(tmp_path):
    pipeline(tmp_path / "theirs", random_network(num_class_embeds=5))
    assert "--null-class 5" in refused(tmp_path / "theirs", "--null-class", "5")
    pipeline(tmp_path / "none")
    assert "0 classes" in refused(tmp_path / "none", "--null-class", "0")
    for wrong, named in ((5, "the network has 5 classes, from 0"), ("1", "needed, got '1'"), (True, "got True")):
        with pytest.raises(UserError, match=named):
            ancestral.load(tmp_path / "theirs", null_class=wrong)
    imported(tmp_path / "theirs")
    with pytest.raises(UserError, match="null_class: is of diffusers folders"):
        ancestral.load(tmp_path / "theirs-run", null_class=0)


def test_the_spacing_of_times_leaves_as_it_was_or_as_asked(tmp_path):
    def exported(*options):
        result = run_command("export", tmp_path / "theirs-run", "--out", tmp_path / "back", *options)
        assert result.exit_code == 0, result.output
        return diffusers.DDPMPipeline.from_pretrained(tmp_path / "back").scheduler.config.timestep_spacing

    pipeline(tmp_path / "theirs", scheduler=diffusers.DDPMScheduler(timestep_spacing="linspace"))
    imported(tmp_path / "theirs")
    assert exported() == "linspace"
    shutil.rmtree(tmp_path / "back")
    assert exported("--timestep-spacing", "trailing") == "trailing"


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("DDPMScheduler", {"steps_offset": 1}),
        ("DDIMScheduler", {"timestep_spacing": "linspace", "steps_offset": 1}),
        ("DDIMScheduler", {}),
        ("PNDMScheduler", {"skip_prk_steps": True}),
        ("EulerDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
        ("DPMSolverSinglestepScheduler", {}),
        ("UniPCMultistepScheduler", {}),
    ],
)
def test_fewer_times_leave_as_their_scheduler_chose_them_also_where_its_file_left_that_to_its_class(
    tmp_path, kind, given
):
    scheduler = getattr(diffusers, kind)(**given)
    pipeline(tmp_path / "theirs", scheduler=scheduler)
    file = tmp_path / "theirs" / "scheduler" / "scheduler_config.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps({name: document[name] for name in document if name[:1] == "_" or name in given}))
    scheduler = getattr(diffusers, kind).from_pretrained(file.parent)
    scheduler.set_timesteps(10)
    imported(tmp_path / "theirs")
    result = run_command("export", tmp_path / "theirs-run", "--out", tmp_path / "back")
    assert result.exit_code == 0, result.output
    back = diffusers.DDPMPipeline.from_pretrained(tmp_path / "back").scheduler
    back.set_timesteps(10)
    theirs, ours = (sorted({round(float(t)) for t in one.timesteps}, reverse=True) for one in (scheduler, back))
    if kind in ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"):
        # Their linspace leaves out t = 0, where that of the others ends.
        assert (theirs[0], back.config.timestep_spacing) == (ours[0], "linspace")
    else:
        assert theirs == ours


def test_an_offset_that_is_no_number_is_refused(tmp_path):
    pipeline(tmp_path / "theirs")
    file = tmp_path / "theirs" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "steps_offset": "one"}))
    assert 'steps_offset is "one"' in refused(tmp_path / "theirs")
