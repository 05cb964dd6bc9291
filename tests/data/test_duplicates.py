"""Images that repeat each other: found by all pairs otherwise, and kept on one side of a split."""

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ancestral.data import duplicates
from ancestral.data.dataset import ImageSet, held_out, split_off


def blurred(rng, count, side, channels):
    """Smooth pictures of which many are close to each other, so that the threshold is met from both sides."""
    base = rng.uniform(0, 255, (count // 4, 1, 1, channels)) + rng.normal(0, 8, (count // 4, side, side, channels))
    near = base[rng.integers(0, len(base), count)] + rng.normal(
        0, rng.uniform(0.5, 3, (count, 1, 1, 1)), (count, side, side, channels)
    )
    return near.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [3, 13, 16])
def test_groups_are_those_of_all_pairs(side, channels):
    images = blurred(np.random.default_rng(side), 160, side, channels)
    images[-9:] = images[:9]
    wide = images.reshape(len(images), -1).astype(float)
    close = np.sqrt(np.square(wide[:, None] - wide).mean(-1)) <= duplicates.NEAR
    assert len(images) < close.sum() < len(images) ** 2 / 2
    _, parts = connected_components(coo_array(close))
    smallest = np.array([np.flatnonzero(parts == part)[0] for part in parts])
    assert (duplicates.groups(images) == smallest).all()
    for cut in (40, 120):
        assert (duplicates.across(images[:cut], images[cut:]) == np.flatnonzero(close[cut:, :cut].any(1))).all()


def whole(images):
    return ImageSet(images, None, (), tuple(f"{row:04d}.png" for row in range(len(images))))


@pytest.mark.parametrize("channels", [1, 3])
def test_repeated_images_fall_on_one_side(channels):
    rng = np.random.default_rng(0)
    once = rng.integers(0, 256, (200, 8, 8, channels), np.uint8)
    alone = split_off(whole(once), 0.3, "here")
    # A group of more than half is for training, even where nothing else comes to be for testing by its name.
    names = [f"images[{number}]" for number in range(4)]
    assert held_out(names, 0.1, "here", np.array([0, 0, 0, 3])).tolist() == [False, False, False, True]
    assert (held_out(whole(once).names, 0.3, "here") == np.isin(whole(once).names, alone.test.names)).all()
    twins = (once[:80].astype(int) + rng.integers(-1, 2, once[:80].shape)).clip(0, 255).astype(np.uint8)
    splits = split_off(whole(np.concatenate([once, twins, once[:40]])), 0.3, "here")
    assert len(duplicates.across(splits.train.images, splits.test.images)) == 0
    assert "200 equal or nearly equal" in splits.reading.split  # 80 and their twins, 40 of them a third time
    assert set(alone.test.names) <= set(splits.test.names)  # later names move no old one
    assert set(alone.train.names) <= set(splits.train.names)


def test_sets_of_one_image_and_a_blank_half_can_be_split():
    same = np.zeros((20, 4, 4, 1), np.uint8)
    assert 0 < len(split_off(whole(same), 0.1, "here").test) < 20
    half = np.concatenate([same, np.random.default_rng(0).integers(0, 256, (15, 4, 4, 1), np.uint8)])
    for share in (0.1, 0.5, 0.9):
        splits = split_off(whole(half), share, "here")
        assert splits.test.images[:].any((1, 2, 3)).all()
        assert len(splits.test) > 0
