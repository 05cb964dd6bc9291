"""Documents are JSON for every reader."""

import json
import math

from ancestral.runtime.encode import json_bytes


def test_numbers_that_json_does_not_have_are_null():
    def refuse(constant):
        raise AssertionError(constant)

    document = {"a": math.nan, "b": [1.5, math.inf, (-math.inf, "x")], "c": {"d": math.nan, "e": None}}
    read = json.loads(json_bytes(document), parse_constant=refuse)
    assert read == {"a": None, "b": [1.5, None, [None, "x"]], "c": {"d": None, "e": None}}
