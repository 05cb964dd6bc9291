"""The options of drawing: what they take from Python, and what they refuse in one line that names them."""

import numpy as np
import pytest

from ancestral.errors import UserError
from ancestral.runs.sampling_options import SamplingOptions


def test_numbers_of_any_kind_are_kept_as_pythons_own():
    options = SamplingOptions(
        seed=np.arange(4)[3], guidance=np.float32(2), steps=np.int64(5), guidance_interval=(-3, 4)
    )
    assert (options.seed, options.guidance, options.steps, options.guidance_interval) == (3, 2.0, 5, (-3.0, 4.0))
    assert [type(one) for one in (options.seed, options.guidance, options.steps)] == [int, float, int]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("precision", "bf16"),
        ("precision", "float16"),
        ("batch_size", 2.5),
        ("batch_size", None),
        ("batch_size", 0),
        ("seed", True),
        ("seed", -1),
        ("seed", "1"),
        ("steps", 0),
        ("steps", 2.5),
        ("eta", 1.5),
        ("guidance", float("nan")),
        ("guidance_interval", (3, -3)),
        ("guidance_interval", (1, 2, 3)),
        ("guidance_interval", "few"),
    ],
)
def test_what_is_none_of_the_declared_values_is_refused_by_name(name, value):
    given = {"guidance": 2.0} if name == "guidance_interval" else {}
    with pytest.raises(UserError, match=f"^{name}: "):
        SamplingOptions(**{**given, name: value})
