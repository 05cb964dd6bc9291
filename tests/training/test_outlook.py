"""What a length buys: words for what was measured, and none for what was not."""

import pytest

from ancestral.runs import config
from ancestral.runs.facts import Facts
from ancestral.training.model_size import laws
from ancestral.training.outlook import COLOUR, GREY, LOOKED_AT, levels_of, outlook


def said(images, channels, side=28, preset="images", seen=0, **changes):
    settings = config.resolve("data", preset, {key.replace("__", "."): value for key, value in changes.items()})
    levels = levels_of(settings, Facts((channels, side, side)))
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
        "0:50 for patches of colour in noise, 1:30 for patches of colour on a clean ground"
    )
    assert said(1000 * 64, 1) == "clean shapes, most of them right"
    assert said(2_500, 3, seen=20_000) == (
        "patches of colour on a clean ground; "
        "3:20 for bodies and frames, grainy, 15:50 for bodies and frames with texture"
    )


@pytest.mark.parametrize(
    "other",
    [{"model__width": 40}, {"side": 64}, {"preset": "tiny"}, {"train__batch_size": 128}, {"diffusion__T": 100}],
)
def test_nothing_is_promised_of_other_settings(other):
    assert "no curve was measured" in said(20_000, 1, **other)
    assert "no curve was measured" in said(20_000, 3, **other)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_wider_network_looks_as_one_of_the_same_loss(channels):
    law = laws()["grey" if channels == 1 else "colour"]
    for level in (GREY if channels == 1 else COLOUR)[1:]:
        needed = law.needed(64, law.loss(LOOKED_AT, level.images))
        assert needed < level.images
        assert level.look not in said(int(0.99 * needed), channels, model__width=64).split(";")[0]
        assert level.look in said(int(1.01 * needed), channels, model__width=64).split(";")[0]


def test_classes_change_no_promise():
    assert "no curve" not in said(20_000, 3, model__labels=True)
