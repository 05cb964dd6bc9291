"""Draws images with the sampler in this folder, by onnxruntime or torch, side by side into images.png."""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image


def draw(folder: Path, given: dict[str, np.ndarray]) -> np.ndarray:
    """Images (B, C, H, W) on [-1, 1] of this noise (draws, B, C, H, W) and, where there are classes, labels (B,)."""
    if (folder / "sampler.onnx").exists():
        import onnxruntime

        return np.asarray(onnxruntime.InferenceSession(folder / "sampler.onnx").run(None, given)[0])
    import torch

    tensors = {name: torch.from_numpy(one) for name, one in given.items()}
    return torch.export.load(folder / "sampler.pt2").module()(**tensors).detach().numpy()


if __name__ == "__main__":
    facts = json.loads(Path(__file__).with_name("sampler.json").read_text())
    parser, classes = argparse.ArgumentParser(description=__doc__), facts["classes"]
    parser.add_argument("count", type=int, nargs="?", default=16)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("name", nargs="?", help=f"of a class: {', '.join(classes) or 'this model has none'}")
    count, seed, name = vars(parser.parse_args()).values()
    if count < 1 or seed < 0 or name not in (None, *classes):
        parser.error("a count from 1 on, a seed from 0 on, and the name of a class (see --help)")
    given = {"noise": np.random.default_rng(seed).standard_normal((facts["draws"], count, *facts["shape"]), np.float32)}
    if classes:
        wanted = [classes[name]] if name else sorted(classes.values())
        given["labels"] = np.array([wanted[i % len(wanted)] for i in range(count)])
    images = np.rint((draw(Path(__file__).parent, given).clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    Image.fromarray(np.concatenate([*images.transpose(0, 2, 3, 1)], 1).squeeze()).save("images.png")
