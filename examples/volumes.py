"""Blocks of a brain (3-D, real-valued): train on the left half of a scan, draw, compare with the right half.

The scan, 128 x 96 x 24 voxels of 2 x 2 x 2.2 mm, is a file inside nibabel: pip install nibabel.
Run: python examples/volumes.py
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ancestral.diffusion.denoisers.analytic import Correlated
from ancestral.diffusion.denoisers.calibrated import Calibrated
from ancestral.diffusion.denoisers.denoiser import Denoiser
from ancestral.diffusion.denoisers.targets import V
from ancestral.diffusion.objectives.calibration import calibrate
from ancestral.diffusion.objectives.elbo import elbo
from ancestral.diffusion.objectives.statistics import mean_and_error
from ancestral.diffusion.processes import schedules
from ancestral.diffusion.processes.normal import Normal
from ancestral.diffusion.processes.streams import Streams
from ancestral.diffusion.samplers import grids
from ancestral.diffusion.samplers.sample import sample
from ancestral.diffusion.samplers.transitions import Ancestral, optimal
from ancestral.networks.unet import UNet
from ancestral.training.simple import fit

SIDES = (8, 8, 8)
VOXELS = 8 * 8 * 8
AXES = ("x", "y", "z")
LAGS = (1, 2, 4)


def scan():
    """The first volume of the scan, left half and right half mirrored onto it, float32 (2, 64, 96, 24)."""
    import nibabel
    from nibabel.testing import data_path

    image = nibabel.load(Path(data_path) / "example4d.nii.gz")
    volume = torch.from_numpy(image.get_fdata(dtype="float32")[..., 0])
    return torch.stack([volume[:64], volume[64:].flip(0)])


def blocks(half, step=2):
    """Blocks of SIDES wholly inside the brain, every `step` voxels, float32 (N, 1, *SIDES)."""
    found = half
    for axis, side in enumerate(SIDES):
        found = found.unfold(axis, side, step)
    found = found.flatten(0, 2)
    return found[found.flatten(1).amin(1) > 0][:, None]  # outside the brain the file has zeros


def network(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet(1, 1, 16, (1, 2), blocks=1, attention=(1,), dimensions=3)


def correlations(x):
    """Correlation of voxels LAGS apart along each axis, over all blocks, float64 (3, len(LAGS))."""
    y = ((x - x.mean()) / x.std()).double()
    return torch.tensor(
        [
            [(y.narrow(axis, 0, side - lag) * y.narrow(axis, lag, side - lag)).mean() for lag in LAGS]
            for axis, side in enumerate(SIDES, start=2)
        ]
    )


def gaussian(x0, test):
    """Nats per dimension of the Gaussian of the same mean and covariance, with the ridge that suits `test` best."""
    flat, x = x0.flatten(1).double(), test.flatten(1).double()
    fitted, nats = Correlated(schedules.cosine(1), flat.mean(0), flat.T.cov()), []
    spread = fitted.variances.clamp(min=0)
    for power in (-2.0, -1.5, -1.0, -0.5):
        fitted.variances = spread + 10.0**power
        nats.append(-float(fitted.log_prob(x).mean()) / x.shape[1])
    return min(nats)


def main(updates=480, count=32, seed=0, picture="volumes.png", halves=None):
    training, held_out = (blocks(half) for half in (scan() if halves is None else halves))
    mean, std = training.mean(), training.std()
    x0, test = (training - mean) / std, ((held_out - mean) / std)[:: max(len(held_out) // 32, 1)]
    denoiser = Denoiser(network(seed), schedules.cosine(50), V)
    print(f"{len(x0)} blocks to train on, {len(held_out)} held out")
    for update, loss in enumerate(fit(denoiser, x0, updates, batch_size=16, peak=2e-3, seed=seed)):
        if update % 80 == 0:
            print(f"update {update}: loss {loss:.4f}")

    known = x0[:: max(len(x0) // 64, 1)]
    times = grids.log_snr(denoiser.schedule, 15)[:-1]
    table = calibrate(denoiser, known, Streams(seed, "calibration", range(len(known))), times)
    model = Calibrated(denoiser, table)
    grid = grids.full(denoiser.schedule)
    streams = Streams(seed, "bound", range(len(test)))
    nats, error = mean_and_error(elbo(model, test, grid, Ancestral(optimal), streams, Normal.log_prob).nats / VOXELS)
    print(f"nats/dim of held-out blocks: at most {nats:.3f} +- {error:.3f}, Gaussian {gaussian(x0, test):.3f}")

    drawn = sample(model, [1, *SIDES], count, grid, Ancestral(optimal), seed).float() * std + mean
    levels = torch.tensor([0.01, 0.25, 0.5, 0.75, 0.99])
    for name, x in (("drawn", drawn), ("held out", held_out), ("training", training)):
        quantiles = x.flatten()[:: max(x.numel() // 1_000_000, 1)].quantile(levels)
        print(f"{name:9} quantiles", " ".join(f"{value:.0f}" for value in quantiles), "correlation at", *LAGS, end=": ")
        lines = zip(AXES, correlations(x), strict=True)
        print("; ".join(f"{axis} " + " ".join(f"{value:.2f}" for value in row) for axis, row in lines))
    draw(picture, drawn, held_out)
    return drawn, nats


def draw(picture, drawn, held_out):
    """Four blocks of each, every second slice along z."""
    figure = Figure((9, 4.6), layout="constrained")
    halves = figure.subfigures(1, 2)
    for half, x, name in zip(
        halves, (held_out[:: max(len(held_out) // 4, 1)], drawn), ("held out", "drawn"), strict=True
    ):
        half.suptitle(name, fontsize=9)
        for row, block in zip(half.subplots(4, 4), x[:4, 0], strict=False):
            for axis, z in zip(row, range(0, SIDES[2], 2), strict=True):
                axis.imshow(block[:, :, z].T.numpy(), cmap="gray", vmin=200, vmax=900, origin="lower")
                axis.axis("off")
    figure.savefig(picture, dpi=70)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=480)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", default="volumes.png")
    main(**vars(parser.parse_args()))
