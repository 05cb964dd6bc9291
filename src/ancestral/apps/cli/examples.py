"""One example of each command, shown at the end of its help and in the reference; and the first things to do."""

from __future__ import annotations

import click

FIRST = """\
The first things to do:

  ancestral train mnist --out runs/mnist --budget 5m   train on digits; or: train photos/ --size 32
  ancestral sample runs/mnist --film                   draw images, and the film of how they came about
  ancestral serve runs/mnist --open                    draw, edit and compress in the browser

All commands: ancestral --help. One of them, with an example: ancestral train --help.
"""
EXAMPLES = {
    "train": "ancestral train photos/ --out runs/photos --size 32 --budget 1h",
    "distill": "ancestral distill runs/photos --out runs/fast --calls 2 --budget 10m",
    "sample": "ancestral sample runs/photos --num-images 64 --steps 20 --film",
    "tune-steps": "ancestral tune-steps runs/photos --steps 6",
    "inpaint": "ancestral edit inpaint runs/photos a.png --mask mask.png --fit --out b.png",
    "interpolate": "ancestral edit interpolate runs/photos a.png b.png --frames 9 --fit --out c.png",
    "vary": "ancestral edit vary runs/photos a.png --at 400 --num-images 4 --fit --out b.png",
    "restore": "ancestral edit restore runs/photos a.png --task super-resolution --fit --out b.png",
    "evaluate": "ancestral evaluate runs/photos --num-images 256 --per-image",
    "metrics": "ancestral metrics runs/photos --num-images 2000",
    "rd": "ancestral rd runs/photos --num-images 64 --profile small",
    "likelihood": "ancestral likelihood runs/photos --num-images 64",
    "agree": "ancestral agree runs/photos --num-images 256 --steps 20",
    "explain": "ancestral explain runs/photos --out report.html",
    "compress": "ancestral compress runs/photos photo.png --out photo.anc",
    "decompress": "ancestral decompress runs/photos photo.anc --out photo.png",
    "archive": "ancestral archive runs/photos photos/ --out photos.ancb --steps 20",
    "unarchive": "ancestral unarchive runs/photos photos.ancb --out photos-again/",
    "import": "ancestral import hf:google/ddpm-cifar10-32 --out runs/cifar10",
    "export": "ancestral export runs/photos --out photos-onnx --format onnx --steps 20",
    "push": "ancestral push runs/photos USER/photos",
    "serve": "ancestral serve runs/photos --open",
}


def with_example(command: click.Command) -> click.Command:
    """The command with its example below its options; a group's commands with theirs."""
    for part in command.commands.values() if isinstance(command, click.Group) else [command]:
        part.epilog = f"\b\nExample:\n  {EXAMPLES[str(part.name)]}"
    return command
