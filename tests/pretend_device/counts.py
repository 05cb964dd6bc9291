"""Kernels, copies and waits of a step on a pretended device, as a table: python -m pretend_device.counts cuda|mps."""

import sys
from tempfile import TemporaryDirectory

import numpy as np
import torch

from pretend_device import device

STEPS = 2  # that are counted, after as many
SHOWN = ("kernels", "to the device", "from the device", "waits")


def counted(totals):
    """What each of the last steps counted, the mean of them, from the totals after each."""
    first, last = totals[-STEPS - 1], totals[-1]
    return {name: (last[name] - first[name]) / STEPS for name in SHOWN}


def made(preset, settings):
    """A configuration, its data and their facts."""
    from ancestral.data.dataset import ImageSet
    from ancestral.runs import config
    from ancestral.runs.datasets import facts

    random = np.random.default_rng(0)
    images = ImageSet(random.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8), None, (), tuple(map(str, range(64))))
    resolved = config.resolve("noise", preset, {"model.width": 16, "train.batch_size": 4, **settings})
    return resolved, images, facts(images)


def of_training(kind, preset, settings):
    """What an update counts."""
    from ancestral.training.trainer import Training

    resolved, images, facts = made(preset, settings)
    training, totals = Training(resolved, facts, torch.device(kind)), []
    for _ in range(2 * STEPS):
        training.step(images)
        totals.append(device.COUNTS.copy())
    return counted(totals)


def of_sampling(kind, settings, move, calls):
    """What a step of the reverse process counts."""
    from ancestral.diffusion.samplers import grids, sample
    from ancestral.diffusion.samplers.solvers import SOLVERS
    from ancestral.diffusion.samplers.transitions import Ancestral, fixedlarge
    from ancestral.runs import build

    resolved, _, facts = made("cifar10", settings)
    predictor = build.predictor(build.denoiser(resolved, facts).to(kind).eval(), None)
    start = sample.latents(facts.shape, 0, range(4)).to(kind, torch.float32)
    method = Ancestral(fixedlarge) if move == "ancestral" else SOLVERS[move]
    totals = []
    for _ in sample.trajectory(
        predictor, start, grids.trailing(predictor.schedule, calls), method, **streams(resolved, kind)
    ):
        totals.append(device.COUNTS.copy())
    return counted(totals[:-1])  # the last step of all draws nothing


def streams(resolved, kind):
    """The streams of a run's format, where there is a choice."""
    from ancestral.runs import build

    return {"streams": build.streams(resolved, torch.device(kind))} if hasattr(build, "streams") else {}


def main(kind, *settings):
    """A row for each kind of step."""
    from ancestral.runs.config import parse_assignments

    with TemporaryDirectory() as folder:
        device.install(kind, device.build(folder, "c++"))
    torch.set_num_threads(1)
    more = parse_assignments(settings)
    with device.Pretended():
        rows = {f"an update of `{name}`": of_training(kind, name, more) for name in ("cifar10", "images")}
        rows |= {f"a step of `{one}`": of_sampling(kind, more, one, 8) for one in ("ancestral", "unipc3")}
    print("| |", " | ".join(SHOWN), "|")
    print("|---" * (len(SHOWN) + 1) + "|")
    for name, row in rows.items():
        print(f"| {name} |", " | ".join(f"{row[one]:.4g}" for one in SHOWN), "|")


if __name__ == "__main__":
    main(*sys.argv[1:])
