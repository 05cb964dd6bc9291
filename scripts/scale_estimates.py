"""What 1, 8 and 64 GPUs would do, on paper: the table of docs/how-to/scale.md, every figure from what is written here.

    .venv/bin/python scripts/scale_estimates.py          # print it
    .venv/bin/python scripts/scale_estimates.py --write  # put it into the page

Nothing was run on a GPU. Operations and activations are counted on our own networks, on torch's meta device.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from ancestral.runs import build, config
from ancestral.runs.facts import Facts

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "scale.md"
BEGIN, END = "<!-- scripts/scale_estimates.py begins -->", "<!-- scripts/scale_estimates.py ends -->"

# NVIDIA's data sheet of the H100 SXM: dense bfloat16, memory, NVLink in one direction.
PEAK, MEMORY, NVLINK = 989.4e12, 80e9, 450e9
# Assumed, not measured.
UTILISATION = 0.30  # of the peak, in training
BETWEEN = 50e9  # bytes/s of a GPU's own 400 Gbit/s adapter
ACHIEVED = 0.6  # of a link's bytes/s, in an all-reduce
PCIE, DISK = 25e9, 2e9  # bytes/s: a GPU to its CPU, and all processes together to a shared file system
PRICE = 3.0  # dollars for a GPU and hour
NODE = 8  # GPUs


@dataclass(frozen=True)
class Case:
    """A network and how long it is trained."""

    name: str
    preset: str
    facts: Facts
    width: int | None  # None: the preset's
    batch: int  # on each GPU
    images: float  # of the whole training
    divided: bool  # by FSDP2, otherwise DDP


CASES = (
    Case("`cifar10`", "cifar10", Facts((3, 32, 32)), None, 128, 800e3 * 128, False),
    Case("`paper-256`", "paper-256", Facts((3, 256, 256)), None, 16, 2.4e6 * 64, False),
    Case("the same, a billion weights", "paper-256", Facts((3, 256, 256)), 380, 4, 2.4e6 * 64, True),
)


@dataclass(frozen=True)
class Counted:
    """Of one image: floating-point operations of its two passes, and bytes kept in float32 for the second."""

    parameters: int
    flops: float
    activations: float


@cache
def counted(case: Case, batch: int = 1) -> Counted:
    """Run both passes of a case's network without computing anything."""
    settings = config.resolve("DATA", case.preset, {} if case.width is None else {"model.width": case.width})
    with torch.device("meta"):
        network = build.network(settings, case.facts).train()
        x, time = torch.empty(batch, *case.facts.shape), torch.empty(batch)
    kept: dict[int, tuple[Tensor, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = tensor, storage.nbytes()
        return tensor

    own = {value.untyped_storage()._cdata for value in network.parameters()}
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x, time).sum().backward()
    parameters = sum(value.numel() for value in network.parameters())
    activations = sum(size for address, (_, size) in kept.items() if address not in own)
    return Counted(parameters, counter.get_total_flops() / batch, activations / batch)


def rows(case: Case) -> list[str]:
    """A line of the table for each number of GPUs."""
    one = counted(case)
    weights = 4 * one.parameters
    compute = case.batch * one.flops / (UTILISATION * PEAK)
    lines = []
    for gpus in (1, NODE, 8 * NODE):
        link = ACHIEVED * (NVLINK if gpus <= NODE else BETWEEN)
        # All-reduce of float32 gradients: 2 (n - 1) / n of them pass each link. FSDP2 gathers bfloat16 weights twice
        # and scatters float32 gradients once: as many bytes. They overlap with the backward pass, 2/3 of all.
        passed = 2 * (gpus - 1) / gpus * weights / link
        step = compute / 3 + max(2 * compute / 3, passed)
        speed = gpus * case.batch / step
        parts = gpus if case.divided else 1
        # Weights, gradients (with DDP they lie in its buckets), two moments, two averages; activations in bfloat16.
        memory = 6 * weights / parts + case.batch * one.activations / 2
        saved = 5 * weights
        blocks = saved / parts / PCIE  # it is written in the background
        hours = case.images / speed / 3600
        fits = "" if memory < MEMORY else " (does not fit)"
        lines.append(
            f"| {case.name} | {gpus} | {case.batch} | {speed:,.0f} | {memory / 1e9:.1f}{fits} | {saved / 1e9:.2f} | "
            f"{blocks:.2g} | {saved / DISK:.2g} | {hours:,.1f} | {PRICE * gpus * hours:,.0f} |"
        )
    return lines


def table() -> str:
    """The table, with what was counted."""
    lines = [
        "| Network | GPUs | Batch of each | Images/s | Memory of each, GB | Checkpoint, GB | Stands still for it, s | "
        "On disk after, s | Hours | Dollars |",
        "|" + "---|" * 10,
    ]
    notes = []
    for case in CASES:
        one = counted(case)
        lines += rows(case)
        notes.append(
            f"- {case.name}: {one.parameters / 1e6:,.1f} million weights, {one.flops / 1e9:,.1f} GFLOP an image "
            f"(both passes), {one.activations / 2e6:,.0f} MB of activations an image in bfloat16, "
            f"{case.images / 1e6:,.1f} million images."
        )
    return "\n".join([*lines, "", *notes])


if __name__ == "__main__":
    made = table()
    if "--write" in sys.argv:
        before, rest = PAGE.read_text("utf-8").split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.split(END)[1]}", "utf-8")
    print(made)
