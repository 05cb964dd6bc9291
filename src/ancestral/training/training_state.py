"""The tensors of a training that its checkpoints keep, by name.

[auxiliary-]network/NAME            weights of each network
[auxiliary-]optimizer/INDEX/MOMENT  the moments of each parameter, once it was updated
average-WIDTH/NAME                  averages of the first network's weights
sampler/NAME  guard/[PART/]NAME  scaler/NAME
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ancestral.diffusion.objectives.time_sampling import TimeSampler
from ancestral.networks.ema import PowerAverage
from ancestral.runtime.disk import Damaged
from ancestral.runtime.tensor_files import fitting
from ancestral.runtime.tensor_shards import Parts, shapes_of, under
from ancestral.training.gradient_sync import like, on_first, part_of
from ancestral.training.loss_spikes import LossMonitor

MOMENTS = ({"step", "exp_avg", "exp_avg_sq"}, {"step", "momentum"})  # of a parameter: AdamW's, Muon's


@dataclass(frozen=True)
class TrainingState:
    """What of a training changes from update to update, except the images seen."""

    networks: Mapping[str, nn.Module]  # by the prefix of their tensors' names
    optimizers: Mapping[str, torch.optim.Optimizer]  # by that of their network; not every network has one
    averages: Sequence[PowerAverage]
    sampler: TimeSampler
    monitors: Sequence[LossMonitor]
    scaler: torch.amp.GradScaler
    first: bool  # whether this is the first process

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of a checkpoint by name; of divided ones each process must call this, and the first has them."""
        return {name: on_first(value.detach(), self.first) for name, value in self._named().items()}

    def parts(self) -> Parts:
        """Copies of this process's parts of `tensors`, on the CPU; the first has what is not divided."""
        parts: Parts = {}
        for name, value in self._named().items():
            part = part_of(value.detach())
            if part is not None:
                parts[name] = part
            elif self.first:
                parts[name] = value.detach().to("cpu", copy=True), 0
        return parts

    def load(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Load the result of `tensors`, on any number of processes; `where` is what its file is called.

        Raises:
            Damaged: when it is of another network or optimiser.
        """
        self._check(shapes_of(tensors), where)
        try:
            for prefix, network in self.networks.items():
                own = network.state_dict()
                network.load_state_dict(
                    {name: like(value, own[name]) for name, value in under(f"{prefix}network/", tensors).items()}
                )
            for prefix, optimizer in self.optimizers.items():
                state, parameters = optimizer.state_dict(), list(self.networks[prefix].parameters())
                state["state"] = {}
                for name, value in under(f"{prefix}optimizer/", tensors).items():
                    index, _, moment = name.partition("/")
                    state["state"].setdefault(int(index), {})[moment] = like(value, parameters[int(index)])
                optimizer.load_state_dict(state)
            for average in self.averages:
                saved = under(f"average-{average.width:g}/", tensors)
                for name, value in average.weights.items():
                    value.copy_(like(saved[name], value))
            self.sampler.load_state(dict(under("sampler/", tensors)))
            for prefix, monitor in zip(self._guards(), self.monitors, strict=True):
                monitor.load_state(dict(under(prefix, tensors)))
            if self.scaler.is_enabled():
                self.scaler.load_state_dict({name: value.item() for name, value in under("scaler/", tensors).items()})
        except (KeyError, RuntimeError, ValueError) as error:
            raise Damaged(f"{where}: does not fit this configuration ({error})") from None

    def _named(self) -> dict[str, Tensor]:
        named = self._fixed()
        for prefix, optimizer in self.optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                named |= {f"{prefix}optimizer/{index}/{name}": value for name, value in moments.items()}
        named |= {f"scaler/{name}": torch.tensor(value) for name, value in self.scaler.state_dict().items()}
        return named

    def _fixed(self) -> dict[str, Tensor]:
        """Those of `tensors` that are there, with their final shapes, before the first update too."""
        named = {
            f"{prefix}network/{name}": value
            for prefix, network in self.networks.items()
            for name, value in network.state_dict().items()
        }
        for average in self.averages:
            named |= {f"average-{average.width:g}/{name}": value for name, value in average.weights.items()}
        named |= {f"sampler/{name}": value for name, value in self.sampler.state().items()}
        for prefix, monitor in zip(self._guards(), self.monitors, strict=True):
            named |= {f"{prefix}{name}": value for name, value in monitor.state().items()}
        return named

    def _guards(self) -> list[str]:
        """The prefix of each monitor's tensors."""
        return ["guard/", *(f"guard/{part}/" for part in range(1, len(self.monitors)))]

    def _check(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Refuse tensors that are not those of this training, before any is loaded."""
        grown = ("scaler/", *(f"{prefix}optimizer/" for prefix in self.optimizers))
        fitting({name: value for name, value in tensors.items() if not name.startswith(grown)}, self._fixed(), where)
        for prefix in self.optimizers:
            own = f"{prefix}optimizer/"
            parameters = {str(index): value for index, value in enumerate(self.networks[prefix].parameters())}
            kept: dict[str, set[str]] = {}
            for name, value in under(own, tensors).items():
                index, _, moment = name.partition("/")
                if index not in parameters or value.shape != (() if moment == "step" else parameters[index].shape):
                    raise Damaged(f"{where}: {own}{name} is of no parameter, or not of its shape")
                kept.setdefault(index, set()).add(moment)
            for index, moments in kept.items():
                if moments not in MOMENTS:
                    raise Damaged(f"{where}: {own}{index} has {', '.join(sorted(moments))} only")
