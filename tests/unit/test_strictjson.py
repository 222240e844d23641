"""What strict JSON has no place for."""

from __future__ import annotations

import json
import math

import pytest

from casckpt.strictjson import FLOAT_OF_TEXT, plain, spelled


def test_what_is_plain_has_no_nan_anywhere():
    value = {"a": [math.nan, math.inf, -math.inf, 1.5], "b": (1, {"c": None}), 3: {2.5}}
    found = plain(value)
    assert found == {
        "a": ["NaN", "Infinity", "-Infinity", 1.5], "b": [1, {"c": None}], "3": [2.5]
    }  # fmt: skip
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("text", FLOAT_OF_TEXT)
def test_each_text_stands_for_its_float(text):
    assert spelled(FLOAT_OF_TEXT[text]) == text


@pytest.mark.parametrize("value", [0.0, -1.5, 5e-324, 1.7976931348623157e308])
def test_finite_floats_are_themselves(value):
    assert spelled(value) is value
