"""What a length buys: words for what was measured, and none for what was not."""

import pytest

from ancestral.runs import config
from ancestral.runs.config import Facts
from ancestral.training.outlook import COLOUR, GREY, measured, outlook


def said(images, channels, side=28, preset="images", seen=0, **changes):
    settings = config.resolve("data", preset, {key.replace("__", "."): value for key, value in changes.items()})
    levels = measured(settings, Facts((channels, side, side)))
    return outlook(levels, seen, images, lambda images: images / 100)


@pytest.mark.parametrize(("channels", "levels"), [(1, GREY), (3, COLOUR)])
def test_each_level_is_named_from_its_images_on(channels, levels):
    for level, following in zip(levels, (*levels[1:], None), strict=True):
        assert level.look in said(level.images, channels).split(";")[0]
        if following is not None:
            assert level.look in said(following.images - 1, channels).split(";")[0]
            assert following.look in said(level.images, channels).split(";")[1]


def test_what_more_takes_is_said_in_time():
    assert said(61 * 64, 3) == (
        "too little for anything but colour noise; "
        "2:05 for patches of colour in noise, 4:10 for patches of colour on a clean ground"
    )
    assert said(1000 * 64, 1) == "clean shapes, most of them right"
    assert said(2_500, 3, seen=20_000) == (
        "patches of colour in noise; 0:50 for patches of colour on a clean ground, 20:35 for bodies and frames, grainy"
    )


@pytest.mark.parametrize(
    "other",
    [{"model__width": 48}, {"side": 64}, {"preset": "tiny"}, {"train__batch_size": 128}, {"diffusion__T": 100}],
)
def test_nothing_is_promised_of_other_settings(other):
    assert "no curve was measured" in said(20_000, 1, **other)
    assert "no curve was measured" in said(20_000, 3, **other)


def test_classes_change_no_promise():
    assert "no curve" not in said(20_000, 3, model__labels=True)
