"""Spikes of a nerve cell (1-D, real-valued): train, draw, compare with a later stretch of the recording.

The recording is a file inside matplotlib. Run: python examples/signals.py
"""

import argparse

import numpy as np
import torch
from matplotlib import cbook
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

LENGTH = 256
TRAINING, HELD_OUT = slice(2000, 5600), slice(5600, 7050)  # samples; regular firing, later than the former
SPIKE = -0.2  # between the spikes' tops and all else, in the recording's own unit


def windows(stretch):
    """All windows of a stretch of the recording, float32 (N, 1, LENGTH)."""
    potential = np.fromfile(cbook.get_sample_data("membrane.dat", asfileobj=False), np.float32)
    return torch.from_numpy(potential[stretch].copy()).unfold(0, LENGTH, 1)[:, None]


def network(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet(1, 1, 32, (1, 2, 2), blocks=1, attention=(2,), patch=4, dimensions=1)


def spectrum(x):
    """Mean power at frequencies 1 .. LENGTH / 2 of windows tapered by a Hann window, (LENGTH / 2,)."""
    tapered = (x - x.mean(2, keepdim=True)) * torch.hann_window(LENGTH)
    return torch.fft.rfft(tapered.double()).abs().square().mean((0, 1))[1:]


def octaves(x):
    """Power in dB in octaves of frequency: [1, 2), [2, 4), ..."""
    power = spectrum(x)
    return torch.stack([power[2**k - 1 : 2 ** (k + 1) - 1].mean() for k in range(7)]).log10() * 10


def intervals(x):
    """Samples from one spike's rise through SPIKE to the next one's, in all windows, float64 (K,)."""
    rises = ((x[:, 0, 1:] > SPIKE) & (x[:, 0, :-1] <= SPIKE)).numpy()
    return torch.from_numpy(np.concatenate([np.diff(np.flatnonzero(row)) for row in rises])).double()


def middle(gaps):
    if not len(gaps):
        return "no two spikes"
    low, median, high = gaps.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    return f"interval {median:.0f} (middle half {low:.0f} to {high:.0f})"


def gaussian(x0, test):
    """Nats per dimension of the Gaussian of the same mean and covariance, with the ridge that suits `test` best."""
    flat, x = x0.flatten(1).double(), test.flatten(1).double()
    fitted, nats = Correlated(schedules.cosine(1), flat.mean(0), flat.T.cov()), []
    spread = fitted.variances.clamp(min=0)
    for power in range(-5, 0):
        fitted.variances = spread + 10.0**power
        nats.append(-float(fitted.log_prob(x).mean()) / x.shape[1])
    return min(nats)


def main(updates=700, count=96, seed=0, picture="signals.png"):
    training, held_out = windows(TRAINING), windows(HELD_OUT)
    mean, std = training.mean(), training.std()
    x0, test = (training - mean) / std, ((held_out - mean) / std)[::32]
    denoiser = Denoiser(network(seed), schedules.cosine(100), V)
    for update, loss in enumerate(fit(denoiser, x0, updates, seed=seed)):
        if update % 250 == 0:
            print(f"update {update}: loss {loss:.4f}")

    known = x0[:: len(x0) // 100]
    times = grids.log_snr(denoiser.schedule, 15)[:-1]
    table = calibrate(denoiser, known, Streams(seed, "calibration", range(len(known))), times)
    model = Calibrated(denoiser, table)
    grid = grids.full(denoiser.schedule)
    streams = Streams(seed, "bound", range(len(test)))
    nats, error = mean_and_error(elbo(model, test, grid, Ancestral(optimal), streams, Normal.log_prob).nats / LENGTH)
    print(f"nats/dim of held-out windows: at most {nats:.3f} +- {error:.3f}, Gaussian {gaussian(x0, test):.3f}")

    drawn = sample(model, [1, LENGTH], count, grid, Ancestral(optimal), seed).float() * std + mean
    levels = torch.tensor([0.01, 0.25, 0.5, 0.75, 0.99])
    for name, x in (("drawn", drawn), ("held out", held_out), ("training", training)):
        quantiles = " ".join(f"{value:.3f}" for value in x.flatten()[::8].quantile(levels))
        decibels = " ".join(f"{value:.1f}" for value in octaves(x))
        print(f"{name:9} {middle(intervals(x))}, quantiles {quantiles}, dB by octave {decibels}")
    draw(picture, drawn, held_out)
    return drawn, nats


def draw(picture, drawn, held_out):
    figure = Figure((9, 3.4), layout="constrained")
    axes = figure.subplots(2, 2, width_ratios=(2, 1), sharex="col")
    for axis, x, name in zip(axes[:, 0], (held_out[:: len(held_out) // 5], drawn), ("held out", "drawn"), strict=True):
        axis.plot(x[:5, 0].T.numpy(), linewidth=0.8)
        axis.set_title(name, fontsize=9)
    axes[1, 0].set_xlabel("sample", fontsize=9)
    bins = np.arange(120.5, 165)
    for axis, x, name in zip(axes[:, 1], (held_out, drawn), ("held out", "drawn"), strict=True):
        axis.hist(intervals(x).numpy(), bins)
        axis.set_title(f"intervals, {name}", fontsize=9)
    axes[1, 1].set_xlabel("samples", fontsize=9)
    figure.savefig(picture, dpi=80)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", default="signals.png")
    main(**vars(parser.parse_args()))
