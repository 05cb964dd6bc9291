"""Algorithm 1 and nothing else, for real-valued data of any shape that fit in memory.

For bytes, checkpoints, resuming and several processes there is `ancestral.training.trainer`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ancestral.diffusion.denoisers.denoiser import Denoiser
from ancestral.diffusion.objectives.losses import Weighted
from ancestral.diffusion.objectives.objective import Objective
from ancestral.diffusion.objectives.time_sampling import TimeSampler, stratified
from ancestral.diffusion.processes.streams import Streams, stream
from ancestral.diffusion.samplers.grids import full
from ancestral.networks.ema import PowerAverage
from ancestral.training.trainer import learning_rate

SIMPLE = Weighted()
AVERAGE_WIDTH = 0.05  # of the weights, as a share of the run (`ema.PowerAverage`)


def fit(
    denoiser: Denoiser,
    x0: Tensor,
    updates: int,
    batch_size: int = 32,
    peak: float = 1e-3,
    seed: int = 0,
    objective: Objective = SIMPLE,
) -> Iterator[float]:
    """Train the denoiser's network, yielding the loss of each update; the last leaves it with its averaged weights.

    Which data, times and noise are drawn is a function of the seed; the network starts from the weights it has.

    Args:
        denoiser: whose network is trained.
        x0: (N, ...) float, of about unit size, such as divided by its standard deviation.
        updates: of the weights.
        batch_size: data an update, drawn with replacement.
        peak: of the learning rate, which rises for a twentieth of the run and falls to zero over its second half.
        seed: of everything drawn.
        objective: the loss.

    Raises:
        ArithmeticError: when the loss is no longer finite.
    """
    network, times = denoiser.network.train(), TimeSampler(full(denoiser.schedule))
    optimizer = torch.optim.AdamW(network.parameters(), peak, (0.9, 0.99), weight_decay=0.0)
    average = PowerAverage(AVERAGE_WIDTH, {name: value.clone() for name, value in network.state_dict().items()})
    for update in range(updates):
        numbers = range(update * batch_size, (update + 1) * batch_size)
        rows = stream(seed, "rows", update).integers(len(x0), size=batch_size)
        index, _ = times.draw(stratified(seed, numbers))
        eps = Streams(seed, "eps", numbers).normal(x0.shape[1:]).to(x0)
        loss = objective(denoiser, x0[rows], times.t[index], times.s[index], eps).mean()
        if not loss.isfinite():
            raise ArithmeticError(f"the loss is {loss.item()} at update {update}: lower the peak of the learning rate")
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(update / updates, peak, warmup=0.05, decay=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(network.state_dict(), numbers.stop, batch_size)
        if update + 1 == updates:
            network.load_state_dict(average.weights)
            network.eval()
        yield loss.item()
