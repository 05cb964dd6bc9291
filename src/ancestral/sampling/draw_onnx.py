"""Draws with network.onnx as sampler.json says, by onnxruntime and numpy: python draw.py [COUNT] [SEED] [CLASS]."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime


def draw(folder: Path, noise: Iterator[np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Images (B, C, H, W) on [-1, 1] from noise of that shape: the start, then one for each step that adds noise."""
    plan, kept, x = json.loads((folder / "sampler.json").read_text()), {}, next(noise)
    network = onnxruntime.InferenceSession(folder / "network.onnx")
    inputs = [one.name for one in network.get_inputs()]

    def output(x: np.ndarray, time: float, dropped: bool) -> np.ndarray:
        given = {"x": x.astype(np.float32), "time": np.full(len(x), time, np.float32), "labels": labels}
        given["dropped"] = np.full(len(x), dropped)
        found = np.asarray(network.run(None, {name: given[name] for name in inputs})[0])
        return found[:, : x.shape[1]].astype(x.dtype)

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
    random = np.random.default_rng(int(seed))
    noise = (random.standard_normal((len(labels), *plan["shape"])) for _ in [0, *plan["steps"]])
    x = draw(folder, noise, np.array(labels, np.int64)).clip(-1, 1)
    row = np.concatenate([*np.rint((x + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)], axis=1)
    kind, name = ("P5", "images.pgm") if plan["shape"][0] == 1 else ("P6", "images.ppm")
    Path(name).write_bytes(f"{kind} {row.shape[1]} {row.shape[0]} 255\n".encode() + row.tobytes())
    print(f"{name}: {count} images side by side")
