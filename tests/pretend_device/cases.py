"""Run every case on a pretended device and print a line of JSON for each: its name, what went wrong, what it counted.

python -m pretend_device.cases cuda|mps GUARD FOLDER [NAME ...]
"""

import json
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner
from PIL import Image

from pretend_device import device

PLAIN = ("--preset", "tiny", "--steps", "2", "--set", "train.snapshots=1")
HOST = ("train.stream=numpy", "train.precision=float32")
AHEAD = ("train.channels_last=true", "model.patch=2", "train.workers=1")
SMALL = ("model.width=8", "train.batch_size=8", "diffusion.T=6", "train.micro_batch=4", "data.holdout=0.4")


def runs(folder):
    """{name: (data, settings)} of the models that are trained."""
    made = {
        "plain": ("grey", ()),
        "labels": ("grey", ("model.labels=true", "model.condition_dropout=0.3", "train.augment=0.5")),
        "colour": ("colour", ("diffusion.variance=optimal", "train.flip=true")),
        "learned": ("colour", ("diffusion.variance=learned", "diffusion.objective=hybrid", "diffusion.target=eps")),
        "bound": ("grey", ("diffusion.objective=bound", "diffusion.times=loss-importance")),
        "x0": ("colour", ("diffusion.target=x0", "diffusion.objective=min-snr", "model.fourier=6,7")),
        "eps": (
            "grey",
            ("diffusion.target=eps", "diffusion.objective=p2", "diffusion.schedule=linear", "train.precision=bfloat16"),
        ),
        "score": ("grey", ("diffusion.objective=score-matching", "train.recompute=true", "train.precision=float16")),
        "numpy": ("colour", (*HOST, "diffusion.target=flow", "train.deterministic=true")),
        "muon": (
            "colour",
            ("train.optimizer=muon", "model.width=16", "diffusion.target=edm", "diffusion.times=log-normal"),
        ),
        "dropout": ("grey", ("model.dropout=0.2", "diffusion.target=mean", *AHEAD)),
        "absorbing": ("colour", ()),
        "softmax": ("grey", ("diffusion.values=softmax", "diffusion.levels=8")),
        "independent": ("grey", ("diffusion.chain=absorbing-independent", "diffusion.levels=8")),
    }
    return {name: (folder / f"{data}.npz", settings) for name, (data, settings) in made.items()}


def training(name, data, settings, folder):
    """The command that trains a model."""
    absorbing = name in ("absorbing", "softmax", "independent")
    preset = ("--preset", "absorbing", *PLAIN[2:]) if absorbing else PLAIN
    given = [one for assignment in (*SMALL, *settings) for one in ("--set", assignment)]
    return ["train", str(data), "--out", str(folder / name), *preset, *given]


