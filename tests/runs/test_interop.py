"""diffusers folders, both ways: the same tensors, the same outputs, the same images; what has no meaning is named."""

import json
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.loop import walk
from ancestral.diffusion.samplers.sample import finish
from ancestral.diffusion.samplers.solvers import SOLVERS, Heun, UniPC
from ancestral.diffusion.samplers.transitions import DDIM
from ancestral.errors import UserError
from ancestral.runs import build, checkpoint
from ancestral.runs.config import PRESETS, Config, DiffusionOptions, ModelOptions, TrainOptions
from ancestral.runs.facts import Facts
from ancestral.runs.hub import diffusers as interop
from ancestral.runs.hub import diffusers_config, hub
from conftest import TINY, run_command

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")

# The fields of published checkpoints; widths cut down, everything else theirs.
DDPM_CIFAR10 = {
    "sample_size": 16,
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "downsample_padding": 0,
}
TRAINING_SCRIPT = {
    "sample_size": 16,
    "layers_per_block": 1,
    "block_out_channels": (32, 32, 64),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 16,
}
LABELLED = {**TRAINING_SCRIPT, "num_class_embeds": 4, "in_channels": 1, "out_channels": 1}


def theirs(tmp_path, fields, **scheduler):
    """A random pipeline on disk, and its network."""
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(**fields).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler(**scheduler)).save_pretrained(tmp_path / "theirs")
    return network


