"""Draws with network.pt2 as sampler.json says, by torch alone: python draw.py [COUNT] [SEED] [CLASS]."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor


def draw(folder: Path, noise: Iterator[Tensor], labels: Tensor) -> Tensor:
    """Images (B, C, H, W) on [-1, 1] from noise of that shape: the start, then one for each step that adds noise."""
    plan, kept, x = json.loads((folder / "sampler.json").read_text()), {}, next(noise)
    network = torch.export.load(folder / "network.pt2").module()

    def output(x: Tensor, time: float, dropped: bool) -> Tensor:
        given = {"labels": labels} if plan["classes"] else {}
        given |= {"dropped": torch.full((len(x),), dropped)} if plan["null"] else {}
        with torch.no_grad():
            return network(x=x.float(), time=torch.full((len(x),), time), **given)[:, : x.shape[1]].to(x.dtype)

    for number, step in enumerate(plan["steps"]):
        found, scale = output(x, step["time"], False), step["guidance"]
        if scale != 1:
            weak = output(x, step["time"], True)
            found = weak + scale * (found - weak)
        x0 = step["x0"][0] * found + step["x0"][1] * x
        kept |= {2 * number: x, 2 * number + 1: x0.clip(-plan["clip"], plan["clip"]) if plan["clip"] else x0}
        x = sum((factor * kept[index] for index, factor in step["next"]), 0 * x)
        x = x + step["noise"] * next(noise) if step["noise"] else x
        kept = {index: value for index, value in kept.items() if index not in step["done"]}
    return x


if __name__ == "__main__":
    folder, (count, seed, name) = Path(__file__).parent, (*sys.argv[1:], *("16", "0", "")[len(sys.argv) - 1 :])
    plan = json.loads((folder / "sampler.json").read_text())
    labels = [plan["classes"].index(name) if name else i % max(len(plan["classes"]), 1) for i in range(int(count))]
    random = torch.Generator().manual_seed(int(seed))
    shape, wide = [len(labels), *plan["shape"]], torch.float64
    noise = (torch.randn(shape, generator=random, dtype=wide) for _ in [0, *plan["steps"]])
    x = draw(folder, noise, torch.tensor(labels)).clip(-1, 1)
    row = torch.cat([*((x + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)], 1)
    kind, name = ("P5", "images.pgm") if plan["shape"][0] == 1 else ("P6", "images.ppm")
    Path(name).write_bytes(f"{kind} {row.shape[1]} {row.shape[0]} 255\n".encode() + bytes(row.flatten().tolist()))
    print(f"{name}: {count} images side by side")