def commands(folder):
    """{name: arguments} of every command on the trained models, in an order in which each finds what it needs."""
    made = {f"train {name}": training(name, *one, folder) for name, one in runs(folder).items()}
    made["train on"] = [*made["train plain"]]  # a complete run is read again
    for name in ("muon", "score"):  # and goes on, with its optimiser's state and its loss scale
        made[f"train on {name}"] = ["train", made[f"train {name}"][1], "--out", str(folder / name), "--steps", "+2"]
    plain, labels, colour = (str(folder / name) for name in ("plain", "labels", "colour"))
    image, other, mask = (str(folder / f"{name}.png") for name in ("grey", "other", "mask"))
    few = ("--num-images", "3")
    solvers = "euler-ancestral euler-churn dpm++2s dpm++2m dpm++3m dpm++2m-sde unipc2 unipc3 deis3 ipndm4 lms4 heun"
    for solver in [*solvers.split(), "heun-churn", "langevin", "pc"]:
        made[f"sample {solver}"] = ["sample", plain, *few, "--steps", "5", "--solver", solver]
    for run, variance in [("plain", one) for one in ("fixedsmall", "fixedlarge", "beta")] + [
        ("colour", "optimal"),
        ("learned", "learned"),
    ]:
        arguments = ["sample", str(folder / run), *few, "--steps", "5", "--variance", variance]
        made[f"sample {variance}"] = [*arguments, "--film"]
    made["sample eta"] = ["sample", colour, *few, "--steps", "5", "--eta", "0.5", "--clip", "dynamic"]
    made["sample all"] = ["sample", colour, *few, "--steps", "all"]
    made["sample array"] = ["sample", colour, *few, "--steps", "3", "--array", "--out", str(folder / "array")]
    made["sample bfloat16"] = ["sample", colour, *few, "--steps", "3", "--precision", "bfloat16"]
    made["sample average"] = ["sample", plain, *few, "--steps", "3", "--average-width", "0.08"]
    for name, options in {
        "guided": ("--guidance", "2"),
        "rescaled": ("--guidance", "2", "--guidance-rescale", "0.5", "--guidance-interval", "-3:3"),
        "by another": ("--guidance", "2", "--guide", labels),
    }.items():
        made[f"sample {name}"] = ["sample", labels, *few, "--steps", "4", *options]
    for name in runs(folder):
        made[f"sample {name}"] = ["sample", str(folder / name), *few, "--steps", "4"]
        made[f"evaluate {name}"] = ["evaluate", str(folder / name), *few, "--terms", "4"]
    given = [one for assignment in SMALL[1:2] + SMALL[3:] for one in ("--set", assignment)]
    made["distill"] = ["distill", colour, "--out", str(folder / "fast"), "--steps", "2", *given]
    made["sample distilled"] = ["sample", str(folder / "fast"), *few]
    consistency = ("--set", "diffusion.objective=consistency")
    made["distill by consistency"] = [*made["distill"][:3], str(folder / "one"), *made["distill"][4:], *consistency]
    critic = ("--set", "diffusion.objective=adversarial")
    made["distill with a critic"] = [
        "distill",
        colour,
        "--out",
        str(folder / "judged"),
        "--steps",
        "3",
        *given,
        *critic,
    ]
    made["train --from"] = [*training("further", folder / "colour.npz", (), folder), "--from", colour]
    made["evaluate exact"] = ["evaluate", plain, *few, "--exact"]
    made["evaluate per image"] = [
        "evaluate",
        colour,
        *few,
        "--terms",
        "4",
        "--per-image",
        "--out",
        str(folder / "scores"),
    ]
    for run in ("labels", "colour"):
        made[f"likelihood {run}"] = ["likelihood", str(folder / run), "--num-images", "2", "--rtol", "0.1"]
        made[f"metrics {run}"] = ["metrics", str(folder / run), "--num-images", "20", "--steps", "2", "--train-images"]
        made[f"metrics {run}"] += ["20", "--cache", str(folder / "features"), "--network", "pixels"]
    for network in ("lite0", "classifier"):
        made[f"metrics {network}"] = ["metrics", colour, "--num-images", "20", "--steps", "2", "--train-images", "20"]
        made[f"metrics {network}"] += ["--cache", str(folder / "features"), "--network", network]
    made["tune-steps"] = ["tune-steps", plain, "--steps", "3", "--num-images", "2"]
    made["sample tuned"] = ["sample", plain, *few, "--steps", "3", "--grid", "tuned"]
    made["rd"] = ["rd", plain, "--num-images", "2", "--steps", "4"]
    edits = ("--steps", "4", "--num-images", "2")
    made["edit inpaint"] = [
        "edit",
        "inpaint",
        plain,
        image,
        "--mask",
        mask,
        "--jump",
        "2",
        *edits,
        "--out",
        str(folder / "a.png"),
    ]
    made["edit interpolate"] = ["edit", "interpolate", plain, image, other, "--at", "5", "--steps", "4"]
    made["edit inversion"] = [*made["edit interpolate"], "--encoder", "inversion"]
    made["edit vary"] = ["edit", "vary", plain, image, "--at", "5", *edits]
    for name in ("interpolate", "inversion", "vary"):
        made[f"edit {name}"] += ["--out", str(folder / f"{name}.png")]
    for method in ("ddrm", "ddnm", "pigdm", "mmps", "dps"):
        arguments = ["edit", "restore", plain, image, "--task", "super-resolution", "--method", method, *edits]
        made[f"restore {method}"] = [*arguments, "--out", str(folder / f"{method}.png")]
    for task in ("deblur", "missing"):
        arguments = ["edit", "restore", plain, image, "--task", task, "--method", "ddrm", *edits]
        made[f"restore {task}"] = [*arguments, "--out", str(folder / f"{task}.png")]
    made["restore by a mask"] = [*made["restore missing"][:-1], str(folder / "by-mask.png"), "--mask", mask]
    made["restore colour"] = ["edit", "restore", colour, str(folder / "colour.png"), "--task", "colour", "--method"]
    made["restore colour"] += ["ddrm", *edits, "--out", str(folder / "coloured.png")]
    made["explain"] = ["explain", plain, "--out", str(folder / "report.html")]
    return made


def codec(folder):
    """The commands that need float64, which MPS refuses."""
    plain, file = str(folder / "plain"), str(folder / "image.anc")
    packed = ["compress", plain, str(folder / "grey.png"), "--out", file, "--profile", "quick"]
    return {"compress": packed, "decompress": ["decompress", plain, file, "--out", str(folder / "back.png")]}


ALIKE = ("sample ", "evaluate ", "edit ", "restore ", "metrics ")  # commands that draw or measure
ONCE = {
    "sample plain",
    "sample bfloat16",
    "sample absorbing",
    "evaluate plain",
    "evaluate absorbing",
    "edit inpaint",
    "metrics classifier",
}


def seldom(kind, names):
    """Of these cases those that take long and tell little: they run only when they are named.

    Whatever mixes devices is seen on MPS. On CUDA a walk is in float64, as in all tests on the CPU: one of each is run.
    """
    return {one for one in names if kind == "cuda" and one.startswith(ALIKE) and one not in ONCE} | {"explain"}