@pytest.mark.parametrize("fields", [DDPM_CIFAR10, TRAINING_SCRIPT, LABELLED], ids=["cifar10", "script", "labelled"])
def test_the_same_outputs_and_back_the_same_tensors(tmp_path, fields):
    network = theirs(tmp_path, fields)
    result = run_command("import", tmp_path / "theirs", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    saved, _ = checkpoint.open_run(tmp_path / "run")
    model = build.trained(saved, tmp_path / "run", torch.device("cpu"))
    x = torch.randn(2, *saved.facts.shape, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([1, 3]) if saved.config.model.labels else None
    for t in (1, 418, 1000):
        expected = network(x, t - 1, class_labels=labels).sample.detach()
        output = model.output(x, t, **({} if labels is None else {"labels": labels}))
        assert torch.allclose(output, expected, atol=1e-5 * float(expected.abs().max())), t

    result = run_command("export", tmp_path / "run", "--out", tmp_path / "back")
    assert result.exit_code == 0, result.output
    name = "unet/diffusion_pytorch_model.safetensors"
    before, after = (safetensors.torch.load_file(tmp_path / place / name) for place in ("theirs", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "back" / "unet")
    ignored = {"num_train_timesteps", "mid_block_type"}
    for key in network.config.keys() - ignored:
        expected, found = (list(v) if isinstance(v, tuple) else v for v in (network.config[key], again.config[key]))
        assert key.startswith("_") or expected == found, key


@pytest.mark.parametrize(
    "options",
    [
        {"clip_sample": False},
        {"clip_sample": True, "prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"},
        {"thresholding": True, "prediction_type": "sample"},
    ],
    ids=str,
)
def test_whole_runs_give_the_same_images(tmp_path, options):
    network = theirs(tmp_path, TRAINING_SCRIPT, **options)
    hub.import_model(str(tmp_path / "theirs"), tmp_path / "run")
    saved, _ = checkpoint.open_run(tmp_path / "run")
    model = build.trained(saved, tmp_path / "run", torch.device("cpu"))
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", **options)
    scheduler.set_timesteps(20)
    x = start = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x, use_clipped_model_output=True).prev_sample
    grid = grids.trailing(model.schedule, 20)
    ours = finish(walk(model, start.double(), grid, DDIM(), lambda move: move.p.mean))
    assert float((ours - x).abs().max()) < 1e-4 * max(1.0, float(x.abs().max()))


TRAILING = {"timestep_spacing": "trailing"}
SOLVER_RUNS = {
    "Euler": ("EulerDiscrete", TRAILING, DDIM(), 0),
    "Euler ancestral": ("EulerAncestralDiscrete", TRAILING, DDIM(1.0), 0),
    "Heun": ("HeunDiscrete", {**TRAILING, "beta_start": 1e-4, "beta_end": 0.02}, Heun(), 0),
    "DPM++ 2M": ("DPMSolverMultistep", TRAILING, SOLVERS["dpm++2m"], 0),
    "DPM++ 2M SDE": (
        "DPMSolverMultistep",
        {**TRAILING, "algorithm_type": "sde-dpmsolver++"},
        SOLVERS["dpm++2m-sde"],
        0,
    ),
    "DPM++ 2S": ("DPMSolverSinglestep", {"lower_order_final": True}, SOLVERS["dpm++2s"], 0),
    "UniPC-2": ("UniPCMultistep", TRAILING, UniPC(2), 0),
    "UniPC-3": ("UniPCMultistep", {**TRAILING, "solver_order": 3}, SOLVERS["unipc3"], 0),
    "DEIS-3": ("DEISMultistep", {**TRAILING, "solver_order": 3}, SOLVERS["deis3"], 1),  # theirs ends at t = 1
}


@pytest.mark.parametrize("name", SOLVER_RUNS)
def test_whole_runs_of_few_steps_give_the_same_images(tmp_path, name, monkeypatch):
    """The same weights, noise and ten times; their own noise along the way taken from the same list."""
    kind, options, method, end = SOLVER_RUNS[name]
    network = theirs(tmp_path, TRAINING_SCRIPT, clip_sample=False)
    hub.import_model(str(tmp_path / "theirs"), tmp_path / "run")
    saved, _ = checkpoint.open_run(tmp_path / "run")
    model = build.trained(saved, tmp_path / "run", torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    start, *noise = (torch.randn(2, 3, 16, 16, generator=generator) for _ in range(11))

    scheduler = getattr(diffusers, f"{kind}Scheduler")(**options)
    ahead = iter(noise)
    monkeypatch.setattr(f"{type(scheduler).__module__}.randn_tensor", lambda *_, **__: next(ahead), raising=False)
    scheduler.set_timesteps(10)
    x = start * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(network(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample

    first = start.double() * scheduler.init_noise_sigma
    if scheduler.init_noise_sigma != 1:  # a state x / signal
        first = first * model.schedule.signal(1000)
    grid = [*dict.fromkeys(int(t) + 1 for t in scheduler.timesteps), end]
    behind = iter(noise)
    ours = finish(
        walk(model, first, grid, method, lambda m: m.p.sample(next(behind).double()) if m.p.var.any() else m.p.mean)
    )
    assert len(grid) == 11
    assert float(x.std()) > 0.05
    assert float((ours - x).abs().max()) < 1e-4 * max(1.0, float(x.abs().max()))


def test_our_run_opens_in_their_pipeline(tmp_path):
    model = ModelOptions(width=128, multipliers=(1, 1), blocks=1, attention=(1,), pad_end=True)
    config = Config("x", model, DiffusionOptions(clock="zero-based", schedule="cosine", target="v"))
    facts = Facts((3, 8, 8))
    torch.manual_seed(0)
    weights = {k: v + 0.05 * torch.randn_like(v) for k, v in build.network(config, facts).state_dict().items()}
    checkpoint.save_imported(tmp_path / "run", checkpoint.Checkpoint(tmp_path, 0, config, facts, weights, {}, {}, None))
    interop.export_run(tmp_path / "run", tmp_path / "out")
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out")
    x = torch.randn(1, 3, 8, 8)
    ours = build.trained(checkpoint.open_run(tmp_path / "run")[0], tmp_path / "run", torch.device("cpu"))
    expected = pipeline.unet(x, 499).sample.detach()
    assert torch.allclose(ours.output(x, 500), expected, atol=1e-5 * float(expected.abs().max()))
    assert torch.allclose(pipeline.scheduler.alphas_cumprod, ours.schedule.alpha_bar(torch.arange(1, 1001)).float())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("variance", "spacing"), [("fixedsmall", "trailing"), ("fixedlarge", "leading")])
def test_ours_leaves_without_its_augmentation_and_with_a_spacing_that_ends_without_noise(
    tmp_path, channels, variance, spacing
):
    model = ModelOptions(width=32, multipliers=(1, 1), blocks=1, attention=(1,), groups=16)
    process = DiffusionOptions(clock="zero-based", variance=variance, clip="none")
    config = Config("x", model, process, train=TrainOptions(augment=0.1))
    facts = Facts((channels, 8, 8))
    torch.manual_seed(0)
    weights = {k: v + 0.05 * torch.randn_like(v) for k, v in build.network(config, facts).state_dict().items()}
    assert "augmentation.weight" in weights
    checkpoint.save_imported(tmp_path / "run", checkpoint.Checkpoint(tmp_path, 0, config, facts, weights, {}, {}, None))
    interop.export_run(tmp_path / "run", tmp_path / "out")
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out")
    scheduler = pipeline.scheduler
    assert scheduler.config.timestep_spacing == spacing
    x = torch.randn(1, channels, 8, 8)
    ours = build.trained(checkpoint.open_run(tmp_path / "run")[0], tmp_path / "run", torch.device("cpu"))
    expected = pipeline.unet(x, 499).sample.detach()
    assert torch.allclose(ours.output(x, 500), expected, atol=1e-5 * float(expected.abs().max()))
    scheduler.set_timesteps(10)
    last = [
        scheduler.step(expected, scheduler.timesteps[-1], x, generator=torch.Generator().manual_seed(seed)).prev_sample
        for seed in (1, 2)
    ]
    assert torch.allclose(*last, atol=1e-9)


def test_old_names_and_flat_folders(tmp_path):
    theirs(tmp_path, TRAINING_SCRIPT)
    flat = tmp_path / "flat"
    shutil.copytree(tmp_path / "theirs" / "unet", flat)
    shutil.copy(tmp_path / "theirs" / "scheduler" / "scheduler_config.json", flat)
    path = flat / "diffusion_pytorch_model.safetensors"
    renamed = {}
    for name, value in safetensors.torch.load_file(path).items():
        for new, old in interop._OLD.items():
            name = name.replace(f".{new}.", f".{old}.")
        renamed[name] = value
    safetensors.torch.save_file(renamed, path)
    new, old = (interop.read(folder).weights for folder in (tmp_path / "theirs", flat))
    assert all(torch.equal(value, old[name]) for name, value in new.items())


SIDE_256 = (256, (1, 1, 2, 2, 4, 4), (4,), 113_673_219)
PUBLISHED = {
    "google/ddpm-cifar10-32": ((32, (1, 2, 2, 2), (1,), 35_746_307), "fixed_large"),
    **{f"google/ddpm-{name}-256": (SIDE_256, "fixed_small") for name in ("cat", "celebahq", "church", "bedroom")},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_the_papers(tmp_path, name):
    (side, multipliers, attention, parameters), variance = PUBLISHED[name]
    levels = range(len(multipliers))
    fields = {
        **DDPM_CIFAR10,
        "sample_size": side,
        "block_out_channels": [128 * m for m in multipliers],
        "down_block_types": ["AttnDownBlock2D" if n in attention else "DownBlock2D" for n in levels],
        "up_block_types": ["AttnUpBlock2D" if n in attention else "UpBlock2D" for n in reversed(levels)],
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    found = diffusers_config.network(diffusers_config.Fields(tmp_path / "config.json"))
    model, shape = found.options, found.shape
    scheduler = {
        "_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4,
        "beta_end": 0.02, "clip_sample": True, "variance_type": variance, "trained_betas": None,
    }  # fmt: skip
    (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler))
    process = diffusers_config.diffusion(diffusers_config.Fields(tmp_path / "scheduler_config.json"))
    paper = PRESETS["cifar10" if side == 32 else "paper-256"]
    assert (process.variance, process.schedule, process.target, process.clip) == (
        paper.get("diffusion.variance", "fixedlarge"), "linear", "eps", "static",
    )  # fmt: skip
    with torch.device("meta"):
        network = build.network(config := Config("x", model), Facts(shape))
        named = {name: value.shape for name, value in diffusers.UNet2DModel(**fields).named_parameters()}
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    own = dict(network.named_parameters())
    paired = {other: mine for mine, others in interop.names(config) for other in others}
    assert named.keys() <= {f"{other}.{kind}" for other in paired for kind in ("weight", "bias")}
    assert sum(shape.numel() for shape in named.values()) == parameters
    assert all(f"{paired[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}" in own for name in named)


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("unet/config.json", "time_embedding_type", "fourier"),
        ("unet/config.json", "act_fn", "geglu"),
        ("unet/config.json", "block_out_channels", [32, 40, 64]),
        ("unet/config.json", "up_block_types", ["UpBlock2D"] * 3),
        ("unet/config.json", "down_block_types", ["ResnetDownsampleBlock2D"] * 3),
        ("unet/config.json", "out_channels", 5),
        ("unet/config.json", "sample_size", None),
        ("unet/config.json", "resnet_time_scale_shift", "spatial"),
        ("unet/config.json", "new_field", 1),
        ("scheduler/scheduler_config.json", "beta_schedule", "laplace"),
        ("scheduler/scheduler_config.json", "beta_end", 1.5),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 0),
        ("scheduler/scheduler_config.json", "trained_betas", [0.1]),
        ("scheduler/scheduler_config.json", "prediction_type", "flow_prediction"),
        ("scheduler/scheduler_config.json", "clip_sample_range", -2.0),
        ("scheduler/scheduler_config.json", "variance_type", "learned_range"),
        ("scheduler/scheduler_config.json", "use_flow_sigmas", True),
        ("scheduler/scheduler_config.json", "timestep_type", "continuous"),
        ("scheduler/scheduler_config.json", "_class_name", "LCMScheduler"),
        ("scheduler/scheduler_config.json", "new_field", 1),
    ],
)
def test_what_has_no_meaning_here_is_named(tmp_path, file, field, value):
    theirs(tmp_path, TRAINING_SCRIPT)
    path = tmp_path / "theirs" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    result = run_command("import", tmp_path / "theirs", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert field in result.output
    assert file in result.output
    assert not (tmp_path / "run").exists()


def test_damaged_and_absent_weights(tmp_path):
    theirs(tmp_path, TRAINING_SCRIPT)
    path = tmp_path / "theirs" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    for change, named in (
        ({"conv_in.weight": None}, "no tensor conv_in.weight"),
        ({"other": torch.zeros(1)}, "unknown tensor other"),
        ({"conv_in.weight": torch.zeros(3)}, r"conv_in.weight has shape"),
    ):
        changed = {name: value for name, value in {**tensors, **change}.items() if value is not None}
        safetensors.torch.save_file(changed, path)
        with pytest.raises(UserError, match=named):
            interop.read(tmp_path / "theirs")
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        interop.read(tmp_path / "theirs")
    path.unlink()
    with pytest.raises(UserError, match="safe_serialization"):
        interop.read(tmp_path / "theirs")


def test_runs_that_diffusers_cannot_hold_are_refused_by_field(trained_run, tmp_path):
    result = run_command("export", trained_run, "--out", tmp_path / "x")
    assert result.exit_code == 2
    assert "groups" in result.output
    assert f"ancestral export {trained_run} --format onnx" in result.output.replace("\n", " ").replace("  ", " ")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("variance", "said"), [("optimal", True), ("beta", False)])
def test_a_variance_that_they_have_no_field_for_is_said(tmp_path, variance, said):
    model = ModelOptions(width=32, multipliers=(1, 1), blocks=1, attention=(1,), groups=16)
    config = Config("x", model, DiffusionOptions(clock="zero-based", variance=variance))
    facts = Facts((3, 8, 8))
    weights = build.network(config, facts).state_dict()
    run = checkpoint.Checkpoint(tmp_path, 0, config, facts, weights, {}, {}, None)
    checkpoint.save_imported(tmp_path / "run", run)
    lines = interop.export_run(tmp_path / "run", tmp_path / "out")
    assert any("variance_type is fixed_small: diffusers has no field" in line for line in lines) == said
    few = replace(config, diffusion=replace(config.diffusion, train_steps=10))
    checkpoint.save_imported(tmp_path / "few", replace(run, config=few))
    with pytest.raises(UserError, match=r"diffusion.train_steps is 10, and .* at all 1000 times"):
        interop.export_run(tmp_path / "few", tmp_path / "other")


def test_checkpoints_are_in_the_order_of_their_numbers(tmp_path):
    names = ["000000064", "999999936", "1000000000"]
    for name in names:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [one.name for one in checkpoint.folders(tmp_path)] == names


def test_an_imported_run_is_imported_again(colour_digits, tmp_path):
    """Of a diffusers folder, which has no digests: what was read stays on record."""
    groups = ("--set", "model.groups=4", "--set", "diffusion.clock=zero-based")  # as diffusers has them
    run = ("train", colour_digits, "--preset", "tiny", "--steps", 1, "--out", tmp_path / "run", *TINY, *groups)
    for line in (run, ("export", tmp_path / "run", "--out", tmp_path / "diffusers")):
        made = run_command(*line)
        assert made.exit_code == 0, made.output
    for source, name in (("diffusers", "one"), ("one", "two")):
        result = run_command("import", tmp_path / source, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
    one, two = (checkpoint.open_newest(tmp_path / name) for name in ("one", "two"))
    assert one.state["read"] == two.state["read"]
