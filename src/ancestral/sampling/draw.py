"""Draws with the sampler in this folder, by onnxruntime or torch: python draw.py [COUNT] [SEED] [CLASS]."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def draw(folder: Path, given: dict[str, np.ndarray]) -> np.ndarray:
    """Images (B, C, H, W) on [-1, 1] of this noise (draws, B, C, H, W) and, where there are classes, labels (B,)."""
    if (folder / "sampler.onnx").exists():
        import onnxruntime

        return np.asarray(onnxruntime.InferenceSession(folder / "sampler.onnx").run(None, given)[0])
    import torch

    sampler = torch.export.load(folder / "sampler.pt2").module()
    with torch.no_grad():
        return sampler(**{name: torch.from_numpy(one) for name, one in given.items()}).numpy()


if __name__ == "__main__":
    folder, (count, seed, name) = Path(__file__).parent, (*sys.argv[1:], *("16", "0", "")[len(sys.argv) - 1 :])
    facts = json.loads((folder / "sampler.json").read_text())
    shape, classes = (facts["draws"], int(count), *facts["shape"]), facts["classes"]
    if name and name not in classes:
        sys.exit(f"{name}: no class of this model; its classes: {', '.join(classes) or 'none'}")
    given = {"noise": np.random.default_rng(int(seed)).standard_normal(shape, np.float32)}
    if classes:
        given["labels"] = np.array([classes.index(name) if name else i % len(classes) for i in range(int(count))])
    images = np.rint((draw(folder, given).clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    Image.fromarray(np.concatenate([*images.transpose(0, 2, 3, 1)], 1).squeeze()).save("images.png")
    print(f"images.png: {count} images side by side")