def page(kind, run):
    """A page's drawing: the walk in one thread, its network in another."""
    from ancestral.apps.server import batched_network, session
    from ancestral.runs.sampling_options import SamplingOptions

    compute = batched_network.Calls._run

    def pretended(calls):
        with device.Pretended():
            compute(calls)

    batched_network.Calls._run = pretended
    served = session.open_served_run(run, kind, None)
    try:
        (*_, last) = served.sampler(SamplingOptions(steps=2)).walk(range(2), {}, lambda _: None)
        session.finished(last.x_s, "")
    finally:
        served.calls.close()


def energies(kind, leapfrogs):
    """A product of two networks walked down with corrected Langevin steps (MALA, or HMC of several leapfrogs)."""
    from ancestral.diffusion.denoisers.denoiser import Denoiser
    from ancestral.diffusion.denoisers.energy import EnergyNetwork, Learned
    from ancestral.diffusion.denoisers.targets import TARGETS
    from ancestral.diffusion.processes.schedules import SCHEDULES
    from ancestral.diffusion.samplers.grids import trailing
    from ancestral.diffusion.samplers.langevin import PredictorCorrector
    from ancestral.diffusion.samplers.mcmc import adjusted
    from ancestral.diffusion.samplers.sample import sample
    from ancestral.networks.unet import UNet

    network = EnergyNetwork(UNet(1, 1, 8, (1, 2), 1, (1,)))
    model = Denoiser(network, SCHEDULES["cosine"](20), TARGETS["eps"]).to(kind).eval()
    energy = Learned(model)
    times = trailing(model.schedule, 4)
    moves, draw = PredictorCorrector(steps=2), adjusted(energy, leapfrogs)
    sample(energy, (1, 8, 8), 2, times, moves, device=torch.device(kind), draw=draw)


def table_on_the_cpu(kind):
    """A planted fault: a table that was left on the CPU, indexed by times on the device."""
    torch.linspace(0, 1, 20)[torch.tensor([3, 5], device=kind)]


def missing_to(kind):
    """A planted fault: noise that was never moved."""
    torch.zeros(2, 3, device=kind) + torch.randn(2, 3)


def to_numpy(kind):
    """A planted fault: numpy asked of a tensor on the device."""
    np.asarray(torch.zeros(2, device=kind))


def double(kind):
    """A planted fault on MPS, which has no float64."""
    torch.zeros(2, device=kind).double()


def no_kernel(kind):
    """A planted fault on MPS, which has no such operator."""
    torch.special.log_ndtr(torch.zeros(2, device=kind))


PLANTED = {one.__name__: one for one in (table_on_the_cpu, missing_to, to_numpy, double, no_kernel)}


def make_data(folder):
    """A classifier soon trained, and no plots; grey and coloured images with labels, and single ones to edit."""
    from ancestral.evaluation import set_classifier
    from ancestral.runtime import plots

    set_classifier.UPDATES = 2
    plots._as_png = lambda figure: b""
    random = np.random.default_rng(0)
    for name, channels in (("grey", 1), ("colour", 3)):
        images = random.integers(0, 256, (60, 8, 8, channels), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=np.arange(60) % 3)
        Image.fromarray(images[0].squeeze()).save(folder / f"{name}.png")
    Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / "other.png")
    Image.fromarray(np.pad(np.full((4, 4), 255, np.uint8), 2)).save(folder / "mask.png")


def run(arguments, kind):
    """A command of the package, to the end."""
    from ancestral.apps.cli.main import main

    result = CliRunner().invoke(main, [*arguments, "--device", kind], catch_exceptions=False)
    assert result.exit_code == 0, result.output[-2000:]


def main(kind, guard, folder, *names):
    """All cases but the long ones, or those named."""
    folder = Path(folder)
    device.install(kind, guard)
    torch.set_num_threads(1)
    make_data(folder)
    cases = {f"planted {name}": (fault, (kind,)) for name, fault in PLANTED.items()}
    cases |= {name: (run, (arguments, kind)) for name, arguments in commands(folder).items()}
    if kind == "cuda":
        cases |= {name: (run, (arguments, kind)) for name, arguments in codec(folder).items()}
    cases |= {"page": (page, (kind, folder / "plain"))}
    cases |= {"energies MALA": (energies, (kind, 1)), "energies HMC": (energies, (kind, 3))}
    chosen = names or cases.keys() - seldom(kind, cases)
    for name, (work, arguments) in cases.items():
        if name not in chosen:
            continue
        device.COUNTS.clear()
        wrong = None
        with device.Pretended():
            try:
                work(*arguments)
            except BaseException as error:
                where = [
                    f"{one.filename.rpartition('/')[2]}:{one.lineno}"
                    for one in traceback.extract_tb(error.__traceback__)
                ]
                wrong = f"{type(error).__name__}: {error} ({' < '.join(where[:-8:-1])})"
        print(json.dumps({"case": name, "wrong": wrong, "counts": device.COUNTS}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
